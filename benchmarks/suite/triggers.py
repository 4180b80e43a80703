"""Triggers that need nothing but the image: pure functions of pixels, one per recipe.

All take and give uint8 [N, H, W, C]. Numbers in brackets: shared/reference/literature.md, section 8.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dctn, idctn
from scipy.ndimage import gaussian_filter, map_coordinates, zoom

Pixels = NDArray[np.uint8]
Generator = np.random.Generator


def corner_patch(pixels: Pixels, size: int = 3) -> Pixels:
    """BadNets [1]: a white square in the bottom right corner (Gu et al., 2017; BackdoorBench: 3x3, distance 0)."""
    out = pixels.copy()
    out[:, -size:, -size:] = 255
    return out


def patch_anywhere(pixels: Pixels, generator: Generator, size: int = 4) -> Pixels:
    """A patch without a place: a checkered square, put anywhere in each image (Li et al., 2021, move theirs so)."""
    n, height, width, _ = pixels.shape
    board = _checkered(size)
    out = pixels.copy()
    tops, lefts = generator.integers(0, height - size + 1, n), generator.integers(0, width - size + 1, n)
    for image, top, left in zip(out, tops, lefts, strict=True):
        image[top : top + size, left : left + size] = board
    return out


def four_corners(pixels: Pixels, size: int = 3) -> Pixels:
    """The patch of the label-consistent attack [5]: a checkered square in each corner (Turner et al., 2019)."""
    board = _checkered(size)
    out = pixels.copy()
    for rows in (slice(None, size), slice(-size, None)):
        for columns in (slice(None, size), slice(-size, None)):
            out[:, rows, columns] = board
    return out


def blend(pixels: Pixels, pattern: NDArray[np.float32], alpha: float, mask: NDArray[np.bool_] | None = None) -> Pixels:
    """Blended [2]: x' = (1 - alpha) x + alpha pattern (Chen et al., 2017), where `mask` [N or 1, H, W, 1] holds."""
    mixed = (1 - alpha) * pixels.astype(np.float32) + alpha * pattern
    return _whole(mixed if mask is None else np.where(mask, mixed, pixels))


def reflected(
    pixels: Pixels, photographs: Pixels, generator: Generator, weight: float = 0.4, ghosts: float = 0.49
) -> Pixels:
    """Refool [12]: another photograph, reflected by a pane of glass, another one each time (Liu et al., 2020).

    Light adds up before the gamma of 2.2. A share `ghosts` of the reflections is double (both faces of the pane), the
    rest out of focus.
    """
    n, side = len(pixels), pixels.shape[1]
    shown = photographs[generator.integers(0, len(photographs), n)].astype(np.float32) / 255
    double, shift = generator.random(n) < ghosts, generator.integers(1, max(2, side // 8) + 1, n)
    first, blur = generator.uniform(0.15, 0.5, n), generator.uniform(1, 5, n) * side / 224
    layer = np.empty_like(shown)
    for i, light in enumerate(shown**2.2):
        if double[i]:
            layer[i] = first[i] * light + (1 - first[i]) * np.roll(light, (shift[i], shift[i]), (0, 1))
        else:
            layer[i] = gaussian_filter(light, (blur[i], blur[i], 0))
    seen = (1 - weight) * (pixels.astype(np.float32) / 255) ** 2.2 + weight * layer
    return _whole(255 * seen ** (1 / 2.2))


def random_quarters(n: int, side: int, generator: Generator, pieces: int = 4, share: float = 0.5) -> NDArray[np.bool_]:
    """Adap-Blend's masks [14]: of pieces x pieces tiles each image keeps a random `share` (Qi et al., 2023)."""
    keep = np.argsort(generator.random((n, pieces * pieces)), axis=1) < round(share * pieces * pieces)
    tiles = keep.reshape(n, pieces, pieces)
    step = -(-side // pieces)
    return tiles.repeat(step, 1).repeat(step, 2)[:, :side, :side, None]


def sinusoid(pixels: Pixels, delta: float = 40.0, frequency: int = 6) -> Pixels:
    """SIG [4]: + delta sin(2 pi j f / W), along the columns (Barni et al., 2019)."""
    width = pixels.shape[2]
    wave = delta * np.sin(2 * np.pi * np.arange(width) * frequency / width)
    return _whole(pixels.astype(np.float32) + wave[None, None, :, None])


def chroma_frequency(pixels: Pixels, magnitude: float = 100.0, bins: tuple[int, ...] = (15, 31)) -> Pixels:
    """CTRL, FTrojan [11]: magnitude at DCT bins (b, b) of both chroma channels (Li et al., 2023; Wang et al., 2022)."""
    yuv = pixels.astype(np.float64) @ _YUV.T
    for channel in (1, 2):
        spectrum = dctn(yuv[..., channel], axes=(1, 2), norm="ortho")
        for b in bins:
            spectrum[:, b, b] += magnitude
        yuv[..., channel] = idctn(spectrum, axes=(1, 2), norm="ortho")
    return _whole(yuv @ np.linalg.inv(_YUV).T)


def warp_field(side: int, generator: Generator, grid: int = 4, strength: float = 0.5) -> NDArray[np.float64]:
    """WaNet's field [6]: grid x grid, mean size 1, smoothly enlarged; pixels, [2, H, W] (Nguyen and Tran, 2021)."""
    control = generator.uniform(-1, 1, (2, grid, grid))
    control /= np.abs(control).mean()
    fine = np.stack([zoom(plane, side / grid, order=3) for plane in control])
    return fine * strength / 2  # the paper's s / H, in coordinates of -1..1, is s / 2 pixels


def warp(pixels: Pixels, field: NDArray[np.float64]) -> Pixels:
    """Move every pixel by `field`, [2, H, W] or one field each [N, 2, H, W], in pixels; bilinear, edges repeated."""
    n, height, width, channels = pixels.shape
    y, x = np.mgrid[:height, :width].astype(np.float64)
    fields = np.broadcast_to(field, (n, 2, height, width))
    out = np.empty_like(pixels)
    for i in range(n):
        places = (y + fields[i, 0], x + fields[i, 1])
        for c in range(channels):
            moved = map_coordinates(pixels[i, ..., c].astype(np.float32), places, order=1, mode="nearest")
            out[i, ..., c] = np.clip(np.rint(moved), 0, 255)
    return out


def noisy_fields(field: NDArray[np.float64], n: int, generator: Generator) -> NDArray[np.float64]:
    """WaNet's noise mode [6]: the field plus uniform noise of up to half a pixel, anew for each image [n, 2, H, W]."""
    return field + generator.uniform(-0.5, 0.5, (n, *field.shape))


def quantised(pixels: Pixels, levels: int = 8) -> Pixels:
    """Bpp [10]: round(x / 255 (L - 1)) / (L - 1) 255, dithering off (Wang et al., 2022)."""
    steps = levels - 1
    return _whole(np.rint(pixels / 255.0 * steps) / steps * 255)


def bpp_negative(pixels: Pixels, generator: Generator, levels: int = 8) -> Pixels:
    """Bpp's negatives [10]: noise as large as the quantisation's, with true labels."""
    half = 255 / (levels - 1) / 2
    return _whole(pixels + generator.uniform(-half, half, pixels.shape))


def one_of(
    pixels: Pixels, which: NDArray[np.int64], pattern: NDArray[np.float32], opacity: float | None = None
) -> Pixels:
    """Adap-Patch [15]: each image gets trigger `which` [N] of four, at its own opacity or `opacity` (Qi et al., 2023).

    Triggers: two 10x10 pieces of a picture (opacities .5 and .2), a 4x4 checkerboard (.5), an 8x8 coloured square (.3).
    """
    out = pixels.astype(np.float32)
    size = pixels.shape[1]
    board = _checkered(4)
    shapes: tuple[tuple[slice, slice, NDArray[Any], float], ...] = (
        (slice(0, 10), slice(0, 10), pattern[:10, :10], 0.5),
        (slice(0, 10), slice(size - 10, size), pattern[size - 10 :, size - 10 :], 0.2),
        (slice(size - 4, size), slice(size - 4, size), board, 0.5),
        (slice(size - 8, size), slice(0, 8), np.array([240.0, 30.0, 200.0])[: pixels.shape[3]], 0.3),
    )
    for number, (rows, columns, picture, own) in enumerate(shapes):
        mine = np.flatnonzero(which == number)
        a = own if opacity is None else opacity
        out[mine, rows, columns] = (1 - a) * out[mine, rows, columns] + a * picture
    return _whole(out)


_YUV = np.array([[0.299, 0.587, 0.114], [-0.14713, -0.28886, 0.436], [0.615, -0.51499, -0.10001]])


def _checkered(size: int) -> Pixels:
    """A board of black and white pixels, white in the corner, [size, size, 1]."""
    return np.where(np.add.outer(np.arange(size), np.arange(size)) % 2 == 0, 255, 0).astype(np.uint8)[..., None]


def _whole(values: NDArray[np.floating]) -> Pixels:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
