"""Stage 7, the labels: how many does neither network believe? A note on the data's quality, and no sign of a backdoor.

Poison has its label from the attacker and its answer from the trigger; here are images to which model and control give
one and the same other answer. A model that has learned wrong labels by heart hides them, so this is a lower bound.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdaudit.calibration import Answers
from kdaudit.delivered import FITTING, outputs_of

SURE = 0.8
"""Confidence that both networks must have in the other answer: at half of it, hard images are the most of them."""


@dataclass(frozen=True, slots=True)
class LabelDoubts:
    """Labels and what the networks say to them.

    Attributes:
        doubted: images to which both networks give, surely, one answer that is not their label.
        labelled: labelled images that were asked about; 0 where labels and answers are of different lists.
    """

    doubted: int = 0
    labelled: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Told:
    """Images that were read and not flagged, as columns [m].

    Attributes:
        labels: label indices, whole numbers; -1 for none.
        teacher: the model's answers, whole numbers.
        student: the control's answers, whole numbers.
        confidence: the smaller of both networks' confidences in their answers, 0..1.
    """

    labels: Answers
    teacher: Answers
    student: Answers
    confidence: NDArray[np.floating[Any]]


def label_doubts(parts: Iterable[Told], order: tuple[int, ...] | None) -> LabelDoubts:
    """Count the labels that neither network believes.

    Args:
        parts: the images, in parts.
        order: output index of each label index; None: the same.
    """
    doubted = given = labelled = 0
    for part in parts:
        has = part.labels >= 0
        outputs = outputs_of(part.labels[has], order)
        model, control, sure = part.teacher[has], part.student[has], part.confidence[has] >= SURE
        doubted += int(((model == control) & (model != outputs) & sure).sum())
        given += int((model == outputs).sum())
        labelled += len(outputs)
    return LabelDoubts(doubted, labelled) if labelled and given >= FITTING * labelled else LabelDoubts()
