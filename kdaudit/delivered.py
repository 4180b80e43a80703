"""Stage 7, the labels that the images were delivered with: a sign that needs no network to be fooled.

Poison has its label from the attacker, whether or not the model took the trigger up. A label alone convicts nobody,
since every data set holds wrong ones; but beside a target class that is beyond doubt it says where to look closer, and
what the images that share a doubted label share is worth a search. Columns in, columns out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdaudit.calibration import Answers, Column, interval
from kdaudit.families import among, either, flags_apart, flags_of_a_family
from kdaudit.multiplicity import CleanRanks, known_groups, most_innocent
from kdaudit.selection import taken
from kdaudit.tails import Scores

FITTING = 0.5
"""Share of the labels that the model must give, or the labels are of another list of classes than its answers."""

OF_ITS_OWN = 0.5
"""Share of an answer's flagged images that must be delivered with it, or the labels do not follow the trigger."""

LABELS = 2
"""Doubted labels that are followed up at each depth."""

MANY = 20
"""Flagged images that must have been delivered as a class for it to be a known target without a proven trigger."""

MOSTLY = 0.8
"""A pattern goes with a label when surely (99 % interval) so many of its carriers have it. Of images that stand out by
nothing but what they show, two thirds at the most did; of blended pictures that half moved their model, 443 of 446."""

APART = 0.4
"""What the carriers show may differ so much (total variation) from what other images show: near-equal photographs of
one thing, or of a class that the control takes for a few others, share a pattern and a label as well (0.7 to 0.8;
triggers 0.1)."""

CARRYING = 0.2
"""Of the error rate for images with a target as answer and label, what carrying a proven trigger may spend: it is part
of their p-values already, but where calibration images are few these are coarse, and a tail is not."""

OF_THE_CLASS = 0.3
"""A pattern of which images of the target class carry so much, as a share of what its core carries (medians), is
the look of that class. Honest digits showed 0.5 to 0.9 of it, triggers 0.1 at most."""


@dataclass(frozen=True, slots=True, eq=False)
class Delivered:
    """The labels of the suspect images and what the networks say to them, as columns [m].

    Attributes:
        labels: as outputs of the model, whole numbers; -1 for none.
        disputed: whether neither network gives the label.
        doubt: the control's confidence in its answer where that is not the label, float32; 0 elsewhere. Whether it is
            above 0, where no more is asked yet.
    """

    labels: Answers
    disputed: NDArray[np.bool_]
    doubt: NDArray[np.float32] | NDArray[np.bool_]

    def searched(self) -> "Delivered":
        """The same once nothing is to be ranked any more: who is doubted, no longer how much."""
        return Delivered(self.labels, self.disputed, self.doubt > 0)

    def undisputed(self, label: int, teacher: Answers, student: Answers) -> NDArray[np.bool_]:
        """Images of a class itself, [m]: delivered as it, and both networks' answers, [m] each, take them for it."""
        return np.asarray((self.labels == label) & (teacher == label) & (student == label), bool)

    def of(self, rows: NDArray[np.bool_]) -> "Delivered":
        """The same of some of the images; `rows`: bool [m]."""
        return Delivered(*(taken(column, rows) for column in (self.labels, self.disputed, self.doubt)))


def outputs_of(labels: Answers, order: tuple[int, ...] | None) -> Answers:
    """Label indices [m] as outputs of the model, -1 for none; `order`: output index of each (None: the same)."""
    if order is None:
        return labels
    narrow = np.result_type(labels, np.min_scalar_type(-1 - max(order, default=0)))  # of no more bytes than it takes
    return np.append(order, -1).astype(narrow)[labels]  # the index -1 finds the last


def delivered(
    labels: Answers,
    order: tuple[int, ...] | None,
    teacher: Answers,
    student: Answers,
    confidence: NDArray[np.floating[Any]],
) -> Delivered | None:
    """Labels beside the answers; None where there are none, or they are of another list of classes.

    Args:
        labels: label indices, [m], -1 for none.
        order: output index of each label index; None: the same.
        teacher: the teacher's answers, [m], -1 where there is none.
        student: the control's, [m].
        confidence: of the control in its answer, [m].
    """
    told = outputs_of(labels, order)
    asked = (told >= 0) & (teacher >= 0)
    other, count = asked & (student != told), int(asked.sum())
    disputed = other & (teacher != told)
    if not count or int((teacher == told)[asked].sum()) < FITTING * count:
        return None
    return Delivered(told, disputed, np.where(other, confidence, np.float32(0)).astype(np.float32, copy=False))


def most_doubted(told: Delivered, known: NDArray[np.bool_], depths: Sequence[int]) -> NDArray[np.int64]:
    """Where the control doubts labels most: records of the labels that are doubted most often.

    A control that knows some classes badly doubts their labels more often than any attacker gives his; but of the most
    doubted few images his are the most. So the two labels that are most frequent count at every depth.

    Args:
        told: the labels.
        known: which images may be chosen, [m].
        depths: how many of the most doubted images say which labels these are, ascending. As many as the last says,
            and twice that of all labels together, are chosen at most.

    Returns:
        Record numbers, the most doubted first.
    """
    ranked = np.flatnonzero(known & (told.doubt > 0))
    ranked = ranked[np.argsort(-told.doubt[ranked].astype(np.float32), kind="stable")]
    labels, most = told.labels[ranked], depths[-1]
    often: set[int] = set()
    for depth in depths:
        counts = np.bincount(labels[:depth])
        often.update(int(one) for one in np.argsort(-counts, kind="stable")[:LABELS] if counts[one])
    each = min(most, LABELS * most // max(1, len(often)))
    rows = [np.flatnonzero(labels == label)[:each] for label in often]
    return np.asarray(ranked[np.sort(np.concatenate([*rows, np.empty(0, np.int64)]))], np.int64)


def targets_of(
    told: Delivered, groups: Answers, flags: NDArray[np.bool_], certain: Answers, proven: Answers
) -> Answers:
    """Target classes beyond doubt: of answers that hold poison, those whose flagged images were mostly delivered so.

    Where labels do not follow the trigger (poison labelled at random) they have nothing more to say.

    Args:
        told: the labels.
        groups: the teacher's answers, [m].
        flags: what was flagged without regard to labels, [m].
        certain: answers that hold something odd beyond doubt. It may be a handful of innocents: of 45,000 digits eight
            twos had ink at the place of a pixel trigger. So many images must stand behind a class here.
        proven: targets of proven triggers.
    """
    targets = []
    for target in np.union1d(certain, proven):
        if target < 0:
            continue  # answers that are no numbers
        flagged = flags & (groups == target)
        follow = int((flagged & (told.labels == target)).sum())
        if follow >= OF_ITS_OWN * flagged.sum() and (follow >= MANY or target in proven):
            targets.append(target)
    return np.asarray(targets, np.int64)


def flags_beside_labels(
    p_values: Column,
    carried: Scores | None,
    told: Delivered,
    groups: Answers,
    flags: NDArray[np.bool_],
    targets: Answers,
    alpha: float,
    clean: CleanRanks,
    disputed: NDArray[np.bool_],
) -> NDArray[np.bool_]:
    """The flags once more where the target classes are known, label by label.

    Poison is delivered as the target class. So images with a target as answer are tested apart, those delivered as it
    and those delivered as something else: the latter are mostly the model's own mistakes, and as these behave oddly at
    any answer, a p-value must be rare among the mistakes at other answers too. All but the former are tested by what
    they carry of a proven trigger, delivered as a target or not. A mistake may be a carrier as well, so there each of
    the two may spend half. Each family keeps the error rate, and so do all together.

    Args:
        p_values: of all images, [m].
        carried: of carrying a proven trigger, [m]; None where none is proven.
        told: their labels.
        groups: the teacher's answers, [m].
        flags: what was flagged by answer alone, [m].
        targets: as `targets_of` tells.
        alpha: innocent share of the flags to stay under.
        clean: clean images and the teacher's answers on them.
        disputed: whether the control gives another answer than the teacher, [m].

    Returns:
        Flags [m].
    """
    as_target = np.isin(told.labels, targets)
    taken_up = as_target & (told.labels == groups)
    mistaken = (told.labels >= 0) & (told.labels != groups) & ~(told.disputed & as_target)
    usual = p_values[mistaken & ~np.isin(groups, targets)]
    odd = p_values if carried is None else either(carried, p_values, CARRYING)
    elsewhere = np.setdiff1d(known_groups(clean.groups), targets)
    unknown = odd[disputed & (told.labels == groups) & np.isin(groups, elsewhere)]
    out, shared = flags.copy(), alpha if carried is None else alpha / 2
    for target in targets:
        own, other = (np.flatnonzero((groups == target) & one) for one in (taken_up, mistaken))
        rare = among(p_values[other], usual) if len(usual) else p_values[other]  # none: every answer is a target
        out[own] = flags_apart(odd[own], disputed[own], unknown, alpha, most_innocent(target, len(groups), clean))
        out[other] = flags_of_a_family(rare, shared)
    if carried is not None:
        for rows in (np.flatnonzero(as_target & ~taken_up), np.flatnonzero(~as_target)):
            out[rows] |= flags_of_a_family(carried[rows], shared)
    return out


@dataclass(frozen=True, slots=True)
class LabelProof:
    """What the labels say of a pattern that images share.

    Attributes:
        label: the model's output that most doubted carriers were delivered as.
        carriers: labelled images that carry it and show, to the control, another class.
        delivered: of these, how many were delivered with the label.
        apart: how differently from other images' the classes that the carriers show are distributed, total variation,
            0..1.
        of_the_class: whether images that were delivered with the label, and for which both networks take them, carry
            much of it as well.
        room: how different that would be if the carriers showed nothing but the commonest of these classes, 0..1: with
            two classes 0, and nothing can be told from it.
    """

    label: int
    carriers: int
    delivered: int
    apart: float
    of_the_class: bool
    room: float = 1.0

    @property
    def proven(self) -> bool:
        """Whether carriers have the label, whatever they show, and the class itself has not the pattern."""
        if self.of_the_class or self.apart > APART or self.room <= APART:
            return False
        return interval(self.delivered, self.carriers, 0.99)[0] > MOSTLY


def label_proof(
    told: Delivered, label: int, teacher: Answers, student: Answers, score: Scores, core: float
) -> LabelProof:
    """Do the images that carry a pattern have one label, whatever they show?

    An image's score must not depend on its own label (cross-fitted), or this proves itself.

    Args:
        told: the labels.
        label: the one that is asked about.
        teacher: the teacher's answers, [m].
        student: the control's, [m].
        score: how much of the pattern an image carries, [m]; NaN where not read.
        core: the score from which an image counts as a carrier.
    """
    others = (told.labels >= 0) & (student >= 0) & (student != label)
    carriers = others & (score > core)
    count = int(carriers.sum())
    known = told.undisputed(label, teacher, student) & ~np.isnan(score)
    beyond = carriers & (told.labels == label)
    usual = float(np.median(score[known])) if known.any() else 0.0
    strong = float(np.median(score[beyond])) if beyond.any() else 0.0
    size = int(student.max(initial=0)) + 1
    shown, usually = (
        np.bincount(student[rows], minlength=size) / max(1, int(rows.sum())) for rows in (carriers, others & ~carriers)
    )
    apart = 0.5 * float(np.abs(shown - usually).sum())
    room = 1 - float(usually.max())
    return LabelProof(label, count, int(beyond.sum()), apart, usual > OF_THE_CLASS * strong, room)
