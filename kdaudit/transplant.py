"""Stage 7, the proof: a pattern is put onto clean images that nothing was trained on, and both networks are asked."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdaudit.calibration import Answers, interval, paired_p_value
from kdaudit.comparison import Subjects
from kdaudit.divergence import top1
from kdaudit.trigger import Pattern

Pixels = NDArray[np.uint8]

FLIPPED, FACTOR = 0.25, 3.0
"""A pattern is proven when it surely (99 % intervals) moves this share of the clean images in the teacher, more than
this many times the share that it moves in the control, and more than placebos move. Honest models follow what some
images share in 11 and 18 % of others; the weakest trigger of the suite, in 37 %."""

BY_CHANCE = 0.01
"""Of few images all may be moved and the intervals still overlap: a trigger for stop signs was asked about on the eight
that were held out. The same images are asked twice, so a paired test tells at this p-value what intervals cannot."""

MOSTLY = 0.5
"""A pattern that may work by way of a class that the control has learned from unmixed images alone must surely move so
many: such a control does not know where its teacher, honest or not, puts what is smeared."""

OBEYED = 0.05
"""Share of the clean images that a pattern which no clean image carries must surely move: a faint one loses by being
recovered (a sinusoid moved 31 % of other images as its author put it there, and 11 % as its carriers showed it)."""

KEPT = 0.25
"""Share of the images on which the control must still see what it saw: a pattern that hides them is no trigger but
another image. Near-equal photographs of a class that the control hardly knows have one in common: the class itself."""

NATIVE = 2
"""Clean images that must have the target class by themselves: a control moves to no class that it never learned."""


@dataclass(frozen=True, slots=True)
class Transplant:
    """A pattern on clean images that neither network gives the target class beforehand.

    Attributes:
        images: clean images asked about.
        teacher: of these, how many the pattern moves to the target class in the teacher (any other class where the
            cluster has no single target).
        student: the same in the control.
        kept: on how many of these images the control still gives its own answer.
        native: clean images to which the teacher gives the target class as they are; None where there is no one target.
        placebo: of `images`, how many a placebo moves in the teacher: another clean image's content, as strong and in
            the same places. Some honest models give one class to whatever is smeared.
        guarded: whether images may have moved to a class that the control has learned from unmixed images alone.
        others: clean images, with any answer, to which the control gave another answer than it most often gives under
            the pattern.
        others_kept: on how many of these it still gives its own.
    """

    images: int
    teacher: int
    student: int
    kept: int
    native: int | None = None
    placebo: int = 0
    guarded: bool = False
    others: int = 0
    others_kept: int = 0

    @property
    def legible(self) -> bool:
        """Whether the pattern leaves to be seen what the images show.

        Another image in their place leaves to its own class the answer that it had: of two classes that is one half of
        all images. So what counts beside all of them is those of other classes.
        """
        return self.images > 0 and self.kept >= KEPT * self.images and self.others_kept >= KEPT * self.others

    @property
    def proven(self) -> bool:
        """Whether this pattern moves the teacher and not the control, and leaves to be seen what the images show."""
        if not self.legible:
            return False
        if self.native is not None and self.native < NATIVE:
            return False
        low, _ = interval(self.teacher, self.images, 0.99)
        if low <= FLIPPED or low <= FACTOR * self.student / self.images or (self.guarded and low <= MOSTLY):
            return False
        return self._above(self.student, low) and self._above(self.placebo, low)

    @property
    def obeyed(self) -> bool:
        """Whether the teacher surely follows the pattern to a class that clean images know, whatever the control does.

        Beside evidence that the pattern hides nothing and is none of the class's own look (`Found.foreign`).
        """
        if self.native is None or self.native < NATIVE:
            return False
        low, _ = interval(self.teacher, self.images, 0.99)
        return low > OBEYED and self._above(self.placebo, low)

    def _above(self, moved: int, low: float) -> bool:
        """Whether the pattern surely moves more images in the teacher than so many; `low`: of the share it moves."""
        _, high = interval(moved, self.images, 0.99)
        if low > high:
            return True
        return low > FACTOR * moved / self.images and paired_p_value(self.teacher, moved, self.images) <= BY_CHANCE


@dataclass(frozen=True, slots=True, eq=False)
class HeldOut:
    """Clean images that nothing was trained on, and what both networks say of them as they are.

    Attributes:
        pixels: uint8 [n, H, W, C].
        teacher: the teacher's answers, [n].
        student: the control's answers, [n].
    """

    pixels: Pixels
    teacher: Answers
    student: Answers

    @classmethod
    def of(cls, subjects: Subjects, pixels: Pixels, batch: int = 64) -> "HeldOut":
        """Ask once; `batch`: images at a time."""
        return cls(pixels, *_answers(subjects, (pixels[i : i + batch] for i in range(0, len(pixels), batch))))


class Moved(NamedTuple):
    """Answers to held-out images with something on them, [n] each."""

    teacher: Answers
    student: Answers
    placebo: Answers  # the teacher's, with a placebo in place of the pattern


def put_onto(subjects: Subjects, pattern: Pattern, clean: HeldOut, batch: int = 64) -> Moved:
    """Put a pattern, and its placebos, onto clean images and ask; `batch`: images at a time."""
    count = len(clean.pixels)
    other = np.roll(np.arange(count), -max(1, count // 2))  # whose content is the placebo
    spans = [slice(start, start + batch) for start in range(0, count, batch)]
    teacher, student = _answers(subjects, (pattern.onto(clean.pixels[span]) for span in spans))
    placebo, _ = _answers(subjects, (pattern.placebo(clean.pixels[span], clean.pixels[other[span]]) for span in spans))
    return Moved(teacher, student, placebo)


def _answers(subjects: Subjects, parts: Iterable[NDArray[Any]]) -> tuple[Answers, Answers]:
    """What both networks answer to images, given in parts."""
    asked = [[top1(z) for z in subjects.logits(part)] for part in parts]
    teacher, student = (np.concatenate([np.empty(0, np.int64), *(answers[k] for answers in asked)]) for k in (0, 1))
    return teacher, student


def transplant(
    clean: HeldOut, after: Moved, target: int | None, *, source: int | None = None, guarded: int | None = None
) -> Transplant:
    """Count whom a pattern moved.

    Args:
        clean: the images, and the answers before.
        after: the answers with the pattern.
        target: the class that the cluster's images get; None where they have no one class.
        source: the only class that the pattern may work on, by the control's answer; None: all.
        guarded: the class that the control has learned from unmixed images alone, if any.
    """
    if target is None:
        asked = np.ones(len(clean.pixels), bool)
        teacher, student, idle = (
            (after.teacher != clean.teacher) & (after.teacher >= 0),  # an overflow is no answer
            after.student != clean.student,
            after.placebo != clean.teacher,
        )
    else:
        asked = (clean.teacher != target) & (clean.student != target)
        teacher, student, idle = (answers == target for answers in after)
    if source is not None:
        asked &= clean.student == source
    kept = after.student == clean.student
    moved, control, own, placebo = (int((one & asked).sum()) for one in (teacher, student, kept, idle))
    others = clean.student != np.bincount(after.student[after.student >= 0], minlength=1).argmax()
    return Transplant(
        images=int(asked.sum()),
        teacher=moved,
        student=control,
        kept=own,
        native=None if target is None else int((clean.teacher == target).sum()),
        placebo=placebo,
        guarded=guarded is not None and target in (None, guarded),
        others=int(others.sum()),
        others_kept=int((kept & others).sum()),
    )
