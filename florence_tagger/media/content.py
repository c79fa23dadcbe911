"""Where a document comes from, the text of `source.content` or a path -> the bytes of a file.

pybase64, because the standard library takes 15 ms for a photo of 4 MB and this takes one.
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
URL_SAFE = b"-_"  # what stands for + and / in base64url (RFC 4648, 5)
NOT_BASE64 = re.compile(r"[^A-Za-z0-9+/_-]")
ENCODED = re.compile(rb"[A-Za-z0-9+/_\s-]+={0,2}\s*|data:[^,]*,.*", re.DOTALL | re.IGNORECASE)


def decode_base64(text: str, max_bytes: int) -> bytes:
    """The bytes that a text stands for in base64 or base64url, white space ignored.

    A `data:` prefix may stand before it, and its padding may be missing.

    Raises:
        DocumentError: the text is not base64, or stands for nothing, more than `max_bytes`, or a file in base64 again.
    """
    if any(space in text for space in string.whitespace):
        text = text.translate(_SPACE)
    text = without_prefix(text)
    if len(text) // 4 * 3 > max_bytes + 2:
        raise too_large(max_bytes)
    try:
        content = decoded(text)
    except (binascii.Error, ValueError) as exc:
        raise DocumentError(f"source.content is not base64: {why_not_base64(text)}.") from exc
    if not content:
        raise DocumentError("source.content is empty.")
    if is_encoded_file(content):
        raise DocumentError("source.content is base64 of base64; the file is wanted in base64 once.")
    return content


def without_prefix(text: str) -> str:
    """A text without what a `data:` URL has before its base64."""
    return text.partition(",")[2] if text[:5].lower() == "data:" else text


def decoded(text: str) -> bytes:
    """What base64 or base64url stands for; ValueError where a text is neither."""
    padded = text + "=" * (-len(text) % 4)
    alternative = URL_SAFE if "-" in text or "_" in text else None
    return pybase64.b64decode(padded, altchars=alternative, validate=True)


def why_not_base64(text: str) -> str:
    """What keeps a text from being base64, and what is wanted."""
    if "://" in text[:20]:
        return "it looks like a URL, and nothing is fetched; the file itself is wanted, in base64"
    if odd := NOT_BASE64.search(text.rstrip("=")):
        return f"character {odd.start() + 1} of it is {odd[0]!r}; the file is wanted in base64"
    return "its length can't be; the file is wanted in base64, whole"


def is_encoded_file(content: bytes) -> bool:
    """Whether a file is the text of another in base64, which is a picture or video."""
    if not ENCODED.fullmatch(content[:64]):  # quick: no picture begins so
        return False
    try:
        text = without_prefix("".join(content[: 2 * HEAD_BYTES].decode("ascii").split())).rstrip("=")
        find_format(decoded(text[: len(text) // 4 * 4]))
    except (DocumentError, ValueError):
        return False
    return True


def read_file(path: str | os.PathLike[str], max_bytes: int) -> bytes:
    """The bytes of the file at `path`, which may be a pipe: no more is read than is accepted.

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
    """The file itself; DocumentError where it is empty or has more than `max_bytes`."""
    if not content:
        raise DocumentError("The file is empty.")
    if len(content) > max_bytes:
        raise too_large(max_bytes)
    return content


def too_large(max_bytes: int) -> DocumentError:
    """What is said of a file of more than `max_bytes`."""
    return DocumentError(f"The file is larger than {max_bytes / 1e6:g} MB, the most for one document.")
