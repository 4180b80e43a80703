"""Stage 7, the search: do the most suspicious images share a trigger?

Seeds are the images that behave most suspiciously. A discriminant shows what they have in common; the images that
stand out along it give a pattern; the pattern is put onto clean images, and both networks are asked. Only a pattern
that moves the teacher and not the control counts. Where none is proven, a warp may be at work, which leaves none: what
images share then is where they are sharp and where soft.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from kdaudit.calibration import Answers
from kdaudit.comparison import Subjects
from kdaudit.delivered import OF_THE_CLASS, most_doubted
from kdaudit.discriminant import (
    LEAST_SEEDS,
    SHARPNESS_NOISE,
    SIDE,
    Discriminant,
    Matrix,
    Whitening,
    appearance,
    fold_of,
    sharpness,
)
from kdaudit.rereading import gather
from kdaudit.sample import Decoder
from kdaudit.searched import CleanImages, Found, Suspects
from kdaudit.selection import highest, lowest
from kdaudit.trace import OFTEN, RARE
from kdaudit.transplant import NATIVE, HeldOut, Transplant, put_onto, transplant
from kdaudit.trigger import Pattern, recover

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

ONE_TARGET = 0.7
"""Share of a cluster's images with one answer that makes it their target class."""

OF_A_STYLE = 0.5
"""A pattern of which a tenth of the target's clean images carry so much of what its core carries is the look of a style
of that class: what some fives of one hand share is no trigger (0.7 and 0.8 of it, triggers 0.2)."""

PATTERNS = 5
"""Patterns looked for, one after the other: an attacker may have several triggers (Adap-Patch has four)."""

ROUNDS, SETTLED = 4, 0.02
"""The carriers of a proven pattern are chosen anew so often, or until their number changes by no more than this."""


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
        ranked = highest(suspects.score, count, known)
        doubted = most_doubted(suspects.told, known, counts) if suspects.told else np.empty(0, np.int64)
        peaceful = suspects.calm(known)
        if suspects.told:
            peaceful &= ~suspects.told.disputed
        calm = lowest(suspects.keys, min(CALM, room - kinds * count), peaceful)
        wanted = np.zeros(len(known), bool)
        wanted[calm] = wanted[ranked] = wanted[doubted] = True
        pixels = gather(suspects.source, decoder, subjects.preprocess.geometry, wanted, on_image)
        held_out = HeldOut.of(subjects, clean.pixels[clean.held_out])
        return cls(suspects, clean, subjects, pixels, np.flatnonzero(wanted), calm, ranked, doubted, held_out)

    def places(self, records: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of `pixels` that these records have, [n]; of chosen records only."""
        return np.searchsorted(self.records, records)

    def folds(self, records: NDArray[np.int64]) -> NDArray[np.int64]:
        """Folds of these records, [n]."""
        return fold_of(self.suspects.keys[records])

    def patterns(self) -> tuple[list[Found], dict[int, Discriminant]]:
        """Patterns that are proven or promising, the strongest first; what one explains is no seed for the next.

        And for each label that these aim at, what its doubted images share that carry none of them: more of the same,
        too faint to show a pattern.
        """
        rows, ranked, doubted = appearance(self.pixels), self.ranked, self.doubted
        whitening = Whitening.of(rows[self.places(self.calm)])
        found: list[Found] = []
        while len(found) < PATTERNS:
            best = self._strongest(rows, whitening, ranked, doubted)
            if best is None:
                break
            best = self._measured_by_all(best, rows, whitening, np.union1d(ranked, doubted))
            found.append(best)
            ranked, doubted = (self._unexplained(best, rows, left) for left in (ranked, doubted))
        aims = {one.aim for one in found}
        left = {
            label: whitening.towards(rows[self.places(seeds)], self.folds(seeds))
            for label, seeds in self._by_label(doubted)
            if label in aims
        }
        return found, {label: one for label, one in left.items() if one is not None}

    def _measured_by_all(self, found: Found, rows: Matrix, whitening: Whitening, records: NDArray[np.int64]) -> Found:
        """A pattern with the discriminant of all its carriers among the records, instead of the seeds that showed it.

        The fewest images prove a trigger best and measure it worst: of two triggers they hold both, of a faint one too
        few to tell it from what else they show. Whoever carries it is chosen anew until no more do, so one of two
        triggers is left, for which there are most carriers; the other is found next.
        """
        before = 0
        for _ in range(ROUNDS):
            members = records[self._carried(found, rows, records) > CORE]
            if found.label is not None and self.suspects.told is not None:
                members = members[self.suspects.told.labels[members] == found.label]
            if abs(len(members) - before) <= SETTLED * before:
                break
            again, before = self._candidate(rows, whitening, members, found.label), len(members)
            if again is None or not (again.proof.proven or (again.promising and not found.proof.proven)):
                break
            found = replace(found, discriminant=again.discriminant, strength=again.strength)
        return found

    def _carried(self, found: Found, rows: Matrix, records: NDArray[np.int64]) -> NDArray[np.float64]:
        """How much of a pattern each record carries, in standard deviations of calm images."""
        return found.discriminant.score(rows[self.places(records)], self.folds(records))

    def _unexplained(self, found: Found, rows: Matrix, records: NDArray[np.int64]) -> NDArray[np.int64]:
        """Records that carry little of a pattern."""
        return records[self._carried(found, rows, records) < CORE]

    def shared_sharpness(self) -> Discriminant | None:
        """What the seeds share in where they are sharp; None where clean images show it as often."""
        rows, ranked = sharpness(self.pixels), self.ranked
        whitening = Whitening.of(rows[self.places(self.calm)], SHARPNESS_NOISE)
        reference, folds = sharpness(self.clean.pixels), fold_of(self.clean.keys)
        total, best, most = int(self.suspects.read.sum()), None, 0.0
        asked = np.union1d(ranked, self.doubted)
        by_score = [ranked[:count] for count in seed_counts(len(ranked), total)]
        for seeds in (*by_score, *(seeds for _, seeds in self._by_label(self.doubted))):
            one = whitening.towards(rows[self.places(seeds)], self.folds(seeds))
            if one is None:
                continue
            usual = float(np.quantile(one.score(reference, folds), 1 - RARE))
            beyond = one.score(rows[self.places(asked)], self.folds(asked)) > usual
            share = float(beyond.mean())
            if share > max(most, OFTEN * RARE) and beyond.sum() >= LEAST_SEEDS:
                best, most = one, share
        return best

    def _by_label(self, doubted: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Images whose label the control doubts, label by label; where there are enough of them.

        Poison has its label from the attacker, whether or not the teacher took it up: the second of two triggers, at
        work in half of its images, is not among the most suspicious.
        """
        labels = self.suspects.told.labels[doubted] if self.suspects.told else np.empty(0, np.int64)
        for label in np.unique(labels):
            if (labels == label).sum() >= LEAST_SEEDS:
                yield int(label), doubted[labels == label]

    def _strongest(
        self, rows: Matrix, whitening: Whitening, ranked: NDArray[np.int64], doubted: NDArray[np.int64]
    ) -> Found | None:
        counts = seed_counts(len(ranked), int(self.suspects.read.sum())) if len(ranked) >= LEAST_SEEDS else []
        candidates = [self._candidate(rows, whitening, ranked[:count]) for count in counts]
        candidates += [self._candidate(rows, whitening, seeds, label) for label, seeds in self._by_label(doubted)]
        worth = [c for c in candidates if c is not None and (c.proof.proven or c.promising)]
        return max(
            worth, key=lambda c: (c.proof.proven, (c.proof.teacher - c.proof.student) / c.proof.images), default=None
        )

    def _candidate(
        self, rows: Matrix, whitening: Whitening, seeds: NDArray[np.int64], label: int | None = None
    ) -> Found | None:
        """What some seeds share, and what it does; `label`: the one that they all were delivered with, if any."""
        own, folds = rows[self.places(seeds)], self.folds(seeds)
        discriminant = whitening.towards(own, folds)
        if discriminant is None:
            return None
        carried = discriminant.score(own, folds)
        core = seeds[carried > CORE]
        if len(core) == 0:
            return None
        strength = float(np.median(carried[carried > CORE]))
        answers, counts = np.unique(self.suspects.teacher[core], return_counts=True)
        main = np.array([label]) if label is not None else answers[counts >= counts.max() / 2]
        if self._of_the_class(discriminant, main, strength):
            return None
        pattern = recover(
            self.pixels[self.places(core)],
            self.suspects.student[core],
            self.pixels[self.places(self.calm)],
            self.suspects.student[self.calm],
        )
        if pattern is None:
            return None
        target = int(answers[counts.argmax()]) if counts.max() >= ONE_TARGET * len(core) else label
        proof, target = self._proof(pattern, core, target)
        asked = label is not None and len(core) >= LEAST_SEEDS and (self.held_out.teacher == label).sum() >= NATIVE
        return Found(pattern, proof, target, discriminant, len(seeds), strength, label if asked else None)

    def _of_the_class(self, discriminant: Discriminant, answers: Answers, carried: float) -> bool:
        """Whether clean images with the core's main answers carry much of what the core carries (its median is given).

        A control that knows a class badly parts from the teacher on images of it; what these share is that class, or a
        style of it.
        """
        like = np.isin(self.held_out.teacher, answers)
        rows = self.clean.held_out[like]
        if len(rows) == 0:
            return False
        scores = discriminant.score(appearance(self.clean.pixels[rows]), fold_of(self.clean.keys[rows]))
        middle, upper = np.quantile(scores, [0.5, 0.9])
        return bool(middle > OF_THE_CLASS * carried or upper > OF_A_STYLE * carried)

    def _proof(self, pattern: Pattern, core: NDArray[np.int64], target: int | None) -> tuple[Transplant, int | None]:
        """What the pattern does to clean images: to all of them, to those like its carriers, to any other answer."""
        clean, guarded = self.held_out, self.subjects.guarded
        after = put_onto(self.subjects, pattern, clean)
        first = transplant(clean, after, target, guarded=guarded)
        if first.proven or target is None:
            return first, target
        sources, counts = np.unique(self.suspects.student[core], return_counts=True)
        # A trigger that works on one class only. What hides all others is no trigger: near-equal photographs of a class
        # that the control takes for another hold that class's look, and put onto the other they leave its answer alone.
        if first.legible and counts.max() >= ONE_TARGET * len(core):
            source = int(sources[counts.argmax()])
            narrow = transplant(clean, after, target, source=source, guarded=guarded)
            if narrow.proven:
                return narrow, target
        loose = transplant(clean, after, None, guarded=guarded)  # clean-label or many targets
        return (loose, None) if loose.proven else (first, target)
