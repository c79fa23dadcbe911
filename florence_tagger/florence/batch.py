"""The sequences that the decoder runs together: each step decodes one token for every one of them."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from florence_tagger.errors import ModelError
from florence_tagger.florence.decoding import Decoded, GenerationSettings, Search, StepInput, TopK, search

Key = TypeVar("Key", bound=Hashable)
Picture = TypeVar("Picture", contravariant=True)


class Decoder(Protocol[Picture]):
    """A decoder that computes the top-k tokens of a step: a `StatefulDecoder` or a `PackedDecoder`."""

    @property
    def num_candidates(self) -> int:
        """Number K of next tokens that a step returns for each row."""

    def add(self, picture: Picture, /) -> None:
        """Append an encoded picture."""

    def remove(self, index: int, /) -> None:
        """Remove a picture; the last one takes its index."""

    def step(self, step_inputs: Sequence[StepInput], /) -> list[TopK]:
        """Return the top-k tokens for one step input per picture, in the order of the pictures."""


@dataclass
class RunningSequence(Generic[Key]):
    """A sequence that is being decoded, with the input of its next step."""

    key: Key
    search: Search
    step_input: StepInput


class Batch(Generic[Key, Picture]):
    """The running sequences of a decoder; a sequence may join before any step and leaves when it is finished."""

    def __init__(self, decoder: Decoder[Picture]) -> None:
        self._decoder = decoder
        self._running: list[RunningSequence[Key]] = []  # in the order of the decoder's indices

    def add(self, key: Key, picture: Picture, settings: GenerationSettings) -> None:
        """Add a sequence for an encoded picture; `step` returns its outcome by `key`.

        Raises:
            ModelError: the settings have more beams than the decoder has candidates for.
        """
        if 2 * settings.num_beams > self._decoder.num_candidates:
            raise ModelError(
                f"{settings.num_beams} beams are wanted; {self._decoder.num_candidates // 2} can be searched."
            )
        new_search = search(settings)
        self._decoder.add(picture)
        self._running.append(RunningSequence(key, new_search, next(new_search)))

    def step(self) -> dict[Key, Decoded | Exception]:
        """Decode one token for every running sequence; return finished and failed sequences by key."""
        if not self._running:
            return {}
        try:
            top_k = self._decoder.step([sequence.step_input for sequence in self._running])
        except Exception as exc:  # noqa: BLE001 - it fails all sequences, each of which has its own caller
            finished: dict[Key, Decoded | Exception] = {sequence.key: exc for sequence in self._running}
        else:
            finished = self._advance(top_k)
        for index in reversed(range(len(self._running))):
            if self._running[index].key in finished:
                self._remove(index)
        return finished

    def _advance(self, top_k: Sequence[TopK]) -> dict[Key, Decoded | Exception]:
        """Send each search its top-k tokens; return finished and failed sequences by key."""
        finished: dict[Key, Decoded | Exception] = {}
        for sequence, candidates in zip(self._running, top_k, strict=True):
            try:
                sequence.step_input = sequence.search.send(candidates)
            except StopIteration as stop:
                finished[sequence.key] = stop.value
            except Exception as exc:  # noqa: BLE001 - one sequence's failure must not fail the others
                finished[sequence.key] = exc
        return finished

    def _remove(self, index: int) -> None:
        """Remove a sequence; the last one takes its index, here and in the decoder."""
        self._decoder.remove(index)
        last = self._running.pop()
        if index < len(self._running):
            self._running[index] = last
