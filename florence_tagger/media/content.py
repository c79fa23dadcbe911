"""Source of a document, the text of `source.content` or a path -> the bytes of a file.

pybase64 decodes, because it takes 1 ms for a photo of 4 MB and the standard library 15 ms.
"""

import binascii
import os
import re
import string
from pathlib import Path

import pybase64

from florence_tagger.errors import DocumentError
from florence_tagger.media.formats import HEAD_BYTES, find_format
from florence_tagger.wording import system_words

_SPACE = str.maketrans("", "", string.whitespace)
URL_SAFE = b"-_"  # in place of + and / in base64url (RFC 4648, 5)
NOT_BASE64 = re.compile(r"[^A-Za-z0-9+/_-]")
ENCODED = re.compile(rb"[A-Za-z0-9+/_\s-]+={0,2}\s*|data:[^,]*,.*", re.DOTALL | re.IGNORECASE)


def decode_base64(text: str, max_bytes: int) -> bytes:
    """Decode base64 or base64url; white space is ignored.

    The text may have a `data:` prefix, and its padding may be missing.

    Raises:
        DocumentError: the text is not base64, or its content is empty, larger than `max_bytes`, or a file in base64
            again.
    """
    if any(space in text for space in string.whitespace):
        text = text.translate(_SPACE)
    text = without_prefix(text)
    if len(text) // 4 * 3 > max_bytes + 2:
        raise too_large(max_bytes)
    try:
        content = decode_text(text)
    except (binascii.Error, ValueError) as exc:
        raise DocumentError(f"source.content is not base64: {why_not_base64(text)}.") from exc
    if not content:
        raise DocumentError("source.content is empty.")
    if is_encoded_file(content):
        raise DocumentError("source.content is base64 of base64; the file is wanted in base64 once.")
    return content


def without_prefix(text: str) -> str:
    """Return a text without the prefix of a `data:` URL."""
    return text.partition(",")[2] if text[:5].lower() == "data:" else text


def decode_text(text: str) -> bytes:
    """Decode base64 or base64url, possibly without padding; raise ValueError if a text is neither."""
    padded = text + "=" * (-len(text) % 4)
    alternative = URL_SAFE if "-" in text or "_" in text else None
    return pybase64.b64decode(padded, altchars=alternative, validate=True)


def why_not_base64(text: str) -> str:
    """Return the reason why a text is not base64, and what is accepted."""
    if "://" in text[:20]:
        return "it looks like a URL, and nothing is fetched; the file itself is wanted, in base64"
    if match := NOT_BASE64.search(text.rstrip("=")):
        return f"character {match.start() + 1} of it is {match[0]!r}; the file is wanted in base64"
    return "its length can't be; the file is wanted in base64, whole"


def is_encoded_file(content: bytes) -> bool:
    """Return True if a file is itself the base64 text of a picture or video."""
    if not ENCODED.fullmatch(content[:64]):  # quick check: no picture starts like base64
        return False
    try:
        text = without_prefix("".join(content[: 2 * HEAD_BYTES].decode("ascii").split())).rstrip("=")
        find_format(decode_text(text[: len(text) // 4 * 4]))
    except (DocumentError, ValueError):
        return False
    return True


def read_file(path: str | os.PathLike[str], max_bytes: int) -> bytes:
    """Read the file at `path`, which may be a pipe, up to the accepted size.

    Raises:
        DocumentError: it can't be read, is empty, or has more than `max_bytes`.
    """
    try:
        with Path(path).open("rb") as file:
            return check_size(file.read(max_bytes + 1), max_bytes)
    except OSError as exc:
        raise DocumentError(f"The file can't be read: {system_words(exc)}.") from exc
    except ValueError as exc:
        raise DocumentError("The file can't be read: its name has a null character.") from exc


def check_size(content: bytes, max_bytes: int) -> bytes:
    """Return a file's bytes; raise DocumentError if it is empty or has more than `max_bytes`."""
    if not content:
        raise DocumentError("The file is empty.")
    if len(content) > max_bytes:
        raise too_large(max_bytes)
    return content


def too_large(max_bytes: int) -> DocumentError:
    """Return the error for a file of more than `max_bytes`."""
    return DocumentError(f"The file is larger than {max_bytes / 1e6:g} MB, the most for one document.")
