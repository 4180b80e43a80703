"""From p-values to flags at a stated error rate, within one family of images.

Arrays in, arrays out.
"""

import numpy as np
from numpy.typing import NDArray

from kdaudit.calibration import Column, conformal_p_values
from kdaudit.tails import Scores

FEW = 0.5
"""Up to this share of innocents a group is tested at the level that the share allows; beyond it, at ever less of that:
the innocents of a target class have smaller p-values than others, up to 3 times where they were the most of it."""

LOCAL, TINY = 0.25, 1e-12
"""Above this share of innocents among images with one p-value none is flagged: where poison lies further out flags stop
then even if innocents have p-values nearly 4 times too small (3 were seen). And the least p-value whose density is
asked for."""

YARDSTICK, NOT_ODD = 200, 0.2
"""Disputed images at other answers that are needed to say how odd such images are, and the share of them that may have
a p-value up to 0.05 (6 to 17 % on CIFAR-10; of digits and traffic signs 44 to 86 %)."""

KIND, MOST_SHIFT = 20, 6.0
"""A kind's own p-values count against this many that are as they should be; and the most that they are moved by."""

LOW = 0.05
"""A p-value up to this counts as low: where crowds are compared, and where other flags allow for more."""


def benjamini_hochberg(p_values: Scores, alpha: float, earned: float = 0.0) -> NDArray[np.bool_]:
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


def flags_of_a_family(p_values: Scores, alpha: float, earned: float = 0.0) -> NDArray[np.bool_]:
    """Benjamini-Hochberg's flags [m], as far as images with such a p-value are surely no innocents for the most part.

    The procedure fills its flags up with innocents until they are alpha of all. Where poison lies far out nothing is
    gained by that, and where innocents have smaller p-values than they should the promise is lost: so the local share
    counts as well. `earned`: as for `benjamini_hochberg`.
    """
    flags = benjamini_hochberg(p_values, alpha, earned)
    return flags & (local_share(p_values) <= LOCAL) if flags.any() else flags


def local_share(p_values: Scores) -> Column:
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


def storey(p_values: Scores) -> float:
    """Share of innocents among images with these p-values [m], as those above one half tell (at most 1)."""
    return min(1.0, 2 * (1 + int((p_values > 0.5).sum())) / max(1, len(p_values)))


def flags_of_a_group(p_values: Column, alpha: float, most: float, earned: float = 0.0) -> NDArray[np.bool_]:
    """Benjamini-Hochberg's flags [m] of a group, at a wider level where it is known to hold much poison.

    The procedure keeps alpha times the share of innocents, so of such a group it flags too little: of many classes one
    has few images of its own, and poison that is made to be it outnumbers them. How many innocents there are at most
    clean images say, as long as the delivery has the classes in the same proportions; if it has not, the p-values above
    one half do (Storey's estimate). The larger counts; from `FEW` on, ever less of what it allows is spent.

    Args:
        p_values: of the group's images, [m].
        alpha: innocent share of the flags to stay under.
        most: innocent images of the group, at most.
        earned: as for `benjamini_hochberg`.
    """
    share = min(1.0, max(most / max(1, len(p_values)), storey(p_values)))
    if share > FEW:
        share /= share + (1 - share) ** 2 / FEW  # FEW at FEW, 1 at 1, and smooth at both ends
    return flags_of_a_family(p_values, alpha / share, earned / share)


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


def flags_apart(
    odd: Column, disputed: NDArray[np.bool_], unknown: Column, alpha: float, most: float
) -> NDArray[np.bool_]:
    """Flags [m] of images with a target as answer, those apart whose answer the control disputes.

    That is what poison looks like to a control, and what innocents look like that it does not know: they behave alike
    for that alone. Of the target's own 8 to 9 % had p-values up to 0.01 on CIFAR-10, so they are held against their
    kind (`among_their_kind`). Flags stop where innocents begin by the law of such images at other answers as well: a
    control from few clean images is surprised by some of them far more than by the rest (one answer's own: 9 % up to
    0.01, and 39 % above one half). But where a faithful control disputes little, all of it is odd, at any answer: there
    these p-values say nothing by themselves, and none is told apart. What innocents the flags among them leave room for
    the others may bring.

    Args:
        odd: p-values, [m].
        disputed: whose answer the control disputes, [m].
        unknown: p-values of images at other answers that the control disputes, [n].
        alpha: innocent share of the flags to stay under.
        most: innocent images among all these, at most.
    """
    if len(unknown) < YARDSTICK or (unknown <= LOW).mean() > NOT_ODD:
        return flags_of_a_group(odd, alpha, most)
    flags, own = np.zeros(len(odd), bool), odd[disputed]
    rare = among_their_kind(own)
    share = storey(rare)
    apart = flags_of_a_family(rare, alpha / share) & (local_share(among_their_kind(among(own, unknown))) <= LOCAL)
    expected = share * len(rare) * float(rare[apart].max(initial=0.0))
    flags[disputed] = apart
    flags[~disputed] = flags_of_a_group(odd[~disputed], alpha, most, max(0.0, alpha * int(apart.sum()) - expected))
    return flags


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


def among(p_values: Column, usual: Column) -> Column:
    """p-values [m] that are rare among those of images of their own odd kind, [n], as well."""
    return np.maximum(p_values, conformal_p_values(-p_values, -usual))


def either(first: Scores, second: Scores, share: float) -> Column:
    """p-values [n] of two questions about the same images as one; the first may spend `share` (weighted Bonferroni)."""
    return np.asarray(np.minimum(1.0, np.minimum(first / share, second / (1 - share))), np.float64)
