"""The divergence kernel against its reference, torch.compile and a copy.

    python -m benchmarks.kernels.divergence

Bytes: both logits [N, K] once, and 28 bytes a row out (two int64, three float32).
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels.harness import Case, Op, main
from kdaudit.kernels import divergence_ref
from kdaudit.kernels.ahead import SHAPES


def set_up(shape: tuple[int, ...], kind: torch.dtype, device: str) -> Case:
    """Teacher and student logits that part by little on some rows and by much on others."""
    n, k = shape
    generator = torch.Generator(device).manual_seed(0)
    teacher = 4 * torch.randn(n, k, generator=generator, device=device)
    apart = torch.logspace(-3, 1, n, device=device)[:, None]
    student = teacher + apart * torch.randn(n, k, generator=generator, device=device)
    size = torch.finfo(kind).bits // 8
    return Case((teacher.to(kind), student.to(kind)), 2 * n * k * size + 28 * n, (1e-4, 2e-5))


def run(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Sequence[Tensor]:
    """All columns."""
    return list(function(*arguments))


OP = Op("divergence", SHAPES, (torch.float32, torch.float16, torch.bfloat16), set_up, run, divergence_ref)

if __name__ == "__main__":
    sys.exit(main(OP))
