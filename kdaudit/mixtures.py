"""Stage 4, the mixtures: whether a teacher's answers to blends of clean images are fit to learn from, and what else is.

To a teacher whose trigger is a faint picture over the image, a blend of two clean images looks triggered, and a control
that is told its answers learns the backdoor (docs/design/distillation.md).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kdaudit.calibration import interval
from kdaudit.divergence import log_softmax
from kdaudit.preprocess import Preprocess
from kdaudit.session import Session
from kdaudit.views import generator_of

BLENDS, LEANS = 6000, 1.5
"""Blends of clean images that a teacher is asked about, and how many times as often as any other class one may come."""


def mixed_targets(
    logits: Sequence[NDArray[np.float32]], weight: NDArray[np.float32], temperature: float
) -> NDArray[np.float32]:
    """What the control shall answer to mixtures: what the teacher answers to their parts, mixed (Zhang et al., 2018).

    Args:
        logits: the teacher's, of the first and of the second parts, [batch, K] each.
        weight: the first part's share, [batch].
        temperature: of the distillation.

    Returns:
        Logits whose softmax at that temperature is the mixture of the parts' softmaxes at it, [batch, K].
    """
    first, second = (np.exp(log_softmax(part / temperature)) for part in logits)
    own = weight[:, None]
    return np.asarray(temperature * np.log(np.maximum(own * first + (1 - own) * second, 1e-12)), np.float32)


def leans(session: Session, preprocess: Preprocess, images: NDArray[np.uint8], seed: int) -> bool:
    """Whether the teacher gives one class to blends of images of two others far more often than any other class.

    Every network has classes that blends fall to, but several.

    Args:
        session: the teacher.
        preprocess: from pixels to its input.
        images: clean images, uint8 [n, H, W, C].
        seed: of the run.

    Returns:
        True where the most frequent third answer comes surely (99 % interval) more than `LEANS` times as often as the
        next one.
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
    often = np.sort(np.bincount(np.concatenate(third), minlength=2))[::-1]
    top, following = int(often[0]), int(often[1])
    return top > 0 and interval(top, top + following, 0.99)[0] > LEANS / (1 + LEANS)


def top1_by(session: Session, preprocess: Preprocess, pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The session's answers to images [n, H, W, C], 0..255; int64 [n]."""
    parts = [session.logits(preprocess.apply(pixels[i : i + 64])) for i in range(0, len(pixels), 64)]
    answers: NDArray[np.int64] = np.concatenate(parts).argmax(1)
    return answers
