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

from kdaudit.calibration import Answers, Column, Null, rank_p_values
from kdaudit.discriminant import BEHAVIOUR_NOISE, LEAST_SEEDS, Discriminant, Whitening
from kdaudit.keys import Keys
from kdaudit.memory import give_back
from kdaudit.selection import highest
from kdaudit.stretches import stretches
from kdaudit.trace import RARE, frequent

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
        keys: from the digests.
        score: divergence, float64, finite.
    """

    rows: Callable[[], Iterable[Matrix]]
    answers: Answers
    keys: Keys
    score: Column


@dataclass(frozen=True, slots=True, eq=False)
class Conduct:
    """How much each image behaves like the seeds.

    Attributes:
        score: of the suspect images, in standard deviations of calm ones, float32 [m].
        p_values: of the suspect images, float32 [m].
        clean_p_values: of the clean images among themselves, [n].
    """

    score: NDArray[np.float32]
    p_values: NDArray[np.float32]
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
    scale = _Scale.of(suspect, np.sort(suspect.keys.lowest(CALM, suspect.score <= np.median(suspect.score))))
    seeds, unexplained = max(LEAST_SEEDS, round(SEED_SHARE * len(suspect.score))), np.ones(len(suspect.score), bool)
    together, count = None, 0
    for _ in range(BEHAVIOURS):
        give_back()
        one = scale.measure(suspect, clean, np.sort(highest(suspect.score, seeds, unexplained)))
        if one is None or (together is not None and not one.common(unexplained)):
            break
        together, count = one.joined(together, unexplained), count + 1
        if unexplained.sum() < 10 * LEAST_SEEDS:
            break
    return None if together is None else _paid(together, count)


def _paid(one: Conduct, count: int) -> Conduct:
    """The price of having looked several times; written into the columns."""
    for own in (one.p_values, one.clean_p_values):
        np.minimum(1.0, np.multiply(own, count, out=own), out=own)
    return one


@dataclass(frozen=True, slots=True, eq=False)
class _Behaviour:
    """One behaviour: how much each suspect image shows of it, float32 [m], and each clean one, [n].

    p-values follow from these stretch by stretch, for they are as long as the delivery as well.
    """

    score: NDArray[np.float32]
    clean: NDArray[np.float32]
    null: Null

    def common(self, unexplained: NDArray[np.bool_]) -> bool:
        """Whether more of the images that are not explained yet show it than chance gives."""
        rare = 0
        for span in stretches(len(self.score)):
            rare += int(((self.null.beyond(self.score[span]) <= RARE) & unexplained[span]).sum())
        return frequent(rare, int(unexplained.sum()))

    def joined(self, before: Conduct | None, unexplained: NDArray[np.bool_]) -> Conduct:
        """The behaviour that an image shows most of; who shows this one is explained, and so written down."""
        clean = rank_p_values(self.clean)
        out = Conduct(self.score, np.ones(len(self.score), np.float32), clean) if before is None else before
        for span in stretches(len(self.score)):
            p = self.null.beyond(self.score[span])
            unexplained[span] &= p > EXPLAINED
            np.minimum(out.p_values[span], p, out=out.p_values[span])
            np.maximum(out.score[span], self.score[span], out=out.score[span])
        np.minimum(out.clean_p_values, clean, out=out.clean_p_values)
        return out


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
        rows /= spread
        centers = _centers(rows, answers)
        return cls(spread, centers, Whitening.of(_centred(rows, answers, centers), BEHAVIOUR_NOISE))

    def measure(self, suspect: Behaved, clean: Behaved, seeds: NDArray[np.int64]) -> _Behaviour | None:
        """All images along what the seeds share; None where they are too few."""
        shared = _gathered(suspect.rows(), seeds)
        shared /= self.spread
        shared = _centred(shared, suspect.answers[seeds], self.centers)
        discriminant = self.whitening.towards(shared, suspect.keys.folds[seeds])
        if discriminant is None:
            return None
        usual = self._scored(discriminant, clean)
        return _Behaviour(self._scored(discriminant, suspect), usual, Null.of(usual.astype(np.float64)))

    def _scored(self, discriminant: Discriminant, images: Behaved) -> NDArray[np.float32]:
        scores, first = np.empty(len(images.score), np.float32), 0
        for rows in images.rows():
            span = slice(first, first + len(rows))
            centred = _centred(rows / self.spread, images.answers[span], self.centers)
            scores[span] = discriminant.score(centred, images.keys.folds[span])
            first += len(rows)
        return scores


def _gathered(parts: Iterable[Matrix], wanted: NDArray[np.int64]) -> Matrix:
    """The rows with these numbers, ascending, from parts in order."""
    found, first = np.empty((0, 0), np.float32), 0
    for part in parts:
        if first == 0:
            found = np.empty((len(wanted), part.shape[1]), np.float32)
        low, high = np.searchsorted(wanted, [first, first + len(part)])
        found[low:high] = part[wanted[low:high] - first]
        first += len(part)
    return found


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
    """Rows less the mean of calm images with the same answer: that the answer is rare is no sign of anything.

    Written into the rows.
    """
    for answer in np.unique(answers):
        rows[answers == answer] -= centers.get(int(answer), centers[-1])
    return rows
