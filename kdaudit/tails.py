"""Tails: the law of the largest scores, fitted on many innocent ones or foretold from few.

Arrays in, arrays out.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.floating[Any]]
"""As they come: a score that was found in float32 is held in it."""

TAIL_FROM, TAIL_TO = 0.90, 0.99
"""The window of the bulk that a tail is fitted on: below, scores follow another law; above, poison may sit."""

MIN_EXCEEDANCES = 60
"""Fewer scores than this above `TAIL_FROM` do not determine a tail's shape."""

SHAPE_SPREAD = 0.2
"""Standard deviation of the prior on a tail's shape, centred at the exponential: a hundred scores alone say little
about it (Martins and Stedinger, 2000, use a like prior for floods), ten thousand outweigh it."""

MAX_EXCEEDANCES = 20_000
"""More are thinned evenly: the fit is exact enough long before."""

LEAST_TAIL, FEWEST = 20, 5
"""Null scores beyond the tail's start, at least, for sums of many terms: their tails are tame. So many determine a
shape; and so many a scale."""


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

    def survival(self, x: Scores) -> NDArray[np.float64]:
        """P(X > x | X > start), [n]; 1 at and below the start."""
        from scipy.stats import genpareto

        excess = np.maximum(np.asarray(x, np.float64) - self.start, 0.0)
        return np.asarray(genpareto.sf(excess, self.shape, scale=self.scale), np.float64)


def fit_tail(scores: Scores, least: int = MIN_EXCEEDANCES, upto: float = TAIL_TO) -> Tail | None:
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
    low, high = start_of(scores), float(np.quantile(scores, upto))
    above = np.sort(scores[scores > low]).astype(np.float64, copy=False) - low
    if len(above) < least or not low < high:
        return None
    count = len(above)
    if count > MAX_EXCEEDANCES:
        above = above[np.linspace(0, count - 1, MAX_EXCEEDANCES).astype(np.int64)]
    censored = above > high - low
    excess = np.minimum(above, high - low)

    def cost(parameters: NDArray[np.float64]) -> float:
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


def foretold_tail(scores: Scores) -> Tail | None:
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
    low = float(scores[scores <= start_of(scores)].max())
    above = scores[scores > low].astype(np.float64, copy=False) - low
    return Tail(low, 1 / len(above), float(above.mean()), len(above)) if len(above) >= FEWEST else None


def start_of(scores: Scores) -> float:
    """Where the tail begins: at `TAIL_FROM`, and not among scores that all share the smallest value.

    Images that gave no reason for interventions have one and the same score; there is no law among them.
    """
    low, floor = float(np.quantile(scores, TAIL_FROM)), float(scores.min())
    if low > floor or low == scores.max():
        return low
    return float(np.median(scores[scores > floor]))
