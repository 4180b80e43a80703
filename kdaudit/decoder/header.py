"""What an encoded image says of itself, read without decoding it.

The fast decoders take only files whose header this module finds plain: known format, known size, nothing
that needs judgement. Everything else goes to Pillow, which has the last word on what is readable, so all
decoders give the same answer.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from typing import Literal, NamedTuple

MAX_PIXELS = 100_000_000
"""Images with more pixels than this are not decoded: 300 MB as RGB, four times a 24-megapixel photo."""

Format = Literal["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM"]

_EXIF = b"Exif\0\0"
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MAGIC: tuple[tuple[bytes | tuple[bytes, ...], Format], ...] = (
    (b"\xff\xd8\xff", "JPEG"),
    (_PNG_SIGNATURE, "PNG"),
    ((b"GIF87a", b"GIF89a"), "GIF"),
    (b"BM", "BMP"),
    ((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), "TIFF"),
    ((b"P1", b"P2", b"P3", b"P4", b"P5", b"P6"), "PPM"),
)
_ORIENTATION_TAG = 0x0112
_TYPE_SHORT = 3

# Chunks that change no pixel of the still image, or that every PNG reader treats alike. Text that is
# compressed, animation, EXIF and colour profiles are left to Pillow.
_PLAIN_PNG_CHUNKS = frozenset(
    {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"gAMA", b"cHRM", b"sRGB", b"pHYs", b"tIME", b"tEXt"}
)
_MAX_TEXT = 1 << 20

# The end of entropy-coded data: a marker that is neither a stuffed FF nor a restart.
_SCAN_END = re.compile(rb"\xff[^\x00\xd0-\xd7]", re.DOTALL)


class Header(NamedTuple):
    """A plain image: its size as stored, and how to turn it upright."""

    height: int
    width: int
    orientation: int  # 1..8, EXIF; 1: upright

    @property
    def upright(self) -> tuple[int, int]:
        """Height and width after the orientation is applied."""
        return (self.width, self.height) if self.orientation >= 5 else (self.height, self.width)


def sniff(data: bytes) -> Format | None:
    """Tell the format from the first bytes; names and extensions never count.

    Returns:
        One of the formats on the allow-list; None for everything else.
    """
    for magic, kind in _MAGIC:
        if data.startswith(magic):
            return kind
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    return None


def has_exif(jpeg: bytes) -> bool:
    """Whether a JPEG may carry EXIF; much cheaper than walking its segments."""
    return _EXIF in jpeg


def exif_orientation(exif: bytes) -> int | None:
    """Read the orientation from an EXIF block, with or without its `Exif` prefix.

    Returns:
        1 to 8; 1 when the tag is absent; None when the block is malformed or the value makes no sense.
    """
    tiff = exif.removeprefix(_EXIF)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return None
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, values, value = struct.unpack_from(order + "HHIH", tiff, entry)
            if tag == _ORIENTATION_TAG:
                return value if kind == _TYPE_SHORT and values == 1 and 1 <= value <= 8 else None
    except struct.error:
        return None
    return 1


class Segment(NamedTuple):
    """One JPEG segment: `data[start:end]` with its marker, the payload being `data[start + 4:end]`."""

    marker: int
    start: int
    end: int


def jpeg_segments(data: bytes, at: int = 2) -> Iterator[Segment]:
    """Walk a JPEG's segments from `at` up to and including the next start of scan.

    Raises:
        ValueError: if there is anything between the segments, or the file ends before the scan.
    """
    while True:
        # Fill bytes, junk and parameterless markers are legal or tolerated here, and rare: not plain.
        if len(data) < at + 4 or data[at] != 0xFF or not 0xC0 <= data[at + 1] <= 0xFE:
            raise ValueError("not a plain JPEG header")
        marker = data[at + 1]
        if 0xD0 <= marker <= 0xD9:
            raise ValueError("a marker without a segment in the JPEG header")
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if end < at + 4 or end > len(data):
            raise ValueError("a JPEG segment runs past the end of the file")
        yield Segment(marker, at, end)
        if marker == 0xDA:
            return
        at = end


def jpeg_exif_orientation(data: bytes) -> int | None:
    """Orientation by the first EXIF segment: 1 without one, None where it cannot be told."""
    try:
        for marker, start, end in jpeg_segments(data):
            if marker == 0xE1 and data.startswith(_EXIF, start + 4):
                return exif_orientation(data[start + 4 : end])
    except ValueError:
        return None
    return 1


def without_metadata(jpeg: bytes) -> bytes:
    """Cut out application segments that say nothing about pixels; JFIF and Adobe (colour transform) stay.

    Pillow reads EXIF on opening, for the resolution, and warns if it is malformed: noise on the user's
    terminal, and an exception where warnings are errors. A file that is not plain is returned as it is.
    """
    kept = [jpeg[:2]]
    last = 2
    try:
        for marker, start, end in jpeg_segments(jpeg):
            if not (0xE1 <= marker <= 0xED or marker in {0xEF, 0xFE}):
                kept.append(jpeg[start:end])
            last = end
    except ValueError:
        return jpeg
    kept.append(jpeg[last:])
    return b"".join(kept)


def plain(data: bytes) -> Header | None:
    """Read the header of a JPEG or an 8-bit PNG in which nothing is unusual.

    Returns:
        None when the file is of another kind, damaged as far as can be seen without decoding, too large,
        or uses features in which decoders differ. None says nothing about whether Pillow can read it.
    """
    header: Header | None = None
    try:
        if data.startswith(b"\xff\xd8\xff"):
            header = _plain_jpeg(data)
        elif data.startswith(_PNG_SIGNATURE):
            header = _plain_png(data)
    except (ValueError, IndexError, struct.error):
        return None
    if header is None or not 0 < header.height * header.width <= MAX_PIXELS:
        return None
    return header


def _plain_jpeg(data: bytes) -> Header | None:
    size: tuple[int, int] | None = None
    orientation: int | None = 1
    exifs = 0
    at = 2
    while data[at + 1] != 0xD9:
        for marker, start, end in jpeg_segments(data, at):
            if marker == 0xE1 and data.startswith(_EXIF, start + 4):
                exifs += 1
                orientation = exif_orientation(data[start + 4 : end])
            elif marker == 0xEE and data.startswith(b"Adobe", start + 4):
                if data[start + 15 : start + 16] != b"\x01":  # not YCbCr: RGB, CMYK or YCCK
                    return None
            elif 0xC0 <= marker <= 0xCF and marker != 0xC4:
                if size is not None:
                    return None
                size = _frame_size(marker, data[start + 4 : end])
            at = end
        # A cut file has no end marker behind its scans. Other markers there are damage, which DALI
        # decodes without complaint if enough rows came before it.
        stop = _SCAN_END.search(data, at)
        if size is None or stop is None:
            return None
        at = stop.start()
    return Header(*size, orientation) if size and orientation and exifs < 2 else None


def _frame_size(marker: int, frame: bytes) -> tuple[int, int]:
    """Height and width of a gray or YCbCr frame of 8 bits; ValueError for others."""
    precision, height, width, components = struct.unpack_from(">BHHB", frame)
    # Baseline, extended and progressive Huffman only; libjpeg takes components called R, G, B as RGB.
    if marker > 0xC2 or precision != 8 or components not in {1, 3} or frame[6::3] == b"RGB":
        raise ValueError("not a plain JPEG frame")
    return height, width


def _plain_png(data: bytes) -> Header | None:
    at = len(_PNG_SIGNATURE)
    size: tuple[int, int] | None = None
    while True:
        length, name = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if name not in _PLAIN_PNG_CHUNKS or end > len(data) or (name == b"tEXt" and length > _MAX_TEXT):
            return None
        if zlib.crc32(data[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            return None
        if (name == b"IHDR") != (size is None):
            return None
        if name == b"IHDR":
            width, height, bits, *_ = struct.unpack_from(">IIBBBBB", data, at + 8)
            if bits > 8:
                return None
            size = height, width
        if name == b"IEND":
            return Header(*size, 1) if size else None
        at = end
