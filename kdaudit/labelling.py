"""Stage 7, the labels: how many does neither network believe, and do these gather at one class?

Poison has its label from the attacker and its answer from the trigger; here are images to which model and control give
one and the same other answer. That is no sign of a backdoor in this model, and mostly a note on the data's quality. But
where the wrong labels are nearly all of one class and the images show all others, somebody has set them in bulk: by
mistake, or as poison that this model did not take up. A model that has learned wrong labels by heart hides them, so all
counts are lower bounds.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdaudit.admission import Finding
from kdaudit.calibration import Answers, interval
from kdaudit.delivered import APART, FITTING, outputs_of
from kdaudit.signature import named

SURE = 0.8
"""Confidence that both networks must have in the other answer: at half of it, hard images are the most of them."""

MISLABELLED = 0.01
"""Share of doubted labels that goes without a note; CIFAR-10's own shows 0.7 %, with 10 % wrong labels added 2.1 %."""

LEAST_BULK, TIMES = 20, 3
"""Doubted labels of one class, at least, and how many times the rate of any other label theirs must surely be."""


@dataclass(frozen=True, slots=True)
class Bulk:
    """A label that neither network believes far more often than any other.

    Attributes:
        label: an output of the model.
        doubted: images with it to which both networks give, surely, one other answer.
        delivered: images with it.
        elsewhere: the largest share of doubted ones among the images with another label, 0..1.
        apart: how differently the classes that these images show and those that all others show are distributed, total
            variation, 0..1.
        room: what that would be if they showed nothing but the commonest of these classes: with two classes 0.
    """

    label: int
    doubted: int
    delivered: int
    elsewhere: float
    apart: float
    room: float

    @property
    def set_at_once(self) -> bool:
        """Whether the images show all classes: those that are hard to tell from the label's look like it."""
        return self.apart <= APART < self.room


@dataclass(frozen=True, slots=True)
class LabelDoubts:
    """Labels and what the networks say to them.

    Attributes:
        doubted: images to which both networks give, surely, one answer that is not their label.
        labelled: labelled images that were asked about; 0 where labels and answers are of different lists.
        bulk: where they gather at one label, set at once; None: they do not.
    """

    doubted: int = 0
    labelled: int = 0
    bulk: Bulk | None = None


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

    def doubts(self, order: tuple[int, ...] | None) -> tuple[Answers, NDArray[np.bool_]]:
        """Labels as outputs of the model, -1 for none [m]; and where both networks surely give another answer [m]."""
        outputs = outputs_of(self.labels, order)
        other = (outputs >= 0) & (self.teacher == self.student) & (self.teacher != outputs)
        return outputs, other & (self.confidence >= SURE)


def label_doubts(parts: Callable[[], Iterable[Told]], order: tuple[int, ...] | None) -> LabelDoubts:
    """Count the labels that neither network believes.

    Args:
        parts: gives the images, in parts; asked twice where the doubted labels may gather.
        order: output index of each label index; None: the same.
    """
    given = 0
    delivered = doubted = np.zeros(0, np.int64)
    for part in parts():
        outputs, doubts = part.doubts(order)
        given += int((part.teacher == outputs)[outputs >= 0].sum())
        delivered = _plus(delivered, np.bincount(outputs[outputs >= 0]))
        doubted = _plus(doubted, np.bincount(outputs[doubts], minlength=len(delivered)))
    labelled = int(delivered.sum())
    if not labelled or given < FITTING * labelled:
        return LabelDoubts()
    return LabelDoubts(int(doubted.sum()), labelled, _bulk(parts, order, delivered, doubted))


def label_findings(labels: LabelDoubts, names: tuple[str, ...] | None) -> list[Finding]:
    """What is worth telling of the labels; `names`: the model's class names, for the sentences."""
    found, bulk = [], labels.bulk
    if bulk is not None:
        text = (
            f"{bulk.doubted:,} of {bulk.delivered:,} images delivered as {named(bulk.label, names)} show the other "
            f"classes, much as all images do, and model and control are sure of it; of no other label do they doubt "
            f"more than {bulk.elsewhere:.1%}: labels set in bulk, or poison that this model did not take up"
        )
        found.append(Finding("KDA213", "medium", text, f"label {bulk.label}"))
    if interval(labels.doubted, labels.labelled)[0] > MISLABELLED:
        text = (
            f"{labels.doubted:,} of {labels.labelled:,} labelled images get one and the same other answer from model "
            "and control, both at 80 % or more: wrong labels, or classes that look alike"
        )
        found.append(Finding("KDA210", "low", text))
    return found


def _bulk(
    parts: Callable[[], Iterable[Told]],
    order: tuple[int, ...] | None,
    delivered: NDArray[np.int64],
    doubted: NDArray[np.int64],
) -> Bulk | None:
    """The label that is doubted far more often than any other, where its images show all classes."""
    rates = doubted / np.maximum(delivered, 1)
    rates[delivered < LEAST_BULK] = 0.0  # of a few images a few may be wrong
    label = int(rates.argmax())
    elsewhere = float(np.delete(rates, label).max(initial=0.0))
    mine, count = int(doubted[label]), int(delivered[label])
    if mine < LEAST_BULK or interval(mine, count, 0.99)[0] <= TIMES * elsewhere:
        return None
    shown = usually = np.zeros(0, np.int64)
    for part in parts():
        outputs, doubts = part.doubts(order)
        shown = _plus(shown, np.bincount(part.teacher[doubts & (outputs == label)]))
        usually = _plus(usually, np.bincount(part.teacher[(outputs != label) & (part.teacher >= 0)]))
    usually[label : label + 1] = 0  # none of these images shows it
    ours, theirs = shown / shown.sum(), usually / max(1, usually.sum())
    apart = 0.5 * float(np.abs(_plus(ours, -theirs)).sum())
    bulk = Bulk(label, mine, count, elsewhere, apart, 1 - float(theirs.max(initial=0.0)))
    return bulk if bulk.set_at_once else None


def _plus(one: NDArray[Any], other: NDArray[Any]) -> NDArray[Any]:
    """The sum of two counts by class, of which one may know fewer classes."""
    size = max(len(one), len(other))
    total: NDArray[Any] = np.pad(one, (0, size - len(one))) + np.pad(other, (0, size - len(other)))
    return total
