"""What decoding a document may cost."""

from dataclasses import dataclass

from florence_tagger.errors import DocumentError
from florence_tagger.tiling import WHOLE

MAX_SIDE = 65_535  # pixels; JPEG's own limit. Pillow's resize needs memory that grows with the longer side alone
OWN_SIZE = (0, 0)  # of frames that are to stay as large as they are; not together with `reduced`
LOOK_SECONDS = 0.25  # how often one who waits looks whether it is still wanted


@dataclass(frozen=True)
class DecodeOptions:
    """Of one document.

    Attributes:
        image_size: (height, width) of the model's input, pixels, which every frame is resized to; `OWN_SIZE` for none.
        pixels: most of a picture, page or frame.
        pages: most of a TIFF file.
        reduced: large JPEGs are decoded at a smaller scale, each side still twice the model's input or more, that of a
            tile too.
        tiles: a side of each picture, page or frame that is looked at, the last for all further ones.
    """

    image_size: tuple[int, int]
    pixels: int
    pages: int = 100
    reduced: bool = False
    tiles: tuple[int, ...] = WHOLE

    def tiles_of(self, place: int) -> int:
        """Return the tiles a side of a picture by its number from 0."""
        return self.tiles[min(place, len(self.tiles) - 1)]

    @property
    def least_side(self) -> int:
        """Least pixels of each side of what is decoded at a smaller scale."""
        return 2 * max(self.image_size) * max(self.tiles)


@dataclass(frozen=True)
class SandboxLimits:
    """Of a decoder process.

    Attributes:
        limits: of the documents that it decodes.
        memory: bytes that it may take beyond what it has after its start.
        seconds: that it may work on a document.
    """

    limits: DecodeOptions
    memory: int
    seconds: float


def check_pixels(width: int, height: int, max_pixels: int) -> None:
    """DocumentError where so many pixels are too many."""
    size = f"The picture has {width} x {height} pixels"
    if width * height > max_pixels:
        raise DocumentError(f"{size}, more than the {max_pixels:,} accepted (FLORENCE_MAX_PIXELS).")
    if max(width, height) > MAX_SIDE:
        raise DocumentError(f"{size}; a side of {MAX_SIDE:,} is accepted.")
