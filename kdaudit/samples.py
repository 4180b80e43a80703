"""Stage 8, the table of images: samples.parquet and the manifests, written, and read back."""

from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdaudit.errors import UsageError
from kdaudit.flagging import Flags
from kdaudit.judgement import NOT_HELD, PATTERNS, SCORES, Judged
from kdaudit.memory import give_back
from kdaudit.odds import Columns
from kdaudit.quarantine import COLUMNS, Manifests, write_manifests
from kdaudit.rows import RowStore
from kdaudit.rundir import RunDirectory
from kdaudit.settings import Rule
from kdaudit.suspicion import CARRIES, MARKED
from kdaudit.trigger import load_patterns
from kdaudit.workbench import Sets

if TYPE_CHECKING:
    import pyarrow as pa


def write_samples(rows: RowStore, judged: Judged, sets: Sets, rule: Rule, run: RunDirectory) -> Manifests:
    """samples.parquet, kept.csv and quarantine.csv."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    run.mark("write the manifests")
    give_back()
    assert judged.p_values is not None
    flags, columns, p = judged.flags, judged.columns, judged.p_values

    def more(first: int, part: "pa.Table") -> dict[str, Any]:
        span = slice(first, first + len(part))
        read, flagged = columns.read[span], flags.flag[span]
        unread = part["why_not_read"].to_pylist()
        why = [
            _reason(judged, row) if r else w for row, (r, w) in enumerate(zip(read, unread, strict=True), start=first)
        ]
        p_values = p.part(span)
        carried = {}
        if judged.carried is not None:
            carriers = flagged & _carriers(judged, span)
            carried = {
                "trigger": pa.array(judged.carried.which[span], pa.int32(), mask=~carriers),
                "likeness": pa.array(judged.carried.score.part(span), pa.float64(), mask=~read),
            }
        return carried | {
            "score": part[SCORES[rule]],
            "p_value": pa.array(p_values, pa.float64(), mask=~read | np.isnan(p_values)),
            "extrapolated": pa.array(flags.extrapolated[span], pa.bool_(), mask=~read),
            "flag": pa.array(flagged, pa.bool_()),
            "doubtful": pa.array(flags.doubtful[span], pa.bool_()),
            "reason": pa.array(why, pa.string()),
        }

    rows.finish(run.file("samples.parquet"), more, leave_out=("why_not_read", "behaviour"))
    give_back()
    with pq.ParquetFile(run.file("samples.parquet")) as file:
        tables = (file.read_row_group(i, list(COLUMNS), use_threads=False) for i in range(file.num_row_groups))
        classes = sets.suspect.classes if sets.suspect else None
        return write_manifests(tables, classes, run.file("kept.csv"), run.file("quarantine.csv"))


def demand_audited(run: RunDirectory, sets: Sets) -> None:
    """Refuse images that are not those of the run's samples.parquet, one by one and in the same order.

    Raises:
        UsageError: they are not.
    """
    import pyarrow.parquet as pq

    assert sets.suspect is not None
    with pq.ParquetFile(run.file("samples.parquet")) as file:
        known = (
            name for part in file.iter_batches(columns=["id"], use_threads=False) for name in part["id"].to_pylist()
        )
        for audited, record in zip_longest(known, sets.suspect.records()):
            if record is None or audited != record.id:
                where = "" if record is None else f" ({record.path} is not as it was)"
                raise UsageError(
                    f"{sets.suspect.root} is not the data set that {run.path} has audited{where}: scan it again first"
                )


def read_judged(run: RunDirectory) -> Judged:
    """The image-level result of a finished run, from its samples.parquet."""
    import pyarrow.parquet as pq

    table = pq.read_table(run.file("samples.parquet"), columns=["status", "label", "teacher_top1", "flag", "doubtful"])
    read = np.array([status == "read" for status in table["status"].to_pylist()], bool)
    never = np.zeros(len(read), bool)
    columns = Columns(read, _whole(table["teacher_top1"].to_numpy()), never, NOT_HELD)
    flag, doubtful = (table[name].to_numpy().astype(bool) for name in ("flag", "doubtful"))
    flags = Flags(flag, NOT_HELD, never, np.full(len(read), -1, np.int8), never, doubtful)
    patterns = load_patterns(run.state / PATTERNS)
    return Judged(columns, _whole(table["label"].to_numpy()), flags, None, None, patterns=patterns)


def _carriers(judged: Judged, span: slice) -> NDArray[np.bool_]:
    """Whether an image's p-value is that of carrying a proven trigger."""
    proven = [number for number, reason in enumerate(judged.reasons) if reason in (CARRIES, MARKED)]
    return np.isin(judged.flags.way[span], proven)


def _reason(judged: Judged, row: int) -> str:
    if not judged.flags.flag[row]:
        return ""
    what = judged.reasons[max(0, int(judged.flags.way[row]))]
    own_score = judged.flags.way[row] == 0
    return f"{what}; p-value extrapolated" if own_score and judged.flags.extrapolated[row] else what


def _whole(column: NDArray[Any]) -> NDArray[np.int64]:
    """A column of whole numbers, -1 where it holds nulls (which arrive as NaN)."""
    return np.nan_to_num(column.astype(np.float64), nan=-1).astype(np.int64)
