"""Stage 7, the assumption: are the clean images such as innocent suspect images are?

Every error rate here rests on that. It cannot be proven, but where it fails it mostly shows in the control, which has
seen neither the held-out clean images nor the suspect ones: how sure it is of them, and what it takes them for.
Columns in, statements out.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdaudit.calibration import Column

SURE = 1e-3
"""p-value from which a difference is no chance."""

CONFIDENCE_APART, ANSWERS_APART = 0.1, 0.2
"""Differences that matter: of the distribution functions of the confidence, and total variation of the answers. With
a hundred thousand images any two sources differ for sure."""


@dataclass(frozen=True, slots=True)
class Assumption:
    """One statement about the images.

    Attributes:
        name: what is assumed.
        holds: whether nothing speaks against it.
        p_value: of "no difference"; None where there are too few images to ask.
        statement: what was seen.
    """

    name: str
    holds: bool
    p_value: float | None
    statement: str


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What the control says of images, as columns [n].

    Attributes:
        confidence: of its answer, 0..1.
        answers: int64.
    """

    confidence: Column
    answers: NDArray[np.int64]


def assumptions(suspect: Seen, clean: Seen) -> tuple[Assumption, ...]:
    """Compare suspect images that were not flagged with the held-out clean ones."""
    from scipy.stats import chi2_contingency, ks_2samp

    if len(suspect.answers) == 0 or len(clean.answers) == 0:
        return ()
    apart = ks_2samp(suspect.confidence, clean.confidence)
    counts = np.stack(
        [_counts(one.answers, max(suspect.answers.max(), clean.answers.max())) for one in (suspect, clean)]
    )
    counts = counts[:, counts.sum(0) > 0]
    shares = counts / counts.sum(1, keepdims=True)
    variation = float(np.abs(shares[0] - shares[1]).sum() / 2)
    p_answers = float(chi2_contingency(counts).pvalue) if counts.shape[1] > 1 else 1.0
    return (
        Assumption(
            "clean images are to the control as the delivery is",
            not (apart.pvalue < SURE and apart.statistic > CONFIDENCE_APART),
            float(apart.pvalue),
            f"its confidence is distributed alike up to {float(apart.statistic):.1%} "
            f"({len(clean.answers):,} clean images, {len(suspect.answers):,} suspect ones without flags)",
        ),
        Assumption(
            "the classes have the shares that they have in the delivery",
            not (p_answers < SURE and variation > ANSWERS_APART),
            p_answers,
            f"{variation:.1%} of the clean images would have to show another class by the control's answers; images "
            "are judged by their answer, so this costs power before it costs honesty",
        ),
    )


def _counts(answers: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    return np.bincount(answers[answers >= 0], minlength=classes)
