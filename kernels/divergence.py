"""Triton: teacher and student logits [N, K] read once -> both answers, gap, Jensen-Shannon, margin.

Formulae and units: `divergence_ref`, which is the definition. float32 inside, whatever float comes in.
Bytes moved: 2 N K of the logits' type in, 28 N out; plain torch makes about thirteen passes over [N, K].
Measured on an H200 (README.md); nothing in kdaudit calls it yet.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kdaudit.kernels.divergence_ref import Divergence
from kdaudit.kernels.launch import check, device_of, tiling

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@triton.jit
def divergence_kernel(
    teacher,  # [N, K]
    student,  # [N, K]
    teacher_top1,  # int64 [N]
    student_top1,  # int64 [N]
    numbers,  # float32 [3, N]: gap, js, margin
    N,
    K,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One tile of rows per program, each row held whole."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    here = (rows < N)[:, None] & (columns < K)[None, :]
    at = rows[:, None] * K + columns[None, :]
    nothing = float("-inf")
    t = tl.load(teacher + at, mask=here, other=nothing).to(tl.float32)
    s = tl.load(student + at, mask=here, other=nothing).to(tl.float32)

    # Comparisons with a NaN are false, so this catches NaN and both infinities.
    strange = here & ~((tl.abs(t) < float("inf")) & (tl.abs(s) < float("inf")))
    finite = tl.sum(strange.to(tl.int32), axis=1) == 0
    t = tl.where(here & finite[:, None], t, tl.where(here, 0.0, nothing))
    s = tl.where(here & finite[:, None], s, tl.where(here, 0.0, nothing))
    # Rows beyond N hold -inf throughout: they get zeros, so that nothing below is NaN for want of a row.
    t = tl.where((rows < N)[:, None], t, 0.0)
    s = tl.where((rows < N)[:, None], s, 0.0)

    top, most = tl.argmax(t, axis=1), tl.max(t, axis=1)
    student_top, student_most = tl.argmax(s, axis=1), tl.max(s, axis=1)
    log_p = t - most[:, None]
    log_p -= tl.log(tl.sum(tl.exp(log_p), axis=1))[:, None]
    log_q = s - student_most[:, None]
    log_q -= tl.log(tl.sum(tl.exp(log_q), axis=1))[:, None]

    # log(p + q) - log 2, from the larger of the two so that nothing overflows or cancels.
    larger, smaller = tl.maximum(log_p, log_q), tl.minimum(log_p, log_q)
    log_m = larger + tl.log(1.0 + tl.exp(smaller - larger)) - 0.6931471805599453
    parts = tl.exp(log_p) * (log_p - log_m) + tl.exp(log_q) * (log_q - log_m)
    js = tl.sum(tl.where(here, parts, 0.0), axis=1) * 0.5
    js = tl.minimum(tl.maximum(js, 0.0), 0.6931471805599453)

    is_top = columns[None, :] == top[:, None]
    gap = tl.sum(tl.where(is_top, log_p - log_q, 0.0), axis=1)
    margin = most - tl.max(tl.where(is_top, nothing, t), axis=1)

    real = rows < N
    lost = float("nan")
    tl.store(teacher_top1 + rows, tl.where(finite, top, -1).to(tl.int64), mask=real)
    tl.store(student_top1 + rows, tl.where(finite, student_top, -1).to(tl.int64), mask=real)
    tl.store(numbers + rows, tl.where(finite, gap, lost), mask=real)
    tl.store(numbers + N + rows, tl.where(finite, js, lost), mask=real)
    tl.store(numbers + 2 * N + rows, tl.where(finite, margin, lost), mask=real)


def divergence(teacher: Tensor, student: Tensor) -> Divergence:
    """Compare two arrays of logits row by row; see `divergence_ref`.

    Args:
        teacher: logits [N, K], float32, float16 or bfloat16, contiguous, on a GPU.
        student: the same shape and type.

    Returns:
        int64 and float32 columns [N] on the same device.

    Raises:
        ValueError: another shape, type or place.
    """
    check("teacher", teacher, (None, None), *FLOATS)
    check("student", student, tuple(teacher.shape), teacher.dtype)
    n, k = teacher.shape
    tile = tiling(n, k)
    answers = torch.empty((2, n), dtype=torch.int64, device=teacher.device)
    numbers = torch.empty((3, n), dtype=torch.float32, device=teacher.device)
    if n:
        with device_of(teacher):
            divergence_kernel[(tile.programs,)](
                teacher, student, answers[0], answers[1], numbers, n, k,
                ROWS=tile.rows, COLUMNS=tile.columns, num_warps=tile.warps,
            )  # fmt: skip
    return Divergence(answers[0], answers[1], numbers[0], numbers[1], numbers[2])
