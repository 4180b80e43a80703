"""What a control is shown while it learns: views with the teacher's answers, and how often the same ones."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kdaudit.errors import Inconclusive
from kdaudit.mixtures import guarded_targets, share_of
from kdaudit.preprocess import Preprocess
from kdaudit.session import Session
from kdaudit.views import ViewRecipe, Views, draw_views, to_planes

if TYPE_CHECKING:
    from torch import Tensor, nn

    from kdaudit.student import StudentSpec

    Batch = tuple[Tensor, Tensor]
    Draw = Callable[[int], Batch]

SHOWN = 4
"""How often a control is shown a view where the teacher is dear, or where the control of photographs has a limited
time. Else every view is new, which is a little better."""

SHOWN_FEATURES = 32
"""How often a head is shown the same features: a backbone takes thousands of times what the head takes to learn."""

DEAR = 4
"""A teacher whose answer takes so many times the arithmetic that learning from it takes the control is dear: asked once
for four showings, distilling takes two fifths of the time, or less (docs/design/distillation.md)."""

LEARNING = 3
"""What learning from a view takes, in answers: forward, and backward to the activations and to the weights."""

KEPT_BYTES = 256 << 20
"""Answers and features that are kept until their views are shown again; beyond these they are asked for once more."""


def is_dear(cost: int, spec: "StudentSpec", device: str) -> bool:
    """Whether a teacher's answers, of `cost` multiplications each, are most of the work of distilling.

    Not asked of a GPU, which takes a minute for all of it.
    """
    from kdaudit.student import multiplications

    return device == "cpu" and cost >= DEAR * LEARNING * multiplications(spec)


def drawer(
    session: Session,
    preprocess: Preprocess,
    images: NDArray[np.uint8],
    views: ViewRecipe,
    *,
    batch: int,
    temperature: float,
    seed: int,
    guarded: int | None,
    keep: bool,
) -> "Draw":
    """What draws the batch of a step: views, x/255 float32 [B, C, H, W], and the teacher's logits [B, K].

    Args:
        session: the teacher.
        preprocess: from pixels to its input.
        images: the distillation images, uint8 [n, H, W, C].
        views: which changes a view may have.
        batch: views a step.
        temperature: tau.
        seed: of the views.
        guarded: the class that is learned from unmixed images alone, if any.
        keep: whether answers are kept because the same steps come again.
    """
    share = np.empty(0, np.float32)
    if guarded is not None:
        share = share_of(session, preprocess, images, guarded, temperature)
    kept: dict[int, NDArray[np.float32]] = {}

    def draw(step: int) -> "Batch":
        import torch

        made = draw_views(images, batch, views, seed, step)
        targets = kept[step] if step in kept else told(made)
        if keep and (len(kept) + 1) * targets.nbytes <= KEPT_BYTES:
            kept[step] = targets
        return to_planes(made.pixels), torch.from_numpy(targets)

    def told(made: Views) -> NDArray[np.float32]:
        targets = session.logits(preprocess.apply(made.pixels))
        if guarded is not None:
            targets = guarded_targets(targets, made, guarded, share, temperature)
        if not np.isfinite(targets).all():
            raise Inconclusive(
                "the model answers clean images with values that are no numbers, so no control can be distilled from "
                "it: check --preprocess, and do not use the model"
            )
        return targets

    return draw


def as_learned(draw: "Draw", network: "nn.Module") -> "Draw":
    """The batches as the part of a control that learns is given them.

    Args:
        draw: gives views, x/255, and what they are told.
        network: the control; on a backbone its head learns from features, which are kept.
    """
    from kdaudit.student import learner, seen

    if learner(network) is network:
        return draw
    kept: dict[int, Batch] = {}
    room = KEPT_BYTES

    def features(step: int) -> "Batch":
        nonlocal room
        if step in kept:
            return kept[step]
        planes, told = draw(step)
        batch = seen(network, planes), told
        room -= sum(one.nbytes for one in batch)
        if room >= 0:
            kept[step] = batch
        return batch

    return features


def affordable(width: int, batch: int) -> int:
    """Batches of `batch` views whose features, `width` numbers each, can be kept."""
    return max(1, KEPT_BYTES // (4 * width * batch))
