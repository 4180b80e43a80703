"""The audit's steps between the stages: each opens what a stage needs, calls it, and keeps what it gives."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdaudit.admission import Teacher, admit
from kdaudit.bench import Bench, Sets
from kdaudit.calibration import Clean
from kdaudit.clock import Clock
from kdaudit.comparison import Comparison, InterventionPlan, Partners, Subjects, compare, compare_pixels
from kdaudit.distillation import DistillationPlan, Distilled, distil
from kdaudit.errors import Inconclusive, UsageError
from kdaudit.export import export_student, read_metadata
from kdaudit.machine import cores
from kdaudit.pool import MIN_POOL, Pool, Split, read_pool, split
from kdaudit.quarantine import Manifests, write_manifests
from kdaudit.rows import RowStore
from kdaudit.rundir import RunDirectory
from kdaudit.session import Session, open_session
from kdaudit.settings import Settings
from kdaudit.tuning import Kept, Tuned, read_kept, tune
from kdaudit.verdict import Columns, Flags, Verdict, flag, judge, score_of

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True, eq=False)
class Control:
    """A control, ready to be compared with the teacher.

    Attributes:
        session: in onnxruntime, with the teacher's input.
        digest: SHA-256 of its ONNX file.
        agreed: held-out clean images on which it gives the teacher's answer.
        validated: number of these.
        parity: largest difference between torch and onnxruntime; None for a control that was given.
        parts: what of the pool it was distilled on, and what is left to calibrate on.
        distilled: how it was made; None for a control that was given.
    """

    session: Session
    digest: str
    agreed: int
    validated: int
    parity: float | None
    parts: Split
    distilled: Distilled | None

    @property
    def fidelity(self) -> float:
        """Share of held-out clean images on which it gives the teacher's answer."""
        return self.agreed / self.validated


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


@dataclass(frozen=True, slots=True, eq=False)
class Repaired:
    """The tuned control as a file.

    Attributes:
        path: the ONNX file, with the teacher's own input and output.
        tuned: how it was made; None where the data set has no labels and the control is exported as it is.
        parity: largest difference between torch and onnxruntime.
    """

    path: Path
    tuned: Tuned | None
    parity: float


def read_clean(bench: Bench, sets: Sets, settings: Settings, run: RunDirectory | None, clock: Clock) -> Pool:
    """Decode the clean pool, without what the suspect set holds too.

    Raises:
        Inconclusive: too few clean images are left.
    """
    total = min(sets.clean_survey.read, settings.max_clean)
    if run is not None:
        run.mark("read the clean pool")
    with clock.stage("read the clean pool", total) as advance:
        pool = read_pool(
            sets.clean,
            sets.suspect_survey,
            bench.decoder,
            bench.preprocess.geometry,
            limit=settings.max_clean,
            seed=settings.seed,
            cache=run.state / "clean.npy" if run else None,
            on_image=advance,
        )
    if pool.shared:
        clock.say(f"{pool.shared:,} clean images are in the suspect set too and were left out of the clean pool")
    if len(pool) < MIN_POOL:
        raise Inconclusive(
            f"the clean pool {sets.clean.root} has {len(pool)} usable images ({pool.shared} more are in the suspect "
            f"set, {pool.unreadable} unreadable); at least {MIN_POOL} are needed, and 1,000 serve most audits"
        )
    return pool


def make_control(
    bench: Bench,
    pool: Pool,
    settings: Settings,
    run: RunDirectory | None,
    clock: Clock,
    output: Path | None = None,
) -> Control:
    """Distil a control and export it."""
    parts = split(pool, settings.seed)
    plan = DistillationPlan(
        temperature=settings.temperature,
        steps=settings.steps,
        seed=settings.seed,
        device=bench.device,
        budget_s=settings.budget * 60 if settings.budget else None,
    )
    validation = pool.pixels[parts.validation]
    # The network's weights follow from these; with the plan they make a checkpoint one of this run or of another.
    identity = _digest(bench.teacher.canonical_digest, bench.preprocess.recipe, *pool.ids)
    if run is not None:
        run.mark("distil the control")
    with clock.stage("distil the control", None, "steps") as advance:
        done = 0

        def on_epoch(step: int, _steps: int, _loss: float) -> None:
            nonlocal done
            advance(step - done)
            done = step

        distilled = distil(
            bench.session,
            bench.preprocess,
            pool.pixels[parts.distillation],
            validation,
            plan,
            threads=training_threads(bench),
            checkpoint=run.state / "distillation.pt" if run else None,
            identity=identity,
            on_epoch=on_epoch,
        )
    clock.say(f"control: fidelity {distilled.fidelity:.1%} on {distilled.validated} held-out clean images")
    assert run is not None or output is not None
    path = output or run.file("student.onnx")  # type: ignore[union-attr]
    metadata = {
        "kdaudit.teacher": bench.teacher.canonical_digest,
        "kdaudit.seed": str(settings.seed),
        "kdaudit.preprocess": bench.preprocess.recipe,
        "kdaudit.agreed": str(distilled.agreed),
        "kdaudit.validated": str(distilled.validated),
    }
    with clock.stage("export the control"):
        parity = export_student(
            distilled.network, bench.preprocess, bench.signature, validation[:64], path, metadata=metadata
        )
    session, digest = _open_control(path, bench, settings)
    return Control(session, digest, distilled.agreed, distilled.validated, parity, parts, distilled)


def take_control(path: Path, bench: Bench, pool: Pool, settings: Settings) -> Control:
    """Take up a control that `kdaudit distill` wrote.

    Raises:
        UsageError: it is not one, or was made for another teacher or preprocessing.
    """
    admit(path)
    found = read_metadata(path)
    missing = {"kdaudit.teacher", "kdaudit.seed", "kdaudit.preprocess"} - found.keys()
    if missing:
        raise UsageError(
            f"{path} is not a control of `kdaudit distill`: which clean images it was trained on is not known, so "
            "nothing can be calibrated"
        )
    if found["kdaudit.teacher"] != bench.teacher.canonical_digest:
        raise UsageError(f"{path} was distilled from another model: distil a control from this one")
    if found["kdaudit.preprocess"] != bench.preprocess.recipe:
        raise UsageError(
            f"{path} was distilled with preprocessing {found['kdaudit.preprocess']}, and {bench.preprocess.recipe} was "
            f"found now: give --preprocess {found['kdaudit.preprocess']}"
        )
    session, digest = _open_control(path, bench, settings)
    parts = split(pool, int(found["kdaudit.seed"]))
    agreed, validated = int(found["kdaudit.agreed"]), int(found["kdaudit.validated"])
    return Control(session, digest, agreed, validated, None, parts, None)


def subjects(bench: Bench, control: Control, pool: Pool, settings: Settings) -> Subjects:
    """The two networks, and the clean images to blend with."""
    plan = InterventionPlan(settings.strengths, settings.partners, settings.seed)
    partners = Partners.of(pool.pixels[control.parts.distillation], bench.session, bench.preprocess)
    return Subjects(bench.session, control.session, bench.preprocess, partners, plan)


def compare_clean(
    subjects: Subjects, control: Control, pool: Pool, bench: Bench, settings: Settings, clock: Clock
) -> Comparison:
    """The calibration images through the same comparison as the suspect ones."""
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
    return found


def compare_suspect(
    subjects: Subjects,
    control: Control,
    sets: Sets,
    bench: Bench,
    settings: Settings,
    run: RunDirectory,
    clock: Clock,
) -> RowStore:
    """The suspect images, streamed to disk; goes on after the last whole part of an interrupted run."""
    assert sets.suspect is not None
    survey = sets.suspect_survey
    recipe = _digest(
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
    teacher: Teacher,
    control: Control,
    settings: Settings,
    bench: Bench,
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
            teacher.findings,
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
            "reason": pa.array(why, pa.string()),
        }

    rows.finish(run.file("samples.parquet"), more, leave_out=("why_not_read",))
    with pq.ParquetFile(run.file("samples.parquet")) as file:
        tables = (file.read_row_group(i) for i in range(file.num_row_groups))
        classes = sets.suspect.classes if sets.suspect else None
        return write_manifests(tables, classes, run.file("kept.csv"), run.file("quarantine.csv"))


def repair(
    control: Control,
    judged: Judged,
    sets: Sets,
    bench: Bench,
    settings: Settings,
    run: RunDirectory,
    clock: Clock,
    output: Path | None = None,
) -> Repaired:
    """Tune the control on the kept images and export it with the teacher's own input and output."""
    assert control.distilled is not None
    assert sets.suspect is not None
    run.mark("repair")
    path = output or run.file("repaired.onnx")
    network, tuned = control.distilled.network, None
    kept = _kept(judged, sets, bench, run, clock)
    if len(kept.targets) >= MIN_POOL:
        with clock.stage("tune on the kept images", None, "steps") as advance:
            done = 0

            def on_epoch(step: int, _steps: int, _loss: float) -> None:
                nonlocal done
                advance(step - done)
                done = step

            tuned = tune(
                network,
                kept,
                epochs=settings.repair_epochs,
                seed=settings.seed,
                flip=control.distilled.views.flip,
                device=bench.device,
                threads=training_threads(bench),
                checkpoint=run.state / "tuning.pt",
                identity=_digest(control.digest, hashlib.sha256(judged.flags.flag.tobytes()).hexdigest()),
                on_epoch=on_epoch,
            )
        network = tuned.network
    else:
        clock.say("the data set has no labels to tune on: the repaired model is the distilled control itself")
    with clock.stage("export the repaired model"):
        parity = export_student(network, bench.preprocess, bench.signature, kept.samples(64), path, drop_in=True)
    return Repaired(path, tuned, parity)


def read_judged(run: RunDirectory) -> Judged:
    """The image-level result of a finished run, from its samples.parquet."""
    import pyarrow.parquet as pq

    table = pq.read_table(run.file("samples.parquet"), columns=["status", "label", "teacher_top1", "flag"])
    read = np.array([status == "read" for status in table["status"].to_pylist()], bool)
    nothing = np.full(len(read), np.nan)
    columns = Columns(read, _whole(table["teacher_top1"].to_numpy()), np.zeros(len(read), bool), nothing)
    flags = Flags(table["flag"].to_numpy().astype(bool), nothing, np.zeros(len(read), bool))
    return Judged(columns, _whole(table["label"].to_numpy()), flags, None)


def training_threads(bench: Bench) -> int:
    """Threads for torch: the thread that draws the batches needs a core of its own, or both crowds crawl."""
    return cores() if bench.device != "cpu" else max(1, cores() - 1)


def _kept(judged: Judged, sets: Sets, bench: Bench, run: RunDirectory, clock: Clock) -> Kept:
    assert sets.suspect is not None
    order = bench.fitted.class_order if bench.fitted else None
    outputs = np.array(order if order is not None else range(bench.signature.classes), np.int64)
    keep = judged.columns.read & ~judged.flags.flag & (judged.labels >= 0)
    with clock.stage("read the kept images", sets.suspect_survey.count) as advance:
        return read_kept(
            sets.suspect,
            bench.decoder,
            bench.preprocess.geometry,
            keep,
            judged.flags.flag,
            judged.columns.groups,
            outputs,
            cache=run.state / "kept.npy",
            on_image=advance,
        )


def _open_control(path: Path, bench: Bench, settings: Settings) -> tuple[Session, str]:
    """The control under the teacher's signature: it gives logits, in a free batch."""
    data = path.read_bytes()
    signature = replace(bench.signature, batch=None, label_output=None, map_output=None)
    return open_session(data, signature, provider=settings.provider), hashlib.sha256(data).hexdigest()


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


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
