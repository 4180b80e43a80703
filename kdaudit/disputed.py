"""Stage 7, disputed labels: images delivered as a target class for which neither network takes them.

Poison that moved neither network looks like a wrong label, and beside a class that is a target beyond doubt most such
images are poison. Who of them is one is asked in two ways: what else is odd about an image, and how much it carries of
what the doubted images of that class share once every proven trigger is accounted for. Columns in, columns out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdaudit.calibration import Answers, Column, beyond, conformal_p_values
from kdaudit.delivered import Delivered
from kdaudit.families import adaptive_flags, among
from kdaudit.tails import Scores

YARDSTICKS = 5
"""Other labels that it takes to say how often a label is disputed: one may be easy by nature."""


@dataclass(frozen=True, slots=True, eq=False)
class Remainder:
    """What the doubted images of a target class share beyond its proven triggers, and who carries how much of it.

    Attributes:
        label: the target class, an output of the model.
        p_values: of "carries nothing of it", [m]; 1 for images that were not delivered as the class or are undisputed.
    """

    label: int
    p_values: Column


def remainder(
    told: Delivered, label: int, teacher: Answers, student: Answers, score: Scores, clean: Scores, middle: float
) -> Remainder:
    """p-values of what the doubted images of a target class share: how rare is so much of it among four kinds?

    Clean images; images of the class itself, delivered as it and taken for it by both networks (what a class looks like
    is shared as well); images with other disputed labels (hard ones have something in common too); and the mirror image
    of all scores' own lower half, as in `likeness.likeness_p_values`. The largest counts. Nothing needs to be proven on
    clean images here: the class is a target already, and the p-values alone bound the error.

    Args:
        told: the labels, [m].
        label: the target class.
        teacher: the teacher's answers, [m].
        student: the control's, [m].
        score: along what is shared, cross-fitted, [m]; NaN where not read.
        clean: the same of the clean pool, [n].
        middle: the median of calm images along it.
    """
    out = np.ones(len(score))
    known = ~np.isnan(score)
    asked = np.flatnonzero(known & told.disputed & (told.labels == label))
    own = score[known & told.undisputed(label, teacher, student)]
    hard = score[known & told.disputed & (told.labels != label)]
    kinds = [conformal_p_values(score[asked], kind) for kind in (clean, own, hard)]
    out[asked] = np.max([*kinds, beyond(score[asked], 2 * middle - score[known])], axis=0)
    return Remainder(label, out)


def delivered_as_targets(
    p_values: Column,
    told: Delivered,
    plain: NDArray[np.bool_],
    flags: NDArray[np.bool_],
    targets: Answers,
    alpha: float,
    shared: Sequence[Remainder] = (),
    share: float = 0.0,
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Who of the images with a disputed label of a target class is poison as well?

    Innocents are rare where the label is a target and nearly all elsewhere; so these images are tested on their own,
    with the share of innocents estimated: from their p-values, or from how often other labels are disputed
    (`innocents_at_most`), whichever is less. Where a trigger was proven, by what they share beyond it; else by their
    p-values. Disputed images are unlike others (hard, or labelled wrongly), so clean images cannot speak for them.
    Those with *other* disputed labels, of no target class where there are such, can: a p-value must be rare among
    theirs as well.

    Args:
        p_values: of all images, [m].
        told: their labels.
        plain: who was flagged by answer alone, [m]: covers of an attack have disputed labels too, and are no yardstick.
        flags: who is flagged already, [m].
        targets: as `delivered.targets_of` tells.
        alpha: innocent share of the flags to stay under.
        shared: what the doubted images of some target classes share.
        share: of innocents that a class's further flags may bring among all that it has.

    Returns:
        Further flags [m], and who was asked about, [m].
    """
    further, family = np.zeros(len(p_values), bool), np.zeros(len(p_values), bool)
    left = told.disputed & ~flags
    carried = {one.label: one.p_values for one in shared}
    yardstick = left & ~plain
    honest = yardstick & ~np.isin(told.labels, targets)
    if honest.any():
        yardstick = honest
    for target in targets:
        rows, usual = np.flatnonzero(left & (told.labels == target)), yardstick & (told.labels != target)
        own = carried.get(int(target))
        if len(rows) == 0 or (own is None and not usual.any()):
            continue
        family[rows] = True
        odd = among(p_values[rows], p_values[usual]) if own is None else own[rows]
        most = innocents_at_most(told, ~flags, int(target), targets)
        earned = share * int((flags & (told.labels == target)).sum())
        further[rows] = adaptive_flags(odd, alpha, most, earned)
    return further, family


def innocents_at_most(told: Delivered, left: NDArray[np.bool_], target: int, targets: Answers) -> float:
    """How many images with a disputed label of a target class are innocent, at most.

    As if its images were disputed as often as those of the label that is disputed most: classes are hard, and labels
    wrong, in the class that an attacker aims at as elsewhere. A model that took a trigger up by half gives the rest of
    its poison the class that it shows: of 43 kinds of signs one label was disputed 347 times, where 5 are to be
    expected by the worst of the others.

    Args:
        told: the labels, [m].
        left: who is not flagged yet, [m].
        target: the class.
        targets: all target classes, whose own labels say nothing.

    Returns:
        Their number; infinity where there are fewer than `YARDSTICKS` other labels.
    """
    disputed, labels = told.disputed[left], told.labels[left]
    others = np.setdiff1d(labels[labels >= 0], targets)
    if len(others) < YARDSTICKS:
        return float("inf")
    given, questioned = (
        np.bincount(some[some >= 0], minlength=others.max() + 1)[others] for some in (labels, labels[disputed])
    )
    worst = float(((questioned + 1) / (given + 1)).max())
    undisputed = int((~disputed & (labels == target)).sum())
    return undisputed * worst / (1 - worst) if worst < 1 else float("inf")
