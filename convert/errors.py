"""What can go wrong when converting, in words for the person who converts."""

from florence_tagger.errors import TaggerError


class ConversionError(TaggerError):
    """A checkpoint can't be converted, or the result can't be written; its text says why and what is accepted.

    What libraries say comes in many lines; here it is one.
    """

    def __str__(self) -> str:
        return " ".join(super().__str__().split())
