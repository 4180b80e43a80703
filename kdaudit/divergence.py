"""What "teacher and control part" means: arrays of logits in, one number per image out.

All results are float64, in nats unless said otherwise, larger = more suspicious. Logits are raw scores [N, K];
log-probabilities serve as well, since every formula here is unchanged by adding a constant to a row.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.floating]
Column = NDArray[np.float64]


def log_softmax(logits: Logits) -> Column:
    """Natural log of softmax over the last axis, float64 [N, K]."""
    z = np.asarray(logits, np.float64)
    z = z - z.max(axis=-1, keepdims=True)
    log_p: Column = z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
    return log_p


def jensen_shannon(teacher: Logits, student: Logits) -> Column:
    """Jensen-Shannon divergence of the two softmax distributions, [N], in 0..ln 2; symmetric.

    JS = (KL(p_T || m) + KL(p_S || m)) / 2 with m = (p_T + p_S) / 2  (Lin, 1991).
    """
    log_t, log_s = log_softmax(teacher), log_softmax(student)
    log_m = np.logaddexp(log_t, log_s) - np.log(2.0)
    both = np.exp(log_t) * (log_t - log_m) + np.exp(log_s) * (log_s - log_m)
    # Rounding can leave -1e-17 where the two agree.
    return np.asarray(np.clip(both.sum(axis=-1) / 2, 0.0, np.log(2.0)), np.float64)


def kl(teacher: Logits, student: Logits) -> Column:
    """Kullback-Leibler divergence KL(p_T || p_S), [N], at least 0."""
    log_t, log_s = log_softmax(teacher), log_softmax(student)
    return np.asarray(np.maximum((np.exp(log_t) * (log_t - log_s)).sum(axis=-1), 0.0), np.float64)


class Answers(NamedTuple):
    """What the two networks say about N images, as columns."""

    teacher_top1: NDArray[np.int64]  # [N]
    student_top1: NDArray[np.int64]  # [N]
    teacher_confidence: Column  # [N], p_T of the teacher's own answer
    student_confidence: Column  # [N], p_S of the control's own answer
    gap: Column  # [N], log p_T(k) - log p_S(k), k the teacher's answer (METHOD.md section 2's s)
    js: Column  # [N], Jensen-Shannon divergence


def answers(teacher: Logits, student: Logits) -> Answers:
    """Compare two arrays of logits [N, K] row by row."""
    log_t, log_s = log_softmax(teacher), log_softmax(student)
    k = log_t.argmax(axis=-1)
    rows = np.arange(len(k))
    return Answers(
        teacher_top1=k,
        student_top1=log_s.argmax(axis=-1),
        teacher_confidence=np.exp(log_t[rows, k]),
        student_confidence=np.exp(log_s.max(axis=-1)),
        gap=log_t[rows, k] - log_s[rows, k],
        js=jensen_shannon(teacher, student),
    )
