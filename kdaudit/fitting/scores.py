"""What answers and scores say about a candidate: arrays in, numbers out."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kdaudit.divergence import from_probabilities
from kdaudit.signature import OutputKind

Answers = NDArray[np.int64]
RESAMPLES = 50
SUM_TOLERANCE = 0.01
"""A float16 softmax over 1,000 classes is off by a few thousandths."""


def output_kind(scores: NDArray[np.float32]) -> OutputKind:
    """What raw scores [n, K] are: rows in 0..1 that sum to one, their logarithms, or neither (logits)."""
    rows = scores[np.isfinite(scores).all(axis=1)].astype(np.float64)
    if not len(rows):
        return "logits"
    inside = rows.min() >= -1e-3 and rows.max() <= 1 + 1e-3
    if inside and np.abs(rows.sum(axis=1) - 1).max() <= SUM_TOLERANCE:
        return "probabilities"
    if rows.max() <= 1e-3 and np.abs(np.exp(rows).sum(axis=1) - 1).max() <= SUM_TOLERANCE:
        return "log-probabilities"
    return "logits"


def beliefs(scores: NDArray[np.float32]) -> NDArray[np.float64]:
    """Softmax of raw scores [n, K] of any kind; float64, rows sum to one."""
    if output_kind(scores) == "probabilities":
        scores = from_probabilities(scores)
    z = np.nan_to_num(scores.astype(np.float64), nan=0.0, posinf=1e9, neginf=-1e9)
    z = np.exp(z - z.max(axis=1, keepdims=True))
    return np.asarray(z / z.sum(axis=1, keepdims=True))


def consistency(tops: Sequence[Answers], classes: int) -> float:
    """How well answers tell whether two pictures show the same image.

    With a = share of images that get the same answer after a harmless change, and b = share of pairs of
    different images that get the same answer, the score is the Kullback-Leibler divergence in nats between
    the coins a and b. Wrong preprocessing makes answers shaky (a falls) or few (b rises). Only
    answers count: a scale that is too large makes any network confident, so confidences would prefer it.

    Args:
        tops: answers [n] per view, the unchanged images first.
        classes: how many classes the images can be of. b is not taken lower than 1 / classes: so many equally
            frequent classes have no less, and answers more varied than that are no merit.

    Returns:
        At least 0; 0 when a does not exceed b.
    """
    n = len(tops[0])
    values = []
    for other in tops[1:]:
        same = min(float((tops[0] == other).mean()), 1 - 0.5 / n)
        chance = max(_collisions(tops[0], other), 1 / classes)
        if same <= chance:
            values.append(0.0)
            continue
        values.append(same * np.log(same / chance) + (1 - same) * np.log((1 - same) / (1 - chance)))
    return float(np.mean(values)) if values else 0.0


def _collisions(a: Answers, b: Answers) -> float:
    """Share of pairs of different images (i, j) with a[i] == b[j]."""
    n = len(a)
    if n < 2:
        return 1.0
    size = int(max(a.max(), b.max())) + 2  # answers may be -1
    together = int((np.bincount(a + 1, minlength=size) * np.bincount(b + 1, minlength=size)).sum())
    return (together - int((a == b).sum())) / (n * (n - 1))


def consistency_error(a: Sequence[Answers], classes: int, b: Sequence[Answers] | None = None) -> float:
    """Standard error of `consistency`, or of its difference to that of `b`, by resampling images."""
    rng = np.random.default_rng(0)
    n = len(a[0])
    values = []
    for _ in range(RESAMPLES):
        rows = rng.integers(0, n, n)
        value = consistency([top[rows] for top in a], classes)
        values.append(value - (consistency([top[rows] for top in b], classes) if b is not None else 0.0))
    return float(np.std(values)) + 1 / n


def overconfidence(scores: NDArray[np.float32], tops: Sequence[Answers]) -> float:
    """How far mean confidence exceeds the share of answers that survive a harmless change; at least 0."""
    steady = float(np.mean([(tops[0] == other).mean() for other in tops[1:]]))
    return max(0.0, float(beliefs(scores).max(axis=1).mean()) - steady)


def losses(scores: NDArray[np.float32], outputs: Answers) -> NDArray[np.float64]:
    """Cross-entropy [n] in nats of the right outputs [n], at most 16 (a belief of 1e-7)."""
    right = beliefs(scores)[np.arange(len(scores)), outputs]
    return np.asarray(-np.log(np.maximum(right, 1e-7)))
