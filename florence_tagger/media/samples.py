"""A TIFF page of deep, signed, floating-point or separate samples -> a picture of 8 bits a channel.

tifffile with imagecodecs, which read what scientific cameras and programs write. Pillow reads pages of 8 bits: of more
it knows some layouts, and takes others for what they are not.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from florence_tagger.media.directories import Directory
from florence_tagger.schemas import UInt8Array

if TYPE_CHECKING:
    from tifffile import TiffPage

BAND = 1_000_000  # samples that are converted at a time: as floats they take four times the memory
LARGEST_16_BITS = 65_535.0

# PhotometricInterpretation (TIFF 6.0, page 37; 9 of Adobe's technical notes, 10 of RFC 3949), and how many samples make
# a colour.
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, MASK, CMYK, YCBCR, CIELAB, ICCLAB, ITULAB = 0, 1, 2, 3, 4, 5, 6, 8, 9, 10
COLOURS = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3, PALETTE: 1, MASK: 1, CMYK: 4, YCBCR: 3}
COLOURS |= {CIELAB: 3, ICCLAB: 3, ITULAB: 3}
JPEGS = (6, 7)  # of Compression
LABS = (CIELAB, ICCLAB, ITULAB)
PREMULTIPLIED, APART = 1, 2  # of ExtraSamples: alpha that the colours are multiplied by, or not

# YCbCr to RGB as of JFIF; XYZ at D50 to linear sRGB (http://www.brucelindbloom.com/index.html?Eqn_RGB_XYZ_Matrix.html).
FROM_YCBCR = np.array([[1, 0, 1.402], [1, -0.344136, -0.714136], [1, 1.772, 0]], np.float32)
D50 = np.array([0.96422, 1.0, 0.82521], np.float32)
FROM_XYZ = np.array(
    [[3.1338561, -1.6168667, -0.4906146], [-0.9787684, 1.9161415, 0.0334540], [0.0719453, -0.2289914, 1.4052427]],
    np.float32,
)

FloatArray = NDArray[np.float32]
Rows = NDArray[np.generic]


@dataclass(frozen=True)
class Samples:
    """What the samples of a page mean.

    Attributes:
        photometric: the kind of colour.
        bits: of a sample.
        kind: of NumPy's type of a sample: "b", "u", "i" or "f".
        alpha: `PREMULTIPLIED` or `APART`; 0 where there is none.
        palette: uint8 (number of colours, 3); empty where there is none.
    """

    photometric: int
    bits: int
    kind: str
    alpha: int
    palette: UInt8Array

    @property
    def colours(self) -> int:
        """Samples that make a colour."""
        return COLOURS[self.photometric]

    @property
    def wanted(self) -> int:
        """The first samples of a pixel that are looked at."""
        return self.colours + bool(self.alpha)

    @property
    def mode(self) -> str:
        """Pillow's mode of the picture."""
        return "L" if self.colours == 1 and self.photometric != PALETTE else "RGB"

    @property
    def largest(self) -> float:
        """The largest value of a sample, by its type; 1 of floats."""
        return 1.0 if self.kind == "f" else float(2 ** (self.bits - (self.kind == "i")) - 1)


Range = tuple[float, float]  # the values that are black and white


def read_samples(file: IO[bytes], directory: Directory) -> Image.Image:
    """The picture of a file of one page, whose directory is `directory`: L, or RGB, on white.

    Raises:
        ValueError: it is damaged, or of a kind that is not known; others, too, as the codecs raise them.
    """
    logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)  # who sent the file is told, not the log
    from tifffile import TiffFile

    with TiffFile(file, name="page") as tiff:
        page = tiff.pages.first
        samples = samples_of(directory, page)
        shown = value_range(page, samples)
        return (chunky if page.shaped[0] == 1 else planar)(page, samples, shown)


def samples_of(directory: Directory, page: "TiffPage") -> Samples:
    """What a directory says of its samples."""
    photometric = directory.number(262)
    if photometric == YCBCR and directory.number(259) in JPEGS:
        photometric = RGB  # as the codec gives it
    alike = len({*directory.numbers(258)}) <= 1
    if page.dtype is None or page.dtype.kind not in "buif" or photometric not in COLOURS or not alike:
        raise ValueError("samples of an unknown kind")
    number, extra = directory.number(277, 1), directory.numbers(338)
    if photometric == RGB and number == 4 and not extra:
        extra = (APART,)  # as Pillow takes it
    alpha = extra[0] if extra[:1] in ((PREMULTIPLIED,), (APART,)) else 0
    if number < COLOURS[photometric] + bool(alpha):
        raise ValueError("fewer samples than a colour has")
    palette = palette_of(directory) if photometric == PALETTE else np.empty((0, 3), np.uint8)
    return Samples(photometric, directory.number(258, 1), page.dtype.kind, alpha, palette)


def palette_of(directory: Directory) -> UInt8Array:
    """The colours of a palette, which are written in 16 bits, by some programs in 8."""
    colours = np.array(directory.numbers(320)).reshape(3, -1).T
    return (colours // (256 if colours.max() > 255 else 1)).astype(np.uint8)


def value_range(page: "TiffPage", samples: Samples) -> Range:
    """The values of a page's colours that are black and white.

    Integers of up to 16 bits have the range of their type, unless some are negative. Of all else it is not known:
    floats from 0 to 1 and integers from 0 to 65,535 are taken for the whole range, others are stretched from their
    least to their largest.
    """
    known = samples.bits <= 16 and (samples.kind in "bu" or samples.photometric in LABS)
    if known or samples.photometric == PALETTE:
        return 0.0, samples.largest
    least, most = extremes(page, samples.colours)
    whole = samples.largest if samples.bits <= 16 or samples.kind == "f" else LARGEST_16_BITS
    return (0.0, whole) if least >= 0 and most <= whole else (least, most)


def extremes(page: "TiffPage", colours: int) -> Range:
    """The least and the largest finite value of the colours of a page."""
    least, most = np.inf, -np.inf
    for band, sample, *_ in bands(page):
        if sample < colours:
            values = band[..., :colours].astype(np.float64)
            finite = values[np.isfinite(values)]
            least, most = min(least, finite.min(initial=least)), max(most, finite.max(initial=most))
    return (float(least), float(most)) if least <= most else (0.0, 0.0)


def chunky(page: "TiffPage", samples: Samples, shown: Range) -> Image.Image:
    """The picture of a page that has the samples of a pixel side by side."""
    picture = Image.new(samples.mode, (page.imagewidth, page.imagelength))
    for band, _, x, y in bands(page):
        if samples.photometric == PALETTE:
            colours = samples.palette[np.minimum(band[..., 0].astype(np.int64), len(samples.palette) - 1)]
        else:
            wanted = range(samples.wanted)
            colours = coloured(np.stack([levels(band[..., one], one, samples, shown) for one in wanted], -1), samples)
        picture.paste(Image.fromarray(colours), (x, y))
    return picture


def planar(page: "TiffPage", samples: Samples, shown: Range) -> Image.Image:
    """The picture of a page that has one sample of all pixels after the other."""
    size = (page.imagewidth, page.imagelength)
    planes = [Image.new("L", size) for _ in range(samples.wanted)]
    for band, sample, x, y in bands(page):
        if sample < len(planes):
            planes[sample].paste(Image.fromarray(levels(band[..., 0], sample, samples, shown)), (x, y))
    picture = Image.new(samples.mode, size)
    step = max(1, BAND // size[0])
    for top in range(0, size[1], step):
        box = (0, top, size[0], min(top + step, size[1]))
        rows = np.stack([np.asarray(plane.crop(box)) for plane in planes], -1)
        picture.paste(Image.fromarray(coloured(rows, samples)), box)
    return picture


def bands(page: "TiffPage") -> Iterator[tuple[Rows, int, int, int]]:
    """The samples of a page (rows, columns, samples), some rows at a time, the first sample's number, and x and y."""
    for segment, (sample, _, top, x, _), _ in page.segments(maxworkers=1):
        if segment is None:
            raise ValueError("a strip or tile is missing")
        step = max(1, BAND // max(1, segment[0, :1].size))
        for y in range(0, segment.shape[1], step):
            yield segment[0, y : y + step], sample, x, top + y


def levels(values: Rows, sample: int, samples: Samples, shown: Range) -> UInt8Array:
    """Values of a sample from 0 to 255; of a and b of Lab 128 is what has no colour."""
    if samples.photometric in LABS:
        return lab_levels(values, sample, samples)
    least, most = shown if sample < samples.colours else (0.0, samples.largest)
    scaled = (values.astype(np.float64) - least) * (255.99 / max(most - least, 1e-30))
    return np.nan_to_num(scaled, nan=0, posinf=255, neginf=0).clip(0, 255).astype(np.uint8)


def lab_levels(values: Rows, sample: int, samples: Samples) -> UInt8Array:
    """The same for Lab: L from 0 to 100 of floats, a and b signed but where the kind of colour says otherwise."""
    if samples.kind == "f":
        floats = values.astype(np.float32)
        return np.nan_to_num(floats * 2.55 if sample == 0 else floats + 128).clip(0, 255).astype(np.uint8)
    shift = samples.bits - 8
    eighth = values.astype(np.int64) >> shift if shift > 0 else values.astype(np.int64)
    signed = 0 < sample < samples.colours and samples.photometric == CIELAB
    return (eighth + 128 if signed else eighth).astype(np.uint8)


def coloured(rows: UInt8Array, samples: Samples) -> UInt8Array:
    """The colours that levels (rows, columns, samples) mean, on white: (rows, columns) of grey, else with RGB."""
    colours, alpha = rows[..., : samples.colours], rows[..., samples.colours :]
    if samples.photometric in MEANINGS:
        colours = MEANINGS[samples.photometric](colours)
    if samples.alpha:
        white = 255.0 - alpha
        seen = colours if samples.alpha == PREMULTIPLIED else colours * (alpha / np.float32(255))
        colours = (seen + white + 0.5).clip(0, 255).astype(np.uint8)
    return colours[..., 0] if samples.colours == 1 else np.ascontiguousarray(colours)


def from_cmyk(rows: UInt8Array) -> UInt8Array:
    """RGB of CMYK as Pillow has it."""
    light = 255 - rows[..., :3].astype(np.float32)
    return (light * (1 - rows[..., 3:] / np.float32(255)) + 0.5).astype(np.uint8)


def from_ycbcr(rows: UInt8Array) -> UInt8Array:
    """RGB of YCbCr."""
    centred = rows - np.array([0, 128, 128], np.float32)
    rgb: UInt8Array = (centred @ FROM_YCBCR.T + 0.5).clip(0, 255).astype(np.uint8)
    return rgb


def from_lab(rows: UInt8Array, gamut: tuple[float, ...] = (1, 1, 128, 128)) -> UInt8Array:
    """sRGB of Lab; `gamut` is the steps of a and b, and what is 0 of them."""
    light, red, yellow = np.moveaxis(rows.astype(np.float32), -1, 0)
    y = (light * (100 / 255) + 16) / 116
    roots = np.stack([y + (red - gamut[2]) * gamut[0] / 500, y, y - (yellow - gamut[3]) * gamut[1] / 200], -1)
    xyz = np.where(roots > 6 / 29, roots**3, (roots - 4 / 29) * (3 * (6 / 29) ** 2)) * D50
    linear = (xyz @ FROM_XYZ.T).clip(0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return (encoded * 255 + 0.5).astype(np.uint8)


MEANINGS: dict[int, Callable[[UInt8Array], UInt8Array]] = {
    WHITE_IS_ZERO: lambda rows: 255 - rows,
    CMYK: from_cmyk,
    YCBCR: from_ycbcr,
    CIELAB: from_lab,
    ICCLAB: from_lab,
    ITULAB: lambda rows: from_lab(rows, (170 / 255, 200 / 255, 127.5, 95.6)),  # a from -85 to 85, b from -75 to 125
}
