"""The pictures of a folder, to calibrate with and to compare on; the service's own code opens them."""

from pathlib import Path
from typing import Any

from convert.conversion_error import ConversionError
from florence_tagger.errors import DocumentError
from florence_tagger.media.images import open_picture, open_rgb
from florence_tagger.schemas import Frame
from florence_tagger.wording import system_words

SUFFIXES = (".png", ".jpg", ".jpeg")
MAX_PIXELS = 100_000_000


def find_pictures(folder: Path, limit: int | None = None, least: int = 1) -> list[Path]:
    """The first `limit` pictures of a folder, by name; ConversionError where it has fewer than `least`."""
    try:
        found = [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file()]
    except OSError as exc:
        raise ConversionError(f"{folder} can't be read: {system_words(exc)}.") from exc
    if len(found) < least:
        raise ConversionError(
            f"{folder} has {len(found)} pictures ({', '.join(SUFFIXES)}); {least} or more are needed."
        )
    return sorted(found)[:limit]


def read_frame(path: Path, image_size: tuple[int, int]) -> Frame:
    """The picture in a file at the model's input size (height, width); DocumentError where it can't be read."""
    return open_picture(read_bytes(path), image_size, MAX_PIXELS)


def read_rgb(path: Path) -> Any:
    """The picture in a file in its own size, as Pillow's; DocumentError where it can't be read."""
    return open_rgb(read_bytes(path), MAX_PIXELS)


def read_bytes(path: Path) -> bytes:
    """The content of a picture's file; DocumentError where there is none."""
    try:
        return path.read_bytes()
    except OSError as exc:
        raise DocumentError(f"The file can't be read: {system_words(exc)}.") from exc
