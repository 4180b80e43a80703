"""Stage 7, by image: which images are poison candidates, at a stated error rate.

Columns in, columns out; docs/design/detection.md says why the p-values are what they are.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdaudit.calibration import (
    Answers,
    Clean,
    Column,
    Null,
    bounded,
    conformal_p_values,
    rank_p_values,
    tail_p_values,
    unbounded,
)
from kdaudit.compared import Comparison
from kdaudit.delivered import Delivered, flags_beside_labels, targets_of
from kdaudit.disputed import Remainder, delivered_as_targets
from kdaudit.families import either, flags_of_a_family
from kdaudit.memory import give_back
from kdaudit.multiplicity import ENTRANCE, CleanRanks, grouped_flags, known_groups
from kdaudit.selection import spread, taken
from kdaudit.settings import Rule
from kdaudit.stretches import stretches
from kdaudit.tails import Scores
from kdaudit.unseen import Worn, wearing

DOUBT = 0.05
"""Unflagged images with a p-value up to this are doubtful where their answer has flags: a handful of poison images
that the error rate had to leave are enough to teach a network their trigger again."""

STRANGE = 0.01
"""p-value up to which an image with such an answer is strange enough to be told of."""

OWN_SHARE = 0.2
"""Of the error rate, where there are second looks, what an image's own score may spend: what only that sees lies far
out, so a fifth is enough; the second looks decide about the many that do not."""

BESIDE = ENTRANCE / 2
"""Of the error rate, what each of two questions about disputed labels may spend: further flags of a target class,
measured against all that it has. It is the entrance's part, which bounds a probability: where no class is wrongly taken
for a target nothing of it is spent."""


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """What judging needs of the suspect images, as columns [m].

    Attributes:
        read: whether the image was compared.
        groups: the teacher's answer; -1 where it was no number or the image was not read.
        disagrees: whether the control's answer is another one.
        score: of the rule in use, NaN where not read, +inf where the teacher's answer was no number; empty where it is
            put aside.
        told: the labels that they were delivered with; None where there are none to go by.
    """

    read: NDArray[np.bool_]
    groups: Answers
    disagrees: NDArray[np.bool_]
    score: NDArray[np.float64]
    told: Delivered | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Flags:
    """The image-level result, as columns [m].

    Attributes:
        flag: poison candidates.
        p_values: NaN under the argmax rule, which has none.
        extrapolated: whether the p-value lies beyond what clean images resolve by counting.
        way: what the p-value comes from: 0 the image's own score, k mostly the k-th second look, one more than there
            are looks: flagged because of the label it was delivered with, two more: because of that and the pixels
            that a trigger would have covered; -1 nothing.
        unjudged: shares what the most suspicious images share, and has an answer that clean images do not get, or none
            that the control knows.
        doubtful: not flagged, yet unusual for an answer that has flags, or delivered as a target class for which
            neither network takes it; kept, but not tuned on.
        by_label: flagged because of the label it was delivered with, whatever its answer; None: none is.
    """

    flag: NDArray[np.bool_]
    p_values: NDArray[np.float64]
    extrapolated: NDArray[np.bool_]
    way: NDArray[np.int8]
    unjudged: NDArray[np.bool_]
    doubtful: NDArray[np.bool_]
    by_label: NDArray[np.bool_] | None = None


def score_of(comparison: Comparison, rule: Rule) -> NDArray[np.float64]:
    """The score that a rule judges by; the argmax rule has none and is shown with the divergence."""
    return comparison.gap if rule == "score" else comparison.divergence


@dataclass(frozen=True, slots=True, eq=False)
class SecondLook:
    """Further p-values of "innocent", from what the most suspicious images share.

    Attributes:
        p_values: of the suspect images, [m]; 1 where not read.
        clean_p_values: of the calibration images among clean ones, [n].
        reason: what an image is flagged for, a few words.
        proven: whether what they share is a proven trigger.
        targets: the target classes of proven triggers.
        shared: what the doubted images of these classes share beyond them.
        worn: how far each image is from wearing them.
    """

    p_values: Scores
    clean_p_values: Column
    reason: str
    proven: bool = False
    targets: tuple[int, ...] = ()
    shared: tuple[Remainder, ...] = ()
    worn: tuple[Worn, ...] = ()


def flag(
    suspect: Columns,
    clean: Clean,
    rule: Rule,
    fdr: float,
    looks: Sequence[SecondLook] = (),
    own: "OwnOdds | None" = None,
) -> Flags:
    """Decide which images are poison candidates.

    Under `divergence` and `score` an image's own p-value is twice the smaller of two: the conformal one, exact and as
    coarse as the calibration set, and the one of the suspect images' own tail, which reaches further and is
    extrapolated. The second looks together (`combined`) are another way to a flag, with most of the error rate. Flags
    are Benjamini-Hochberg's in two layers, by the teacher's answer; carriers of a proven trigger are flagged under any.
    Where a target class is beyond doubt and there are labels, images are tested label by label (`kdaudit.delivered`).

    Args:
        suspect: columns of the suspect images.
        clean: scores and answers of the calibration images.
        rule: divergence, score or argmax.
        fdr: innocent share of the flags to stay under.
        looks: what the second looks say.
        own: what the images' own scores say (`own_odds`), which is written into; None: it is asked here.
    """
    m = len(suspect.read)
    if rule == "argmax":
        never, none = np.broadcast_to(np.bool_(0), m), np.broadcast_to(np.nan, m)  # one value each, however many images
        return Flags(suspect.disagrees & suspect.read, none, never, np.broadcast_to(np.int8(-1), m), never, never)
    read, groups = suspect.read, taken(suspect.groups, suspect.read)
    own = own or own_odds(suspect, clean, rule)
    odd = _looked_again(own, groups, clean, looks, read) if looks else _Odd.of(own)
    give_back()
    told, ranks = suspect.told.of(read) if suspect.told else None, CleanRanks(odd.usual, clean.groups)
    disputed = taken(suspect.disagrees, read)
    decided = _decide(odd.p_values, groups, disputed, ranks, _Proven.of(looks, read), told, fdr)
    found = decided.flags | decided.by_label
    odd.way[decided.by_label] = 1 + len(looks)
    odd.way[decided.unseen] = 2 + len(looks)
    tainted = np.isin(groups, np.unique(groups[decided.flags]))
    doubtful = ~found & ((tainted & (odd.p_values <= DOUBT)) | decided.asked)
    return Flags(
        spread(found, read, False),
        spread(odd.p_values, read, 1.0),
        spread(odd.further, read, False),
        spread(odd.way, read, -1),
        spread(odd.strange & ~found, read, False),
        spread(doubtful, read, False),
        spread(decided.by_label, read, False) if decided.by_label.any() else None,
    )


class OwnOdds(NamedTuple):
    """How odd the images that were read are by their own scores, [m] each, and clean ones, [n]."""

    p_values: Column
    further: NDArray[np.bool_]  # beyond what clean images resolve by counting
    usual: Column


def own_odds(suspect: Columns, clean: Clean, rule: Rule) -> OwnOdds:
    """By the images' own scores; under `divergence` and `score`."""
    score, groups = taken(suspect.score, suspect.read), taken(suspect.groups, suspect.read)
    transform = bounded(float(np.log(2))) if rule == "divergence" else unbounded
    tail, p = tail_p_values(score, groups, clean, transform), conformal_p_values(score, clean.scores)
    further = (tail < p) & (tail < 1 / (len(clean.scores) + 1))
    # In place: these columns are as long as the delivery.
    np.minimum(1.0, np.multiply(np.minimum(p, tail, out=p), 2, out=p), out=p)
    return OwnOdds(p, further, np.minimum(1.0, 2 * rank_p_values(clean.scores)))


class _Odd(NamedTuple):
    """How odd the images that were read are by all that was asked, [m] each, and clean ones, [n]."""

    p_values: Column
    further: NDArray[np.bool_]  # beyond what clean images resolve by counting
    way: NDArray[np.int8]  # as in `Flags`
    strange: NDArray[np.bool_]  # shares what is looked for, and clean images cannot speak for its answer
    usual: Column

    @classmethod
    def of(cls, own: OwnOdds) -> "_Odd":
        """By their own scores alone."""
        m = len(own.p_values)
        return cls(own.p_values, own.further, np.zeros(m, np.int8), np.zeros(m, bool), own.usual)


def _looked_again(
    own: OwnOdds, groups: Answers, clean: Clean, looks: Sequence[SecondLook], read: NDArray[np.bool_]
) -> _Odd:
    """By these and the second looks, each at its share of the error rate (weighted Bonferroni); writes into `own`."""
    seen = [taken(look.p_values, read) for look in looks]
    second, usual_second = combined(seen, [look.clean_p_values for look in looks])
    strange = _only_known(second, groups, clean, looks, read)
    resolved, p = second < 1 / (len(clean.scores) + 1), own.p_values
    np.divide(second, 1 - OWN_SHARE, out=second)
    np.divide(p, OWN_SHARE, out=p)
    by_second, way = second < p, np.ones(len(p), np.int8)
    np.minimum(1.0, np.minimum(p, second, out=p), out=p)
    least = second  # of no more use, and as long as the delivery
    least[:] = seen[0]
    for number, column in enumerate(seen[1:], start=2):
        way[column < least] = number
        np.minimum(least, column, out=least)
    way[~by_second] = 0
    usual = either(own.usual, usual_second, OWN_SHARE)
    return _Odd(p, np.where(by_second, resolved, own.further), way, strange, usual)


class _Proven(NamedTuple):
    """What the second looks say of proven triggers; columns of the images that were read, [m]."""

    carries: Scores | None = None  # p-values of carrying one; None: none is proven
    targets: Answers = np.empty(0, np.int64)  # their target classes
    shared: Sequence[Remainder] = ()
    worn: Sequence[Worn] = ()

    @classmethod
    def of(cls, looks: Sequence[SecondLook], read: NDArray[np.bool_]) -> "_Proven":
        carried = [taken(look.p_values, read) for look in looks if look.proven]
        return cls(
            functools.reduce(np.minimum, carried) if carried else None,
            np.array([target for look in looks for target in look.targets], np.int64),
            [Remainder(one.label, taken(one.p_values, read)) for look in looks for one in look.shared],
            [one.of(read) for look in looks for one in look.worn],
        )


class _Decided(NamedTuple):
    """Flags of the images that were read, [m] each."""

    flags: NDArray[np.bool_]
    by_label: NDArray[np.bool_]  # further ones, which neither network takes for what they were delivered as
    unseen: NDArray[np.bool_]  # of these, who wears a trigger that cannot be seen on them
    asked: NDArray[np.bool_]  # all such images that were delivered as a target class


def _decide(
    p: Column,
    groups: Answers,
    disputed: NDArray[np.bool_],
    ranks: CleanRanks,
    proven: _Proven,
    told: Delivered | None,
    fdr: float,
) -> _Decided:
    """From p-values to flags: by answer, by carrying a proven trigger, and by label."""
    nobody, beside, inside = np.zeros(len(p), bool), BESIDE * fdr, 1 - ENTRANCE
    # Poison that the teacher did not take up carries the trigger too, under any answer: half of the error rate is for
    # images by their answer, half for carriers whatever their answer.
    carries = proven.carries
    level = fdr if carries is None else fdr / 2
    by_answer, certain = grouped_flags(p, groups, level, ranks, disputed)
    plain = by_answer if carries is None else by_answer | _carriers(carries, groups, proven.targets, level)
    if told is None:
        return _Decided(plain, nobody, nobody, nobody)
    targets = targets_of(told, groups, plain, certain, proven.targets)
    flags, by_label, asked = plain, nobody, nobody
    if len(targets):
        flags = flags_beside_labels(p, carries, told, groups, by_answer, targets, inside * fdr, ranks, disputed)
        by_label, asked = delivered_as_targets(p, told, plain, flags, targets, inside * fdr, proven.shared, beside)
    unseen = wearing(proven.worn, told, groups, p, flags | by_label, beside)
    return _Decided(flags, by_label | unseen, unseen, asked)


def _carriers(carries: Scores, groups: Answers, proven: Answers, level: float) -> NDArray[np.bool_]:
    """Carriers of proven triggers, [m]; those that the teacher gives a target apart from those that it does not.

    A trigger that moves most images leaves few carriers another answer. Images that look like one by nature have theirs
    all: near-equal frames of one sign must not profit from a thousand carriers at the target.
    """
    flags, moved = np.zeros(len(carries), bool), np.isin(groups, proven)
    for rows in (np.flatnonzero(moved), np.flatnonzero(~moved)):
        flags[rows] = flags_of_a_family(carries[rows], level)
    return flags


def _only_known(
    second: Scores, groups: Answers, clean: Clean, looks: Sequence[SecondLook], read: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Second looks where clean images can speak for the answer or a trigger is proven; and who is left strange, [m].

    Clean images of which the control knows none take part in what is usual, and yet do not say that nothing is wrong:
    they may be images that look triggered by nature. Writes into `second`.
    """
    unknown = ~np.isin(groups, known_groups(clean.groups))
    strange = ~np.isin(groups, known_groups(clean.agreed)) & (second <= STRANGE)
    proven = [taken(look.p_values, read)[unknown] for look in looks if look.proven]
    second[unknown] = functools.reduce(np.minimum, proven) if proven else 1.0
    return strange


def combined(p_values: Sequence[Scores], clean: Sequence[Column]) -> tuple[Scores, Column]:
    """Several p-values of each image as one: Fisher's product (1925), held against what it is on clean images.

    Fisher's law would want them to be independent; the clean images' own products want nothing.

    Args:
        p_values: of the suspect images, [m] each.
        clean: of the same clean images in the same order, [n] each, none of them 0.

    Returns:
        p-values of the suspect images [m], and of the clean images among themselves [n].
    """
    if len(p_values) == 1:
        return p_values[0].copy(), clean[0]
    usual = _fisher(clean)
    null, out = Null.of(usual), np.empty(len(p_values[0]), np.float32)
    for span in stretches(len(out)):
        out[span] = null.beyond(_fisher([column[span] for column in p_values]))
    return out, rank_p_values(usual)


def _fisher(p_values: Sequence[Scores]) -> Column:
    """Minus the logarithm of the product of several p-values of each image, [m] each."""
    return np.asarray(-np.log(np.maximum(np.asarray(p_values, np.float64), 1e-300)).sum(axis=0), np.float64)
