"""Triton: uint8 [n, H, W, C] -> translated, mirrored, mixed and standardised views [B, C, H, W] in one pass.

Formula: `augment_ref`, which is the definition. float32 inside, any float out. Bytes moved: 2 B H W C in, one or two
or four times B H W C out by the type; plain torch writes the gathered, the moved and the mixed images as float32.
Measured on an H200 (README.md); nothing in kdaudit calls it yet.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kdaudit.kernels.augment_ref import Draws
from kdaudit.kernels.launch import check, device_of

BLOCK = 256
"""Pixels per program."""


@triton.jit
def augment_kernel(
    images,  # uint8 [n, H, W, C]
    image,  # int64 [2, B]
    shift,  # int32 [2, B, 2]
    mirror,  # uint8 [2, B]
    weight,  # float32 [B]
    mean,  # float32 [C]
    std,  # float32 [C]
    views,  # [B, C, H, W]
    B,
    H,
    W,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block of one view's pixels per program, all channels of them."""
    view = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    here = at < H * W
    y, x = at // W, at % W
    w = tl.load(weight + view)

    first = _place(images, image, shift, mirror, view, y, x, H, W, C)
    second = _place(images, image + B, shift + 2 * B, mirror + B, view, y, x, H, W, C)
    for c in tl.static_range(C):
        a = tl.load(first + c, mask=here, other=0).to(tl.float32)
        b = tl.load(second + c, mask=here, other=0).to(tl.float32)
        value = (w * a + (1.0 - w) * b - tl.load(mean + c)) / tl.load(std + c)
        tl.store(views + (view * C + c) * H * W + at, value.to(views.dtype.element_ty), mask=here)


@triton.jit
def _place(images, image, shift, mirror, view, y, x, H, W, C: tl.constexpr):
    """Where the first channel of the source pixels lies, for one of a view's two images."""
    rows = tl.minimum(tl.maximum(y + tl.load(shift + 2 * view), 0), H - 1)
    turned = tl.where(tl.load(mirror + view) != 0, W - 1 - x, x)
    columns = tl.minimum(tl.maximum(turned + tl.load(shift + 2 * view + 1), 0), W - 1)
    # 64 bits: a pool on the device may hold more than 2^31 bytes.
    start = tl.load(image + view) * H * W
    return images + (start + rows * W + columns) * C


def augment(images: Tensor, draws: Draws, mean: Tensor, std: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """The views of one training step; see `augment_ref`.

    Args:
        images: uint8 [n, H, W, C], contiguous, on a GPU.
        draws: B draws on the same device; positions must lie in 0..n - 1, which is not checked here.
        mean: float32 [C], in 0..255.
        std: float32 [C], in 0..255.
        dtype: of the views: bfloat16, float16 or float32.

    Returns:
        [B, C, H, W].

    Raises:
        ValueError: another shape, type or place.
    """
    check("images", images, (None, None, None, None), torch.uint8)
    _, height, width, channels = images.shape
    b = len(draws.weight)
    check("draws.image", draws.image, (2, b), torch.int64)
    check("draws.shift", draws.shift, (2, b, 2), torch.int32)
    check("draws.mirror", draws.mirror, (2, b), torch.bool)
    check("draws.weight", draws.weight, (b,), torch.float32)
    check("mean", mean, (channels,), torch.float32)
    check("std", std, (channels,), torch.float32)
    views = torch.empty((b, channels, height, width), dtype=dtype, device=images.device)
    if views.numel():
        with device_of(images):
            augment_kernel[(b, triton.cdiv(height * width, BLOCK))](
                images, draws.image, draws.shift, draws.mirror.view(torch.uint8), draws.weight, mean, std, views,
                b, height, width, C=channels, BLOCK=BLOCK,
            )  # fmt: skip
    return views
