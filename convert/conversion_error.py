"""What can go wrong when converting, in words for the person who converts."""

from florence_tagger.errors import TaggerError

VERBOSE = "the same command with --verbose shows what the library says"  # where a library's words are all there is


class ConversionError(TaggerError):
    """A checkpoint can't be converted, or the result can't be written; its text says why and what is accepted.

    What a library said is its cause, and not in its text.
    """
