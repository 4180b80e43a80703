"""The distillation loss and its gradient against their reference, torch.compile and a copy.

    python -m benchmarks.kernels.distill_loss

Bytes: both logits [B, K] once, the student's gradient out. Forward and backward are timed together, as training runs
them.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels.harness import Case, Op, main
from kdaudit.kernels import distill_loss_ref

SHAPES = ((128, 10), (1024, 10), (1024, 1000), (1024, 4096))
"""Batches of distillation (128 on a CPU) and of larger GPUs; classes of CIFAR-10, ImageNet, the most there are."""


def set_up(shape: tuple[int, ...], kind: torch.dtype, device: str) -> Case:
    """Logits of a student that is not far from its teacher, at temperature 4."""
    b, k = shape
    generator = torch.Generator(device).manual_seed(0)
    teacher = 4 * torch.randn(b, k, generator=generator, device=device)
    student = (teacher + torch.randn(b, k, generator=generator, device=device)).to(kind).requires_grad_()
    moved = 3 * b * k * (torch.finfo(kind).bits // 8)
    # The gradient is as small as 1 / B: what is allowed is a share of its largest element.
    return Case((student, teacher.to(kind), 4.0), moved, (1e-2, 4.0 / b * 1e-3))


def run(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Sequence[Tensor]:
    """The loss and the student's gradient."""
    student = arguments[0]
    student.grad = None
    loss = function(*arguments)
    loss.backward()
    return [loss.detach(), student.grad]


OP = Op("distill_loss", SHAPES, (torch.float32, torch.float16, torch.bfloat16), set_up, run, distill_loss_ref)

if __name__ == "__main__":
    sys.exit(main(OP))
