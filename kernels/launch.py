"""How kernels are launched: tiles, warps, and what is checked before. The only copy of all that.

No kernel is launched by importing this: triton itself is imported where one is.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

WIDEST = 1 << 12
"""Columns that one program holds in registers, at most. Rows of 21,843 (ImageNet-21k) spilled: on an H200 they took
2.1 ms where torch.compile takes 0.9, so they are left to the reference (README.md)."""

TILE = 1 << 11
"""Elements of a tile where rows are short: several rows share a program then."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """How the rows of [N, K] are shared out among programs.

    Attributes:
        rows: rows per program.
        columns: K, rounded up to a power of two.
        programs: how many.
        warps: warps per program.
    """

    rows: int
    columns: int
    programs: int
    warps: int


def tiling(n: int, k: int) -> Tiling:
    """The tiling for N rows of K columns.

    Raises:
        ValueError: a row is wider than `WIDEST`, or has no column.
    """
    if not 0 < k <= WIDEST:
        raise ValueError(f"rows of 1 to {WIDEST} columns are served, not of {k}")
    columns = power_of_two(k)
    rows = max(1, TILE // columns)
    # 32 lanes with 8 to 64 elements each; more warps than 16 do not fit a program.
    warps = min(16, max(1, rows * columns // 1024))
    return Tiling(rows, columns, -(-n // rows), warps)


def power_of_two(n: int) -> int:
    """The least power of two that is not below n, which is at least 1."""
    return 1 << (n - 1).bit_length()


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on the CPU: set when this process was started."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def check(name: str, tensor: Tensor, shape: tuple[int | None, ...], *kinds: torch.dtype) -> None:
    """Refuse what a kernel would misread.

    Args:
        name: for the sentence.
        tensor: an argument.
        shape: its shape; None where any size will do.
        kinds: the element types it may have.

    Raises:
        ValueError: another shape or type, not contiguous, or not on a GPU (unless interpreted).
    """
    fits = tensor.ndim == len(shape) and all(
        want in (None, size) for want, size in zip(shape, tensor.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("*" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} must be [{wanted}], not {list(tensor.shape)}")
    if tensor.dtype not in kinds:
        raise ValueError(f"{name} must be of type {' or '.join(map(str, kinds))}, not {tensor.dtype}")
    if not tensor.is_contiguous():
        raise ValueError(f"{name} must be contiguous: call .contiguous() on it")
    if not (tensor.is_cuda or interpreted()):
        raise ValueError(f"{name} lies on {tensor.device}: kernels run on a GPU, the reference everywhere")


@contextlib.contextmanager
def device_of(tensor: Tensor) -> Iterator[None]:
    """Launch on the tensor's own GPU."""
    with torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext():
        yield
