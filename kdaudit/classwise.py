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
from kdaudit.discriminant import LEAST_SEEDS, PART, Discriminant, Matrix, Whitening, appearance
from kdaudit.searched import CORE, Bench, Found
from kdaudit.stretches import stretches
from kdaudit.transplant import put_onto, transplant
from kdaudit.trigger import recover

LEAST_OF_CLASS = 5 * LEAST_SEEDS
"""Images with an answer, at least: the directions of fewer are those of single images."""

MOST_OF_CLASS = 1500
"""Images with an answer that its direction is taken from, at most."""

CLASSES = 3
"""Answers that are followed up, those whose images spread most beside the others."""

ROUNDS = 3
"""The carriers are chosen so often: the direction along which a class spreads shows some, and these show the rest."""


def classwise_patterns(bench: Bench) -> list[Found]:
    """Patterns that part of the images with one answer carries and that the model obeys."""
    _, counts = np.unique(bench.suspects.teacher[bench.calm], return_counts=True)
    if counts.max(initial=0) < LEAST_OF_CLASS:
        return []
    images, held_out, found = _ByAnswer.of(bench), bench.held_out, []
    clean = appearance(held_out.pixels)
    for answer in images.widest():
        parted = images.parted(answer, clean[held_out.teacher == answer])
        one = None if parted is None else images.pattern(answer, *parted)
        if one is not None and one.lacking:
            found.append(one)
    return found


@dataclass(frozen=True, slots=True, eq=False)
class _ByAnswer:
    """The bench's images that the model gives an answer, and what they vary by within their classes.

    Not the calm ones alone: of a control that took a trigger over in part, most poison is neither calm nor suspicious.

    Attributes:
        bench: where they are from.
        records: their numbers, int64 [k].
        answers: the model's, [k].
        means: of each class, float32 [d], by answer.
        scatter: sum of the squares and products of what they differ by from the mean of their class, float32 [d, d].
    """

    bench: Bench
    records: NDArray[np.int64]
    answers: Answers
    means: dict[int, Matrix]
    scatter: Matrix

    @classmethod
    def of(cls, bench: Bench) -> "_ByAnswer":
        records = bench.records[bench.suspects.teacher[bench.records] >= 0]
        answers, means = bench.suspects.teacher[records], {}
        width = bench.rows(records[:1], appearance).shape[1]
        scatter = np.zeros((width, width), np.float32)
        for answer in np.unique(answers):  # one class at a time: the rows of all are the largest there is
            rows = bench.rows(records[answers == answer], appearance)
            means[int(answer)] = rows.mean(0)
            rows -= means[int(answer)]
            scatter += rows.T @ rows
        return cls(bench, records, answers, means, scatter)

    def within(self, chosen: NDArray[np.int64]) -> Matrix:
        """Rows of some of them, less the mean of their class, float32 [n, d]; `chosen`: which, int64 [n]."""
        rows = self.bench.rows(self.records[chosen], appearance)
        for answer in np.unique(self.answers[chosen]):
            rows[self.answers[chosen] == answer] -= self.means[int(answer)]
        return rows

    def widest(self) -> Iterator[int]:
        """The answers whose images spread most along some direction, beside the other images; the widest first."""
        whitening, count = _whitening(self.scatter, len(self.records)), len(self.records)
        own = {answer: self.answers == answer for answer in self.means}
        asked = [one for one, rows in own.items() if min(rows.sum(), (~rows).sum()) >= LEAST_OF_CLASS]
        if not asked:
            return
        along = np.stack([whitening.widest(self.within(np.flatnonzero(own[one])[:MOST_OF_CLASS])) for one in asked])
        parts = (np.arange(count)[span] for span in stretches(count, PART))
        spread = np.concatenate([self.within(part) @ along.T for part in parts])
        ratios = [
            float(spread[own[one], number].var() / spread[~own[one], number].var()) for number, one in enumerate(asked)
        ]
        yield from (asked[number] for number in np.argsort(-np.array(ratios), kind="stable")[:CLASSES])

    def parted(self, answer: int, clean: Matrix) -> tuple[NDArray[np.bool_], Discriminant] | None:
        """Images with an answer that carry what clean images with it lack.

        Args:
            answer: the model's.
            clean: rows of the clean images with the answer, float32 [n, d].

        Returns:
            Who carries it, bool [k], and the discriminant; None where too few do, or too few others are left.
        """
        own = np.flatnonzero(self.answers == answer)
        if len(clean) == 0:
            return None
        rows, folds, usual = self.within(own), self.bench.folds(self.records[own]), clean - self.means[answer]
        # In the covariance of those who carry it a trigger would hide.
        others = _whitening(self.scatter - rows.T @ rows, len(self.records) - len(own))
        direction = others.widest(rows[:MOST_OF_CLASS])
        off = (rows @ direction - np.median(usual @ direction)) / max(1.0, float(np.std(usual @ direction)))
        carries, found = max((off < -CORE, off > CORE), key=np.count_nonzero), None
        for _ in range(ROUNDS):
            if carries.sum() < LEAST_SEEDS or (~carries).sum() + len(clean) < LEAST_SEEDS:
                return None
            center = np.concatenate([rows[~carries], usual]).mean(0)
            found = Whitening(center, others.lower).towards(rows[carries], folds[carries])
            if found is None:
                return None
            carries = found.score(rows, folds) > CORE
        if found is None or carries.sum() < LEAST_SEEDS:
            return None
        carriers = np.zeros(len(self.answers), bool)
        carriers[own] = carries
        return carriers, Discriminant(found.center + self.means[answer], found.directions)

    def pattern(self, answer: int, carriers: NDArray[np.bool_], discriminant: Discriminant) -> Found | None:
        """What the carriers share, put onto clean images; None where that is nothing beyond chance."""
        bench = self.bench
        calm = np.isin(self.records, bench.calm)
        shown, usual = carriers & calm, ~carriers & calm  # what is odd about suspicious ones would be in the pattern
        members, ordinary = (self.records[one] for one in (shown if shown.sum() >= LEAST_SEEDS else carriers, usual))
        control = bench.suspects.student
        pattern = recover(
            bench.pixels[bench.places(members)], control[members],
            bench.pixels[bench.places(ordinary)], control[ordinary],
        )  # fmt: skip
        if pattern is None:
            return None
        after = put_onto(bench.subjects, pattern, bench.held_out)
        proof = transplant(bench.held_out, after, answer, guarded=bench.subjects.guarded)
        carried = bench.score(discriminant, self.records[carriers], appearance)
        return Found(
            pattern, proof, answer, discriminant, int(carriers.sum()), float(np.median(carried)), classwise=True
        )


def _whitening(scatter: Matrix, images: int) -> Whitening:
    return Whitening.of_scatter(np.zeros(len(scatter), np.float32), scatter, images)
