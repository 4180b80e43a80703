"""Stage 7, foreign patterns: carried by many images of one class in the delivery, and by no clean image of it.

A class has a look, and clean images of the class have it too. What they have not and a model obeys is a trigger,
whatever the control says to it and whatever the labels are. Columns in, columns out.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdaudit.calibration import Answers, as_few_p_value, interval
from kdaudit.tails import Scores

MOSTLY = 0.8
"""Surely (99 % interval) so many of the carriers have the one answer: a pool from another camera differs in all."""

FACTOR = 3.0
"""Surely (99 % intervals) so many times as many images of the delivery carry it as of the clean pool."""

FAINT, BETWEEN = 0.2, 0.2
"""A trigger is there or it is not; light, or a way of writing, comes in degrees. So of the images with the answer that
carry more than a fifth of what the core carries, surely (99 % interval) under a fifth carry less than half of it.
Triggers planted in one class of MNIST or CIFAR-10 left 0 to 8 % there (a white patch on photographs 23), what honest
classes differ in 21 to 49 %: whole tracks of near-equal photographs on one side make it look foreign."""

BY_CHANCE = 0.01
"""p-value of "clean images of the class carry it as often": what the pool lacks could be the class."""


@dataclass(frozen=True, slots=True)
class PoolProof:
    """What the clean pool says of a pattern that images with one answer share.

    Attributes:
        answer: the model's.
        images: suspect images that were read.
        answered: of these, with the answer.
        carriers: of these, carry the pattern.
        between: suspect images with the answer that carry some of it.
        elsewhere: suspect images with other answers that carry it.
        clean: clean images.
        clean_carriers: of these, carry it.
        like: held-out clean images with the answer.
        like_carriers: of these, carry it.
    """

    answer: int
    images: int
    answered: int
    carriers: int
    between: int
    elsewhere: int
    clean: int
    clean_carriers: int
    like: int
    like_carriers: int

    @property
    def proven(self) -> bool:
        """Whether it is of the delivery and not of the class."""
        if interval(self.carriers, self.carriers + self.elsewhere, 0.99)[0] <= MOSTLY:
            return False
        if interval(self.between, self.between + self.carriers, 0.99)[1] >= BETWEEN:
            return False
        low, _ = interval(self.carriers, self.images, 0.99)
        _, high = interval(self.clean_carriers, self.clean, 0.99)
        if low <= FACTOR * high:
            return False
        return as_few_p_value(self.like_carriers, self.like, self.carriers, self.answered) <= BY_CHANCE


def pool_proof(
    answer: int,
    teacher: Answers,
    score: Scores,
    clean: Scores,
    like: NDArray[np.bool_] | NDArray[np.signedinteger[Any]],
    bar: float,
    strength: float,
) -> PoolProof:
    """Count who carries a pattern.

    Args:
        answer: the model's answer that it was found among.
        teacher: the model's answers, [m].
        score: how much of the pattern an image carries, cross-fitted, [m]; NaN where not read.
        clean: the same of the clean pool, [n].
        like: which of these are held out and have the answer.
        bar: the score from which an image counts as a carrier.
        strength: the score of the images that the pattern was recovered from, median.
    """
    read = ~np.isnan(score)
    with_it, carries = read & (teacher == answer), read & (score > bar)
    return PoolProof(
        answer,
        int(read.sum()),
        int(with_it.sum()),
        int((carries & with_it).sum()),
        int((with_it & ~carries & (score > FAINT * strength)).sum()),
        int((carries & ~with_it).sum()),
        len(clean),
        int((clean > bar).sum()),
        len(clean[like]),
        int((clean[like] > bar).sum()),
    )
