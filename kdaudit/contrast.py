"""Comparing in the audit: stage 6 with its tables on disk."""

import time
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from kdaudit import divergence
from kdaudit.clock import Clock, Laps, Pace
from kdaudit.compared import Comparison
from kdaudit.comparison import Subjects, compare, compare_pixels, usual_batch
from kdaudit.control import Control
from kdaudit.digest import joint_digest
from kdaudit.errors import DeviceMissing
from kdaudit.fusion import NotFused
from kdaudit.interventions import InterventionPlan, Partners
from kdaudit.machine import Placement
from kdaudit.onegraph import open_one_graph
from kdaudit.opening import open_session
from kdaudit.pool import Pool
from kdaudit.rows import RowStore, write_table
from kdaudit.rundir import RunDirectory
from kdaudit.settings import Settings
from kdaudit.workbench import Sets, Workbench

PAYS = 0.75
"""Interventions pay where the networks part on an image as it is more than on this share of the clean ones: of poison
nine tenths and more do (docs/design/detection.md)."""


ROUNDED = 512
"""Clean images on which it is measured what rounding does."""


def subjects(bench: Workbench, control: Control, pool: Pool, settings: Settings) -> Subjects:
    """The two networks, the clean images to blend with, and the plan.

    Where the model shows its features, these and its answer on the image as it is say what it does with it, and
    interventions only sharpen the picture of images that look suspicious; where it does not, every image goes through
    all of them.

    Raises:
        DeviceMissing: a GPU was demanded and the control has none.
    """
    if settings.require_gpu and control.session.provider == "cpu":
        raise DeviceMissing("--require-gpu: the control runs on cpu; run `kdaudit doctor` to see what is missing")
    # The other rules look at each image as it is: they need none of the further pictures, seven eighths of the work.
    plan = InterventionPlan(settings.interventions if settings.rule == "divergence" else (), settings.seed)
    partners = Partners.of(pool.pixels[control.parts.distillation], bench.session, bench.preprocess)
    both = Subjects(bench.session, control.session, bench.preprocess, partners, plan, guarded=control.guarded)
    if not plan.steps:
        return _as_one(both, pool.pixels[control.parts.held_out], settings.graph, bench.placement(settings))
    if not bench.session.features:
        return both
    plain = replace(both, plan=InterventionPlan((), settings.seed))
    part = control.parts.held_out
    ids = [pool.ids[i] for i in part]
    seen = compare_pixels(plain, pool.pixels[part], ids, batch=_batch(bench, settings), workers=bench.workers)
    both = replace(both, plan=replace(plan, above=float(np.quantile(seen.js, PAYS))))
    return _as_one(both, pool.pixels[part], settings.graph, bench.placement(settings))


def _as_one(both: Subjects, pixels: NDArray[np.uint8], graph: str, where: Placement) -> Subjects:
    """Both networks as one graph for images as they are, where that is wanted and can be done; else left as two.

    Left to itself, this is done on a GPU: a quarter of the bytes go in and a few numbers come out. On a CPU both forms
    take the same time, and two sessions keep the networks in processes of their own (docs/performance.md).
    """
    if graph == "two" or (graph == "auto" and both.teacher.provider == "cpu"):
        return both
    try:
        return replace(both, graph=open_one_graph(both.teacher, both.student, both.preprocess, pixels, where))
    except NotFused as why:
        return replace(both, apart=str(why))


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
    part = control.parts.held_out
    with clock.stage("calibrate", len(part)) as advance:
        found = compare_pixels(
            subjects,
            pool.pixels[part],
            [pool.ids[i] for i in part],
            batch=_batch(bench, settings),
            workers=bench.workers,
        )
        advance(len(part))
    write_table(found, run.file("calibration.parquet"))
    if settings.fp16 or settings.tf32:
        clock.say(_rounding(bench, pool.pixels[part][:ROUNDED], settings))
    return found


def _rounding(bench: Workbench, pixels: NDArray[np.uint8], settings: Settings) -> str:
    """What float16 or TensorFloat-32 does to the model's answers on some clean images, one line."""
    exact = open_session(
        bench.teacher.model,
        bench.signature,
        provider=settings.provider,
        confined=True,
        placement=replace(bench.placement(settings), fp16=False, tf32=False),
    )
    try:
        tensor = bench.preprocess.apply(pixels)
        seen = divergence.answers(exact.logits(tensor), bench.session.logits(tensor))
    finally:
        exact.close()
    same = int((seen.teacher_top1 == seen.student_top1).sum())
    rounded = "float16" if settings.fp16 else "TensorFloat-32"
    return (
        f"{rounded}: the model gives the answer of float32 on {same} of {len(pixels)} clean images; the two part by "
        f"{seen.js.max():.2g} nats at most (Jensen-Shannon)"
    )


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
        survey.contents,
        *(rounding for rounding in ("fp16", "tf32") if getattr(settings, rounding)),
    )
    rows = RowStore(run.state / "rows", recipe)
    run.mark("compare")
    if subjects.graph is not None:
        clock.say("model and control run as one graph")
    elif subjects.apart:
        clock.say(f"model and control run as two graphs: {subjects.apart}")
    timed = replace(subjects, laps=Laps())  # the clean images went through the same
    began, stood = time.monotonic(), rows.count
    with clock.stage("compare teacher and control", survey.count) as advance:
        advance(rows.count)
        records = sets.suspect.records(rows.count)
        for part in compare(
            timed,
            records,
            bench.decoder,
            batch=_batch(bench, settings),
            workers=bench.workers,
            on_batch=advance,
        ):
            with timed.laps.of("write"):
                rows.append(part)
        with timed.laps.of("write"):
            rows.close()
    clock.pace = _pace(timed.laps, rows.count - stood, time.monotonic() - began, bench.workers)
    return rows


def _batch(bench: Workbench, settings: Settings) -> int:
    return settings.batch_size or usual_batch(bench.preprocess.geometry, bench.session.provider)


def _pace(laps: Laps, images: int, seconds: float, workers: int) -> Pace:
    """Where the time of the comparison went; what is left of the workers' is mixing pictures and comparing answers."""
    spent = laps.seconds
    alone: dict[str, float] = {part: spent.pop(part, 0.0) for part in ("read", "write")}
    whole = spent.pop("chunk", 0.0)
    return Pace(images, seconds, alone, spent | {"pictures and divergences": whole - sum(spent.values())}, workers)
