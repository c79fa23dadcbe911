"""Text to token ids and back, with the kind of each token. The only user of the `tokenizers` library."""

from collections.abc import Sequence
from enum import Enum, auto

from tokenizers import Tokenizer as TokenizerFile

from florence_tagger.errors import ModelError
from florence_tagger.prompts import SEPARATOR

LOCATION_BINS = 1000
SEQUENCE_TOKENS = ("<s>", "</s>", "<pad>")
POLYGON_START = "<poly>"


class Kind(Enum):
    """The kind of a token: text, location, start, end or padding of a sequence, `<and>`, or another special token."""

    TEXT = auto()
    LOCATION = auto()
    SEQUENCE = auto()
    SEPARATOR = auto()
    TASK = auto()


class Tokenizer:
    """A checkpoint's tokenizer, from the text of its `tokenizer.json`.

    Raises:
        ModelError: the text is not a tokenizer, or lacks the sequence tokens or 1,000 consecutive location tokens.
    """

    def __init__(self, text: str) -> None:
        try:
            self._tokenizer = TokenizerFile.from_str(text)
        except Exception as exc:  # the library raises no narrower type
            raise ModelError("tokenizer.json is not a tokenizer that the library tokenizers reads.") from exc
        # A training run may have stored padding and truncation in the file; a prompt has neither.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._kinds = dict.fromkeys(self._tokenizer.get_added_tokens_decoder(), Kind.TASK)
        self._kinds |= {self._require_id(token): Kind.SEQUENCE for token in SEQUENCE_TOKENS}
        if (separator := self._tokenizer.token_to_id(SEPARATOR)) is not None:
            self._kinds[separator] = Kind.SEPARATOR
        self.first_location = self._require_id("<loc_0>")
        self.polygon_start = self.id_of(POLYGON_START)
        self._kinds |= {self._require_location(index): Kind.LOCATION for index in range(LOCATION_BINS)}

    @property
    def size(self) -> int:
        """Number of token ids."""
        return int(self._tokenizer.get_vocab_size())

    def encode(self, text: str) -> tuple[int, ...]:
        """Return the token ids of a prompt, start and end of the sequence included."""
        return tuple(self._tokenizer.encode(f"<s>{text}</s>", add_special_tokens=False).ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids; ids beyond the vocabulary have no text."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=False))

    def id_of(self, token: str) -> int | None:
        """Return the id of a token by its text, None if the vocabulary lacks it."""
        token_id: int | None = self._tokenizer.token_to_id(token)
        return token_id

    def kind(self, token_id: int) -> Kind:
        """Return the kind of a token."""
        return self._kinds.get(token_id, Kind.TEXT)

    def _require_id(self, token: str) -> int:
        token_id = self.id_of(token)
        if token_id is None:
            raise ModelError(f"The tokenizer has no token {token}: it is not Florence-2's.")
        return token_id

    def _require_location(self, index: int) -> int:
        token_id = self._require_id(f"<loc_{index}>")
        if token_id != self.first_location + index:
            raise ModelError(f"The tokenizer's location tokens are not in a row: <loc_{index}> is {token_id}.")
        return token_id
