"""Stage 7, the assumption: are the clean images such as innocent suspect images are?

Every error rate here rests on that. It cannot be proven, but where it fails it mostly shows in the control, which has
seen neither the held-out clean images nor the suspect ones: how sure it is of them, and what it takes them for.
Columns in, statements out.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdaudit.calibration import Answers

SURE = 1e-3
"""p-value from which a difference is no chance."""

CONFIDENCE_APART, ANSWERS_APART = 0.1, 0.2
"""Differences that matter: of the distribution functions of the confidence, and total variation of the answers. With
a hundred thousand images any two sources differ for sure."""


Whole = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Assumption:
    """One statement about the images.

    Attributes:
        name: what is assumed.
        holds: whether nothing speaks against it.
        p_value: of "no difference"; None where there are too few images to ask.
        statement: what was seen.
    """

    name: str
    holds: bool
    p_value: float | None
    statement: str


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What the control says of images, as columns [n].

    Attributes:
        confidence: of its answer, 0..1.
        answers: whole numbers, -1 for none.
    """

    confidence: NDArray[np.floating[Any]]
    answers: Answers


def assumptions(suspect: Iterable[Seen], clean: Seen) -> tuple[Assumption, ...]:
    """Compare suspect images that were not flagged, in parts, with the held-out clean ones."""
    from scipy.stats import chi2_contingency, kstwo

    # All that is kept of the suspect images: how many lie in each gap between clean confidences, and on each of these.
    # The table holds single precision: next to 1 the clean ones, in double, would all lie below what is rounded to it.
    points, on_clean = np.unique(np.asarray(clean.confidence, np.float32), return_counts=True)
    below, upto = np.zeros((2, len(points) + 1), np.int64)
    answers, images = np.zeros(0, np.int64), 0
    for part in suspect:
        values = np.asarray(part.confidence, np.float32)
        below += np.bincount(np.searchsorted(points, values, side="right"), minlength=len(below))
        upto += np.bincount(np.searchsorted(points, values, side="left"), minlength=len(upto))
        answers = _added(answers, _counts(part.answers))
        images += len(values)
    if images == 0 or len(points) == 0:
        return ()
    statistic = _apart(below, upto, on_clean)
    together = images * len(clean.answers) / (images + len(clean.answers))
    p_confidence = float(np.clip(kstwo.sf(statistic, max(1, round(together))), 0, 1))
    counts = _side_by_side(answers, _counts(clean.answers))
    shares = counts / counts.sum(1, keepdims=True)
    variation = float(np.abs(shares[0] - shares[1]).sum() / 2)
    p_answers = float(chi2_contingency(counts).pvalue) if counts.shape[1] > 1 else 1.0
    return (
        Assumption(
            "clean images are to the control as the delivery is",
            not (p_confidence < SURE and statistic > CONFIDENCE_APART),
            p_confidence,
            f"its confidence is distributed alike up to {statistic:.1%} "
            f"({len(clean.answers):,} clean images, {images:,} suspect ones without flags)",
        ),
        Assumption(
            "the classes have the shares that they have in the delivery",
            not (p_answers < SURE and variation > ANSWERS_APART),
            p_answers,
            f"{variation:.1%} of the clean images would have to show another class by the control's answers; images "
            "are judged by their answer, so this costs power before it costs honesty",
        ),
    )


def _apart(below: Whole, upto: Whole, on_clean: Whole) -> float:
    """The largest difference of two distribution functions (Kolmogorov and Smirnov).

    Between two neighbouring clean values the clean one stands still, so the difference is largest at one of them or
    just before it.

    Args:
        below: suspect values from the i-th clean value on and below the next, [n + 1]; first those below all.
        upto: suspect values above the one before the i-th clean value and up to it, [n + 1].
        on_clean: clean values at each of these n different ones, [n].
    """
    clean = np.cumsum(on_clean) / on_clean.sum()
    at, before = np.cumsum(upto)[:-1] / upto.sum(), np.cumsum(below)[:-1] / below.sum()
    return float(max(np.abs(at - clean).max(), np.abs(before - np.append(0.0, clean[:-1])).max()))


def _counts(answers: Answers) -> Whole:
    return np.bincount(answers[answers >= 0])


def _added(one: Whole, other: Whole) -> Whole:
    """The sum of two counts, of which one may know of fewer answers."""
    return np.asarray(_padded(one, other).sum(0), np.int64)


def _side_by_side(one: Whole, other: Whole) -> Whole:
    """Two counts in two rows, without answers that neither has."""
    both = _padded(one, other)
    return np.asarray(both[:, both.sum(0) > 0], np.int64)


def _padded(one: Whole, other: Whole) -> Whole:
    both = np.zeros((2, max(len(one), len(other))), np.int64)
    both[0, : len(one)], both[1, : len(other)] = one, other
    return both
