"""Stage 7, a trace: images that share where they are sharp, and whether that has to do with their answers.

A warp, a resampling or a dither leaves no pattern that could be put onto other images, so nothing can be proven by
transplant. What can be shown is that the images that carry it are those on which model and control part: images from
another camera share a trace as well, and part no more than others do. And where the delivery has labels: that they
were delivered as one class, whatever they show.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdaudit.calibration import Column, interval
from kdaudit.delivered import LabelProof
from kdaudit.tails import Scores

RARE = 0.002
"""Images count as carriers up to this p-value."""

OFTEN = 3.0
"""How many times more carriers there must be than chance gives."""

SUSPICIOUS, PARTING = 0.1, 0.5
"""Of the carriers at least half (surely: 99 % interval) must be among the most suspicious tenth of all images."""


@dataclass(frozen=True, slots=True)
class Trace:
    """What carriers of a trace have to do with the suspicious images.

    Attributes:
        carriers: images whose trace one in 500 clean images has.
        parting: of these, how many are among the most suspicious tenth of all images.
        by_label: what their labels say, where there are any.
    """

    carriers: int
    parting: int
    by_label: LabelProof | None = None

    @property
    def proven(self) -> bool:
        """Whether carriers have one label, whatever they show."""
        return self.by_label is not None and self.by_label.proven

    @property
    def aim(self) -> int | None:
        """The class that carriers were delivered as, where that is proven."""
        return self.by_label.label if self.by_label is not None and self.proven else None


def common(p_values: Column, rare: float = RARE) -> bool:
    """Whether surely (99 % interval) more than three times as many images fall under `rare` as chance gives."""
    return frequent(int((p_values <= rare).sum()), len(p_values), rare)


def frequent(count: int, images: int, rare: float = RARE) -> bool:
    """The same of so many images of so many that fall under `rare`."""
    return interval(count, images, 0.99)[0] > OFTEN * rare


def most_suspicious(score: Scores) -> NDArray[np.bool_]:
    """Who is among the most suspicious tenth of all images, [m], by their scores."""
    return np.asarray(score > np.quantile(score, 1 - SUSPICIOUS), bool)


def weigh(p_values: Scores, suspicious: NDArray[np.bool_], by_label: LabelProof | None = None) -> Trace | None:
    """Whether a trace goes with suspicious behaviour or with one label; None where it does neither.

    Args:
        p_values: of "carries no such trace", [m]; found without regard to an image's own score (cross-fitted).
        suspicious: who is among the most suspicious, [m].
        by_label: what the labels of its carriers say, where there are any.
    """
    carries = p_values <= RARE
    count = int(carries.sum())
    if count < OFTEN * RARE * len(p_values):
        return None
    parting = int((carries & suspicious).sum())
    trace = Trace(count, parting, by_label)
    return trace if trace.proven or interval(parting, count, 0.99)[0] >= PARTING else None
