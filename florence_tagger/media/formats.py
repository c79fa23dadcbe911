"""Detection of a file's format by its first bytes.

The allow-list has its own signatures, since it determines which decoder a file reaches; puremagic, which knows a
thousand formats, names those that are not accepted.
"""

import re
from dataclasses import dataclass
from typing import Literal

import puremagic

from florence_tagger.errors import DocumentError

HEAD_BYTES = 65_536  # that are examined; FFmpeg searches as many for the packets of a transport stream


@dataclass(frozen=True)
class Format:
    """A file format that is accepted.

    Attributes:
        name: for people.
        kind: of decoder.
        decoder: Pillow's name of a picture's format, FFmpeg's name of a video's container, the format of a raw photo.
    """

    name: str
    kind: Literal["picture", "raw", "video"]
    decoder: str


def picture(name: str, decoder: str = "") -> Format:
    """Return a format of pictures."""
    return Format(name, "picture", decoder or name)


def raw(maker: str, decoder: str) -> Format:
    """Return a format of raw photos."""
    return Format(f"{maker} {decoder}", "raw", decoder)


def video(name: str, decoder: str) -> Format:
    """Return a format of videos."""
    return Format(name, "video", decoder)


HEIC, AVIF, WEBP = picture("HEIC", "HEIF"), picture("AVIF"), picture("WebP", "WEBP")
TIFF, BMP, ICO, JPEG_2000 = picture("TIFF"), picture("BMP"), picture("ICO"), picture("JPEG 2000", "JPEG2000")
CR3 = raw("Canon", "CR3")
JPEG = picture("JPEG")
QUICKTIME, MPEG = video("MP4 or QuickTime", "mov"), video("MPEG", "mpeg")
TRANSPORT, H264 = video("MPEG transport stream", "mpegts"), video("H.264", "h264")
MOTION_JPEG = video("JPEG", "mjpeg")  # starts like a single JPEG

# Brands of ISO base media files that are pictures (ISO/IEC 23008-12, AV1 Image File Format). mif1 and msf1 do not
# determine the codec: other brands take precedence.
BRANDS = dict.fromkeys((b"avif", b"avis"), AVIF)
BRANDS[b"crx "] = CR3
BRANDS |= dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), HEIC)

# First atoms of QuickTime files that predate `ftyp`, or were never closed.
ATOMS = rb"moov|mdat|wide|free|skip|pnot"

# Profiles of H.264 by number: Baseline, Main, Extended, High, and those for more bits, intra frames, layers and views.
PROFILES = rb"[\x42\x4d\x58\x64\x6e\x7a\xf4\x2c\x53\x56\x76\x80\x8a]"

ZEROS = rb"\0{2,64000}"  # before a start code; recorders may pad a sector

SIGNATURES: tuple[tuple[re.Pattern[bytes], Format], ...] = tuple(
    (re.compile(pattern, re.DOTALL), kind)
    for pattern, kind in (
        (rb"\xff\xd8\xff", JPEG),
        (rb"\x89PNG\r\n\x1a\n", picture("PNG")),
        (rb"GIF8[79]a", picture("GIF")),
        (rb"II\x2a\0|MM\0\x2a|II\x2b\0|MM\0\x2b", TIFF),
        (rb"II(?:RO|RS)|MMOR", raw("Olympus", "ORF")),  # not TIFF; other raw photos are detected by their directories
        (rb"IIU\0", raw("Panasonic", "RW2")),
        (rb"FUJIFILMCCD-RAW", raw("Fujifilm", "RAF")),
        (rb"II\x1a\0\0\0HEAPCCDR", raw("Canon", "CRW")),
        (rb"\0MRM", raw("Minolta", "MRW")),
        (rb"FOVb", raw("Sigma", "X3F")),
        (rb"RIFF.{4}WEBP", WEBP),
        (rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", BMP),  # with the size of its second header
        (rb"\0\0\x01\0[^\0]\0", ICO),
        (rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51", JPEG_2000),
        (rb"P[1-6]\s", picture("PPM")),
        (rb".{4}ftyp.{4}", QUICKTIME),
        (rb".{4}(?:" + ATOMS + rb")", QUICKTIME),
        (rb"\x1a\x45\xdf\xa3", video("Matroska or WebM", "matroska")),
        (rb"RIFF.{4}AVI |RIFF.{4}AVIX", video("AVI", "avi")),
        (rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11", video("Windows Media", "asf")),
        (rb"FLV\x01", video("Flash Video", "flv")),
        (rb"OggS\0", video("Ogg", "ogg")),
        (rb"DKIF\0\0\x20\0", video("IVF", "ivf")),
        (rb"\x12\0\x0a", video("AV1", "obu")),  # a temporal delimiter, then the header of a sequence
        (ZEROS + rb"\x01\xba", MPEG),
        (ZEROS + rb"\x01\xb3", video("MPEG", "mpegvideo")),
        (ZEROS + rb"\x01[\xb0\xb5]", video("MPEG-4", "m4v")),
        (rb"\x47.{187}\x47.{187}\x47|.{4}\x47.{191}\x47", TRANSPORT),
        # Bare streams: of H.264 (ITU-T H.264, 7.4.1) an access unit delimiter, supplemental information or a sequence
        # parameter set, which has a profile; of HEVC (ITU-T H.265, 7.4.2.2) a delimiter or a parameter set.
        (
            ZEROS
            + rb"\x01(?:\x09[\x10\x30\x50\x70\x90\xb0\xd0\xf0]\0|\x06.{0,999}?\0\0\x01[\x27\x47\x67]"
            + PROFILES
            + rb"|[\x27\x47\x67]"
            + PROFILES
            + rb")",
            H264,
        ),
        (ZEROS + rb"\x01[\x40\x42\x46\x4e]\x01", video("HEVC", "hevc")),
        # Streams that start with other bytes, as recordings that were cut anywhere. For program streams, the header of
        # a pack (ISO/IEC 13818-1, 2.5.3.3, and 11172-1, 2.4.3.2) and the start code after it.
        (rb".{1,64000}?\0\0\x01\xba(?:[\x44-\x7f].{8}[\xf8-\xff]\xff{0,7}|[\x21-\x3f].{7})\0\0\x01[\xba-\xff]", MPEG),
        (rb".{1,64000}?\x47(?:.{187}\x47){4}|.{1,64000}?\x47(?:.{191}\x47){4}", TRANSPORT),
    )
)

# Extensions of files that are opened when a folder is searched; `.ts` is excluded, since it is mostly TypeScript.
EXTENSIONS = frozenset(
    f".{extension}"
    for extension in (
        *("jpg", "jpeg", "jpe", "jfif", "png", "apng", "gif", "bmp", "dib", "webp", "tif", "tiff", "heic", "heif"),
        *("dng", "nef", "nrw", "cr2", "cr3", "arw", "orf", "rw2", "pef", "raf", "srw"),
        *("avif", "ico", "jp2", "j2k", "jpx", "ppm", "pgm", "pbm", "pnm", "mp4", "m4v", "mov", "3gp", "avi", "mkv"),
        *("webm", "mpg", "mpeg", "m2ts", "mts", "vob", "wmv", "asf", "flv", "ogv", "mjpeg", "mjpg", "h264", "264"),
        *("h265", "265", "hevc", "ivf", "obu"),
    )
)

# Names of the accepted formats. Raw photos need a large preview, which depends on the camera.
ACCEPTED = (
    *dict.fromkeys(
        known.name for known in (*(known for _, known in SIGNATURES), *BRANDS.values()) if known.kind != "raw"
    ),
    "raw photos with a large preview",
)


def find_format(head: bytes) -> Format:
    """Return the format of a file that starts with `head`.

    Raises:
        DocumentError: it is not an accepted format; the reason names it.
    """
    for signature, file_format in SIGNATURES:
        if signature.match(head):
            return format_by_brand(head, file_format) if head[4:8] == b"ftyp" else file_format
    accepted = ", ".join(ACCEPTED)
    raise DocumentError(
        f"The file is not a picture or video that can be read: it {looks_like(head)}; accepted are {accepted}."
    )


def format_by_brand(head: bytes, default: Format) -> Format:
    """Return the format by the brands of an ISO base media file: its major brand, else its compatible ones."""
    size = int.from_bytes(head[:4], "big")
    compatible = {head[offset : offset + 4] for offset in range(16, min(size, len(head)), 4)}
    if head[8:12] not in (b"mif1", b"msf1") and head[8:12] in BRANDS:
        return BRANDS[head[8:12]]
    return next((file_format for brand, file_format in BRANDS.items() if brand in compatible | {head[8:12]}), default)


def looks_like(head: bytes) -> str:
    """Return puremagic's name of a file's format, in words."""
    try:
        matches = puremagic.magic_string(head)
    except (puremagic.PureError, ValueError):  # unknown, or empty
        matches = []
    # Short and empty signatures match by accident.
    names = [match.name for match in matches if len(match.byte_match.strip(b"\0")) >= 2]
    if head.startswith(b"PK\x03\x04"):  # puremagic names a dozen kinds of documents that are ZIP archives
        names = ["ZIP archive or Office document"]
    return f"looks like: {names[0].strip()}" if names else "is of no known kind"
