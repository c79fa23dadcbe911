"""Options and limits for decoding one document."""

from dataclasses import dataclass

from florence_tagger.errors import DocumentError
from florence_tagger.tiling import UNTILED

MAX_SIDE = 65_535  # pixels; JPEG's own limit. Pillow's resize needs memory that grows with the longer side alone
ORIGINAL_SIZE = (0, 0)  # `image_size` of frames that keep their size; not together with `reduced`


@dataclass(frozen=True)
class DecodeOptions:
    """Options for decoding one document.

    Attributes:
        image_size: (height, width) of the model's input, pixels, which every frame is resized to; `ORIGINAL_SIZE` to
            keep the size.
        max_pixels: maximum pixels of a picture, page or frame.
        max_pages: maximum pages of a TIFF file.
        reduced: decode large JPEGs at a smaller scale, each side still at least twice the model's input, also that of
            a tile.
        tiles: tiles a side for each picture, page or frame; the last value applies to all further ones.
    """

    image_size: tuple[int, int]
    max_pixels: int
    max_pages: int = 100
    reduced: bool = False
    tiles: tuple[int, ...] = UNTILED

    def tiles_for(self, index: int) -> int:
        """Return the tiles a side of a picture by its index in the document."""
        return self.tiles[min(index, len(self.tiles) - 1)]

    @property
    def min_reduced_side(self) -> int:
        """Minimum pixels of each side of a picture that is decoded at a smaller scale."""
        return 2 * max(self.image_size) * max(self.tiles)


@dataclass(frozen=True)
class SandboxLimits:
    """Limits of a decoder process.

    Attributes:
        options: of the documents that it decodes.
        memory_bytes: maximum growth of its address space after its start.
        seconds: maximum time for one document.
    """

    options: DecodeOptions
    memory_bytes: int
    seconds: float


def check_pixels(width: int, height: int, max_pixels: int) -> None:
    """Raise DocumentError if a picture has more than `max_pixels` or a side longer than `MAX_SIDE`."""
    size = f"The picture has {width} x {height} pixels"
    if width * height > max_pixels:
        raise DocumentError(f"{size}, more than the {max_pixels:,} accepted (FLORENCE_MAX_PIXELS).")
    if max(width, height) > MAX_SIDE:
        raise DocumentError(f"{size}; a side of {MAX_SIDE:,} is accepted.")
