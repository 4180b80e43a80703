"""The flagged images out of samples.parquet, a row group in memory at a time."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kdaudit.memory import give_back
from kdaudit.report.candidates import Candidates, Scored, group_of
from kdaudit.report.sections import ReasonRow, UnreadRow

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = (
    "id", "path", "label", "status", "teacher_top1", "student_top1", "score", "p_value", "flag", "reason", "trigger",
)  # fmt: skip
MAX_UNREAD, MAX_REASONS = 100, 50

PER_ANSWER = 200
"""Kept images that stand for one answer of the control."""


def read_candidates(samples: Path) -> Candidates:
    """Collect the candidates of a finished comparison, and some kept images that stand for what they look like.

    Args:
        samples: samples.parquet.
    """
    import pyarrow as pa

    flagged: list[pa.Table] = []
    rows: list[NDArray[np.int64]] = []
    kept: Counter[int] = Counter()
    unread: list[UnreadRow] = []
    reasons: Counter[tuple[str, str]] = Counter()
    first = 0
    for table in _groups(samples, COLUMNS):
        flag, read = _bools(table, "flag"), _read(table)
        flagged.append(table.filter(pa.array(flag)) if flag.any() else table.schema.empty_table())
        give_back()  # the little that is kept lies behind much that is not, and would keep all of it
        rows.append(first + np.flatnonzero(flag))
        answers, counts = np.unique(_whole(table, "student_top1")[read & ~flag], return_counts=True)
        kept.update(dict(zip(answers.tolist(), counts.tolist(), strict=True)))
        _count_unread(table.filter(pa.array(~read)), unread, reasons)
        first += len(table)
    whole = pa.concat_tables(flagged).combine_chunks()
    scores = np.nan_to_num(_floats(whole, "score"), nan=0.0, posinf=np.inf)
    order = np.lexsort((np.concatenate(rows), -scores))
    whole = whole.take(pa.array(order))
    teacher, control = _whole(whole, "teacher_top1"), _whole(whole, "student_top1")
    triggers = _whole(whole, "trigger") if "trigger" in whole.column_names else np.full(len(whole), -1)
    stand_ins, stand_for = _stand_ins(samples, {answer: kept[answer] for answer in np.unique(control).tolist()})
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
        kept=stand_ins,
        kept_control=stand_for,
        unread=tuple(unread),
        reasons=tuple(
            ReasonRow(status="skipped" if status == "skipped" else "unreadable", reason=reason, images=n)
            for (status, reason), n in reasons.most_common(MAX_REASONS)
        ),
    )


def read_scored(samples: Path) -> Iterator[Scored]:
    """What the plots count, a row group at a time."""
    for table in _groups(samples, ("status", "flag", "score", "p_value")):
        yield Scored(_read(table), _bools(table, "flag"), _floats(table, "score"), _floats(table, "p_value"))


def _stand_ins(samples: Path, counts: dict[int, int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Evenly spread kept images of each answer: their rows, ascending, and these answers, int64 [m] each.

    Args:
        samples: samples.parquet.
        counts: kept images by the control's answer, of the answers that are wanted.
    """
    wanted = {
        answer: np.linspace(0, count - 1, min(PER_ANSWER, count)).astype(int)
        for answer, count in counts.items()
        if count
    }
    passed = dict.fromkeys(wanted, 0)  # kept images of each answer so far
    rows, answers = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    first = 0
    for table in _groups(samples, ("status", "student_top1", "flag")) if wanted else ():
        control = np.where(_read(table) & ~_bools(table, "flag"), _whole(table, "student_top1"), -2)
        for answer, places in wanted.items():
            here = np.flatnonzero(control == answer)
            low, high = np.searchsorted(places, [passed[answer], passed[answer] + len(here)])
            rows.append(first + here[places[low:high] - passed[answer]])
            answers.append(np.full(high - low, answer, np.int64))
            passed[answer] += len(here)
        first += len(table)
    found, of = np.concatenate(rows), np.concatenate(answers)
    order = np.argsort(found, kind="stable")
    return found[order], of[order]


def _groups(samples: Path, columns: tuple[str, ...]) -> "Iterator[pa.Table]":
    import pyarrow.parquet as pq

    with pq.ParquetFile(samples) as file:
        names = [n for n in columns if n in file.schema_arrow.names]  # no `trigger` where none was proven
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, names, use_threads=False)


def _count_unread(table: "pa.Table", unread: list[UnreadRow], reasons: "Counter[tuple[str, str]]") -> None:
    for row in table.select(["path", "status", "reason"]).to_pylist():
        status, reason = row["status"], row["reason"] or ""
        reasons[status, reason] += 1
        if len(unread) < MAX_UNREAD:
            unread.append(UnreadRow(path=row["path"], status=status, reason=reason))


def _read(table: "pa.Table") -> NDArray[np.bool_]:
    return np.array([status == "read" for status in table["status"].to_pylist()], bool)


def _bools(table: "pa.Table", name: str) -> NDArray[np.bool_]:
    return np.asarray(table[name].fill_null(fill_value=False).to_numpy(), bool)


def _whole(table: "pa.Table", name: str) -> NDArray[np.int64]:
    """A column of whole numbers, -1 for nulls."""
    return np.asarray(table[name].fill_null(-1).to_numpy(), np.int64)


def _floats(table: "pa.Table", name: str) -> NDArray[np.float64]:
    """A column of numbers, NaN for nulls."""
    return np.asarray(table[name].to_numpy(), np.float64)
