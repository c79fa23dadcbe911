"""Text to token ids and back, with what the ids mean to Florence-2. The only user of the `tokenizers` library."""

from collections.abc import Sequence
from enum import Enum, auto

from tokenizers import Tokenizer as TokenizerFile

from florence_tagger.errors import ModelError
from florence_tagger.prompts import SEPARATOR

LOCATION_BINS = 1000
SEQUENCE_MARKS = ("<s>", "</s>", "<pad>")
POLYGON_START = "<poly>"


class Kind(Enum):
    """What a token is: text, a location, the frame of the sequence, `<and>` between names, or a task's other mark."""

    TEXT = auto()
    LOCATION = auto()
    SEQUENCE = auto()
    SEPARATOR = auto()
    TASK = auto()


class Tokenizer:
    """A checkpoint's tokenizer, from the text of its `tokenizer.json`.

    Raises:
        ModelError: the text is not a tokenizer, or lacks the sequence marks or the 1,000 location tokens in a row.
    """

    def __init__(self, text: str) -> None:
        try:
            self._file = TokenizerFile.from_str(text)
        except Exception as exc:  # the library raises nothing more exact
            raise ModelError("tokenizer.json is not a tokenizer that the library tokenizers reads.") from exc
        # A training run may have left these in the file; a prompt is never padded or cut.
        self._file.no_padding()
        self._file.no_truncation()
        self._kinds = dict.fromkeys(self._file.get_added_tokens_decoder(), Kind.TASK)
        self._kinds |= {self._id_of(mark): Kind.SEQUENCE for mark in SEQUENCE_MARKS}
        if (separator := self._file.token_to_id(SEPARATOR)) is not None:
            self._kinds[separator] = Kind.SEPARATOR
        self.first_location = self._id_of("<loc_0>")
        self.polygon_start = self._file.token_to_id(POLYGON_START)  # None where there is none
        self._kinds |= {self._location_id(index): Kind.LOCATION for index in range(LOCATION_BINS)}

    @property
    def size(self) -> int:
        """How many token ids there are."""
        return int(self._file.get_vocab_size())

    def encode(self, text: str) -> tuple[int, ...]:
        """The ids of a prompt, between the marks of a sequence."""
        return tuple(self._file.encode(f"<s>{text}</s>", add_special_tokens=False).ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of token ids; ids beyond the vocabulary have none."""
        return str(self._file.decode(list(token_ids), skip_special_tokens=False))

    def id_of(self, token: str) -> int | None:
        """The id of a token by its text, None where there is none."""
        token_id: int | None = self._file.token_to_id(token)
        return token_id

    def kind(self, token_id: int) -> Kind:
        return self._kinds.get(token_id, Kind.TEXT)

    def _id_of(self, token: str) -> int:
        token_id = self._file.token_to_id(token)
        if token_id is None:
            raise ModelError(f"The tokenizer has no token {token}: it is not Florence-2's.")
        return int(token_id)

    def _location_id(self, index: int) -> int:
        token_id = self._id_of(f"<loc_{index}>")
        if token_id != self.first_location + index:
            raise ModelError(f"The tokenizer's location tokens are not in a row: <loc_{index}> is {token_id}.")
        return token_id
