"""Stage 7, the search: what it is given, what it works on and what it finds."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdaudit.calibration import Answers
from kdaudit.comparison import Subjects
from kdaudit.delivered import Delivered, LabelProof, most_doubted
from kdaudit.discriminant import LEAST_SEEDS, PART, SIDE, Discriminant, Matrix, Pixels
from kdaudit.foreign import PoolProof
from kdaudit.keys import Keys
from kdaudit.rereading import gather
from kdaudit.sample import Decoder, Source
from kdaudit.selection import highest
from kdaudit.stretches import stretches
from kdaudit.tails import Scores
from kdaudit.transplant import HeldOut, Transplant
from kdaudit.trigger import Pattern

SEED_SHARES = (0.002, 0.01, 0.04)
"""Shares of the images that are tried as seeds: too few hold no pattern, too many drown a rare one in innocents."""

MOST_SEEDS = 4000
CALM = 8000
"""Calm images that the covariance is taken from, at most."""

MAX_BYTES = 1 << 30
"""Images and their rows held in memory at once, at most; large images are sampled more thinly."""

LEAST_IMAGES = 10 * LEAST_SEEDS
"""So many are held however large they are: fewer leave no seeds to search with."""

CORE = 4.5
"""Standard deviations along the discriminant from which a seed counts as carrying what the seeds share."""

LEFT = 0.5
"""Share of an image's contrast that must be left under a pattern for it not to be an image of its own."""


@dataclass(frozen=True, slots=True, eq=False)
class Suspects:
    """The suspect images, as columns [m].

    Attributes:
        source: their encoded form.
        read: whether they were compared.
        keys: from their digests.
        score: gives what the most suspicious ones are chosen by, [m], NaN where not read; asked more than once.
        teacher: the teacher's answers.
        student: the control's answers.
        told: the labels that they were delivered with; None where there are none to go by.
        room: folder for what is put aside on disk; the system's own place when None.
    """

    source: Source
    read: NDArray[np.bool_]
    keys: Keys
    score: Callable[[], Scores]
    teacher: Answers
    student: Answers
    told: Delivered | None = None
    room: Path | None = None

    def calm(self, known: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Who of the images with a score (`known`, [m]) is no more suspicious than half of them, [m]."""
        score = self.score()
        return np.asarray(known & (score <= np.median(score[known], overwrite_input=True)), bool)


@dataclass(frozen=True, slots=True, eq=False)
class CleanImages:
    """The clean pool.

    Attributes:
        pixels: uint8 [n, H, W, C].
        keys: from the digests, [n].
        held_out: positions of images that nothing was trained on, int64.
    """

    pixels: NDArray[np.uint8]
    keys: Keys
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
        pasted: whether it is only the part that covers what it is on, of all that its seeds share.
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
    pasted: bool = False

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


def seed_counts(most: int, images: int) -> list[int]:
    """Numbers of seeds to try, ascending; `most`: of seeds, `images`: among which they are."""
    return sorted({min(most, max(LEAST_SEEDS, round(share * images))) for share in SEED_SHARES})


@dataclass(frozen=True, slots=True, eq=False)
class Bench:
    """What the search works on: calm images, the most suspicious ones, and those whose label is doubted most.

    Attributes:
        suspects: all suspect images.
        clean: the clean pool.
        subjects: both networks.
        pixels: of all these, uint8 [k, H, W, C].
        records: the number of each of them, ascending, int64 [k].
        calm: record numbers of calm images, int64.
        ranked: record numbers of the most suspicious ones, the most suspicious first, int64.
        doubted: record numbers of those whose label the control doubts, the most doubted first, int64.
        held_out: the held-out clean images, and what both networks say of them.
    """

    suspects: Suspects
    clean: CleanImages
    subjects: Subjects
    pixels: NDArray[np.uint8]
    records: NDArray[np.int64]
    calm: NDArray[np.int64]
    ranked: NDArray[np.int64]
    doubted: NDArray[np.int64]
    held_out: HeldOut

    @classmethod
    def of(
        cls,
        suspects: Suspects,
        known: NDArray[np.bool_],
        clean: CleanImages,
        subjects: Subjects,
        decoder: Decoder,
        on_image: Callable[[int], None],
    ) -> "Bench":
        """Choose the images and decode them; `known`: which have a score, bool [m]."""
        height, width, channels = clean.pixels.shape[1:]
        row = 4 * min(height, SIDE) * min(width, SIDE)
        room = max(LEAST_IMAGES, MAX_BYTES // (channels * (height * width + row)))
        kinds = 3 if suspects.told else 1  # the most suspicious ones, and twice as many whose label is doubted
        counts = seed_counts(min(MOST_SEEDS, room // (kinds + 2)), int(known.sum()))
        count = counts[-1]
        ranked = highest(suspects.score(), count, known)
        doubted = most_doubted(suspects.told, known, counts) if suspects.told else np.empty(0, np.int64)
        peaceful = suspects.calm(known)
        if suspects.told:
            peaceful &= ~suspects.told.disputed
        calm = suspects.keys.lowest(min(CALM, room - kinds * count), peaceful)
        wanted = np.zeros(len(known), bool)
        wanted[calm] = wanted[ranked] = wanted[doubted] = True
        pixels = gather(suspects.source, decoder, subjects.preprocess.geometry, wanted, on_image)
        held_out = HeldOut.of(subjects, clean.pixels[clean.held_out])
        return cls(suspects, clean, subjects, pixels, np.flatnonzero(wanted), calm, ranked, doubted, held_out)

    def places(self, records: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of `pixels` that these records have, [n]; of chosen records only."""
        return np.searchsorted(self.records, records)

    def rows(self, records: NDArray[np.int64], make: Callable[[Pixels], Matrix]) -> Matrix:
        """Rows [n, d] of these records. Made whenever they are asked for: as float32 they are four times the images."""
        return make(self.pixels[self.places(records)])

    def score(
        self, discriminant: Discriminant, records: NDArray[np.int64], make: Callable[[Pixels], Matrix]
    ) -> NDArray[np.float32]:
        """How far these records lie along a discriminant of such rows, [n]; a few rows are held at a time."""
        parts = [records[span] for span in stretches(len(records), PART)]
        return np.concatenate(
            [discriminant.score(self.rows(part, make), self.folds(part)) for part in parts] or [np.empty(0, np.float32)]
        )

    def folds(self, records: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Folds of these records, [n]."""
        return self.suspects.keys.folds[records]

    def by_label(self, doubted: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Images whose label the control doubts, label by label; where there are enough of them.

        Poison has its label from the attacker, whether or not the teacher took it up: the second of two triggers, at
        work in half of its images, is not among the most suspicious.
        """
        labels = self.suspects.told.labels[doubted] if self.suspects.told else np.empty(0, np.int64)
        for label in np.unique(labels):
            if (labels == label).sum() >= LEAST_SEEDS:
                yield int(label), doubted[labels == label]
