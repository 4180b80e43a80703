"""Stage 7, the second look where no pattern was proven: do the most suspicious images share a behaviour?

A warp or a trigger that every image gets anew leaves no pattern in the pixels. What it does to the two networks is the
same all over: which answer the teacher gives against which of the control's, how both part on blends, whose answer a
little noise undoes. A discriminant between the images on which the two part most and calm ones with the same answer
finds it; clean images that nothing was trained on say what is usual.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdaudit.calibration import Column, beyond, rank_p_values
from kdaudit.discriminant import BEHAVIOUR_NOISE, LEAST_SEEDS, Whitening, fold_of

SEED_SHARE = 0.01
LENT = 20
"""An answer's own mean counts against this many images of the common one."""

Matrix = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Behaved:
    """Images and what the two networks did with them, as columns [n].

    Attributes:
        rows: `divergence.behaviour`, float32 [n, F]; finite.
        answers: the teacher's, int64.
        keys: from the digests, uint64.
        score: divergence, float64, finite.
    """

    rows: Matrix
    answers: NDArray[np.int64]
    keys: NDArray[np.uint64]
    score: Column


@dataclass(frozen=True, slots=True, eq=False)
class Conduct:
    """p-values of "behaves like the seeds".

    Attributes:
        p_values: of the suspect images, [m].
        clean_p_values: of the clean images among themselves, [n].
    """

    p_values: Column
    clean_p_values: Column


def conduct(suspect: Behaved, clean: Behaved) -> Conduct | None:
    """Measure every image by the behaviour that the most suspicious ones share; None where there are too few images.

    Args:
        suspect: suspect images that were read.
        clean: clean images that nothing was trained on.
    """
    if len(suspect.score) < 10 * LEAST_SEEDS or len(clean.score) < LEAST_SEEDS:
        return None
    calm = np.flatnonzero(suspect.score <= np.median(suspect.score))
    spread = suspect.rows[calm].std(0) + 1e-3
    centers = _centers(suspect.rows[calm] / spread, suspect.answers[calm])
    own, reference = (_centred(b.rows / spread, b.answers, centers) for b in (suspect, clean))
    count = max(LEAST_SEEDS, round(SEED_SHARE * len(suspect.score)))
    seeds = np.argsort(-suspect.score, kind="stable")[:count]
    whitening = Whitening.of(own[calm], BEHAVIOUR_NOISE)
    discriminant = whitening.towards(own[seeds], fold_of(suspect.keys[seeds]))
    if discriminant is None:
        return None
    scores = discriminant.score(own, fold_of(suspect.keys))
    usual = discriminant.score(reference, fold_of(clean.keys))
    return Conduct(beyond(scores, usual), rank_p_values(usual))


def _centers(rows: Matrix, answers: NDArray[np.int64]) -> dict[int, Matrix]:
    """Mean row of each answer, leaning on the common mean where there are few; -1 is the common one."""
    common = rows.mean(0)
    centers = {-1: common}
    for answer in np.unique(answers):
        own = rows[answers == answer]
        weight = len(own) / (len(own) + LENT)
        centers[int(answer)] = weight * own.mean(0) + (1 - weight) * common
    return centers


def _centred(rows: Matrix, answers: NDArray[np.int64], centers: dict[int, Matrix]) -> Matrix:
    """Rows less the mean of calm images with the same answer: that the answer is rare is no sign of anything."""
    out = rows.astype(np.float32)
    for answer in np.unique(answers):
        out[answers == answer] -= centers.get(int(answer), centers[-1])
    return out
