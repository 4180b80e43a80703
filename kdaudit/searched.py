"""Stage 7, the search: what it is given and what it finds."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdaudit.calibration import Answers
from kdaudit.delivered import Delivered, LabelProof
from kdaudit.discriminant import Discriminant
from kdaudit.foreign import PoolProof
from kdaudit.sample import Source
from kdaudit.transplant import Transplant
from kdaudit.trigger import Pattern

LEFT = 0.5
"""Share of an image's contrast that must be left under a pattern for it not to be an image of its own."""


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
    score: NDArray[np.floating[Any]]
    teacher: Answers
    student: Answers
    told: Delivered | None = None

    def calm(self, known: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Who of the images with a score (`known`, [m]) is no more suspicious than half of them, [m]."""
        own = self.score[known].astype(np.float64, copy=False)
        return known & (self.score <= np.median(own, overwrite_input=True))


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
        classwise: whether it was found among the images with one answer.
        by_pool: what the clean pool says of it then, once every image was measured.
    """

    pattern: Pattern
    proof: Transplant
    target: int | None
    discriminant: Discriminant
    seeds: int
    strength: float = 0.0
    label: int | None = None
    by_label: LabelProof | None = None
    classwise: bool = False
    by_pool: PoolProof | None = None

    @property
    def promising(self) -> bool:
        """Whether to ask about the labels of its carriers: it hides nothing."""
        return self.label is not None and self.proof.legible

    @property
    def proven(self) -> bool:
        """Whether it moves the model and not the control, its carriers have one label, or clean images lack it."""
        return self.proof.proven or (self.by_label is not None and self.by_label.proven) or self.foreign

    @property
    def foreign(self) -> bool:
        """Whether the model obeys it, the control too or not, no clean image carries it, and it hides nothing."""
        return self.lacking and self.by_pool is not None and self.by_pool.proven

    @property
    def lacking(self) -> bool:
        """Whether to ask the clean pool about it.

        A control that has taken a trigger over cannot say what is still to be seen under it, but the pattern can: it is
        no image of its own, as what near-equal photographs share is.
        """
        return self.classwise and self.proof.obeyed and self.pattern.left > LEFT

    @property
    def only_foreign(self) -> bool:
        """Whether it is proven by nothing but that."""
        return self.foreign and not self.proof.proven

    @property
    def aim(self) -> int | None:
        """The class that carriers are made to be: where the model is moved to, or what they were delivered as."""
        return self.target if self.proof.proven or self.classwise else self.label
