"""A TIFF page of deep, signed, floating-point or planar samples -> a picture of 8 bits a channel.

tifffile with imagecodecs reads what scientific cameras and programs write. Pillow reads pages of 8 bits; of deeper ones
it supports some layouts and misinterprets others.
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

BAND_SAMPLES = 1_000_000  # converted together: as floats they take four times the memory
MAX_16_BITS = 65_535.0

# PhotometricInterpretation (TIFF 6.0, page 37; 9 of Adobe's technical notes, 10 of RFC 3949), and its number of color
# samples.
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, MASK, CMYK, YCBCR, CIELAB, ICCLAB, ITULAB = 0, 1, 2, 3, 4, 5, 6, 8, 9, 10
NUM_COLORS = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3, PALETTE: 1, MASK: 1, CMYK: 4, YCBCR: 3}
NUM_COLORS |= {CIELAB: 3, ICCLAB: 3, ITULAB: 3}
JPEGS = (6, 7)  # values of Compression
LABS = (CIELAB, ICCLAB, ITULAB)
PREMULTIPLIED, UNASSOCIATED = 1, 2  # values of ExtraSamples: alpha that the colors are multiplied by, or not

# YCbCr to RGB by JFIF; XYZ at D50 to linear sRGB (http://www.brucelindbloom.com/index.html?Eqn_RGB_XYZ_Matrix.html).
YCBCR_TO_RGB = np.array([[1, 0, 1.402], [1, -0.344136, -0.714136], [1, 1.772, 0]], np.float32)
D50 = np.array([0.96422, 1.0, 0.82521], np.float32)
XYZ_TO_RGB = np.array(
    [[3.1338561, -1.6168667, -0.4906146], [-0.9787684, 1.9161415, 0.0334540], [0.0719453, -0.2289914, 1.4052427]],
    np.float32,
)

FloatArray = NDArray[np.float32]
Rows = NDArray[np.generic]


@dataclass(frozen=True)
class Samples:
    """Format of a page's samples.

    Attributes:
        photometric: PhotometricInterpretation.
        bits: of a sample.
        kind: of a sample's NumPy type: "b", "u", "i" or "f".
        alpha: `PREMULTIPLIED` or `UNASSOCIATED`; 0 if there is none.
        palette: uint8 (number of colors, 3); empty if there is none.
    """

    photometric: int
    bits: int
    kind: str
    alpha: int
    palette: UInt8Array

    @property
    def num_colors(self) -> int:
        """Number of color samples of a pixel."""
        return NUM_COLORS[self.photometric]

    @property
    def num_used(self) -> int:
        """Number of a pixel's first samples that are used: its colors and its alpha."""
        return self.num_colors + bool(self.alpha)

    @property
    def mode(self) -> str:
        """Pillow's mode of the picture."""
        return "L" if self.num_colors == 1 and self.photometric != PALETTE else "RGB"

    @property
    def max_value(self) -> float:
        """Maximum value of a sample's type; 1 for floats."""
        return 1.0 if self.kind == "f" else float(2 ** (self.bits - (self.kind == "i")) - 1)


Range = tuple[float, float]  # values of black and white


def read_samples(file: IO[bytes], directory: Directory) -> Image.Image:
    """Return the picture of a file with one page: L, or RGB, on white.

    Args:
        file: with the page.
        directory: of the page.

    Raises:
        ValueError: it is damaged, or its sample format is unknown; codecs raise other errors, too.
    """
    logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)  # damage is reported to the client, not logged
    from tifffile import TiffFile

    with TiffFile(file, name="page") as tiff:
        page = tiff.pages.first
        samples = parse_samples(directory, page)
        read = read_interleaved if page.shaped[0] == 1 else read_planar
        return read(page, samples, value_range(page, samples))


def parse_samples(directory: Directory, page: "TiffPage") -> Samples:
    """Return the format of the samples that a directory describes; raise ValueError if it is unknown."""
    photometric = directory.integer(262)
    if photometric == YCBCR and directory.integer(259) in JPEGS:
        photometric = RGB  # as decoded by the codec
    uniform_bits = len({*directory.integers(258)}) <= 1
    if page.dtype is None or page.dtype.kind not in "buif" or photometric not in NUM_COLORS or not uniform_bits:
        raise ValueError("samples of an unknown kind")
    num_samples, extra = directory.integer(277, 1), directory.integers(338)
    if photometric == RGB and num_samples == 4 and not extra:
        extra = (UNASSOCIATED,)  # as in Pillow
    alpha = extra[0] if extra[:1] in ((PREMULTIPLIED,), (UNASSOCIATED,)) else 0
    if num_samples < NUM_COLORS[photometric] + bool(alpha):
        raise ValueError("fewer samples than a color has")
    palette = read_palette(directory) if photometric == PALETTE else np.empty((0, 3), np.uint8)
    return Samples(photometric, directory.integer(258, 1), page.dtype.kind, alpha, palette)


def read_palette(directory: Directory) -> UInt8Array:
    """Return the colors of a palette, which are stored in 16 bits, by some programs in 8."""
    colors = np.array(directory.integers(320)).reshape(3, -1).T
    return (colors // (256 if colors.max() > 255 else 1)).astype(np.uint8)


def value_range(page: "TiffPage", samples: Samples) -> Range:
    """Return the values of a page's colors that are black and white.

    Integers of up to 16 bits have the range of their type, unless some are negative. All other ranges are unknown:
    floats within 0 to 1 and integers within 0 to 65,535 are scaled by that range, others from their minimum to their
    maximum.
    """
    known = samples.bits <= 16 and (samples.kind in "bu" or samples.photometric in LABS)
    if known or samples.photometric == PALETTE:
        return 0.0, samples.max_value
    lower, upper = extremes(page, samples.num_colors)
    max_value = samples.max_value if samples.bits <= 16 or samples.kind == "f" else MAX_16_BITS
    return (0.0, max_value) if lower >= 0 and upper <= max_value else (lower, upper)


def extremes(page: "TiffPage", num_colors: int) -> Range:
    """Return the minimum and maximum finite value of a page's colors."""
    lower, upper = np.inf, -np.inf
    for band, sample, *_ in bands(page):
        if sample < num_colors:
            values = band[..., :num_colors].astype(np.float64)
            finite = values[np.isfinite(values)]
            lower, upper = min(lower, finite.min(initial=lower)), max(upper, finite.max(initial=upper))
    return (float(lower), float(upper)) if lower <= upper else (0.0, 0.0)


def read_interleaved(page: "TiffPage", samples: Samples, black_white: Range) -> Image.Image:
    """Return the picture of a page whose samples are interleaved."""
    picture = Image.new(samples.mode, (page.imagewidth, page.imagelength))
    for band, _, x, y in bands(page):
        if samples.photometric == PALETTE:
            colors = samples.palette[np.minimum(band[..., 0].astype(np.int64), len(samples.palette) - 1)]
        else:
            channels = [
                scale_sample(band[..., index], index, samples, black_white) for index in range(samples.num_used)
            ]
            colors = to_color(np.stack(channels, -1), samples)
        picture.paste(Image.fromarray(colors), (x, y))
    return picture


def read_planar(page: "TiffPage", samples: Samples, black_white: Range) -> Image.Image:
    """Return the picture of a page whose samples are stored in separate planes."""
    size = (page.imagewidth, page.imagelength)
    planes = [Image.new("L", size) for _ in range(samples.num_used)]
    for band, sample, x, y in bands(page):
        if sample < len(planes):
            planes[sample].paste(Image.fromarray(scale_sample(band[..., 0], sample, samples, black_white)), (x, y))
    picture = Image.new(samples.mode, size)
    step = max(1, BAND_SAMPLES // size[0])
    for top in range(0, size[1], step):
        box = (0, top, size[0], min(top + step, size[1]))
        rows = np.stack([np.asarray(plane.crop(box)) for plane in planes], -1)
        picture.paste(Image.fromarray(to_color(rows, samples)), box)
    return picture


def bands(page: "TiffPage") -> Iterator[tuple[Rows, int, int, int]]:
    """Yield bands of rows: samples (rows, columns, samples), the index of the first sample, x and y."""
    for segment, (sample, _, top, x, _), _ in page.segments(maxworkers=1):
        if segment is None:
            raise ValueError("a strip or tile is missing")
        step = max(1, BAND_SAMPLES // max(1, segment[0, :1].size))
        for y in range(0, segment.shape[1], step):
            yield segment[0, y : y + step], sample, x, top + y


def scale_sample(values: Rows, sample: int, samples: Samples, black_white: Range) -> UInt8Array:
    """Scale values of a sample to 0 to 255; for a and b of Lab 128 is neutral."""
    if samples.photometric in LABS:
        return scale_lab(values, sample, samples)
    lower, upper = black_white if sample < samples.num_colors else (0.0, samples.max_value)
    scaled = (values.astype(np.float64) - lower) * (255.99 / max(upper - lower, 1e-30))
    return np.nan_to_num(scaled, nan=0, posinf=255, neginf=0).clip(0, 255).astype(np.uint8)


def scale_lab(values: Rows, sample: int, samples: Samples) -> UInt8Array:
    """Scale values of a Lab sample: L of floats is from 0 to 100; a and b are signed in CIELab and floats."""
    if samples.kind == "f":
        floats = values.astype(np.float32)
        return np.nan_to_num(floats * 2.55 if sample == 0 else floats + 128).clip(0, 255).astype(np.uint8)
    shift = samples.bits - 8
    eight_bit = values.astype(np.int64) >> shift if shift > 0 else values.astype(np.int64)
    signed = 0 < sample < samples.num_colors and samples.photometric == CIELAB
    return (eight_bit + 128 if signed else eight_bit).astype(np.uint8)


def to_color(rows: UInt8Array, samples: Samples) -> UInt8Array:
    """Convert levels (rows, columns, samples) to colors on white: (rows, columns) for gray, else RGB."""
    colors, alpha = rows[..., : samples.num_colors], rows[..., samples.num_colors :]
    if samples.photometric in TO_RGB:
        colors = TO_RGB[samples.photometric](colors)
    if samples.alpha:
        white = 255.0 - alpha
        premultiplied = colors if samples.alpha == PREMULTIPLIED else colors * (alpha / np.float32(255))
        colors = (premultiplied + white + 0.5).clip(0, 255).astype(np.uint8)
    return colors[..., 0] if samples.num_colors == 1 else np.ascontiguousarray(colors)


def from_cmyk(rows: UInt8Array) -> UInt8Array:
    """Convert CMYK to RGB as Pillow does."""
    light = 255 - rows[..., :3].astype(np.float32)
    return (light * (1 - rows[..., 3:] / np.float32(255)) + 0.5).astype(np.uint8)


def from_ycbcr(rows: UInt8Array) -> UInt8Array:
    """Convert YCbCr to RGB."""
    centered = rows - np.array([0, 128, 128], np.float32)
    rgb: UInt8Array = (centered @ YCBCR_TO_RGB.T + 0.5).clip(0, 255).astype(np.uint8)
    return rgb


def from_lab(rows: UInt8Array, gamut: tuple[float, ...] = (1, 1, 128, 128)) -> UInt8Array:
    """Convert Lab to sRGB; `gamut` has the step sizes of a and b and their zero levels."""
    light, red, yellow = np.moveaxis(rows.astype(np.float32), -1, 0)
    y = (light * (100 / 255) + 16) / 116
    roots = np.stack([y + (red - gamut[2]) * gamut[0] / 500, y, y - (yellow - gamut[3]) * gamut[1] / 200], -1)
    xyz = np.where(roots > 6 / 29, roots**3, (roots - 4 / 29) * (3 * (6 / 29) ** 2)) * D50
    linear = (xyz @ XYZ_TO_RGB.T).clip(0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return (encoded * 255 + 0.5).astype(np.uint8)


TO_RGB: dict[int, Callable[[UInt8Array], UInt8Array]] = {
    WHITE_IS_ZERO: lambda rows: 255 - rows,
    CMYK: from_cmyk,
    YCBCR: from_ycbcr,
    CIELAB: from_lab,
    ICCLAB: from_lab,
    ITULAB: lambda rows: from_lab(rows, (170 / 255, 200 / 255, 127.5, 95.6)),  # a from -85 to 85, b from -75 to 125
}
