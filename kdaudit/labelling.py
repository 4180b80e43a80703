"""Stage 7, the labels: how many does neither network believe? A note on the data's quality, and no sign of a backdoor.

Poison has its label from the attacker and its answer from the trigger; here are images to which model and control give
one and the same other answer. A model that has learned wrong labels by heart hides them, so this is a lower bound.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SURE = 0.8
"""Confidence that both networks must have in the other answer: at half of it, hard images are the most of them."""

FITTING = 0.5
"""Share of the labels that the model must give, or the labels are of another list of classes than its answers."""


@dataclass(frozen=True, slots=True)
class LabelDoubts:
    """Labels and what the networks say to them.

    Attributes:
        doubted: images to which both networks give, surely, one answer that is not their label.
        labelled: labelled images that were asked about; 0 where labels and answers are of different lists.
    """

    doubted: int = 0
    labelled: int = 0


def label_doubts(
    labels: NDArray[np.int64],
    order: tuple[int, ...] | None,
    teacher: NDArray[np.int64],
    student: NDArray[np.int64],
    confidence: NDArray[np.floating],
) -> LabelDoubts:
    """Count the labels that neither network believes.

    Args:
        labels: label indices of images that were read and not flagged, [m]; -1 for none.
        order: output index of each label index; None: the same.
        teacher: the model's answers, [m].
        student: the control's answers, [m].
        confidence: the smaller of both networks' confidences in their answers, [m], 0..1.
    """
    has = labels >= 0
    outputs = labels[has] if order is None else np.asarray(order, np.int64)[labels[has]]
    model, control, sure = teacher[has], student[has], confidence[has] >= SURE
    if len(outputs) == 0 or (model == outputs).mean() < FITTING:
        return LabelDoubts()
    return LabelDoubts(int(((model == control) & (model != outputs) & sure).sum()), len(outputs))
