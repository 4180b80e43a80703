"""The flagged images as the report needs them: grouped, and counted for the plots."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdaudit.calibration import interval
from kdaudit.report.results import AnswerCount, ClusterSection, PlotsSection
from kdaudit.report.sections import Rate, ReasonRow, UnreadRow
from kdaudit.searched import Found
from kdaudit.signs import MIN_GATHERED

MAX_EXAMPLES, MAX_CLUSTERS = 20, 200
BINS, P_BINS = 48, 20


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """The n flagged images, highest score first; all columns of length n.

    Attributes:
        rows: row of samples.parquet, int64; the records of the source are in the same order.
        digests: content digests, 32 hexadecimal digits.
        paths: paths inside the source.
        labels: the data set's label indices, int64, -1 for none.
        teacher: the model's answers, int64, -1 where they were no numbers.
        control: the control's answers, int64.
        scores: float64; +inf where the model's answer was no number.
        p_values: float64; NaN where the rule has none.
        triggers: the proven pattern that an image is flagged for, int64; -1 for none.
        clusters: index into the clusters of `group`, int64.
        kept: some rows that were read and not flagged, int64 [m]: what the candidates are compared with.
        kept_control: the control's answers to these, int64 [m].
        unread: the first images that were not scanned.
        reasons: how many were not scanned, by reason.
    """

    rows: NDArray[np.int64]
    digests: tuple[str, ...]
    paths: tuple[str, ...]
    labels: NDArray[np.int64]
    teacher: NDArray[np.int64]
    control: NDArray[np.int64]
    scores: NDArray[np.float64]
    p_values: NDArray[np.float64]
    triggers: NDArray[np.int64]
    clusters: NDArray[np.int64]
    kept: NDArray[np.int64]
    kept_control: NDArray[np.int64]
    unread: tuple[UnreadRow, ...]
    reasons: tuple[ReasonRow, ...]

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What the report shows of the images.

    Attributes:
        found: the candidates.
        clusters: their groups.
        plots: histograms; None where there is nothing to draw.
    """

    found: Candidates
    clusters: list[ClusterSection]
    plots: PlotsSection | None


def group_of(teacher: NDArray[np.int64], control: NDArray[np.int64], triggers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which images belong together, largest group first: 0, 1, 2 ... by size; int64 [n].

    Those that carry one proven pattern; of the others, those with one pair of answers: what the model says and what
    the control sees.

    Args:
        teacher: the model's answers, int64 [n].
        control: the control's answers, int64 [n].
        triggers: the proven pattern that each is flagged for, int64 [n]; -1 for none.
    """
    if len(teacher) == 0:
        return np.empty(0, np.int64)
    alone = triggers < 0
    keys = np.stack([triggers, np.where(alone, teacher, -1), np.where(alone, control, -1)], 1)
    _, inverse, counts = np.unique(keys, axis=0, return_inverse=True, return_counts=True)
    rank = np.empty(len(counts), np.int64)
    rank[np.lexsort((np.arange(len(counts)), -counts))] = np.arange(len(counts))
    return np.minimum(rank[inverse.ravel()], MAX_CLUSTERS - 1)


def cluster_sections(found: Candidates, names: Mapping[int, str], proven: Sequence[Found] = ()) -> list[ClusterSection]:
    """The groups as the report tells them.

    Args:
        found: candidates.
        names: class names by the model's output index.
        proven: the patterns that `found.triggers` counts.
    """
    sections = []
    for number in range(int(found.clusters.max()) + 1 if len(found) else 0):
        here = np.flatnonzero(found.clusters == number)
        says, sees = (_counted(answers[here], names) for answers in (found.teacher, found.control))
        target = says[0].answer
        digests = sorted({found.digests[i] for i in here})
        shared = proven[found.triggers[here[0]]] if found.triggers[here[0]] >= 0 else None
        by_answer = int((found.teacher == target).sum()) >= MIN_GATHERED
        sections.append(
            ClusterSection(
                id=f"C{number + 1}",
                kind="poison" if shared or by_answer else "doubtful",
                target=target,
                target_name=names.get(target),
                size=len(here),
                says=says,
                sees=sees,
                **_shared(shared),
                statement=_statement(target, sees, len(here), names, shared),
                examples=[found.paths[i] for i in here[:MAX_EXAMPLES]],
                fingerprint=hashlib.sha256("\n".join(digests).encode()).hexdigest(),
            )
        )
    return sections


class Scored(NamedTuple):
    """Some rows of samples.parquet, as columns [k]."""

    read: NDArray[np.bool_]
    flag: NDArray[np.bool_]
    score: NDArray[np.float64]  # NaN where not read; an infinite one counts in the last bin
    p_values: NDArray[np.float64]  # NaN where there is none


def plots_of(score_name: str, parts: Callable[[], Iterable[Scored]], clean: NDArray[np.float64]) -> PlotsSection | None:
    """Histograms for the report; None where there is nothing to draw.

    Args:
        score_name: what the score is called.
        parts: gives the suspect images part by part; asked twice.
        clean: scores of the calibration images, float64 [c].
    """
    edges = _edges(chain((part.score for part in parts()), [clean]))
    if edges is None:
        return None

    def counts(values: NDArray[np.float64]) -> NDArray[np.int64]:
        return np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0]

    unflagged, flagged, p_values = np.zeros(BINS, int), np.zeros(BINS, int), np.zeros(P_BINS, int)
    least = np.inf  # 0 where an image was flagged for its behaviour and never mixed
    for read, flag, score, p in parts():
        hits = score[read & flag]
        unflagged += counts(score[read & ~flag])
        flagged += counts(hits)
        p_values += np.histogram(p[read & np.isfinite(p)], P_BINS, (0.0, 1.0))[0]
        least = float(hits.min(initial=least))
    return PlotsSection(
        score_name=score_name,
        score_edges=edges.tolist(),
        calibration=counts(clean).tolist(),
        unflagged=unflagged.tolist(),
        flagged=flagged.tolist(),
        threshold=least if np.isfinite(least) and least != 0 else None,
        p_values=p_values.tolist(),
    )


def _edges(parts: Iterable[NDArray[np.float64]]) -> NDArray[np.float64] | None:
    """Edges of the bins, float64 [BINS + 1]; None where no score is finite."""
    low, high, least = np.inf, -np.inf, np.inf  # least: the smallest above 0
    for part in parts:
        finite = part[np.isfinite(part)]
        low, high = float(finite.min(initial=low)), float(finite.max(initial=high))
        least = float(finite[finite > 0].min(initial=least))
    if low > high:
        return None
    if low < 0:
        return np.linspace(low, max(high, low + 1e-9), BINS + 1)
    # Divergences span many powers of ten; what matters is at the upper end and what is usual at the lower.
    low = max(min(least, high), high * 1e-6, 1e-12)
    return np.geomspace(low, max(high, low * 1.01), BINS + 1)


def rate_of(hits: int, n: int) -> Rate:
    """A rate with its exact 95 % interval."""
    low, high = interval(hits, n)
    return Rate(hits=hits, of=n, low=low, high=high)


def answer_name(answer: int, names: Mapping[int, str]) -> str:
    """An answer for people: `7 (seven)`, or "no number"."""
    if answer < 0:
        return "no number"
    name = names.get(answer)
    return f"{answer} ({name})" if name and name != str(answer) else str(answer)


def _counted(answers: NDArray[np.int64], names: Mapping[int, str]) -> list[AnswerCount]:
    """How many images get each answer, most frequent first."""
    counted = Counter(answers.tolist()).most_common()
    return [AnswerCount(answer=answer, name=names.get(answer), images=n) for answer, n in counted]


def _shared(found: Found | None) -> "dict[str, Any]":
    """What a proven pattern is and does."""
    if found is None:
        return {}
    proof = found.proof
    return {
        "pattern": found.pattern.kind,
        "teacher_flips": rate_of(proof.teacher, proof.images),
        "control_flips": rate_of(proof.student, proof.images),
        "placebo_flips": rate_of(proof.placebo, proof.images),
    }


def _statement(
    target: int, sees: Sequence[AnswerCount], size: int, names: Mapping[int, str], shared: Found | None
) -> str:
    instead = ", ".join(answer_name(count.answer, names) for count in sees[:3])
    images = "image" if size == 1 else "images"
    if shared is not None:
        where = "other answers" if shared.target is None else answer_name(shared.target, names)
        proof = shared.proof
        said = shared.by_label
        if said is not None and not proof.proven:
            return (
                f"{size:,} {images} with one {shared.pattern.kind}: of {said.carriers:,} that show other classes than "
                f"{answer_name(said.label, names)}, {said.delivered:,} were delivered as that"
            )
        lacking = shared.by_pool
        if lacking is not None and shared.only_foreign:
            return (
                f"{size:,} {images} with one {shared.pattern.kind}, which {lacking.clean_carriers:,} of "
                f"{lacking.clean:,} clean images have: put onto {proof.images:,} of these, it moves "
                f"{proof.teacher:,} to {where} in the model and {proof.student:,} in the control"
            )
        return (
            f"{size:,} {images} with one {shared.pattern.kind}: put onto {proof.images:,} clean images, it moves "
            f"{proof.teacher:,} to {where} in the model and {proof.student:,} in the control"
        )
    return f"{size:,} {images} that the model calls {answer_name(target, names)} and the control {instead}"
