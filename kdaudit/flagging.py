"""Stage 7, by image: which images are poison candidates, at a stated error rate.

Columns in, columns out; docs/design/detection.md says why the p-values are what they are.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from kdaudit.calibration import Clean, bounded, conformal_p_values, rank_p_values, tail_p_values, unbounded
from kdaudit.comparison import Comparison
from kdaudit.conduct import Conduct
from kdaudit.multiplicity import CleanRanks, benjamini_hochberg, grouped_flags
from kdaudit.settings import Rule

DOUBT = 0.05
"""Unflagged images with a p-value up to this are doubtful where their answer has flags: a handful of poison images
that the error rate had to leave are enough to teach a network their trigger again."""


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """What judging needs of the suspect images, as columns [m].

    Attributes:
        read: whether the image was compared.
        groups: the teacher's answer; -1 where it was no number or the image was not read.
        disagrees: whether the control's answer is another one.
        score: of the rule in use, NaN where not read, +inf where the teacher's answer was no number.
    """

    read: NDArray[np.bool_]
    groups: NDArray[np.int64]
    disagrees: NDArray[np.bool_]
    score: NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Flags:
    """The image-level result, as columns [m].

    Attributes:
        flag: poison candidates.
        p_values: NaN under the argmax rule, which has none.
        extrapolated: whether the p-value lies beyond what clean images resolve by counting.
        doubtful: not flagged, yet unusual for an answer that has flags; kept, but not tuned on.
    """

    flag: NDArray[np.bool_]
    p_values: NDArray[np.float64]
    extrapolated: NDArray[np.bool_]
    doubtful: NDArray[np.bool_]


def score_of(comparison: Comparison, rule: Rule) -> NDArray[np.float64]:
    """The score that a rule judges by; the argmax rule has none and is shown with the divergence."""
    return comparison.gap if rule == "score" else comparison.divergence


def flag(
    suspect: Columns,
    clean: Clean,
    rule: Rule,
    fdr: float,
    carries: NDArray[np.float64] | None = None,
    behaves: Conduct | None = None,
) -> Flags:
    """Decide which images are poison candidates.

    Under `divergence` and `score` an image's p-value is twice the smaller of two: the conformal one, exact and as
    coarse as the calibration set, and the one of the suspect images' own tail, which reaches further and is
    extrapolated. Where a trigger was proven, the p-value of carrying it is a second way to a flag; where none was, that
    of behaving like the most suspicious images is. Two ways cost a factor of two again. Flags are
    Benjamini-Hochberg's in two layers, by the teacher's answer; carriers of a proven trigger are flagged under any.

    Args:
        suspect: columns of the suspect images.
        clean: scores and answers of the calibration images.
        rule: divergence, score or argmax.
        fdr: innocent share of the flags to stay under.
        carries: p-values [m] of "carries no proven trigger"; None where none was proven.
        behaves: the shared behaviour, its p-values over the suspect images that were read; not looked at where a
            trigger was proven.
    """
    m = len(suspect.read)
    if rule == "argmax":
        never = np.zeros(m, bool)
        return Flags(suspect.disagrees & suspect.read, np.full(m, np.nan), never, never)
    read = suspect.read
    score, groups = suspect.score[read], suspect.groups[read]
    transform = bounded(float(np.log(2))) if rule == "divergence" else unbounded
    counted = conformal_p_values(score, clean.scores)
    tail = tail_p_values(score, groups, clean, transform)
    p = np.minimum(1.0, 2 * np.minimum(counted, tail))
    finest = 1 / (len(clean.scores) + 1)
    beyond = tail < np.minimum(counted, finest)
    ranks = CleanRanks(np.minimum(1.0, 2 * rank_p_values(clean.scores)), clean.groups)
    second = carries[read] if carries is not None else behaves.p_values if behaves is not None else None
    if second is not None:
        beyond = np.where(second < p, second < finest, beyond)
        p = np.minimum(1.0, 2 * np.minimum(p, second))
        if carries is None and behaves is not None:
            ranks = replace(ranks, p_values=np.minimum(1.0, 2 * np.minimum(ranks.p_values, behaves.clean_p_values)))
    if carries is None:
        found = grouped_flags(p, groups, fdr, ranks)
    else:
        # Poison that the teacher did not take up carries the trigger too, under any answer: half of the error rate is
        # for images by their answer, half for carriers whatever their answer.
        found = grouped_flags(p, groups, fdr / 2, ranks) | benjamini_hochberg(carries[read], fdr / 2)
    flags, p_values, extrapolated = np.zeros(m, bool), np.ones(m), np.zeros(m, bool)
    flags[read] = found
    p_values[read] = p
    extrapolated[read] = beyond
    tainted = np.isin(suspect.groups, np.unique(suspect.groups[flags]))
    return Flags(flags, p_values, extrapolated, read & ~flags & tainted & (p_values <= DOUBT))
