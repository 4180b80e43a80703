"""From p-values to decisions at a stated error rate, when there are many of them and they come in groups.

Arrays in, arrays out.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdaudit.calibration import Answers, Column, interval

ENTRANCE = 0.2
"""Share of the error rate that is spent on the question which groups hold anything at all."""

FEW = 0.5
"""Up to this share of innocents a group is tested at the level that the share allows; beyond it, at ever less of that:
the innocents of a target class have smaller p-values than others, up to 3 times where they were the most of it."""

LOCAL, TINY = 0.25, 1e-12
"""Above this share of innocents among images with one p-value none is flagged: where poison lies further out flags stop
then even if innocents have p-values nearly 4 times too small (3 were seen). And the least p-value whose density is
asked for."""

KIND, MOST_SHIFT = 20, 6.0
"""A kind's own p-values count against this many that are as they should be; and the most that they are moved by."""

LEAST_CLEAN = 2
"""A group of which there are fewer clean images is none that these can speak for: what its images share may be the
class itself, which the control never learned."""

PRICE = 2 / (1 - ENTRANCE)
"""How many times more calibration images the flags need than Benjamini-Hochberg alone: half the error rate is the
tail's, and a fifth goes to the entrance."""


@dataclass(frozen=True, slots=True, eq=False)
class CleanRanks:
    """What clean images' p-values would be, so that a group can be compared with its clean like.

    Attributes:
        p_values: [n], computed as the suspect images' are.
        groups: whole numbers, [n].
    """

    p_values: Column
    groups: Answers


class Grouped(NamedTuple):
    """Flags in groups, and the groups about which there is no doubt."""

    flags: NDArray[np.bool_]  # [m]
    certain: Answers  # names of the groups that hold something with probability 1 - alpha / 5 all of them


def grouped_flags(p_values: Column, groups: Answers, alpha: float, clean: CleanRanks | None = None) -> Grouped:
    """Benjamini-Hochberg in two layers: first which groups hold anything, then which images in these.

    Groups are judged by Simes' p-value, which one image far out can carry; where clean images are given, also by
    whether more of the group lies low than of its clean like, which a crowd of moderately unusual images shows. Groups
    that pass Holm's procedure at a fifth of alpha hold poison beyond reasonable doubt (with probability 1 - alpha / 5
    not one of them does not), and their images are tested at the rest of alpha. Those that pass Benjamini-Hochberg
    only are tested at that times the weight of the groups that passed (Benjamini and Bogomolov, JRSS B, 2014).
    Innocents of other groups never profit from the threshold that one group's poison has earned, and a group full of
    poison is not held to the threshold of the whole set.

    Args:
        p_values: [m].
        groups: whole numbers, [m].
        alpha: innocent share of the flags to stay under.
        clean: clean images for the second way in; None: Simes' p-value alone.

    Returns:
        Flags, and the names of the groups that passed Holm's procedure.
    """
    flags = np.zeros(len(p_values), bool)
    if len(groups) == 0:
        return Grouped(flags, groups)
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order])) + 1
    rows = np.split(order, starts)
    names = groups[order[np.append(0, starts)]]
    entrance = np.array([simes(p_values[r]) for r in rows])
    if clean is not None:
        crowds = [crowd(p_values[r], clean.p_values[clean.groups == g]) for r, g in zip(rows, names, strict=True)]
        entrance = np.minimum(1.0, 2 * np.minimum(entrance, crowds))
    weights = entrance_weights(np.array([len(r) for r in rows]))
    certain = holm(entrance, ENTRANCE * alpha, weights)
    chosen = benjamini_hochberg(entrance / (weights * len(names)), alpha)
    inside = (1 - ENTRANCE) * alpha
    for index in np.flatnonzero(chosen):
        level = inside if certain[index] else inside * weights[chosen].sum()
        own = p_values[rows[index]]
        flags[rows[index]] = flags_of_a_group(own, level, most_innocent(names[index], len(groups), clean))
    return Grouped(flags, names[certain])


def known_groups(clean: CleanRanks) -> Answers:
    """Groups that clean images can speak for."""
    names, counts = np.unique(clean.groups, return_counts=True)
    return names[counts >= LEAST_CLEAN]


def most_innocent(group: int, images: int, clean: CleanRanks | None) -> float:
    """How many of so many images are innocent ones of a group, surely at most (99 % interval): as clean images say.

    All, where fewer than `LEAST_CLEAN` of them are of the group: the clean pool may lack it, and its images be strange
    to the control for that alone. (GTSRB's untargeted row has a class of which the pool holds nothing: 233 innocents.)
    """
    like = int((clean.groups == group).sum()) if clean is not None else 0
    if clean is None or like < LEAST_CLEAN:
        return float(images)
    return images * interval(like, len(clean.groups), 0.99)[1]


def among_their_kind(p_values: Column) -> Column:
    """p-values [m] that are as rare as they say among innocents of a kind whose p-values are all too small.

    How much too small is told by those above a tenth, among which there is no poison to speak of: by how few of these
    are above one half. As normal deviates they are moved by as much (an empirical null; Efron, 2004); never downwards.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    high, higher = (int((p_values > edge).sum()) + KIND * (1 - edge) for edge in (0.1, 0.5))
    start = float(norm.isf(0.1))

    def excess(shift: float) -> float:
        return float(norm.cdf(-shift) / norm.cdf(start - shift) - higher / high)

    if excess(0.0) <= 0:
        return p_values
    shift = brentq(excess, 0.0, MOST_SHIFT) if excess(MOST_SHIFT) < 0 else MOST_SHIFT
    deviates = norm.isf(np.clip(p_values, 1e-300, 1 - 1e-15))
    return np.maximum(p_values, norm.sf(deviates - shift))


def flags_of_a_group(p_values: Column, alpha: float, most: float) -> NDArray[np.bool_]:
    """Benjamini-Hochberg's flags [m] of a group, at a wider level where it is known to hold much poison.

    The procedure keeps alpha times the share of innocents, so of such a group it flags too little: of many classes one
    has few images of its own, and poison that is made to be it outnumbers them. How many innocents there are at most
    clean images say, as long as the delivery has the classes in the same proportions; if it has not, the p-values above
    one half do (Storey's estimate). The larger counts; from `FEW` on, ever less of what it allows is spent.

    Args:
        p_values: of the group's images, [m].
        alpha: innocent share of the flags to stay under.
        most: innocent images of the group, at most.
    """
    share = min(1.0, max(most / max(1, len(p_values)), storey(p_values)))
    if share > FEW:
        share /= share + (1 - share) ** 2 / FEW  # FEW at FEW, 1 at 1, and smooth at both ends
    return flags_of_a_family(p_values, alpha / share)


def entrance_weights(images: NDArray[np.int64]) -> Column:
    """How much of the error rate each group's entrance may spend, [G], together 1, from its number of images.

    Half of it alike, half by images: poison makes its target class large, and of a thousand classes a thousandth each
    would let none in. Weights that no p-value has shaped keep the error rate (Genovese, Roeder and Wasserman, 2006).
    """
    return np.asarray((1 / len(images) + images / images.sum()) / 2, np.float64)


def holm(p_values: Column, alpha: float, weights: Column | None = None) -> NDArray[np.bool_]:
    """Rejections [n] of which, with probability 1 - alpha, not one is wrong (Holm, 1979; his weighted procedure).

    Args:
        p_values: [n].
        alpha: of one wrong rejection or more.
        weights: above 0, [n], fixed without regard to the p-values; None: all alike.
    """
    n = len(p_values)
    weights = np.ones(n) if weights is None else weights
    order = np.argsort(p_values / weights, kind="stable")
    left = weights[order][::-1].cumsum()[::-1]
    passing = p_values[order] * left <= alpha * weights[order]
    rejected = np.zeros(n, bool)
    rejected[order[: n if passing.all() else int(np.argmin(passing))]] = True
    return rejected


LOW = 0.05
"""A p-value up to this counts as low: where crowds are compared, and where other flags allow for more."""


def crowd(p_values: Column, clean: Column) -> float:
    """p-value of "no larger share of these lies low than of their clean like" (Fisher's exact test); 1 without any."""
    from scipy.stats import hypergeom

    if len(clean) == 0:
        return 1.0
    low, clean_low = int((p_values <= LOW).sum()), int((clean <= LOW).sum())
    return float(hypergeom.sf(low - 1, len(p_values) + len(clean), low + clean_low, len(p_values)))


def simes(p_values: Column) -> float:
    """p-value of "nothing here", from p-values [n] that do not work against each other (Simes, 1986)."""
    n = len(p_values)
    return float(min(1.0, (np.sort(p_values) * n / np.arange(1, n + 1)).min()))


def benjamini_hochberg(p_values: Column, alpha: float, earned: float = 0.0) -> NDArray[np.bool_]:
    """Flags [m] whose expected innocent share is at most `alpha` (Benjamini and Hochberg, 1995).

    Args:
        p_values: [m].
        alpha: of these flags.
        earned: innocents that other flags allow for besides, at their share of the error rate: as if as many of them
            stood here with p-values of 0. The proof stays the same, with their share added.
    """
    m = len(p_values)
    ordered = np.sort(p_values)
    passing = np.flatnonzero(ordered <= (alpha * np.arange(1, m + 1) + earned) / m)
    if len(passing) == 0:
        return np.zeros(m, bool)
    return np.asarray(p_values <= ordered[passing[-1]], bool)


def adaptive_flags(p_values: Column, alpha: float, most: float = np.inf, earned: float = 0.0) -> NDArray[np.bool_]:
    """Benjamini-Hochberg's flags [m] where many of the images may be no innocents.

    The share of innocents is estimated from the p-values above one half (Storey, Taylor and Siegmund, JRSS B, 2004,
    whose estimate keeps the error rate for any number of independent p-values); none above it is flagged then. Where
    something else bounds their number and says less, that counts: if they are fewer than the error rate allows, all
    images are flagged.

    Args:
        p_values: [m].
        alpha: innocent share of the flags to stay under.
        most: innocents among the images, at most, by other evidence than these p-values.
        earned: as for `benjamini_hochberg`; only images with a p-value up to `LOW` profit, for what is no rarer than
            that is no evidence.
    """
    by_count, by_rank = most / max(1, len(p_values)), storey(p_values)
    profits = benjamini_hochberg(p_values, alpha / by_rank, earned / by_rank) & (p_values <= LOW)
    if by_count < by_rank:
        return profits | benjamini_hochberg(p_values, alpha / max(by_count, alpha))
    return profits | flags_of_a_family(p_values, alpha / by_rank)


def flags_of_a_family(p_values: Column, alpha: float) -> NDArray[np.bool_]:
    """Benjamini-Hochberg's flags [m], as far as images with such a p-value are surely no innocents for the most part.

    The procedure fills its flags up with innocents until they are alpha of all. Where poison lies far out nothing is
    gained by that, and where innocents have smaller p-values than they should the promise is lost: so the local share
    counts as well.
    """
    flags = benjamini_hochberg(p_values, alpha)
    return flags & (local_share(p_values) <= LOCAL) if flags.any() else flags


def local_share(p_values: Column) -> Column:
    """Share of innocents among images with p-values like each one, [m] (local false discovery rate; Efron, 2007).

    Innocents' p-values are uniform, and as many as those above one half tell (`storey`); all images' density below that
    falls, and is the steepest falling one that fits (Grenander, 1956). 1 above one half.
    """
    from scipy.optimize import isotonic_regression

    low = p_values <= 0.5
    places, which, counts = np.unique(np.maximum(p_values[low], TINY), return_inverse=True, return_counts=True)
    widths = np.diff(places, prepend=0.0)
    density = isotonic_regression(counts / widths / len(p_values), weights=widths, increasing=False).x
    share = np.ones(len(p_values))
    share[low] = np.minimum(1.0, storey(p_values) / density[which])
    return share


def storey(p_values: Column) -> float:
    """Share of innocents among images with these p-values [m], as those above one half tell (at most 1)."""
    return min(1.0, 2 * (1 + int((p_values > 0.5).sum())) / max(1, len(p_values)))
