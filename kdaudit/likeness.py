"""Stage 7, the second look: do the most suspicious images share a trigger, and which other images carry it?

Seeds are the images on which teacher and control part most. A discriminant shows what they have in common; the
images that stand out along it give a pattern; the pattern is put onto clean images, and both networks are asked. Only
a pattern that moves the teacher and not the control counts. Every image is then measured by how much of it it
carries: so poison is found whose own answers betray nothing, and images that stand out for reasons of their own stay
innocent. Where no pattern is proven, a warp may be at work, which leaves none: what images share then is where they
are sharp and where soft (`kdaudit.trace`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdaudit.calibration import beyond, rank_p_values
from kdaudit.comparison import Subjects
from kdaudit.discriminant import (
    LEAST_SEEDS,
    SHARPNESS_NOISE,
    Discriminant,
    Matrix,
    Pixels,
    Whitening,
    appearance,
    fold_of,
    sharpness,
)
from kdaudit.rereading import gather, reread
from kdaudit.sample import Decoder, Source
from kdaudit.trace import OFTEN, RARE, Trace, weigh
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
        score: what the most suspicious ones are chosen by; NaN where not read.
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
    """How much of what was found each image carries, as columns [m] of suspect and [n] of clean held-out images.

    Attributes:
        found: the proven patterns; none where the images share a trace only.
        trace: what they share where no pattern was proven.
        which: the pattern that an image carries most of, int64; -1 where not read or no pattern was proven.
        score: standard deviations of calm images; NaN where not read.
        p_values: of "carries nothing of it"; 1 where not read.
        clean_p_values: of the held-out clean images among the clean.
    """

    found: tuple[Found, ...]
    trace: Trace | None
    which: NDArray[np.int64]
    score: NDArray[np.float64]
    p_values: NDArray[np.float64]
    clean_p_values: NDArray[np.float64]


def look(
    suspects: Suspects,
    clean: CleanImages,
    subjects: Subjects,
    decoder: Decoder,
    on_image: Callable[[int], None] = lambda _n: None,
) -> Likeness | None:
    """Look for patterns, then for a trace; None where neither is found.

    Args:
        suspects: the suspect images and their scores.
        clean: the clean pool.
        subjects: both networks.
        decoder: bytes to pixels.
        on_image: told the number of records passed since the last call; the set is read once, and once more where
            there is something to measure every image by.
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
    measures: list[tuple[Discriminant, Callable[[Pixels], Matrix]]] = [(one.discriminant, appearance) for one in found]
    if not found:
        shared = bench.shared_sharpness(ranked)
        if shared is None:
            return None
        measures = [(shared, sharpness)]
    scores = np.full((len(measures), len(known)), np.nan)
    for index, part in reread(suspects.source, decoder, geometry, known, on_image):
        folds = fold_of(suspects.keys[index])
        for number, (discriminant, seen) in enumerate(measures):
            scores[number, index] = discriminant.score(seen(part), folds)
    return _measured(suspects, clean, known, scores, measures, found)


def _measured(
    suspects: Suspects,
    clean: CleanImages,
    known: NDArray[np.bool_],
    scores: NDArray[np.float64],
    measures: "list[tuple[Discriminant, Callable[[Pixels], Matrix]]]",
    found: list[Found],
) -> Likeness | None:
    """p-values of the scores along each discriminant, and what they amount to together."""
    p, clean_p = np.ones_like(scores), []
    calm = known & (suspects.score <= np.median(suspects.score[known]))
    for number, (discriminant, seen) in enumerate(measures):
        reference = discriminant.score(seen(clean.pixels), fold_of(clean.keys))
        p[number, known] = likeness_p_values(scores[number, known], reference, float(np.median(scores[number, calm])))
        clean_p.append(rank_p_values(reference)[clean.held_out])
    trace = None
    if not found:
        trace = weigh(p[0, known], suspects.score[known])
        if trace is None:
            return None
    best, column = p.argmin(axis=0), np.arange(len(known))
    return Likeness(
        tuple(found),
        trace,
        np.where(known & bool(found), best, -1),
        scores[best, column],
        np.minimum(1.0, len(measures) * p[best, column]),
        np.minimum(1.0, len(measures) * np.min(clean_p, axis=0)),
    )


def likeness_p_values(scores: NDArray[np.float64], clean: NDArray[np.float64], middle: float) -> NDArray[np.float64]:
    """p-values [m] of scores along a discriminant, given the median of calm images along it.

    The larger of two. Clean images are exchangeable with innocent ones here, since no network's memory enters: their
    tail. And the mirror image of the suspect images' own lower tail, where no poison is (a discriminant's scores are
    symmetric without poison, as the mirror statistics of Dai et al., JASA 2023, assume): it guards against a clean
    pool of another make.
    """
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

    def shared_sharpness(self, ranked: NDArray[np.int64]) -> Discriminant | None:
        """What the seeds share in where they are sharp; None where clean images show it as often."""
        rows = sharpness(self.pixels)
        whitening = Whitening.of(rows[self.place[self.calm]], SHARPNESS_NOISE)
        reference, folds = sharpness(self.clean.pixels), fold_of(self.clean.keys)
        total, best, most = int(self.suspects.read.sum()), None, 0.0
        for count in self._counts(len(ranked), total):
            seeds = ranked[:count]
            one = whitening.towards(rows[self.place[seeds]], fold_of(self.suspects.keys[seeds]))
            if one is None:
                continue
            usual = float(np.quantile(one.score(reference, folds), 1 - RARE))
            beyond = one.score(rows[self.place[ranked]], fold_of(self.suspects.keys[ranked])) > usual
            share = float(beyond.mean())
            if share > max(most, OFTEN * RARE) and beyond.sum() >= LEAST_SEEDS:
                best, most = one, share
        return best

    @staticmethod
    def _counts(ranked: int, total: int) -> list[int]:
        """Numbers of seeds to try."""
        return sorted({min(ranked, max(LEAST_SEEDS, round(share * total))) for share in SEED_SHARES})

    def _strongest(self, whitening: Whitening, ranked: NDArray[np.int64]) -> Found | None:
        tried = self._counts(len(ranked), int(self.suspects.read.sum()))
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
        proof, target = self._proof(pattern, core, target)
        return Found(pattern, proof, target, discriminant, len(seeds))

    def _proof(self, pattern: Pattern, core: NDArray[np.int64], target: int | None) -> tuple[Transplant, int | None]:
        """What the pattern does to clean images: to all of them, to those like its carriers, to any other answer."""
        held_out = self.clean.pixels[self.clean.held_out]
        first = transplant(self.subjects, pattern, held_out, target)
        if first.proven or target is None:
            return first, target
        sources, counts = np.unique(self.suspects.student[core], return_counts=True)
        if counts.max() >= ONE_TARGET * len(core):  # a trigger that works on one class only
            source = int(sources[counts.argmax()])
            narrow = transplant(self.subjects, pattern, held_out, target, source=source)
            if narrow.proven:
                return narrow, target
        loose = transplant(self.subjects, pattern, held_out, None)  # clean-label or many targets
        return (loose, None) if loose.proven else (first, target)
