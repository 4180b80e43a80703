"""Pillow: the reference, and the last word on what is readable.

Only one plugin, chosen by the first bytes, ever sees a file. Its class is called directly instead of
`Image.open`: that would print or raise decompression-bomb warnings at a limit which is global to the
process, and try multi-picture JPEG parsing, which warns about files that are fine.
"""

import io
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from kdaudit.decoder import header
from kdaudit.decoder.resize import plan
from kdaudit.decoder.rows import Outcome, Rows, each, too_large
from kdaudit.sample import Decoded, Geometry

EMPTY = "empty file"
FOREIGN = "not an image that kdaudit reads"
NO_MEMORY = "not enough memory to decode it"

_OPENERS: dict[header.Format, Callable[[io.BytesIO], Image.Image]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "PPM": PpmImagePlugin.PpmImageFile,
}

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class PillowDecoder:
    """Decodes and resizes with Pillow alone."""

    name = "pillow"

    def __init__(self, threads: int = 1) -> None:
        self._threads = threads

    def decode(self, encoded: Sequence[bytes], geometry: Geometry) -> Decoded:
        """See `kdaudit.sample.Decoder`."""
        rows = Rows(len(encoded), geometry)
        read = partial(_read_fitted, geometry=geometry)
        for index, outcome in enumerate(each(read, encoded, self._threads)):
            rows.put(index, outcome)
        return rows.done()


def read_rgb(data: bytes) -> Outcome:
    """Decode one image at its own size, upright and in RGB, or say why it cannot be."""
    image = _read(data)
    return image if isinstance(image, str) else np.array(image)


def _read_fitted(data: bytes, geometry: Geometry) -> Outcome:
    image = _read(data)
    if isinstance(image, str):
        return image
    to = plan(image.height, image.width, geometry)
    if to.height * to.width > header.MAX_PIXELS:
        return too_large()
    if (to.width, to.height) != image.size:
        image = image.resize((to.width, to.height), Image.Resampling.BILINEAR)
    return np.array(image)[to.top : to.top + geometry.height, to.left : to.left + geometry.width]


def _read(data: bytes) -> Image.Image | str:
    """Decode to an upright RGB image, or give the reason why not."""
    if not data:
        return EMPTY
    kind = header.sniff(data)
    if kind is None:
        return FOREIGN
    try:
        return _decode(data, kind)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return too_large()
    except MemoryError:
        return NO_MEMORY
    # Hostile bytes get nearly every exception out of Pillow's parsers: OSError, SyntaxError, ValueError,
    # struct.error, KeyError, OverflowError and, where warnings are errors, warnings.
    except Exception as error:  # noqa: BLE001
        return _reason(data, kind, error)


def _decode(data: bytes, kind: header.Format) -> Image.Image | str:
    orientation: int | None = None
    if kind == "JPEG" and header.has_exif(data):
        orientation = header.jpeg_exif_orientation(data)
        data = header.without_metadata(data)
    with _OPENERS[kind](io.BytesIO(data)) as image:
        if image.width * image.height > header.MAX_PIXELS:
            return too_large()
        image.load()
        if orientation is None and "exif" in image.info:  # PNG and WebP; TIFF turns itself when it loads
            orientation = header.exif_orientation(image.info["exif"])
        rgb = _to_rgb(image)
    if isinstance(rgb, str):
        return rgb
    turn = _UPRIGHT.get(orientation or 1)
    return rgb if turn is None else rgb.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image | str:
    """Convert as `convert("RGB")` does (alpha is dropped, not blended), except that 16 bits are scaled."""
    # Colours marked transparent are colours here, and Pillow would warn about some of them.
    image.info.pop("transparency", None)
    if image.mode == "F":
        return FOREIGN  # no telling what range its values have
    if image.mode == "I" or image.mode.startswith("I;16"):
        # Pillow clips these to 255, which leaves a white image. It takes the high byte of 16-bit RGB.
        high: NDArray[np.uint8] = (np.clip(np.asarray(image), 0, 0xFFFF) >> 8).astype(np.uint8)
        image = Image.fromarray(high)
    # convert() hands out a copy even of an RGB image, which outlives the file that it was read from.
    return image.convert("RGB")


def _reason(data: bytes, kind: header.Format, error: Exception) -> str:
    """Tell a cut file from a broken one, in words that stay the same from version to version."""
    cut = "truncated" in str(error).lower()
    if kind == "JPEG":
        cut = cut or data.rfind(b"\xff\xd9") < 0
    elif kind == "PNG":
        cut = cut or data.rfind(b"IEND") < 0
    elif kind == "WEBP":
        cut = cut or int.from_bytes(data[4:8], "little") > len(data) - 8
    return f"truncated {kind}" if cut else f"corrupt or unsupported {kind}"
