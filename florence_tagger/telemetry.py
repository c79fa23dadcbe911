"""The interface through which the stages report durations and counts, independent of any metrics library."""

from enum import StrEnum

from florence_tagger.schemas import FrameResult


class Stage(StrEnum):
    """A stage of a document's processing, by its label in /metrics."""

    DECODE_FILE = "decode_file"  # bytes to frames, waits for a decoder process and for queue slots included
    QUEUE = "queue"  # a frame waits for its prefill
    PREFILL = "encode"  # the vision tower and the encoder process a frame
    DECODE_STEP = "decode_step"  # the decoder generates a token for every running sequence


class Telemetry:
    """Callbacks for measurements, called from any thread; this base class discards them."""

    def observe_stage(self, stage: Stage, seconds: float) -> None:
        """Record the duration of a stage."""

    def observe_step(self, num_sequences: int) -> None:
        """Record the number of sequences in a decode step."""

    def observe_tiles(self, num_tiles: int) -> None:
        """Record the number of tiles that a document's pictures were cut into."""

    def observe_result(self, frame_result: FrameResult) -> None:
        """Record the result of a frame."""
