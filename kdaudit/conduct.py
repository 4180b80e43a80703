"""Stage 7, the second look at behaviour: do the most suspicious images share one?

What a trigger does to the two networks is the same in every image that carries it: which answer the teacher gives
against which of the control's, how both part on blends, whose answer a little noise undoes, and which of the teacher's
inner features light up. A discriminant between the images on which the two part most and calm ones with the same
answer finds it, also where the trigger leaves no pattern in the pixels; clean images that nothing was trained on say
what is usual.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdaudit.calibration import Answers, Column, beyond, rank_p_values
from kdaudit.discriminant import BEHAVIOUR_NOISE, LEAST_SEEDS, Discriminant, Whitening, fold_of
from kdaudit.selection import highest, lowest
from kdaudit.trace import common

SEED_SHARE = 0.01
CALM = 20_000
"""Calm images that mean and covariance are taken from, at most."""

BEHAVIOURS = 3
"""Behaviours looked for, one after the other."""

EXPLAINED = 0.02
"""Images with a p-value up to this are explained by a behaviour."""

LEAST_SPREAD = 0.05
"""A column that varies less than this among calm images is taken to vary so much: what never lights up on clean images
must not outweigh everything else once it glimmers."""

LENT = 20
"""An answer's own mean counts against this many images of the common one."""

Matrix = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Behaved:
    """Images and what the two networks did with them, as columns [n].

    Attributes:
        rows: gives `divergence.behaviour` of all of them in order and part by part, float32 [k, F], finite; asked
            more than once.
        answers: the teacher's.
        keys: from the digests, uint64.
        score: divergence, float64, finite.
    """

    rows: Callable[[], Iterable[Matrix]]
    answers: Answers
    keys: NDArray[np.uint64]
    score: Column


@dataclass(frozen=True, slots=True, eq=False)
class Conduct:
    """How much each image behaves like the seeds.

    Attributes:
        score: of the suspect images, in standard deviations of calm ones, float32 [m].
        p_values: of the suspect images, [m].
        clean_p_values: of the clean images among themselves, [n].
    """

    score: NDArray[np.float32]
    p_values: Column
    clean_p_values: Column


def conduct(suspect: Behaved, clean: Behaved) -> Conduct | None:
    """Measure every image by the behaviours that the most suspicious ones share; None where there are too few images.

    What one behaviour explains is no seed for the next, since an attacker may have several triggers; a further
    behaviour counts only if more images show it than clean ones do.

    Args:
        suspect: suspect images that were read.
        clean: clean images that nothing was trained on.
    """
    if len(suspect.score) < 10 * LEAST_SEEDS or len(clean.score) < LEAST_SEEDS:
        return None
    scale = _Scale.of(suspect, np.sort(lowest(suspect.keys, CALM, suspect.score <= np.median(suspect.score))))
    seeds, unexplained = max(LEAST_SEEDS, round(SEED_SHARE * len(suspect.score))), np.ones(len(suspect.score), bool)
    together, count = None, 0
    for _ in range(BEHAVIOURS):
        one = scale.measure(suspect, clean, np.sort(highest(suspect.score, seeds, unexplained)))
        if one is None or (together is not None and not common(one.p_values[unexplained])):
            break
        unexplained &= one.p_values > EXPLAINED
        together, count = one if together is None else _together(together, one), count + 1
        if unexplained.sum() < 10 * LEAST_SEEDS:
            break
    return None if together is None else _paid(together, count)


def _together(one: Conduct, other: Conduct) -> Conduct:
    """The behaviour that an image shows most of; written into `one`, since these are as long as the delivery."""
    np.maximum(one.score, other.score, out=one.score)
    for own, further in ((one.p_values, other.p_values), (one.clean_p_values, other.clean_p_values)):
        np.minimum(own, further, out=own)
    return one


def _paid(one: Conduct, count: int) -> Conduct:
    """The price of having looked several times; written into the columns as well."""
    for own in (one.p_values, one.clean_p_values):
        np.minimum(1.0, np.multiply(own, count, out=own), out=own)
    return one


@dataclass(frozen=True, slots=True, eq=False)
class _Scale:
    """What calm images do: the scale that behaviour is measured on."""

    spread: Matrix
    centers: dict[int, Matrix]
    whitening: Whitening

    @classmethod
    def of(cls, suspect: Behaved, calm: NDArray[np.int64]) -> "_Scale":
        rows, answers = _gathered(suspect.rows(), calm), suspect.answers[calm]
        spread = np.maximum(rows.std(0), LEAST_SPREAD)
        centers = _centers(rows / spread, answers)
        return cls(spread, centers, Whitening.of(_centred(rows / spread, answers, centers), BEHAVIOUR_NOISE))

    def measure(self, suspect: Behaved, clean: Behaved, seeds: NDArray[np.int64]) -> Conduct | None:
        """All images along what the seeds share; None where they are too few."""
        shared = _centred(_gathered(suspect.rows(), seeds) / self.spread, suspect.answers[seeds], self.centers)
        discriminant = self.whitening.towards(shared, fold_of(suspect.keys[seeds]))
        if discriminant is None:
            return None
        scores, usual = self._scored(discriminant, suspect), self._scored(discriminant, clean).astype(np.float64)
        return Conduct(scores, beyond(scores, usual), rank_p_values(usual))

    def _scored(self, discriminant: Discriminant, images: Behaved) -> NDArray[np.float32]:
        scores, first = np.empty(len(images.keys), np.float32), 0
        for rows in images.rows():
            span = slice(first, first + len(rows))
            centred = _centred(rows / self.spread, images.answers[span], self.centers)
            scores[span] = discriminant.score(centred, fold_of(images.keys[span]))
            first += len(rows)
        return scores


def _gathered(parts: Iterable[Matrix], wanted: NDArray[np.int64]) -> Matrix:
    """The rows with these numbers, ascending, from parts in order."""
    found, first = [], 0
    for part in parts:
        low, high = np.searchsorted(wanted, [first, first + len(part)])
        found.append(part[wanted[low:high] - first])
        first += len(part)
    return np.concatenate(found)


def _centers(rows: Matrix, answers: Answers) -> dict[int, Matrix]:
    """Mean row of each answer, leaning on the common mean where there are few; -1 is the common one."""
    common = rows.mean(0)
    centers = {-1: common}
    for answer in np.unique(answers):
        own = rows[answers == answer]
        weight = len(own) / (len(own) + LENT)
        centers[int(answer)] = weight * own.mean(0) + (1 - weight) * common
    return centers


def _centred(rows: Matrix, answers: Answers, centers: dict[int, Matrix]) -> Matrix:
    """Rows less the mean of calm images with the same answer: that the answer is rare is no sign of anything."""
    out = rows.astype(np.float32)
    for answer in np.unique(answers):
        out[answers == answer] -= centers.get(int(answer), centers[-1])
    return out
