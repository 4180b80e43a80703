"""From p-values to flags at a stated error rate, where images come in groups of which few hold anything.

Arrays in, arrays out.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdaudit.calibration import Answers, Column, interval
from kdaudit.families import LOW, benjamini_hochberg, flags_apart, flags_of_a_group

ENTRANCE = 0.2
"""Share of the error rate that is spent on the question which groups hold anything at all."""

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


def grouped_flags(
    p_values: Column,
    groups: Answers,
    alpha: float,
    clean: CleanRanks | None = None,
    disputed: NDArray[np.bool_] | None = None,
) -> Grouped:
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
        disputed: whether the control gives another answer, [m]; in groups about which there is no doubt these images
            are told apart (`flags_apart`). None: none are.

    Returns:
        Flags, and the names of the groups that passed Holm's procedure.
    """
    flags = np.zeros(len(p_values), bool)
    if len(groups) == 0:
        return Grouped(flags, groups)
    names, sizes = np.unique(groups, return_counts=True)
    entrance = np.array([_entrance(p_values[groups == name], int(name), clean) for name in names])
    weights = entrance_weights(sizes)
    certain = holm(entrance, ENTRANCE * alpha, weights)
    chosen = benjamini_hochberg(entrance / (weights * len(names)), alpha)
    inside = (1 - ENTRANCE) * alpha
    apart = np.zeros(len(groups), bool) if disputed is None else disputed
    elsewhere = np.setdiff1d(known_groups(clean.groups), names[chosen]) if clean is not None else names[:0]
    unknown = p_values[apart & np.isin(groups, elsewhere)]
    for index in np.flatnonzero(chosen):
        own, most = np.flatnonzero(groups == names[index]), most_innocent(names[index], len(groups), clean)
        if certain[index]:
            flags[own] = flags_apart(p_values[own], apart[own], unknown, inside, most)
        else:
            flags[own] = flags_of_a_group(p_values[own], inside * weights[chosen].sum(), most)
    return Grouped(flags, names[certain])


def _entrance(p_values: Column, group: int, clean: CleanRanks | None) -> float:
    """p-value of "this group holds nothing": by one image far out, or by a crowd that its clean like have not."""
    alone = simes(p_values)
    if clean is None:
        return alone
    return min(1.0, 2 * min(alone, crowd(p_values, clean.p_values[clean.groups == group])))


def known_groups(clean: Answers) -> Answers:
    """Groups that clean images can speak for; `clean`: theirs, [n]."""
    names, counts = np.unique(clean, return_counts=True)
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
