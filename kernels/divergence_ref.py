"""Reference: how far teacher and control part, row by row, in plain torch. The definition of `divergence`.

    p = softmax(t), q = softmax(s), m = (p + q) / 2, k = argmax t
    gap    = log p(k) - log q(k)                          nats
    js     = (KL(p || m) + KL(q || m)) / 2                nats, 0..ln 2
    margin = t(k) - max over j != k of t(j)               nats, at least 0; +inf for one class

t, s: teacher and student logits [N, K], any float type; results are float64 [N], accumulated in float64, so that a
kernel in low precision can be judged against them. A suspect model chooses its outputs: a row in which one logit of
either network is not finite has the answers -1 and NaN in all numbers.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Divergence(NamedTuple):
    """Columns [N]."""

    teacher_top1: Tensor  # int64, the first of equals; -1 where a logit is not finite
    student_top1: Tensor  # int64
    gap: Tensor
    js: Tensor
    margin: Tensor


def divergence_ref(teacher: Tensor, student: Tensor) -> Divergence:
    """Compare two arrays of logits row by row.

    Args:
        teacher: logits [N, K].
        student: logits [N, K].

    Returns:
        int64 and float64 columns [N].

    Raises:
        ValueError: the shapes differ or are not [N, K] with K at least 1.
    """
    _same_rows(teacher, student)
    finite = (torch.isfinite(teacher) & torch.isfinite(student)).all(-1)
    t, s = (torch.where(finite[:, None], z.double(), 0.0) for z in (teacher, student))
    log_p, log_q = torch.log_softmax(t, -1), torch.log_softmax(s, -1)
    top = t.argmax(-1)
    others = t.scatter(-1, top[:, None], -math.inf)
    gap = (log_p - log_q).gather(-1, top[:, None])[:, 0]
    columns = (gap, jensen_shannon_ref(t, s), t.amax(-1) - others.amax(-1))
    return Divergence(
        torch.where(finite, top, -1),
        torch.where(finite, s.argmax(-1), -1),
        *(torch.where(finite, column, math.nan) for column in columns),
    )


def jensen_shannon_ref(teacher: Tensor, student: Tensor) -> Tensor:
    """Jensen-Shannon divergence row by row, of finite logits.

    Args:
        teacher: logits [N, K].
        student: logits [N, K].

    Returns:
        float64 [N], in 0..ln 2.

    Raises:
        ValueError: the shapes differ or are not [N, K].
    """
    _same_rows(teacher, student)
    log_t = torch.log_softmax(teacher.double(), dim=-1)
    log_s = torch.log_softmax(student.double(), dim=-1)
    log_m = torch.logaddexp(log_t, log_s) - math.log(2)
    both = log_t.exp() * (log_t - log_m) + log_s.exp() * (log_s - log_m)
    return (both.sum(-1) / 2).clamp(0, math.log(2))


def _same_rows(teacher: Tensor, student: Tensor) -> None:
    if teacher.shape != student.shape or teacher.ndim != 2 or teacher.shape[1] == 0:
        raise ValueError(
            f"two arrays [N, K] of one shape are needed, not {tuple(teacher.shape)} and {tuple(student.shape)}"
        )
