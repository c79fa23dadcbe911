"""Answers of several pictures decoded together: each step takes every one of them a token on."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from florence_tagger.errors import ModelError
from florence_tagger.florence.decoding import Decoded, GenerationSettings, Search, StepInput, TopK, search

Key = TypeVar("Key", bound=Hashable)
Picture = TypeVar("Picture", contravariant=True)


class Decoder(Protocol[Picture]):
    """What answers the queries: a `StatefulDecoder` or a `PackedDecoder`."""

    @property
    def candidates(self) -> int: ...
    def add(self, picture: Picture, /) -> None: ...
    def remove(self, place: int) -> None: ...
    def step(self, queries: Sequence[StepInput]) -> list[TopK]: ...


@dataclass
class Answer(Generic[Key]):
    """An answer under way, and what it asks next."""

    key: Key
    search: Search
    query: StepInput


class Batch(Generic[Key, Picture]):
    """The answers that a decoder is at; they come when it suits them and leave when they are finished."""

    def __init__(self, decoder: Decoder[Picture]) -> None:
        self._decoder = decoder
        self._answers: list[Answer[Key]] = []  # in the order of the decoder's places

    def start(self, key: Key, picture: Picture, settings: GenerationSettings) -> None:
        """Begins the answer for a picture, which `step` will tell by `key`.

        Raises:
            ModelError: the settings want more beams than the decoder has candidates for.
        """
        if 2 * settings.num_beams > self._decoder.candidates:
            raise ModelError(f"{settings.num_beams} beams are wanted; {self._decoder.candidates // 2} can be searched.")
        begun = search(settings)
        self._decoder.add(picture)
        self._answers.append(Answer(key, begun, next(begun)))

    def step(self) -> dict[Key, Decoded | Exception]:
        """Takes all answers a token on; the ones that are finished, or what went wrong with them."""
        if not self._answers:
            return {}
        try:
            told = self._decoder.step([answer.query for answer in self._answers])
        except Exception as exc:  # noqa: BLE001 - it has struck all of them, and each belongs to somebody
            ended: dict[Key, Decoded | Exception] = {answer.key: exc for answer in self._answers}
        else:
            ended = self._go_on(told)
        for place in reversed(range(len(self._answers))):
            if self._answers[place].key in ended:
                self._remove(place)
        return ended

    def _go_on(self, told: Sequence[TopK]) -> dict[Key, Decoded | Exception]:
        """Hands each search what it asked for; what those that end with it say."""
        ended: dict[Key, Decoded | Exception] = {}
        for answer, candidates in zip(self._answers, told, strict=True):
            try:
                answer.query = answer.search.send(candidates)
            except StopIteration as stop:
                ended[answer.key] = stop.value
            except Exception as exc:  # noqa: BLE001 - one answer's failure is not that of the others
                ended[answer.key] = exc
        return ended

    def _remove(self, place: int) -> None:
        """Forgets an answer; the last one takes its place, here and in the decoder."""
        self._decoder.remove(place)
        last = self._answers.pop()
        if place < len(self._answers):
            self._answers[place] = last
