"""Stage 7, by image: which images are poison candidates, at a stated error rate.

Columns in, columns out; docs/design/detection.md says why the p-values are what they are.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdaudit.calibration import Answers, Clean, Column
from kdaudit.compared import Comparison
from kdaudit.delivered import Delivered, flags_beside_labels, targets_of
from kdaudit.disputed import Remainder, delivered_as_targets
from kdaudit.families import flags_of_a_family
from kdaudit.memory import give_back
from kdaudit.multiplicity import ENTRANCE, CleanRanks, grouped_flags
from kdaudit.odds import Columns, Odds, OwnOdds, SecondLook, looked_again, own_odds
from kdaudit.selection import spread, taken
from kdaudit.settings import Rule
from kdaudit.tails import Scores
from kdaudit.unseen import Worn, wearing

DOUBT = 0.05
"""Unflagged images with a p-value up to this are doubtful where their answer has flags: a handful of poison images
that the error rate had to leave are enough to teach a network their trigger again."""

BESIDE = ENTRANCE / 2
"""Of the error rate, what each of two questions about disputed labels may spend: further flags of a target class,
measured against all that it has. It is the entrance's part, which bounds a probability: where no class is wrongly taken
for a target nothing of it is spent."""


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
        doubtful: not flagged, yet unusual for an answer that has flags, or delivered as a class for which neither
            network takes it, which is a target or is doubted in bulk; kept, but not tuned on.
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


def flag(
    suspect: Columns,
    clean: Clean,
    rule: Rule,
    fdr: float,
    looks: Sequence[SecondLook] = (),
    own: OwnOdds | None = None,
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
    odd = looked_again(own, groups, clean, looks, read) if looks else Odds.of(own)
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
