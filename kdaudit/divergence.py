"""What "teacher and control part" means: arrays of logits in, one number per image out.

All results are float64, in nats unless said otherwise, larger = more suspicious. Logits are raw scores [N, K];
log-probabilities serve as well, since every formula here is unchanged by adding a constant to a row.
"""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.floating]
Column = NDArray[np.float64]


PROBABILITY_FLOOR = 1e-7
"""Probabilities are raised to it before their logarithm is taken: float16 and rounding give exact zeros."""


def from_probabilities(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logarithms of probabilities [n, K], floored at `PROBABILITY_FLOOR` and brought back to sum one."""
    floored = np.maximum(scores, np.float32(PROBABILITY_FLOOR))
    with np.errstate(invalid="ignore"):  # infinite scores are the caller's finding, not a warning
        logits: NDArray[np.float32] = np.log(floored / floored.sum(axis=1, keepdims=True))
    return logits


def top1(scores: Logits) -> NDArray[np.int64]:
    """The answers to scores [N, K], of any kind, [N]; -1 where one of them is no number."""
    return np.where(np.isfinite(scores).all(axis=1), scores.argmax(axis=1), -1).astype(np.int64)


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


BEHAVIOUR_LOGITS = 32
"""Log-probabilities kept of each network; more classes are projected onto this many fixed directions."""

BEHAVIOUR_FEATURES = 128
"""Features kept of the teacher; more of them are projected likewise. A trigger's mark survives a projection to an
eighth of the features (docs/design/detection.md)."""

LEAST = -15.0
"""Log-probabilities are raised to it: what lies below is rounding."""

FAINT = 1e-3
"""Nats added to a divergence before its logarithm is taken: less is no difference that anybody could explain."""


def behaviour(
    teacher: Logits,
    student: Logits,
    mixed: Sequence[Column] = (),
    perturbed: Sequence[tuple[Logits, Logits]] = (),
    features: NDArray[np.floating] | None = None,
) -> NDArray[np.float32]:
    """What the two networks do with each image, as one row of numbers [N, F], float32.

    The log-probabilities of both; the logarithms of how far the two part on the image, and, where these were asked
    about, on its blends, on its cuts and on each perturbed view, and how far each network's answer moves under each
    perturbation; and the teacher's inner features, brought to mean square one, with the logarithm of their size.

    Args:
        teacher: logits [N, K] on the image.
        student: the same of the control.
        mixed: mean divergences, over the blends and over the cuts, say, [N] each.
        perturbed: logits of both on each perturbed view.
        features: what the teacher's last linear layer reads on the image, [N, D]; None or D = 0: not known.
    """
    log_t, log_s = (np.maximum(log_softmax(z), LEAST) for z in (teacher, student))
    columns = [jensen_shannon(teacher, student), *mixed]
    for seen, control in perturbed:
        columns += [jensen_shannon(seen, control), jensen_shannon(teacher, seen), jensen_shannon(student, control)]
    amounts = np.log(np.stack(columns, axis=1) + FAINT)
    blocks = [_few(log_t, BEHAVIOUR_LOGITS), _few(log_s, BEHAVIOUR_LOGITS), amounts]
    if features is not None and features.shape[1]:
        blocks += _unit_free(features)
    return np.concatenate(blocks, axis=1).astype(np.float32)


def _unit_free(features: NDArray[np.floating]) -> list[Column]:
    """Few of the features [N, D], at mean square one, and the logarithm of their size [N, 1].

    A suspect model chooses its features, so those that are no numbers are zeros.
    """
    sound = np.nan_to_num(np.asarray(features, np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    size = np.sqrt((sound**2).mean(axis=1, keepdims=True)) + 1e-30
    return [_few(sound / size, BEHAVIOUR_FEATURES), np.clip(np.log(size), -30, 30)]


def _few(rows: Column, most: int) -> Column:
    """At most so many columns: the same fixed random directions in every run (Johnson and Lindenstrauss)."""
    if rows.shape[1] <= most:
        return rows
    return np.asarray((rows - rows.mean(axis=1, keepdims=True)) @ directions(rows.shape[1], most), np.float64)


@cache
def directions(width: int, most: int) -> Column:
    """The fixed random directions onto which rows of `width` numbers are projected, [width, most]."""
    return np.random.default_rng(width).normal(0, most**-0.5, (width, most))


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
