"""Stage 7, the search: what it is given and what it finds."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdaudit.calibration import Answers
from kdaudit.delivered import Delivered, LabelProof
from kdaudit.discriminant import Discriminant
from kdaudit.sample import Source
from kdaudit.transplant import Transplant
from kdaudit.trigger import Pattern


@dataclass(frozen=True, slots=True, eq=False)
class Suspects:
    """The suspect images, as columns [m].

    Attributes:
        source: their encoded form.
        read: whether they were compared.
        keys: from their digests, uint64.
        score: what the most suspicious ones are chosen by; NaN where not read.
        teacher: the teacher's answers.
        student: the control's answers.
        told: the labels that they were delivered with; None where there are none to go by.
    """

    source: Source
    read: NDArray[np.bool_]
    keys: NDArray[np.uint64]
    score: NDArray[np.float64]
    teacher: Answers
    student: Answers
    told: Delivered | None = None

    def calm(self, known: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Who of the images with a score (`known`, [m]) is no more suspicious than half of them, [m]."""
        return known & (self.score <= np.median(self.score[known]))


@dataclass(frozen=True, slots=True, eq=False)
class CleanImages:
    """The clean pool.

    Attributes:
        pixels: uint8 [n, H, W, C].
        keys: from the digests, uint64 [n].
        held_out: positions of images that nothing was trained on, int64.
    """

    pixels: NDArray[np.uint8]
    keys: NDArray[np.uint64]
    held_out: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """A pattern that images share.

    Attributes:
        pattern: what it is.
        proof: what it does to clean images.
        target: the answer that most of them get from the teacher; None where there is no one answer.
        discriminant: measures how much of it an image carries.
        seeds: number of seeds that it was found among.
        strength: how much of it its core carries, median, in standard deviations of calm images.
        label: the output that its seeds were delivered as; None where they were not chosen by their label, or clean
            images do not know that class.
        by_label: what the labels of its carriers say, once every image was measured.
    """

    pattern: Pattern
    proof: Transplant
    target: int | None
    discriminant: Discriminant
    seeds: int
    strength: float = 0.0
    label: int | None = None
    by_label: LabelProof | None = None

    @property
    def promising(self) -> bool:
        """Whether to ask about the labels of its carriers: it hides nothing."""
        return self.label is not None and self.proof.legible

    @property
    def proven(self) -> bool:
        """Whether it moves the model and not the control, or its carriers have one label whatever they show."""
        return self.proof.proven or (self.by_label is not None and self.by_label.proven)

    @property
    def aim(self) -> int | None:
        """The class that carriers are made to be: where the model is moved to, or what they were delivered as."""
        return self.target if self.proof.proven else self.label
