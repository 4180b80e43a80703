"""simplejpeg (libjpeg-turbo): JPEG at about twice Pillow's speed, the same pixels; the rest by Pillow."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kdaudit.decoder import header
from kdaudit.decoder.pillow import read_rgb
from kdaudit.decoder.rows import Outcome, Rows, each
from kdaudit.errors import UsageError
from kdaudit.sample import Decoded, Geometry


class TurboDecoder:
    """Decodes JPEG with simplejpeg, other formats with Pillow; resizes with torch.

    Raises:
        UsageError: if simplejpeg is not installed.
    """

    name = "simplejpeg"

    def __init__(self, threads: int = 1) -> None:
        try:
            import simplejpeg  # noqa: F401
        except ImportError as error:
            raise UsageError("the decoder simplejpeg is not installed: pip install simplejpeg") from error
        self._threads = threads

    def decode(self, encoded: Sequence[bytes], geometry: Geometry) -> Decoded:
        """See `kdaudit.sample.Decoder`."""
        rows = Rows(len(encoded), geometry)
        for index, outcome in enumerate(each(_read, encoded, self._threads)):
            rows.put(index, outcome)
        return rows.done()


def _read(data: bytes) -> Outcome:
    if data.startswith(b"\xff\xd8\xff"):
        rgb = _read_jpeg(data)
        if rgb is not None:
            return rgb
    return read_rgb(data)


def _read_jpeg(data: bytes) -> NDArray[np.uint8] | None:
    """Decode a JPEG; None leaves it to Pillow."""
    import simplejpeg

    orientation = header.jpeg_exif_orientation(data) if header.has_exif(data) else 1
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if height * width > header.MAX_PIXELS or colours in {"CMYK", "YCCK"}:
            return None
        # strict: a cut scan is an error, as it is for Pillow. Harmless defects are errors too, which
        # costs a second decode. Fast DCT and fast upsampling stay off: they change pixels.
        rgb: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB", strict=True)
    except ValueError:
        return None
    return upright(rgb, orientation or 1)


def upright(rgb: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Apply an EXIF orientation, 1 to 8, to [h, w, 3]."""
    if orientation >= 5:
        rgb = rgb.transpose(1, 0, 2)
    if orientation in {3, 4, 7, 8}:
        rgb = rgb[::-1]
    if orientation in {2, 3, 6, 7}:
        rgb = rgb[:, ::-1]
    return rgb
