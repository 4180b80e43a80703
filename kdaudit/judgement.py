"""Comparing and judging in the audit: the stages 6, 7 and 8 with their tables on disk."""

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdaudit.calibration import Clean
from kdaudit.clock import Clock
from kdaudit.comparison import Comparison, Subjects, compare, compare_pixels
from kdaudit.control import Control
from kdaudit.digest import joint_digest
from kdaudit.flagging import Columns, Flags, flag, score_of
from kdaudit.interventions import InterventionPlan, Partners
from kdaudit.pool import Pool
from kdaudit.quarantine import Manifests, write_manifests
from kdaudit.rows import RowStore, write_table
from kdaudit.rundir import RunDirectory
from kdaudit.settings import Settings
from kdaudit.verdict import Verdict, judge
from kdaudit.workbench import Sets, Workbench

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """The suspect images' columns, their flags, and the verdict.

    Attributes:
        columns: what was judged.
        labels: the data set's label indices, int64 [m], -1 for none.
        flags: the image-level result.
        verdict: the model-level result; None when read back from a finished run.
    """

    columns: Columns
    labels: NDArray[np.int64]
    flags: Flags
    verdict: Verdict | None


def subjects(bench: Workbench, control: Control, pool: Pool, settings: Settings) -> Subjects:
    """The two networks, and the clean images to blend with."""
    plan = InterventionPlan(settings.strengths, settings.partners, settings.seed)
    partners = Partners.of(pool.pixels[control.parts.distillation], bench.session, bench.preprocess)
    return Subjects(bench.session, control.session, bench.preprocess, partners, plan)


def compare_clean(
    subjects: Subjects,
    control: Control,
    pool: Pool,
    bench: Workbench,
    settings: Settings,
    run: RunDirectory,
    clock: Clock,
) -> Comparison:
    """The calibration images through the same comparison as the suspect ones; kept as calibration.parquet."""
    part = control.parts.calibration
    with clock.stage("calibrate", len(part)) as advance:
        found = compare_pixels(
            subjects,
            pool.pixels[part],
            [pool.ids[i] for i in part],
            batch=settings.batch_size,
            workers=bench.workers,
        )
        advance(len(part))
    write_table(found, run.file("calibration.parquet"))
    return found


def compare_suspect(
    subjects: Subjects,
    control: Control,
    sets: Sets,
    bench: Workbench,
    settings: Settings,
    run: RunDirectory,
    clock: Clock,
) -> RowStore:
    """The suspect images, streamed to disk; goes on after the last whole part of an interrupted run."""
    assert sets.suspect is not None
    survey = sets.suspect_survey
    recipe = joint_digest(
        control.digest,
        bench.teacher.canonical_digest,
        bench.preprocess.recipe,
        bench.decoder.name,
        subjects.plan.recipe,
        str(sets.suspect.root),
        str(survey.count),
        hashlib.sha256(survey.digests.tobytes()).hexdigest(),
    )
    rows = RowStore(run.state / "rows", recipe)
    run.mark("compare")
    with clock.stage("compare teacher and control", survey.count) as advance:
        advance(rows.count)
        records = sets.suspect.records(rows.count)
        for part in compare(
            subjects,
            records,
            bench.decoder,
            batch=settings.batch_size,
            workers=bench.workers,
            on_batch=advance,
        ):
            rows.append(part)
        rows.close()
    return rows


def judge_rows(
    rows: RowStore,
    calibration: Comparison,
    control: Control,
    settings: Settings,
    bench: Workbench,
    clock: Clock,
) -> Judged:
    """Flags and verdict from the table's columns."""
    column = {"divergence": "divergence", "score": "gap", "argmax": "divergence"}[settings.rule]
    with clock.stage("judge"):
        found = rows.columns(column, "teacher_top1", "student_top1", "label")
        score = found[column].astype(np.float64)
        groups, other = _whole(found["teacher_top1"]), _whole(found["student_top1"])
        columns = Columns(read=~np.isnan(score), groups=groups, disagrees=groups != other, score=score)
        clean = Clean(score_of(calibration, settings.rule), calibration.teacher_top1)
        flags = flag(columns, clean, settings.rule, settings.fdr)
        verdict = judge(
            columns,
            flags,
            calibration,
            bench.findings,
            control.fidelity,
            settings,
            bench.signature.class_names,
        )
    return Judged(columns, _whole(found["label"]), flags, verdict)


def write_samples(rows: RowStore, judged: Judged, sets: Sets, settings: Settings, run: RunDirectory) -> Manifests:
    """samples.parquet, kept.csv and quarantine.csv."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    run.mark("write the manifests")
    flags, columns = judged.flags, judged.columns

    def more(first: int, part: "pa.Table") -> dict[str, Any]:
        span = slice(first, first + len(part))
        read, flagged = columns.read[span], flags.flag[span]
        why = [
            _reason(f, e, settings) if r else w
            for f, e, r, w in zip(
                flagged, flags.extrapolated[span], read, part["why_not_read"].to_pylist(), strict=True
            )
        ]
        no_p = ~read | np.isnan(flags.p_values[span])
        return {
            "score": pa.array(columns.score[span], pa.float64(), mask=~read),
            "p_value": pa.array(flags.p_values[span], pa.float64(), mask=no_p),
            "extrapolated": pa.array(flags.extrapolated[span], pa.bool_(), mask=~read),
            "flag": pa.array(flagged, pa.bool_()),
            "doubtful": pa.array(flags.doubtful[span], pa.bool_()),
            "reason": pa.array(why, pa.string()),
        }

    rows.finish(run.file("samples.parquet"), more, leave_out=("why_not_read",))
    with pq.ParquetFile(run.file("samples.parquet")) as file:
        tables = (file.read_row_group(i) for i in range(file.num_row_groups))
        classes = sets.suspect.classes if sets.suspect else None
        return write_manifests(tables, classes, run.file("kept.csv"), run.file("quarantine.csv"))


def read_judged(run: RunDirectory) -> Judged:
    """The image-level result of a finished run, from its samples.parquet."""
    import pyarrow.parquet as pq

    table = pq.read_table(run.file("samples.parquet"), columns=["status", "label", "teacher_top1", "flag", "doubtful"])
    read = np.array([status == "read" for status in table["status"].to_pylist()], bool)
    nothing = np.full(len(read), np.nan)
    columns = Columns(read, _whole(table["teacher_top1"].to_numpy()), np.zeros(len(read), bool), nothing)
    flag, doubtful = (table[name].to_numpy().astype(bool) for name in ("flag", "doubtful"))
    flags = Flags(flag, nothing, np.zeros(len(read), bool), doubtful)
    return Judged(columns, _whole(table["label"].to_numpy()), flags, None)


def _reason(flagged: bool, extrapolated: bool, settings: Settings) -> str:
    if not flagged:
        return ""
    if settings.rule == "argmax":
        return "the control gives another answer"
    what = (
        "model and control part on blends of it"
        if settings.rule == "divergence"
        else "the control doubts the model's answer"
    )
    return f"{what}; p-value extrapolated" if extrapolated else what


def _whole(column: NDArray[Any]) -> NDArray[np.int64]:
    """A column of whole numbers, -1 where it holds nulls (which arrive as NaN)."""
    return np.nan_to_num(column.astype(np.float64), nan=-1).astype(np.int64)
