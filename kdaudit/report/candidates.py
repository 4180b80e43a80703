"""The flagged images as the report needs them: read from samples.parquet, grouped, and counted for the plots."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdaudit.calibration import interval
from kdaudit.report.results import AnswerCount, ClusterSection, PlotsSection
from kdaudit.report.sections import Rate, ReasonRow, UnreadRow
from kdaudit.search import Found
from kdaudit.signs import MIN_GATHERED

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = (
    "id", "path", "label", "status", "teacher_top1", "student_top1", "score", "p_value", "flag", "reason", "trigger",
)  # fmt: skip
MAX_EXAMPLES, MAX_UNREAD, MAX_REASONS, MAX_CLUSTERS = 20, 100, 50, 200
BINS = 48


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
        kept: rows that were read and not flagged, int64 [m]: what the candidates are compared with.
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


def read_candidates(samples: Path) -> Candidates:
    """Collect the candidates of a finished comparison, one row group in memory at a time.

    Args:
        samples: samples.parquet.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    flagged: list[pa.Table] = []
    rows, kept, kept_control = [], [], []
    unread: list[UnreadRow] = []
    reasons: Counter[tuple[str, str]] = Counter()
    with pq.ParquetFile(samples) as file:
        names = [n for n in COLUMNS if n in file.schema_arrow.names]  # no `trigger` where none was proven
        first = 0
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=names)
            flag = _bools(table, "flag")
            read = np.array([s == "read" for s in table["status"].to_pylist()], bool)
            numbers = first + np.arange(len(table))
            flagged.append(table.filter(pa.array(flag)))
            rows.append(numbers[flag])
            kept.append(numbers[read & ~flag])
            kept_control.append(_whole(table, "student_top1")[read & ~flag])
            _count_unread(table.filter(pa.array(~read)), unread, reasons)
            first += len(table)
    whole = pa.concat_tables(flagged)
    scores = np.nan_to_num(_floats(whole, "score"), nan=0.0, posinf=np.inf)
    order = np.lexsort((np.concatenate(rows), -scores))
    whole = whole.take(pa.array(order))
    teacher, control = _whole(whole, "teacher_top1"), _whole(whole, "student_top1")
    triggers = _whole(whole, "trigger") if "trigger" in names else np.full(len(whole), -1)
    return Candidates(
        rows=np.concatenate(rows)[order],
        digests=tuple(i.partition(":")[0] for i in whole["id"].to_pylist()),
        paths=tuple(whole["path"].to_pylist()),
        labels=_whole(whole, "label"),
        teacher=teacher,
        control=control,
        scores=scores[order],
        p_values=_floats(whole, "p_value"),
        triggers=triggers,
        clusters=group_of(teacher, control, triggers),
        kept=np.concatenate(kept),
        kept_control=np.concatenate(kept_control),
        unread=tuple(unread),
        reasons=tuple(
            ReasonRow(status="skipped" if status == "skipped" else "unreadable", reason=reason, images=n)
            for (status, reason), n in reasons.most_common(MAX_REASONS)
        ),
    )


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


def plots_of(
    score_name: str,
    scores: NDArray[np.float64],
    flagged: NDArray[np.bool_],
    p_values: NDArray[np.float64],
    clean: NDArray[np.float64],
) -> PlotsSection | None:
    """Histograms for the report; None where there is nothing to draw.

    Args:
        score_name: what the score is called.
        scores: of the suspect images that were read, float64 [n]; may hold +inf, which counts in the last bin.
        flagged: which of them are flagged, bool [n].
        p_values: their p-values, float64 [n]; NaN where there is none.
        clean: scores of the calibration images, float64 [c].
    """
    every = np.concatenate([scores, clean])
    finite = every[np.isfinite(every)]
    if not len(finite):
        return None
    low, high = float(finite.min()), float(finite.max())
    if low >= 0:
        # Divergences span many powers of ten; what matters is at the upper end and what is usual at the lower.
        low = max(float(finite[finite > 0].min(initial=high)), high * 1e-6, 1e-12)
        edges = np.geomspace(low, max(high, low * 1.01), BINS + 1)
    else:
        edges = np.linspace(low, max(high, low + 1e-9), BINS + 1)

    def counts(values: NDArray[np.float64]) -> list[int]:
        inside = np.clip(values, edges[0], edges[-1])
        return [int(n) for n in np.histogram(inside, edges)[0]]

    known = p_values[np.isfinite(p_values)]
    hits = scores[flagged]
    least = float(hits.min(initial=np.inf))  # 0 where an image was flagged for its behaviour and never mixed
    return PlotsSection(
        score_name=score_name,
        score_edges=[float(edge) for edge in edges],
        calibration=counts(clean),
        unflagged=counts(scores[~flagged]),
        flagged=counts(hits),
        threshold=least if np.isfinite(least) and least != 0 else None,
        p_values=[int(n) for n in np.histogram(known, 20, (0.0, 1.0))[0]],
    )


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
    }


def _statement(
    target: int, sees: Sequence[AnswerCount], size: int, names: Mapping[int, str], shared: Found | None
) -> str:
    instead = ", ".join(answer_name(count.answer, names) for count in sees[:3])
    images = "image" if size == 1 else "images"
    if shared is not None:
        where = "other answers" if shared.target is None else answer_name(shared.target, names)
        proof = shared.proof
        return (
            f"{size:,} {images} with one {shared.pattern.kind}: put onto {proof.images:,} clean images, it moves "
            f"{proof.teacher:,} to {where} in the model and {proof.student:,} in the control"
        )
    return f"{size:,} {images} that the model calls {answer_name(target, names)} and the control {instead}"


def _count_unread(table: "pa.Table", unread: list[UnreadRow], reasons: "Counter[tuple[str, str]]") -> None:
    for row in table.select(["path", "status", "reason"]).to_pylist():
        status, reason = row["status"], row["reason"] or ""
        reasons[status, reason] += 1
        if len(unread) < MAX_UNREAD:
            unread.append(UnreadRow(path=row["path"], status=status, reason=reason))


def _bools(table: "pa.Table", name: str) -> NDArray[np.bool_]:
    return np.asarray(table[name].fill_null(fill_value=False).to_numpy(), bool)


def _whole(table: "pa.Table", name: str) -> NDArray[np.int64]:
    """A column of whole numbers, -1 for nulls."""
    return np.asarray(table[name].fill_null(-1).to_numpy(), np.int64)


def _floats(table: "pa.Table", name: str) -> NDArray[np.float64]:
    """A column of numbers, NaN for nulls."""
    return np.asarray(table[name].to_numpy(), np.float64)
