"""Asking the teacher: every candidate's answers, each computed once, and what they are worth."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdaudit.divergence import top1
from kdaudit.errors import ModelRefused
from kdaudit.fitting.alignment import Alignment, align, paired
from kdaudit.fitting.pool import Pixels, Pool
from kdaudit.fitting.scores import consistency, consistency_error, losses, output_kind, overconfidence
from kdaudit.preprocess import Preprocess
from kdaudit.session import Session
from kdaudit.signature import OutputKind

HARMLESS_WIDTH = 28
"""Pixels from which on a shift by a whole one changes no answer that matters."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to preprocess, and how it did.

    Attributes:
        preprocess: the candidate.
        images: how many images it was scored on; 0 if the model could not be run with it.
        score: share of right answers (with labels), or consistency in nats (without); higher is better.
        error: standard error of the score.
        accuracy: share of right answers; None without labels.
        calibration: with labels, cross-entropy in nats; without, how far confidence exceeds steadiness. Lower
            is better; it decides between candidates of equal score.
    """

    preprocess: Preprocess
    images: int
    score: float
    error: float
    accuracy: float | None
    calibration: float

    @property
    def recipe(self) -> str:
        """The candidate's name."""
        return self.preprocess.recipe


class Trial:
    """What the teacher said under one candidate.

    Attributes:
        views: raw scores [n, K] per view, the unchanged images first.
        failed: why the model cannot be run with it; empty if it can.
    """

    def __init__(self) -> None:
        self.views: list[NDArray[np.float32]] = []
        self.failed = ""

    def __len__(self) -> int:
        return len(self.views[0]) if self.views else 0

    def tops(self, images: int | None = None) -> list[NDArray[np.int64]]:
        """Top-1 answers [n] per view to the first `images`; -1 where a score is not finite."""
        return [top1(view[:images]) for view in self.views]


def changed(pixels: Pixels) -> tuple[NDArray[np.uint8] | NDArray[np.float32], NDArray[np.float32]]:
    """Harmless changes of images [B, H, W, C]: a little to the left, and a little less contrast.

    One pixel is little at `HARMLESS_WIDTH` and above; a smaller image moves by its share of a pixel.
    """
    plain = pixels.astype(np.float32)
    flatter: NDArray[np.float32] = (plain - 128) * np.float32(0.85) + 128
    neighbours: NDArray[np.uint8] = np.concatenate([pixels[:, :, 1:], pixels[:, :, -1:]], axis=2)
    share = np.float32(min(1.0, pixels.shape[2] / HARMLESS_WIDTH))
    if share == 1:
        return neighbours, flatter
    return plain + share * (neighbours - plain), flatter


class Trials:
    """Runs candidates and compares them.

    Args:
        session: the teacher.
        pool: images.
        truth: their labels; None to go by consistency.
        classes: the data set's names in label order, if it has any.
    """

    def __init__(
        self, session: Session, pool: Pool, truth: NDArray[np.int64] | None, classes: Sequence[str] | None
    ) -> None:
        self.session = session
        self.pool = pool
        self.truth = truth
        self._classes = classes
        self._trials: dict[Preprocess, Trial] = {}

    def __getitem__(self, preprocess: Preprocess) -> Trial:
        return self._trials[preprocess]

    def run(self, preprocess: Preprocess, images: int) -> None:
        """Ask about the first `images` images; what is known is not asked again."""
        trial = self._trials.setdefault(preprocess, Trial())
        done = len(trial)
        if trial.failed or done >= images:
            return
        pixels = self.pool.pixels(preprocess.geometry, done, images)
        views = (pixels,) if self.truth is not None else (pixels, *changed(pixels))
        try:
            fresh = [self.session.raw(preprocess.apply(view)) for view in views]
        except ModelRefused as error:
            trial.failed = str(error).removesuffix(f" [{error.rule}]")
            return
        old = trial.views or [scores[:0] for scores in fresh]
        trial.views = [np.concatenate(pair) for pair in zip(old, fresh, strict=True)]

    def candidate(self, preprocess: Preprocess) -> Candidate:
        """A candidate's line in the table."""
        trial = self._trials[preprocess]
        n = len(trial)
        if not n:
            return Candidate(preprocess, 0, -1.0, 0.0, None, float("inf"))
        if self.truth is None:
            tops = trial.tops()
            score, error = consistency(tops, self._kinds), consistency_error(tops, self._kinds)
            return Candidate(preprocess, n, score, error, None, overconfidence(trial.views[0], tops))
        alignment = self.alignment(preprocess)
        accuracy = alignment.accuracy
        error = float(np.sqrt(max(accuracy * (1 - accuracy), 1 / n) / n))
        loss = float(self._losses(preprocess, alignment, n).mean())
        return Candidate(preprocess, n, accuracy, error, accuracy, loss)

    def alignment(self, preprocess: Preprocess, images: int | None = None) -> Alignment:
        """The class order that a candidate's answers speak for."""
        assert self.truth is not None
        tops, signature = self._trials[preprocess].tops(images)[0], self.session.signature
        return align(tops, self.truth[: len(tops)], signature.classes, self._classes, signature.class_names)

    def margin(self, best: Preprocess, other: Preprocess) -> tuple[float, float]:
        """Score of one less that of another on the same images, and its standard error."""
        n = min(len(self._trials[best]), len(self._trials[other]))
        if self.truth is None:
            a, b = self._trials[best].tops(n), self._trials[other].tops(n)
            gap = consistency(a, self._kinds) - consistency(b, self._kinds)
            return gap, consistency_error(a, self._kinds, b)
        return paired(self.alignment(best, n).hits, self.alignment(other, n).hits)

    @property
    def labelled(self) -> bool:
        """Whether candidates are scored by labels."""
        return self.truth is not None

    def changed_loss(self, preprocess: Preprocess, images: int) -> float:
        """Cross-entropy in nats on the first `images` images after harmless changes (see `changed`)."""
        n = min(images, len(self._trials[preprocess]))
        outputs = self._outputs(self.alignment(preprocess), n)
        views = changed(self.pool.pixels(preprocess.geometry, 0, n))
        return float(np.mean([losses(self.session.raw(preprocess.apply(view)), outputs).mean() for view in views]))

    def explains_better(self, best: Preprocess, other: Preprocess) -> bool:
        """Whether one's beliefs fit the labels better than another's, by two standard errors of the loss."""
        if self.truth is None:
            return False
        n = min(len(self._trials[best]), len(self._trials[other]))
        first, second = (self._losses(p, self.alignment(p, n), n) for p in (best, other))
        gain = second - first
        return bool(gain.mean() >= 2 * gain.std() / np.sqrt(n) and gain.mean() > 0)

    def same(self, one: Preprocess, other: Preprocess) -> float:
        """Share of images to which two candidates give the same answer."""
        n = min(len(self._trials[one]), len(self._trials[other]))
        return float((self._trials[one].tops(n)[0] == self._trials[other].tops(n)[0]).mean())

    def kind(self, preprocess: Preprocess) -> OutputKind:
        """What the scores are, by their behaviour."""
        return output_kind(self._trials[preprocess].views[0])

    @property
    def luck(self) -> float:
        """Share of right answers that a constant answer gets at best; 0 without labels."""
        return 0.0 if self.truth is None else float(np.bincount(self.truth).max() / len(self.truth))

    @property
    def _kinds(self) -> int:
        """How many classes the images can be of."""
        return len(self._classes) if self._classes else self.session.signature.classes

    def _losses(self, preprocess: Preprocess, alignment: Alignment, images: int) -> NDArray[np.float64]:
        outputs = self._outputs(alignment, images)
        return losses(self._trials[preprocess].views[0][:images], outputs)

    def _outputs(self, alignment: Alignment, images: int) -> NDArray[np.int64]:
        """The right output index of each image under an alignment, int64 [images]."""
        assert self.truth is not None
        return np.asarray(alignment.order, np.int64)[self.truth[:images]]
