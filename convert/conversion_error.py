"""The converter's error, whose text is shown to the user."""

from florence_tagger.errors import TaggerError

# Part of messages of failures that only the library's own message explains.
VERBOSE = "the same command with --verbose shows what the library says"


class ConversionError(TaggerError):
    """A failed conversion; the text gives the reason and what is accepted.

    A library's own message is in the cause, never in the text.
    """
