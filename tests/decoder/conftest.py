"""Real photos, ways to encode them, and every decoder that this machine has."""

import importlib.util
import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from kdaudit.decoder import open_decoder
from kdaudit.sample import Decoder

Encode = Callable[..., bytes]


@pytest.fixture(scope="session")
def photos() -> list[Image.Image]:
    """The two photos that come with scikit-learn, 640 x 427."""
    return [Image.fromarray(np.array(image)) for image in load_sample_images().images]


@pytest.fixture(scope="session")
def encode() -> Encode:
    """Give an image and a format, get the file's bytes."""

    def to_bytes(image: Image.Image, format: str = "JPEG", **options: object) -> bytes:  # noqa: A002
        buffer = io.BytesIO()
        image.save(buffer, format, **options)
        return buffer.getvalue()

    return to_bytes


_OPENED: dict[tuple[str, int], Decoder] = {}


@pytest.fixture(scope="session")
def opened() -> Callable[..., Decoder]:
    """Open a decoder once per session; skip where DALI is not installed."""

    def get(name: str, threads: int = 1) -> Decoder:
        if name == "dali" and importlib.util.find_spec("nvidia.dali") is None:
            pytest.skip("nvidia.dali is not installed: pip install 'kdaudit[dali]'")
        if (name, threads) not in _OPENED:
            _OPENED[name, threads] = open_decoder(name, threads=threads)
        return _OPENED[name, threads]

    return get


@pytest.fixture(params=["pillow", "simplejpeg", "dali"])
def decoder(request: pytest.FixtureRequest, opened: Callable[..., Decoder]) -> Decoder:
    """Each decoder in turn."""
    return opened(request.param)


@pytest.fixture(params=["simplejpeg", "dali"])
def fast(request: pytest.FixtureRequest, opened: Callable[..., Decoder]) -> Decoder:
    """Each decoder that is compared with the reference."""
    return opened(request.param)


@pytest.fixture(scope="session")
def reference(opened: Callable[..., Decoder]) -> Decoder:
    """Pillow."""
    return opened("pillow")


@pytest.fixture(scope="session")
def files(photos: list[Image.Image], encode: Encode) -> dict[str, bytes]:
    """One photo in every form that a data set may bring."""
    photo = photos[0].crop((100, 50, 433, 267))  # 333 x 217: odd sizes exercise the chroma edges
    gray = photo.convert("L")
    rgba = photo.copy()
    rgba.putalpha(gray)
    palette = photo.quantize(64)
    deep = Image.fromarray(np.asarray(gray).astype(np.uint16) * 256 + np.uint16(77))
    tall = photos[1].crop((300, 0, 460, 427))
    made = {
        "jpeg 420": encode(photo, quality=85),
        "jpeg 422": encode(photo, quality=85, subsampling=1),
        "jpeg 444": encode(photo, quality=95, subsampling=0),
        "jpeg progressive": encode(photo, quality=75, progressive=True),
        "jpeg restart": encode(photo, quality=75, restart_marker_rows=1),
        "jpeg gray": encode(gray),
        "jpeg rgb": encode(photo, keep_rgb=True),
        "jpeg cmyk": encode(photo.convert("CMYK")),
        "jpeg comment": encode(photo, comment=b"\xff\xd9 not the end"),
        "jpeg tall": encode(tall, quality=90),
        "png rgb": encode(photo, "PNG"),
        "png rgba": encode(rgba, "PNG"),
        "png la": encode(rgba.convert("LA"), "PNG"),
        "png gray": encode(gray, "PNG"),
        "png palette": encode(palette, "PNG"),
        "png palette alpha": encode(palette, "PNG", transparency=bytes(range(0, 256, 4))),
        "png palette key": encode(palette, "PNG", transparency=3),
        "png rgb key": encode(photo, "PNG", transparency=(1, 2, 3)),
        "png 1-bit": encode(gray.convert("1"), "PNG"),
        "png 16-bit": encode(deep, "PNG"),
        "webp": encode(photo, "WEBP"),
        "webp lossless alpha": encode(rgba, "WEBP", lossless=True),
        "bmp": encode(photo, "BMP"),
        "bmp palette": encode(palette, "BMP"),
        "gif": encode(palette, "GIF"),
        "gif animated": encode(palette, "GIF", save_all=True, append_images=[tall.quantize(8)]),
        "tiff": encode(photo, "TIFF"),
        "tiff deflate": encode(photo, "TIFF", compression="tiff_adobe_deflate"),
        "ppm": encode(photo, "PPM"),
        "pgm": encode(gray, "PPM"),
    }
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
            made[f"{kind.lower()} turned {orientation}"] = encode(photo, kind, exif=exif)
    return made
