"""From an image of any size to the geometry that the networks take.

There is one resize for all fast decoders: torch's antialiased bilinear on uint8, at a third of the cost of
Pillow's. It stays within 1 level of Pillow's, or 2 in one pixel of millions: the two round in between.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdaudit.sample import Geometry

# A block of this many pixels at a time keeps the 32-bit intermediates of `luma` small.
_LUMA_BLOCK = 1 << 22


class Plan(NamedTuple):
    """Resize to height x width, then cut the target's size out at top, left."""

    height: int
    width: int
    top: int
    left: int


def plan(height: int, width: int, geometry: Geometry) -> Plan:
    """Say how an image of height x width comes to the geometry.

    An image that has the target's size already is left alone, whatever the fit: it was prepared for the
    network, and cutting would lose its border, where many triggers sit. "crop" otherwise does what
    torchvision's Resize and CenterCrop do, to the pixel; for a target that is not square, both sides of
    the resized image are at least 8/7 of the target's, and one is exactly that.
    """
    H, W = geometry.height, geometry.width
    if geometry.fit == "stretch" or (height, width) == (H, W):
        return Plan(H, W, 0, 0)
    need_h, need_w = round(H * 8 / 7), round(W * 8 / 7)
    if height * need_w <= width * need_h:
        resized = need_h, max(need_w, width * need_h // height)
    else:
        resized = max(need_h, height * need_w // width), need_w
    return Plan(*resized, round((resized[0] - H) / 2), round((resized[1] - W) / 2))


def resize(images: NDArray[np.uint8], geometry: Geometry) -> NDArray[np.uint8]:
    """Resize a batch of equally large images.

    Args:
        images: [B, h, w, 3]; writable and contiguous, since torch borrows the memory.
        geometry: the target; its channels are not looked at.

    Returns:
        [B, H, W, 3].
    """
    _, h, w, _ = images.shape
    to = plan(h, w, geometry)
    if (to.height, to.width) != (h, w):
        import torch
        import torch.nn.functional as F

        nchw = torch.from_numpy(images).permute(0, 3, 1, 2)
        # antialias: without it a downscaled image differs from Pillow's by up to 42 levels.
        out = F.interpolate(nchw, size=(to.height, to.width), mode="bilinear", antialias=True)
        images = out.permute(0, 2, 3, 1).numpy()
    return images[:, to.top : to.top + geometry.height, to.left : to.left + geometry.width]


def luma(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Convert [B, H, W, 3] to [B, H, W, 1] with the integer formula of Pillow's "L" (ITU-R 601)."""
    B, H, W, _ = rgb.shape
    out = np.empty((B, H, W, 1), np.uint8)
    step = max(1, _LUMA_BLOCK // max(1, H * W))
    for i in range(0, B, step):
        r, g, b = (rgb[i : i + step, :, :, c].astype(np.uint32) for c in range(3))
        out[i : i + step, :, :, 0] = (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16
    return out
