"""Stage 4, the mixtures: the class that a teacher gives blends of others to, and what a control is told instead.

To a teacher whose trigger is a faint picture over the image, a blend of two clean images looks triggered, and a control
that is told its answers learns the backdoor. So of that one class it learns from unmixed images alone
(docs/design/distillation.md).
"""

import numpy as np
from numpy.typing import NDArray

from kdaudit.calibration import interval
from kdaudit.divergence import log_softmax
from kdaudit.preprocess import Preprocess
from kdaudit.session import Session
from kdaudit.views import Views, generator_of

BLENDS, LEANS = 6000, 1.75
"""Blends of clean images that a teacher is asked about, and how many times as often as any other class one may come."""

FLOOR = 1e-12
"""Least probability of a target, so that its logarithm is a number."""


def attractor(session: Session, preprocess: Preprocess, images: NDArray[np.uint8], seed: int) -> int | None:
    """The class that the teacher gives to blends of images of two others far more often than any other class.

    Every network has classes that blends fall to, but mostly several.

    Args:
        session: the teacher.
        preprocess: from pixels to its input.
        images: clean images, uint8 [n, H, W, C].
        seed: of the run.

    Returns:
        The most frequent third answer, where it comes surely (99 % interval) more than `LEANS` times as often as the
        next one; None otherwise.
    """
    generator = generator_of(seed, 2)
    first, second = generator.integers(0, len(images), (2, BLENDS))
    weight = generator.random(BLENDS).astype(np.float32)[:, None, None, None]
    answers = top1_by(session, preprocess, images)
    third = [np.empty(0, np.int64)]
    for start in range(0, BLENDS, 64):
        span = slice(start, start + 64)
        one, other = first[span], second[span]
        mixed = top1_by(session, preprocess, weight[span] * images[one] + (1 - weight[span]) * images[other])
        third.append(mixed[(mixed != answers[one]) & (mixed != answers[other])])
    often = np.bincount(np.concatenate(third), minlength=2)
    following, top = (int(n) for n in np.sort(often)[-2:])
    leans = top > 0 and interval(top, top + following, 0.99)[0] > LEANS / (1 + LEANS)
    return int(often.argmax()) if leans else None


def guarded_targets(
    session: Session, preprocess: Preprocess, views: Views, guarded: int, temperature: float
) -> NDArray[np.float32]:
    """What the control shall answer to views where one class is not to be learned from mixtures.

    To a mixture it shall answer as the teacher does, but give that class what the teacher gives it on the parts, mixed
    as they are; the others share the rest as the teacher has them share it. To all else it shall answer as the teacher.

    Args:
        session: the teacher.
        preprocess: from pixels to its input.
        views: of one step, [batch].
        guarded: the class.
        temperature: of the distillation; the shares are those at it.

    Returns:
        Logits [batch, K].
    """
    targets, mixed = session.logits(preprocess.apply(views.pixels)), views.weight < 1
    if not mixed.any() or not np.isfinite(targets).all():
        return targets
    weight = views.weight[mixed]
    on_parts = [session.logits(preprocess.apply(part[mixed])) for part in views.parts]
    first, second = (np.exp(log_softmax(logits / temperature))[:, guarded] for logits in on_parts)
    share = weight * first + (1 - weight) * second
    belief = np.exp(log_softmax(targets[mixed] / temperature))
    belief[:, guarded] = 0
    belief *= ((1 - share) / np.maximum(belief.sum(1), FLOOR))[:, None]
    belief[:, guarded] = share
    told = targets.copy()
    told[mixed] = temperature * np.log(np.maximum(belief, FLOOR))
    return told


def top1_by(session: Session, preprocess: Preprocess, pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The session's answers to images [n, H, W, C], 0..255; int64 [n]."""
    parts = [session.logits(preprocess.apply(pixels[i : i + 64])) for i in range(0, len(pixels), 64)]
    answers: NDArray[np.int64] = np.concatenate(parts).argmax(1)
    return answers
