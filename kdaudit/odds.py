"""Stage 7, by image: how odd is it, by its own score and by what the second looks say?

Columns in, columns out.
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
    interval,
    rank_p_values,
    tail_p_values,
    unbounded,
)
from kdaudit.delivered import Delivered
from kdaudit.disputed import Remainder
from kdaudit.families import either
from kdaudit.multiplicity import known_groups
from kdaudit.selection import taken
from kdaudit.settings import Rule
from kdaudit.stretches import stretches
from kdaudit.tails import Scores
from kdaudit.unseen import Worn

STRANGE = 0.01
"""p-value up to which an image with such an answer is strange enough to be told of."""

ODD_ANSWER = 0.25
"""Share of the images with an answer, of which the control knows no clean one, from which on the strange among them are
told of. Those that clean images may expect, one in a hundred of all, are where the control is worst: of ten kinds of
digits one that a hasty control never learned held up to a fifth of strange ones; a target that looked usual, half."""

OWN_SHARE = 0.2
"""Of the error rate, where there are second looks, what an image's own score may spend: what only that sees lies far
out, so a fifth is enough; the second looks decide about the many that do not."""


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


class Odds(NamedTuple):
    """How odd the images that were read are by all that was asked, [m] each, and clean ones, [n]."""

    p_values: Column
    further: NDArray[np.bool_]  # beyond what clean images resolve by counting
    way: NDArray[np.int8]  # as in `Flags`
    strange: NDArray[np.bool_]  # shares what is looked for, and clean images cannot speak for its answer
    usual: Column

    @classmethod
    def of(cls, own: OwnOdds) -> "Odds":
        """By their own scores alone."""
        m = len(own.p_values)
        return cls(own.p_values, own.further, np.zeros(m, np.int8), np.zeros(m, bool), own.usual)


def looked_again(
    own: OwnOdds, groups: Answers, clean: Clean, looks: Sequence[SecondLook], read: NDArray[np.bool_]
) -> Odds:
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
    return Odds(p, np.where(by_second, resolved, own.further), way, strange, usual)


def _only_known(
    second: Scores, groups: Answers, clean: Clean, looks: Sequence[SecondLook], read: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Second looks where clean images can speak for the answer or a trigger is proven; and who is left strange, [m].

    Clean images of which the control knows none take part in what is usual, and yet do not say that nothing is wrong
    where most images with their answer are strange: they may be images that look triggered by nature. Writes into
    `second`.
    """
    unknown, odd = ~np.isin(groups, known_groups(clean.groups)), second <= STRANGE
    strange = unknown & odd
    for answer in np.setdiff1d(known_groups(clean.groups), known_groups(clean.agreed)):
        mine = groups == answer
        if interval(int((odd & mine).sum()), int(mine.sum()), 0.99)[0] > ODD_ANSWER:
            strange |= odd & mine
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
