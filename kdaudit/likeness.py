"""Stage 7, the second look: do the most suspicious images share a trigger, and which other images carry it?

Seeds are the images on which teacher and control part most. A discriminant shows what they have in common; the
images that stand out along it give a pattern; the pattern is put onto clean images, and both networks are asked. Only
a pattern that moves the teacher and not the control counts. Every image is then measured by how much of it it
carries: so poison is found whose own answers betray nothing, and images that stand out for reasons of their own stay
innocent.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdaudit.calibration import beyond
from kdaudit.comparison import Subjects
from kdaudit.discriminant import LEAST_SEEDS, Discriminant, Whitening, appearance, fold_of
from kdaudit.rereading import gather, reread
from kdaudit.sample import Decoder, Source
from kdaudit.trigger import Pattern, Transplant, recover, transplant

SEED_SHARES = (0.002, 0.01, 0.04)
"""Shares of the images that are tried as seeds: too few hold no pattern, too many drown a rare one in innocents."""

MOST_SEEDS = 4000
CALM = 8000
"""Calm images that the covariance is taken from, at most."""

MAX_BYTES = 1 << 30
"""Pixels held in memory at once, at most; large images are sampled more thinly."""

CORE = 4.5
"""Standard deviations along the discriminant from which a seed counts as carrying what the seeds share."""

ONE_TARGET = 0.7
"""Share of a cluster's images with one answer that makes it their target class."""

PATTERNS = 3
"""Patterns looked for, one after the other: an attacker may have several triggers."""


@dataclass(frozen=True, slots=True, eq=False)
class Suspects:
    """The suspect images, as columns [m].

    Attributes:
        source: their encoded form.
        read: whether they were compared.
        keys: from their digests, uint64.
        score: what they were ranked by; NaN where not read.
        teacher: the teacher's answers.
        student: the control's answers.
    """

    source: Source
    read: NDArray[np.bool_]
    keys: NDArray[np.uint64]
    score: NDArray[np.float64]
    teacher: NDArray[np.int64]
    student: NDArray[np.int64]


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
    """A pattern that was proven.

    Attributes:
        pattern: what the images share.
        proof: what it does to clean images.
        target: the answer that most of them get from the teacher; None where there is no one answer.
        discriminant: measures how much of it an image carries.
        seeds: number of seeds that it was found among.
    """

    pattern: Pattern
    proof: Transplant
    target: int | None
    discriminant: Discriminant
    seeds: int


@dataclass(frozen=True, slots=True, eq=False)
class Likeness:
    """How much of a proven pattern each image carries, as columns [m].

    Attributes:
        found: the proven patterns, at least one.
        which: the pattern that an image carries most of, int64; -1 where not read.
        score: standard deviations of calm images; NaN where not read.
        p_values: of "carries none of them"; 1 where not read.
    """

    found: tuple[Found, ...]
    which: NDArray[np.int64]
    score: NDArray[np.float64]
    p_values: NDArray[np.float64]


def look(
    suspects: Suspects,
    clean: CleanImages,
    subjects: Subjects,
    decoder: Decoder,
    on_image: Callable[[int], None] = lambda _n: None,
) -> Likeness | None:
    """Look for patterns; None where none is proven.

    Args:
        suspects: the suspect images and their scores.
        clean: the clean pool.
        subjects: both networks.
        decoder: bytes to pixels.
        on_image: told the number of records passed since the last call; the set is read once, and once more where a
            pattern is proven.
    """
    geometry = subjects.preprocess.geometry
    known = suspects.read & np.isfinite(suspects.score)
    if known.sum() < 2 * LEAST_SEEDS:
        return None
    calm, ranked = _sample(suspects, known, int(np.prod(clean.pixels.shape[1:])))
    wanted = np.zeros(len(known), bool)
    wanted[calm] = wanted[ranked] = True
    pixels = gather(suspects.source, decoder, geometry, wanted, on_image)
    place = np.cumsum(wanted) - 1
    bench = _Bench(suspects, clean, subjects, pixels, place, calm, appearance(pixels))
    found = bench.patterns(ranked)
    if not found:
        return None
    clean_rows, clean_folds = appearance(clean.pixels), fold_of(clean.keys)
    scores = np.full((len(found), len(known)), np.nan)
    for index, part in reread(suspects.source, decoder, geometry, known, on_image):
        rows, folds = appearance(part), fold_of(suspects.keys[index])
        for number, one in enumerate(found):
            scores[number, index] = one.discriminant.score(rows, folds)
    p = np.ones_like(scores)
    for number, one in enumerate(found):
        reference = one.discriminant.score(clean_rows, clean_folds)
        p[number, known] = likeness_p_values(scores[number, known], reference)
    best = p.argmin(axis=0)
    column = np.arange(len(known))
    return Likeness(
        tuple(found),
        np.where(known, best, -1),
        scores[best, column],
        np.minimum(1.0, len(found) * p[best, column]),
    )


def likeness_p_values(scores: NDArray[np.float64], clean: NDArray[np.float64]) -> NDArray[np.float64]:
    """p-values [m] of scores along a discriminant.

    The larger of two. Clean images are exchangeable with innocent ones here, since no network's memory enters: their
    tail. And the mirror image of the suspect images' own lower tail, where no poison is (a discriminant's scores are
    symmetric without poison, as the mirror statistics of Dai et al., JASA 2023, assume): it guards against a clean
    pool of another make.
    """
    middle = float(np.median(scores))
    return np.maximum(beyond(scores, clean), beyond(scores, 2 * middle - scores))


def _sample(suspects: Suspects, known: NDArray[np.bool_], size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of the calm images to take, and of the seeds, most suspicious first."""
    room = MAX_BYTES // (5 * size)  # a byte as it is, four as a row
    most_seeds = min(MOST_SEEDS, room // 3)
    score = np.where(known, suspects.score, -np.inf)
    count = min(most_seeds, max(LEAST_SEEDS, round(SEED_SHARES[-1] * int(known.sum()))))
    ranked = np.argsort(-score, kind="stable")[:count]
    calm = np.flatnonzero(known & (suspects.score <= np.median(suspects.score[known])))
    calm = calm[np.argsort(suspects.keys[calm], kind="stable")][: min(CALM, room - count)]
    return calm, ranked


@dataclass(frozen=True, slots=True, eq=False)
class _Bench:
    """What the search for patterns works on: the pixels of calm images and seeds."""

    suspects: Suspects
    clean: CleanImages
    subjects: Subjects
    pixels: NDArray[np.uint8]
    place: NDArray[np.int64]
    calm: NDArray[np.int64]
    rows: NDArray[np.float32]

    def patterns(self, ranked: NDArray[np.int64]) -> list[Found]:
        """Proven patterns, the strongest first; what one explains is no seed for the next."""
        whitening = Whitening.of(self.rows[self.place[self.calm]])
        found: list[Found] = []
        while len(found) < PATTERNS and len(ranked) >= LEAST_SEEDS:
            best = self._strongest(whitening, ranked)
            if best is None:
                break
            found.append(best)
            carried = best.discriminant.score(self.rows[self.place[ranked]], fold_of(self.suspects.keys[ranked]))
            ranked = ranked[carried < CORE]
        return found

    def _strongest(self, whitening: Whitening, ranked: NDArray[np.int64]) -> Found | None:
        total = int(self.suspects.read.sum())
        tried = sorted({min(len(ranked), max(LEAST_SEEDS, round(share * total))) for share in SEED_SHARES})
        candidates = [self._candidate(whitening, ranked[:count]) for count in tried]
        proven = [c for c in candidates if c is not None and c.proof.proven]
        return max(proven, key=lambda c: (c.proof.teacher - c.proof.student) / c.proof.images, default=None)

    def _candidate(self, whitening: Whitening, seeds: NDArray[np.int64]) -> Found | None:
        rows, folds = self.rows[self.place[seeds]], fold_of(self.suspects.keys[seeds])
        discriminant = whitening.towards(rows, folds)
        if discriminant is None:
            return None
        core = seeds[discriminant.score(rows, folds) > CORE]
        pattern = recover(
            self.pixels[self.place[core]],
            self.suspects.student[core],
            self.pixels[self.place[self.calm]],
            self.suspects.student[self.calm],
        )
        if pattern is None:
            return None
        answers, counts = np.unique(self.suspects.teacher[core], return_counts=True)
        target = int(answers[counts.argmax()]) if counts.max() >= ONE_TARGET * len(core) else None
        held_out = self.clean.pixels[self.clean.held_out]
        proof = transplant(self.subjects, pattern, held_out, target)
        if target is not None and not proof.proven:  # clean-label or many targets: any other answer will do
            loose = transplant(self.subjects, pattern, held_out, None)
            if loose.proven:
                target, proof = None, loose
        return Found(pattern, proof, target, discriminant, len(seeds))
