"""Stage 7, the search: do the most suspicious images share a trigger?

Seeds are the images that behave most suspiciously. A discriminant shows what they have in common; the images that
stand out along it give a pattern; the pattern is put onto clean images, and both networks are asked. Only a pattern
that moves the teacher and not the control counts. Where none is proven, a warp may be at work, which leaves none: what
images share then is where they are sharp and where soft.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from kdaudit.calibration import Answers
from kdaudit.delivered import OF_THE_CLASS
from kdaudit.discriminant import (
    LEAST_SEEDS,
    SHARPNESS_NOISE,
    Discriminant,
    Whitening,
    appearance,
    reduced,
    sharpness,
)
from kdaudit.keys import FOLDS
from kdaudit.searched import CORE, Bench, Found, seed_counts
from kdaudit.trace import OFTEN, RARE
from kdaudit.transplant import NATIVE, Transplant, put_onto, transplant
from kdaudit.trigger import Pattern, recover

ONE_TARGET = 0.7
"""Share of a cluster's images with one answer that makes it their target class."""

OF_A_STYLE = 0.5
"""A pattern of which a tenth of the target's clean images carry so much of what its core carries is the look of a style
of that class: what some fives of one hand share is no trigger (0.7 and 0.8 of it, triggers 0.2)."""

PATTERNS = 5
"""Patterns looked for, one after the other: an attacker may have several triggers (Adap-Patch has four)."""

ROUNDS, SETTLED = 4, 0.02
"""The carriers of a proven pattern are chosen anew so often, or until their number changes by no more than this."""


@dataclass(frozen=True, slots=True, eq=False)
class Search:
    """The images at hand, ready to be searched for patterns.

    Attributes:
        bench: the images.
        whitening: by the calm ones.
    """

    bench: Bench
    whitening: Whitening

    @classmethod
    def of(cls, bench: Bench) -> "Search":
        """Look at the images; the calm ones are many, and only how they vary is kept of them."""
        return cls(bench, Whitening.of_images(bench.pixels, bench.places(bench.calm), appearance))

    def patterns(self) -> tuple[list[Found], dict[int, Discriminant]]:
        """Patterns that are proven or promising, the strongest first; what one explains is no seed for the next.

        And for each label that these aim at, what its doubted images share that carry none of them: more of the same,
        too faint to show a pattern.
        """
        ranked, doubted = self.bench.ranked, self.bench.doubted
        found: list[Found] = []
        while len(found) < PATTERNS:
            best = self._strongest(ranked, doubted)
            if best is None:
                break
            best = self._measured_by_all(best, np.union1d(ranked, doubted))
            found.append(best)
            ranked, doubted = (left[self._carried(best, left) < CORE] for left in (ranked, doubted))
        aims = {one.aim for one in found}
        left = {label: self._towards(seeds) for label, seeds in self.bench.by_label(doubted) if label in aims}
        return found, {label: one for label, one in left.items() if one is not None}

    def _towards(self, seeds: NDArray[np.int64]) -> Discriminant | None:
        return self.whitening.towards(self.bench.rows(seeds, appearance), self.bench.folds(seeds))

    def _score(self, discriminant: Discriminant, records: NDArray[np.int64]) -> NDArray[np.float32]:
        return self.bench.score(discriminant, records, appearance)

    def _carried(self, found: Found, records: NDArray[np.int64]) -> NDArray[np.float32]:
        """How much of a pattern each record carries, in standard deviations of calm images."""
        return self._score(found.discriminant, records)

    def _strongest(self, ranked: NDArray[np.int64], doubted: NDArray[np.int64]) -> Found | None:
        images = int(self.bench.suspects.read.sum())
        counts = seed_counts(len(ranked), images) if len(ranked) >= LEAST_SEEDS else []
        candidates = [self._candidate(ranked[:count]) for count in counts]
        candidates += [self._candidate(seeds, label) for label, seeds in self.bench.by_label(doubted)]
        worth = [c for c in candidates if c is not None and (c.proof.proven or c.promising)]
        return max(
            worth, key=lambda c: (c.proof.proven, (c.proof.teacher - c.proof.student) / c.proof.images), default=None
        )

    def _measured_by_all(self, found: Found, records: NDArray[np.int64]) -> Found:
        """A pattern with the discriminant of all its carriers among the records, instead of the seeds that showed it.

        The fewest images prove a trigger best and measure it worst: of two triggers they hold both, of a faint one too
        few to tell it from what else they show. Whoever carries it is chosen anew until no more do, so one of two
        triggers is left, for which there are most carriers; the other is found next.
        """
        before = 0
        for _ in range(ROUNDS):
            members = records[self._carried(found, records) > CORE]
            members = members[self._aimed(found, members)]
            if abs(len(members) - before) <= SETTLED * before:
                break
            along, before = self._towards(members), len(members)
            along = self._covering(along, members) if found.pasted else along
            again = self._shared(along, members, found.label, pasted=found.pasted)
            if again is None or not (again.proof.proven or (again.promising and not found.proof.proven)):
                break
            found = replace(found, discriminant=again.discriminant, strength=again.strength)
        return found

    def _aimed(self, found: Found, records: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Who of the records has the label that a pattern was found by, or else its target as answer or as label.

        Among the seeds may be images that share something else: a class that the clean pool lacks, which the control
        cannot know. Measured with them, a blended picture was that class's look as well, and 279 innocents carried it.
        """
        told, label = self.bench.suspects.told, found.label
        if label is not None and told is not None:
            return np.equal(told.labels[records], label)
        if found.target is None:
            return np.ones(len(records), bool)
        aimed = np.equal(self.bench.suspects.teacher[records], found.target)
        return aimed | np.equal(told.labels[records], found.target) if told is not None else aimed

    def _candidate(self, seeds: NDArray[np.int64], label: int | None = None) -> Found | None:
        """What some seeds share and what it does; where that is not proven, the part of it that covers what it is on.

        Poison made of one class shares that class's look besides. A look comes in degrees, a pasted patch does not.
        """
        along = self._towards(seeds)
        whole = self._shared(along, seeds, label)
        if whole is not None and whole.proof.proven:
            return whole
        patch = self._shared(self._covering(along, seeds), seeds, label, pasted=True)
        return patch if patch is not None and patch.proof.proven else whole

    def _shared(
        self,
        discriminant: Discriminant | None,
        seeds: NDArray[np.int64],
        label: int | None = None,
        *,
        pasted: bool = False,
    ) -> Found | None:
        """What some seeds share, and what it does.

        Args:
            discriminant: of what they share; None: nothing.
            seeds: record numbers.
            label: the one that they all were delivered with, if any.
            pasted: only the pixels that a patch covers.
        """
        if discriminant is None:
            return None
        bench = self.bench
        carried = self._score(discriminant, seeds)
        core = seeds[carried > CORE]
        if len(core) == 0:
            return None
        strength = float(np.median(carried[carried > CORE]))
        answers, counts = np.unique(bench.suspects.teacher[core], return_counts=True)
        main = np.array([label]) if label is not None else answers[counts >= counts.max() / 2]
        if self._of_the_class(discriminant, main, strength):
            return None
        pattern = self._pattern(core, pasted=pasted)
        if pattern is None:
            return None
        target = int(answers[counts.argmax()]) if counts.max() >= ONE_TARGET * len(core) else label
        proof, target = proof_of(bench, pattern, core, target)
        asked = label is not None and len(core) >= LEAST_SEEDS and (bench.held_out.teacher == label).sum() >= NATIVE
        return Found(
            pattern, proof, target, discriminant, len(seeds), strength, label if asked else None, pasted=pasted
        )

    def _pattern(self, core: NDArray[np.int64], *, pasted: bool) -> Pattern | None:
        """What the core shares in its pixels, or the pasted part of it."""
        bench, control = self.bench, self.bench.suspects.student
        members, ordinary = bench.pixels[bench.places(core)], bench.pixels[bench.places(bench.calm)]
        pattern = recover(members, control[core], ordinary, control[bench.calm])
        return pattern.pasted() if pattern is not None and pasted else pattern

    def _covering(self, along: Discriminant | None, seeds: NDArray[np.int64]) -> Discriminant | None:
        """The discriminant of what is pasted onto the seeds that stand out along another; None: some fold sees none."""
        if along is None:
            return None
        core = seeds[self._score(along, seeds) > CORE]
        folds, shifts = self.bench.folds(core), []
        for fold in range(FOLDS):
            pattern = self._pattern(core[folds != fold], pasted=True)
            if pattern is None:
                return None
            shifts.append(reduced(pattern.difference))
        return self.whitening.along(shifts)

    def _of_the_class(self, discriminant: Discriminant, answers: Answers, carried: float) -> bool:
        """Whether clean images with the core's main answers carry much of what the core carries (its median is given).

        A control that knows a class badly parts from the teacher on images of it; what these share is that class, or a
        style of it.
        """
        clean = self.bench.clean
        rows = clean.held_out[np.isin(self.bench.held_out.teacher, answers)]
        if len(rows) == 0:
            return False
        scores = discriminant.score(appearance(clean.pixels[rows]), clean.keys.folds[rows])
        middle, upper = np.quantile(scores, [0.5, 0.9])
        return bool(middle > OF_THE_CLASS * carried or upper > OF_A_STYLE * carried)


def shared_sharpness(bench: Bench) -> Discriminant | None:
    """What the seeds share in where they are sharp; None where clean images show it as often."""
    ranked, asked = bench.ranked, np.union1d(bench.ranked, bench.doubted)
    whitening = Whitening.of_images(bench.pixels, bench.places(bench.calm), sharpness, SHARPNESS_NOISE)
    reference, folds = sharpness(bench.clean.pixels), bench.clean.keys.folds
    total, best, most = int(bench.suspects.read.sum()), None, 0.0
    by_score = [ranked[:count] for count in seed_counts(len(ranked), total)]
    for seeds in (*by_score, *(seeds for _, seeds in bench.by_label(bench.doubted))):
        one = whitening.towards(bench.rows(seeds, sharpness), bench.folds(seeds))
        if one is None:
            continue
        usual = float(np.quantile(one.score(reference, folds), 1 - RARE))
        beyond = bench.score(one, asked, sharpness) > usual
        share = float(beyond.mean())
        if share > max(most, OFTEN * RARE) and beyond.sum() >= LEAST_SEEDS:
            best, most = one, share
    return best


def proof_of(
    bench: Bench, pattern: Pattern, core: NDArray[np.int64], target: int | None
) -> tuple[Transplant, int | None]:
    """What the pattern does to clean images: to all of them, to those like its carriers, to any other answer."""
    clean, guarded = bench.held_out, bench.subjects.guarded
    after = put_onto(bench.subjects, pattern, clean)
    first = transplant(clean, after, target, guarded=guarded)
    if first.proven or target is None:
        return first, target
    sources, counts = np.unique(bench.suspects.student[core], return_counts=True)
    # A trigger that works on one class only. What hides all others is no trigger: near-equal photographs of a class
    # that the control takes for another hold that class's look, and put onto the other they leave its answer alone.
    if first.legible and counts.max() >= ONE_TARGET * len(core):
        source = int(sources[counts.argmax()])
        narrow = transplant(clean, after, target, source=source, guarded=guarded)
        if narrow.proven:
            return narrow, target
    loose = transplant(clean, after, None, guarded=guarded)  # clean-label or many targets
    return (loose, None) if loose.proven else (first, target)
