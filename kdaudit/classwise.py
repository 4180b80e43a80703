"""Stage 7, class by class: what part of the images with one answer shares, where nothing about them is suspicious.

Clean-label poison shows what its label says, and a control may take over a trigger that lies over the whole image: both
networks agree then, and no image stands out. But a class of which part carries a trigger spreads along it as no other
class does (spectral signatures, Tran et al., NeurIPS 2018; here of pixels, beside those of the other classes). Who lies
far from the clean images of the class in that direction shows the pattern; `foreign` says whether it is a trigger.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdaudit.calibration import Answers
from kdaudit.discriminant import LEAST_SEEDS, Discriminant, Matrix, Whitening, appearance, fold_of
from kdaudit.search import CORE, Bench
from kdaudit.searched import Found
from kdaudit.transplant import put_onto, transplant
from kdaudit.trigger import recover

LEAST_OF_CLASS = 5 * LEAST_SEEDS
"""Calm images with an answer, at least: the directions of fewer are those of single images."""

MOST_OF_CLASS = 1500
"""Calm images with an answer that its direction is taken from, at most."""

CLASSES = 3
"""Answers that are followed up, those whose images spread most beside the others."""

ROUNDS = 3
"""The carriers are chosen so often: the direction along which a class spreads shows some, and these show the rest."""


def classwise_patterns(bench: Bench) -> list[Found]:
    """Patterns that part of the calm images with one answer carries and that the model obeys."""
    calm, held_out, found = _Calm.of(bench), bench.held_out, []
    clean = appearance(held_out.pixels)
    for answer in calm.widest():
        parted = calm.parted(answer, clean[held_out.teacher == answer])
        one = None if parted is None else calm.pattern(answer, *parted)
        if one is not None and one.lacking:
            found.append(one)
    return found


@dataclass(frozen=True, slots=True, eq=False)
class _Calm:
    """Calm images that the model gives an answer, and what they vary by within their classes.

    Attributes:
        bench: where they are from.
        records: their numbers, int64 [k].
        answers: the model's, [k].
        folds: int64 [k].
        rows: as `appearance` gives them, float32 [k, d].
        within: the same less the mean of their class.
        scatter: sum of their squares and products, float32 [d, d].
    """

    bench: Bench
    records: NDArray[np.int64]
    answers: Answers
    folds: NDArray[np.int64]
    rows: Matrix
    within: Matrix
    scatter: Matrix

    @classmethod
    def of(cls, bench: Bench) -> "_Calm":
        records = bench.calm[bench.suspects.teacher[bench.calm] >= 0]
        answers = bench.suspects.teacher[records]
        rows = appearance(bench.pixels[bench.place[records]])
        within = rows.copy()
        for answer in np.unique(answers):
            within[answers == answer] -= rows[answers == answer].mean(0)
        return cls(bench, records, answers, fold_of(bench.suspects.keys[records]), rows, within, within.T @ within)

    def widest(self) -> Iterator[int]:
        """The answers whose images spread most along some direction, beside the other images; the widest first."""
        whitened = self._whitening(self.scatter, len(self.within)).whitened(self.within)
        ratios = {}
        for answer in np.unique(self.answers):
            own = self.answers == answer
            if min(own.sum(), (~own).sum()) >= LEAST_OF_CLASS:
                along = whitened @ _widest(whitened[own][:MOST_OF_CLASS])
                ratios[int(answer)] = float(along[own].var() / along[~own].var())
        yield from sorted(ratios, key=lambda answer: -ratios[answer])[:CLASSES]

    def parted(self, answer: int, clean: Matrix) -> tuple[NDArray[np.bool_], Discriminant] | None:
        """Images with an answer that carry what clean images with it lack.

        Args:
            answer: the model's.
            clean: rows of the clean images with the answer, float32 [n, d].

        Returns:
            Who carries it, bool [k], and the discriminant; None where too few do, or too few others are left.
        """
        own = self.answers == answer
        if len(clean) == 0:
            return None
        # In the covariance of those who carry it a trigger would hide.
        inside = self.within[own]
        others = self._whitening(self.scatter - inside.T @ inside, int((~own).sum()))
        direction = _widest(others.whitened(inside[:MOST_OF_CLASS]))
        along, usual = (others.whitened(rows) @ direction for rows in (self.rows[own], clean))
        off = np.zeros(len(own))
        off[own] = (along - np.median(usual)) / max(1.0, float(np.std(usual)))
        carriers, found = max((off < -CORE, off > CORE), key=np.count_nonzero), None
        for _ in range(ROUNDS):
            rest = own & ~carriers
            if carriers.sum() < LEAST_SEEDS or rest.sum() + len(clean) < LEAST_SEEDS:
                return None
            center = np.concatenate([self.rows[rest], clean]).mean(0)
            found = Whitening(center, others.lower).towards(self.rows[carriers], self.folds[carriers])
            if found is None:
                return None
            carriers = own & (found.score(self.rows, self.folds) > CORE)
        return None if found is None or carriers.sum() < LEAST_SEEDS else (carriers, found)

    def pattern(self, answer: int, carriers: NDArray[np.bool_], discriminant: Discriminant) -> Found | None:
        """What the carriers share, put onto clean images; None where that is nothing beyond chance."""
        bench = self.bench
        pixels, control = bench.pixels[bench.place[self.records]], bench.suspects.student[self.records]
        pattern = recover(pixels[carriers], control[carriers], pixels[~carriers], control[~carriers])
        if pattern is None:
            return None
        after = put_onto(bench.subjects, pattern, bench.held_out)
        proof = transplant(bench.held_out, after, answer, guarded=bench.subjects.guarded)
        strength = float(np.median(discriminant.score(self.rows[carriers], self.folds[carriers])))
        return Found(pattern, proof, answer, discriminant, int(carriers.sum()), strength, classwise=True)

    def _whitening(self, scatter: Matrix, images: int) -> Whitening:
        return Whitening.of_scatter(np.zeros(scatter.shape[0], np.float32), scatter, images)


def _widest(rows: Matrix) -> Matrix:
    """The direction [d] along which rows [n, d] spread most, from the smaller of the two products."""
    from scipy.linalg import eigh

    n, d = rows.shape
    product = rows @ rows.T if n < d else rows.T @ rows
    _, vectors = eigh(product, subset_by_index=(len(product) - 1, len(product) - 1))
    direction: Matrix = rows.T @ vectors[:, 0] if n < d else vectors[:, 0]
    unit: Matrix = direction / max(float(np.linalg.norm(direction)), 1e-12)
    return unit
