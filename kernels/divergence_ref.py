"""Reference: Jensen-Shannon divergence of two softmax distributions, in plain torch.

    m = (softmax(t) + softmax(s)) / 2
    JS(t, s) = (KL(softmax(t) || m) + KL(softmax(s) || m)) / 2        in nats, 0..ln 2

t, s: teacher and student logits [N, K], any float type; the result is float64 [N], accumulated in float64, so
that a kernel in low precision can be judged against it.
"""

import math

import torch
from torch import Tensor


def jensen_shannon_ref(teacher: Tensor, student: Tensor) -> Tensor:
    """Jensen-Shannon divergence row by row.

    Args:
        teacher: logits [N, K].
        student: logits [N, K].

    Returns:
        float64 [N], in 0..ln 2.

    Raises:
        ValueError: the shapes differ or are not [N, K].
    """
    if teacher.shape != student.shape or teacher.ndim != 2:
        raise ValueError(
            f"two arrays [N, K] of one shape are needed, not {tuple(teacher.shape)} and {tuple(student.shape)}"
        )
    log_t = torch.log_softmax(teacher.double(), dim=-1)
    log_s = torch.log_softmax(student.double(), dim=-1)
    log_m = torch.logaddexp(log_t, log_s) - math.log(2)
    both = log_t.exp() * (log_t - log_m) + log_s.exp() * (log_s - log_m)
    return (both.sum(-1) / 2).clamp(0, math.log(2))
