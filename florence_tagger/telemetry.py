"""What the stages tell of their work to whoever wants to know; they know no metrics, and metrics no stage."""

from enum import StrEnum

from florence_tagger.schemas import FrameResult


class Stage(StrEnum):
    """Where a document spends its time."""

    DECODE_FILE = "decode_file"  # bytes to frames, waiting for a decoder process and for places in the queue included
    QUEUE = "queue"  # a frame waits for the model
    ENCODE = "encode"  # the model looks at a frame
    DECODE_STEP = "decode_step"  # the model takes the answers under way a token on


class Telemetry:
    """Hears what happens, from any thread; this one forgets it."""

    def took(self, stage: Stage, seconds: float) -> None:
        """A stage ended after so many seconds."""

    def stepped(self, frames: int) -> None:
        """So many answers are taken a token on together."""

    def cut(self, tiles: int) -> None:
        """A document's pictures were cut into so many tiles."""

    def detected(self, detection: FrameResult) -> None:
        """The model is done with a frame."""
