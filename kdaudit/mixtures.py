"""Stage 4, the mixtures: the class that a teacher gives blends of others to, and what a control is told instead.

To a teacher whose trigger is a faint picture over the image, a blend of two clean images looks triggered, and a control
that is told its answers learns the backdoor. So of the one class that blends of others go to it learns from unmixed
images alone, where blends go there far more often than anywhere else, or where the control has so few images that most
of what it learns are mixtures (docs/design/distillation.md).
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

FEW = 20
"""With fewer images of a class than this the class that blends go to most often is guarded in any case."""

FLOOR = 1e-12
"""Least probability of a target, so that its logarithm is a number."""


def attractor(session: Session, preprocess: Preprocess, images: NDArray[np.uint8], seed: int) -> int | None:
    """The class that the teacher gives to blends of images of two others, where the control is to be kept from it.

    Every network has classes that blends fall to, but mostly several.

    Args:
        session: the teacher.
        preprocess: from pixels to its input.
        images: clean images, uint8 [n, H, W, C].
        seed: of the run.

    Returns:
        The most frequent third answer, where it comes surely (99 % interval) more than `LEANS` times as often as the
        next one, or where there are fewer than `FEW` images for each class; None otherwise.
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
    few = top > 0 and len(images) < FEW * session.signature.classes
    return int(often.argmax()) if leans or few else None


def share_of(
    session: Session, preprocess: Preprocess, images: NDArray[np.uint8], guarded: int, temperature: float
) -> NDArray[np.float32]:
    """What the teacher gives a class on each image, at a temperature: float32 [n], in 0..1.

    Args:
        session: the teacher.
        preprocess: from pixels to its input.
        images: uint8 [n, H, W, C].
        guarded: the class.
        temperature: of the distillation.
    """
    parts = [session.logits(preprocess.apply(images[i : i + 64])) for i in range(0, len(images), 64)]
    return np.exp(log_softmax(np.concatenate(parts) / temperature))[:, guarded].astype(np.float32)


def guarded_targets(
    logits: NDArray[np.float32], views: Views, guarded: int, share: NDArray[np.float32], temperature: float
) -> NDArray[np.float32]:
    """What the control shall answer to views where one class is not to be learned from mixtures.

    To a mixture it shall answer as the teacher does, but give that class no more than the teacher gives it on the two
    images, mixed as they are; the others share the rest as the teacher has them share it. To all else it shall answer
    as the teacher.

    Args:
        logits: the teacher's answers to the views, [batch, K].
        views: of one step.
        guarded: the class.
        share: from `share_of` for the images that the views are made from, at this temperature.
        temperature: of the distillation.

    Returns:
        Logits [batch, K].
    """
    mixed = views.weight < 1
    if not mixed.any() or not np.isfinite(logits).all():
        return logits
    weight = views.weight[mixed]
    belief = np.exp(log_softmax(logits[mixed] / temperature))
    parts = weight * share[views.order[mixed]] + (1 - weight) * share[views.partners[mixed]]
    wanted = np.minimum(parts, belief[:, guarded])
    belief[:, guarded] = 0
    belief *= ((1 - wanted) / np.maximum(belief.sum(1), FLOOR))[:, None]
    belief[:, guarded] = wanted
    told = logits.copy()
    told[mixed] = temperature * np.log(np.maximum(belief, FLOOR))
    return told


def top1_by(session: Session, preprocess: Preprocess, pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The session's answers to images [n, H, W, C], 0..255; int64 [n]."""
    parts = [session.logits(preprocess.apply(pixels[i : i + 64])) for i in range(0, len(pixels), 64)]
    answers: NDArray[np.int64] = np.concatenate(parts).argmax(1)
    return answers
