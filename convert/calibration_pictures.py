"""Pictures of a folder for calibration and comparison, decoded by the service's own code."""

from pathlib import Path
from typing import Any

from convert.conversion_error import ConversionError
from florence_tagger.errors import DocumentError
from florence_tagger.media.images import open_picture, open_rgb
from florence_tagger.schemas import Frame
from florence_tagger.wording import system_words

SUFFIXES = (".png", ".jpg", ".jpeg")
MAX_PIXELS = 100_000_000


def find_pictures(folder: Path, limit: int | None = None, min_pictures: int = 1) -> list[Path]:
    """Return the first `limit` pictures of a folder, by name.

    Raises:
        ConversionError: the folder can't be read, or has fewer than `min_pictures` pictures.
    """
    try:
        paths = [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file()]
    except OSError as exc:
        raise ConversionError(f"{folder} can't be read: {system_words(exc)}.") from exc
    if len(paths) < min_pictures:
        raise ConversionError(
            f"{folder} has {len(paths)} pictures ({', '.join(SUFFIXES)}); {min_pictures} or more are needed."
        )
    return sorted(paths)[:limit]


def read_frame(path: Path, image_size: tuple[int, int]) -> Frame:
    """Return the picture in a file at the model's input size (height, width); DocumentError if it can't be read."""
    return open_picture(read_bytes(path), image_size, MAX_PIXELS)


def read_rgb(path: Path) -> Any:
    """Return the picture in a file at its original size, as a Pillow image; DocumentError if it can't be read."""
    return open_rgb(read_bytes(path), MAX_PIXELS)


def read_bytes(path: Path) -> bytes:
    """Return the content of a picture's file; DocumentError if it can't be read."""
    try:
        return path.read_bytes()
    except OSError as exc:
        raise DocumentError(f"The file can't be read: {system_words(exc)}.") from exc
