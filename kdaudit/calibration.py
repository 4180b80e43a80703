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

Column = NDArray[np.float64]
Scores = NDArray[np.floating[Any]]
"""As they come: a score that was found in float32 is held in it."""

Answers = NDArray[np.signedinteger[Any]]
"""Output indices, -1 for none. Half the memory of int64 where they come as int32, as those of a whole delivery do."""


def conformal_p_values(scores: Scores, calibration: Column) -> Column:
    """p_i = (1 + #{c : s_c >= s_i}) / (n + 1), [m], in 1/(n+1)..1 (Bates et al., Annals of Statistics, 2023).

    Valid, and safe to feed to Benjamini-Hochberg, if clean images and calibration images are exchangeable.
    NaN scores (images that were not read) get p = 1.
    """
    ordered = np.sort(calibration)
    p = np.empty(len(scores))
    for span in stretches(len(scores)):  # the ranks of millions would take as much again
        below = np.searchsorted(ordered, scores[span], side="left")
        p[span] = (len(ordered) + 1.0 - below) / (len(ordered) + 1.0)  # 1 + those at least as high
    p[np.isnan(scores)] = 1.0
    return p


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


TAIL_FROM, TAIL_TO = 0.90, 0.99
"""The window of the bulk that a tail is fitted on: below, scores follow another law; above, poison may sit."""

MIN_EXCEEDANCES = 60
"""Fewer scores than this above `TAIL_FROM` do not determine a tail's shape."""

SHAPE_SPREAD = 0.2
"""Standard deviation of the prior on a tail's shape, centred at the exponential: a hundred scores alone say little
about it (Martins and Stedinger, 2000, use a like prior for floods), ten thousand outweigh it."""

MAX_EXCEEDANCES = 20_000
"""More are thinned evenly: the fit is exact enough long before."""


@dataclass(frozen=True, slots=True)
class Tail:
    """A generalised-Pareto tail (Pickands, 1975): P(X > x | X > start) = (1 + shape (x - start) / scale)^(-1/shape).

    Attributes:
        start: where the tail begins, in units of the (transformed) score.
        shape: xi, at least 0: exponential at 0, heavier above.
        scale: sigma, above 0.
        fitted_on: number of scores above `start` in the fit.
    """

    start: float
    shape: float
    scale: float
    fitted_on: int

    def survival(self, x: Column) -> Column:
        """P(X > x | X > start), [n]; 1 at and below the start."""
        from scipy.stats import genpareto

        excess = np.maximum(np.asarray(x, np.float64) - self.start, 0.0)
        return np.asarray(genpareto.sf(excess, self.shape, scale=self.scale), np.float64)


def fit_tail(scores: Column, least: int = MIN_EXCEEDANCES, upto: float = TAIL_TO) -> Tail | None:
    """Fit a tail to the bulk of the scores by penalised maximum likelihood, blind to the most extreme ones.

    Scores beyond the `TAIL_TO` quantile enter as "somewhere above it" (right-censored), so a few poison images
    far out pull neither shape nor scale by more than their number. A tail that would end is taken for an
    exponential one: its end point would give innocents beyond it the p-value zero.

    Args:
        scores: finite, transformed scores [n].
        least: scores above the tail's start that are needed.
        upto: quantile beyond which scores are only counted; 1 where all are known to be innocent.

    Returns:
        The tail, or None where there are too few scores to fit one.
    """
    from scipy.optimize import minimize

    if len(scores) == 0:  # a set with one answer only has no other groups to fit a tail on
        return None
    low, high = _start(scores), float(np.quantile(scores, upto))
    above = np.sort(scores[scores > low]) - low
    if len(above) < least or not low < high:
        return None
    count = len(above)
    if count > MAX_EXCEEDANCES:
        above = above[np.linspace(0, count - 1, MAX_EXCEEDANCES).astype(np.int64)]
    censored = above > high - low
    excess = np.minimum(above, high - low)

    def cost(parameters: Column) -> float:
        shape, log_scale = float(parameters[0]), float(parameters[1])
        scaled = excess / math.exp(log_scale)
        if abs(shape) < 1e-6:  # the exponential, the limit at shape 0
            log_survival, log_density = -scaled, -scaled - log_scale
        else:
            base = 1 + shape * scaled
            if base.min() <= 0:
                return 1e12
            log_survival = -np.log(base) / shape
            log_density = log_survival - np.log(base) - log_scale
        prior = (shape / SHAPE_SPREAD) ** 2 / 2
        return prior - float(log_density[~censored].sum() + log_survival[censored].sum())

    best = minimize(cost, np.array([0.0, math.log(excess.mean())]), method="Nelder-Mead").x
    if best[0] < 0:
        return Tail(low, 0.0, float(excess.sum() / (~censored).sum()), count)
    return Tail(low, float(best[0]), math.exp(float(best[1])), count)


def foretold_tail(scores: Column) -> Tail | None:
    """What few innocent scores foretell of the next one, if their tail is exponential.

    Of k excesses over the score before them, with sum S, the next one is above x with probability (1 + x / S)^(-k),
    exactly and whatever the scale, since their ratio is F-distributed: a generalised-Pareto tail of shape 1 / k, so the
    fewer there are the heavier it is.

    Args:
        scores: finite [n].

    Returns:
        The tail, or None where fewer than `FEWEST` scores lie above its start.
    """
    if len(scores) == 0:
        return None
    low = float(scores[scores <= _start(scores)].max())
    above = scores[scores > low] - low
    return Tail(low, 1 / len(above), float(above.mean()), len(above)) if len(above) >= FEWEST else None


def _start(scores: Column) -> float:
    """Where the tail begins: at `TAIL_FROM`, and not among scores that all share the smallest value.

    Images that gave no reason for interventions have one and the same score; there is no law among them.
    """
    low, floor = float(np.quantile(scores, TAIL_FROM)), float(scores.min())
    if low > floor or low == scores.max():
        return low
    return float(np.median(scores[scores > floor]))


@dataclass(frozen=True, slots=True, eq=False)
class Clean:
    """Scores of the calibration images.

    Attributes:
        scores: float64 [n].
        groups: the teacher's answers, [n].
    """

    scores: Column
    groups: Answers


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
    exceeding = values > _start(values)
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


LEAST_TAIL, FEWEST = 20, 5
"""Null scores beyond the tail's start, at least, for sums of many terms: their tails are tame. So many determine a
shape; and so many a scale."""


def beyond(scores: Scores, null: Column) -> Column:
    """Share of a null law beyond each score, [m]: counted where it can be, a fitted tail where it cannot.

    Args:
        scores: [m].
        null: scores of images that are innocent, [n].
    """
    p = conformal_p_values(scores, null)
    tail, more = fit_tail(null, LEAST_TAIL, upto=1.0), 0
    if tail is None:
        tail, more = foretold_tail(null), 1  # the next score counts with the few, as in a conformal p-value
    if tail is not None:
        far, share = scores > null.max(), (int((null > tail.start).sum()) + more) / (len(null) + more)
        p[far] = share * tail.survival(scores[far])
    return p


def rank_p_values(scores: Column) -> Column:
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
        share = np.clip(np.asarray(scores, np.float64) / limit, 1e-12, 1 - 1e-6)
        return np.log(share / (1 - share))

    return transform


def unbounded(scores: Column) -> Column:
    """The score as it is."""
    return np.asarray(scores, np.float64)
