"""The augmentation kernel against its reference, torch.compile and a copy.

    python -m benchmarks.kernels.augment

Bytes: two images a view in, uint8; the view out, in the type asked for.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels.harness import Case, Op, main
from kdaudit.kernels import augment_ref
from kdaudit.kernels.augment_ref import Draws

SHAPES = ((128, 32, 32, 3), (1024, 32, 32, 3), (64, 224, 224, 3))
"""Views, height, width, channels: training batches of small images and of photographs."""

POOL = 256
"""Images that the views are drawn from."""


def set_up(shape: tuple[int, ...], kind: torch.dtype, device: str) -> Case:
    """Views with the draws of distillation: shifts of an eighth, every second mirrored, mixed by any share."""
    b, height, width, channels = shape
    g = torch.Generator(device).manual_seed(0)
    images = torch.randint(0, 256, (POOL, height, width, channels), generator=g, device=device, dtype=torch.uint8)
    reach = height // 8
    draws = Draws(
        torch.randint(0, POOL, (2, b), generator=g, device=device),
        torch.randint(-reach, reach + 1, (2, b, 2), generator=g, device=device, dtype=torch.int32),
        torch.rand(2, b, generator=g, device=device) < 0.5,
        torch.rand(b, generator=g, device=device),
    )
    mean, std = (torch.full((channels,), value, device=device) for value in (120.0, 60.0))
    pixels = b * height * width * channels
    # The arithmetic is float32 in both; half types round the result once more.
    tolerance = 1e-5 if kind == torch.float32 else torch.finfo(kind).eps
    return Case(
        (images, draws, mean, std, kind), 2 * pixels + pixels * (torch.finfo(kind).bits // 8), (tolerance, tolerance)
    )


def run(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Sequence[Tensor]:
    """The views."""
    return [function(*arguments)]


OP = Op("augment", SHAPES, (torch.float32, torch.float16, torch.bfloat16), set_up, run, augment_ref)

if __name__ == "__main__":
    sys.exit(main(OP))
