"""From scores to p-values: against clean images, from tails where these do not reach, and what can be seen.

Arrays in, arrays out. Scores are float64, larger = more suspicious.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdaudit.selection import spread, taken
from kdaudit.stretches import stretches
from kdaudit.tails import LEAST_TAIL, MIN_EXCEEDANCES, TAIL_FROM, Scores, Tail, fit_tail, foretold_tail, start_of

Column = NDArray[np.float64]
Answers = NDArray[np.signedinteger[Any]]
"""Output indices, -1 for none. Half the memory of int64 where they come as int32, as those of a whole delivery do."""


def conformal_p_values(scores: Scores, calibration: Scores) -> Column:
    """p_i = (1 + #{c : s_c >= s_i}) / (n + 1), [m], in 1/(n+1)..1 (Bates et al., Annals of Statistics, 2023).

    Valid, and safe to feed to Benjamini-Hochberg, if clean images and calibration images are exchangeable.
    NaN scores (images that were not read) get p = 1.
    """
    ordered, p = np.sort(calibration), np.empty(len(scores))
    for span in stretches(len(scores)):  # the ranks of millions would take as much again
        p[span] = _counted(scores[span], ordered)
    return p


def _counted(scores: Scores, ordered: Scores) -> Column:
    """Conformal p-values by calibration scores in ascending order."""
    below = np.searchsorted(ordered, scores, side="left")
    p = (len(ordered) + 1.0 - below) / (len(ordered) + 1.0)  # 1 + those at least as high
    p[np.isnan(scores)] = 1.0
    return np.asarray(p, np.float64)


def calibration_needed(rate: float, alpha: float) -> int:
    """Calibration images needed to flag a share `rate` of any data set at level `alpha`, by counting alone.

    Benjamini-Hochberg flags k of m only if some p <= alpha k / m, and the smallest p is 1 / (n + 1).
    """
    return math.ceil(1 / (alpha * rate)) - 1


def smallest_visible_rate(calibration: int, alpha: float) -> float:
    """The smallest poison rate that `calibration` images can show at level `alpha`, by counting alone."""
    return min(1.0, 1 / (alpha * (calibration + 1)))


def interval(hits: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Exact two-sided interval of a rate (Clopper and Pearson, 1934); (0, 1) for n = 0."""
    from scipy.stats import beta

    if n == 0:
        return 0.0, 1.0
    tail = (1 - confidence) / 2
    low = float(beta.ppf(tail, hits, n - hits + 1)) if hits > 0 else 0.0
    high = float(beta.ppf(1 - tail, hits + 1, n - hits)) if hits < n else 1.0
    return low, high


def paired_p_value(more: int, fewer: int, images: int) -> float:
    """One-sided p-value of "both happen to the same images equally often", whatever the overlap (McNemar, 1947, exact).

    Only images to which one thing happens and not the other tell them apart; as many as there can be of those that
    speak for equality are assumed.

    Args:
        more: images to which the one happened.
        fewer: images to which the other happened.
        images: images asked about.
    """
    from scipy.stats import binom

    against = min(fewer, images - more)
    alone = more - (fewer - against)
    return float(binom.sf(alone - 1, alone + against, 0.5))


def as_few_p_value(hits: int, n: int, other_hits: int, others: int) -> float:
    """One-sided p-value of so few hits among n if these were as likely as among others (Fisher's exact test, 1935)."""
    from scipy.stats import hypergeom

    return float(hypergeom.cdf(hits, n + others, hits + other_hits, n))


@dataclass(frozen=True, slots=True, eq=False)
class Clean:
    """Scores of the calibration images.

    Attributes:
        scores: float64 [n].
        groups: the teacher's answers, [n].
        disputed: whether the control gives another answer, [n]; None: none is.
    """

    scores: Column
    groups: Answers
    disputed: NDArray[np.bool_] | None = None

    @property
    def agreed(self) -> Answers:
        """The teacher's answers where the control gives the same, [k]."""
        return self.groups if self.disputed is None else self.groups[~self.disputed]


def tail_p_values(scores: Column, groups: Answers, clean: Clean, transform: "Transform") -> Column:
    """p-values from the suspect images' own bulk, for rates that no calibration set can resolve.

    Each group is judged by a tail fitted on all *other* groups, so that poison which gathers in one group (the
    target class) cannot hide itself by making the tail heavy; spread over all groups it does, and the p-values
    become cautious. They rest on the tail's law holding beyond the data, and are marked as extrapolated.

    Args:
        scores: [m], NaN where not read, +inf where the teacher's answer was no number.
        groups: the teacher's answer of each image, [m].
        clean: the calibration images, which say how much of a group lies in the tail without poison.
        transform: to the scale on which the tail is fitted.

    Returns:
        p-values [m]; 1 below the tail's start and where no tail could be fitted.
    """
    known = np.isfinite(scores)
    values = transform(taken(scores, known))
    if len(values) < MIN_EXCEEDANCES / (1 - TAIL_FROM):
        return np.where(np.isposinf(scores), 0.0, 1.0)
    member, yardstick = taken(groups, known), transform(clean.scores)
    out = np.ones(len(values))
    pooled = fit_tail(values)
    exceeding = values > start_of(values)
    for group in np.unique(member):
        own = member == group
        # A group that holds few of the exceedances cannot bend the pooled tail: one fit serves all of these.
        few = exceeding[own].sum() < 0.005 * exceeding.sum()
        tail = pooled if few else fit_tail(values[~own])
        if tail is None:
            continue
        beyond = own & (values > tail.start)
        mates = yardstick[clean.groups == group]
        usual = min(1 - TAIL_FROM, float((values > tail.start).mean()))
        share = _share_in_tail(int((mates > tail.start).sum()), len(mates), usual)
        out[beyond] = share * tail.survival(values[beyond])
    del values, member  # columns as long as the delivery; what is not needed goes before the next is made
    p = spread(out, known, 1.0)
    p[np.isposinf(scores)] = 0.0
    return p


LEAST = float(np.finfo(np.float32).tiny)
"""No tail says less: columns of millions are held in float32, and a p-value of 0 would be a claim that nobody can make.
"""


@dataclass(frozen=True, slots=True, eq=False)
class Null:
    """The law of innocent scores: counted where it can be, a fitted tail where it cannot.

    Attributes:
        ordered: scores of images that are innocent, ascending, [n].
        tail: of these; None where they are too few or too much alike.
        share: of scores that lie in the tail.
    """

    ordered: Scores
    tail: Tail | None
    share: float

    @classmethod
    def of(cls, scores: Scores) -> "Null":
        """From scores in any order, [n]."""
        return cls.of_ordered(np.sort(scores))

    @classmethod
    def of_ordered(cls, ordered: Scores) -> "Null":
        """From scores in ascending order, [n], which are not copied."""
        tail, more = fit_tail(ordered, LEAST_TAIL, upto=1.0), 0
        if tail is None:
            tail, more = foretold_tail(ordered), 1  # the next score counts with the few, as in a conformal p-value
        n, below = len(ordered), 0 if tail is None else np.count_nonzero(ordered <= tail.start)
        return cls(ordered, tail, (n - below + more) / (n + more))

    def beyond(self, scores: Scores) -> Column:
        """Share of the law beyond each score, [m], at least `LEAST`; 1 where the score is NaN."""
        p = np.empty(len(scores))
        for span in stretches(len(scores)):
            part, own = scores[span], _counted(scores[span], self.ordered)
            if self.tail is not None:
                far = part > self.ordered[-1]
                own[far] = np.maximum(LEAST, self.share * self.tail.survival(part[far]))
            p[span] = own
        return p


def beyond(scores: Scores, null: Scores) -> Column:
    """Share of a null law beyond each score, [m]; `null`: scores of images that are innocent, [n]."""
    return Null.of(null).beyond(scores)


def rank_p_values(scores: Scores) -> Column:
    """Conformal p-values of scores [n] among themselves: the share of the others that is at least as high."""
    ordered = np.sort(scores)
    return np.asarray((len(scores) - np.searchsorted(ordered, scores, side="left")) / max(1, len(scores)), np.float64)


PRIOR_WEIGHT = 10
"""A group's own calibration images count against this many of the average kind: one class has only a few of them."""


def _share_in_tail(hits: int, n: int, usual: float) -> float:
    """Share of a group's innocents beyond the tail's start, never below the average group's."""
    return max(usual, (PRIOR_WEIGHT * usual + hits) / (PRIOR_WEIGHT + n))


Transform = Callable[[Column], Column]


def bounded(limit: float) -> Transform:
    """Log-odds of score / limit: takes 0..limit to the whole line, where tails look like tails."""

    def transform(scores: Column) -> Column:
        out = np.empty(len(scores))
        for span in stretches(len(scores)):
            share = np.clip(np.asarray(scores[span], np.float64) / limit, 1e-12, 1 - 1e-6)
            out[span] = np.log(share / (1 - share))
        return out

    return transform


def unbounded(scores: Column) -> Column:
    """The score as it is."""
    return np.asarray(scores, np.float64)
