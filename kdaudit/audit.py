"""The method on one page: the stages in their order, values passed from one to the next.

admit -> survey -> fit the preprocessing -> distil -> export -> compare -> judge -> quarantine -> tune -> report
"""

from dataclasses import dataclass
from datetime import date
from pathlib import Path

from kdaudit import backbone as backbones
from kdaudit import contrast, judgement, samples, workbench
from kdaudit import control as controls
from kdaudit import given as givens
from kdaudit import repair as repairs
from kdaudit.admission.confined import admit_confined as admit
from kdaudit.clock import Clock
from kdaudit.distillation import Distilled
from kdaudit.errors import KdauditError
from kdaudit.gate import check_ignores, read_baseline
from kdaudit.progress import Watch
from kdaudit.report import evidence, outputs
from kdaudit.report.build import build_document, repair_section
from kdaudit.report.checks import conclude
from kdaudit.report.document import Document, read_document
from kdaudit.report.results import RepairSection
from kdaudit.rundir import RunDirectory, as_typed
from kdaudit.settings import Settings

TUNING_SETTINGS = frozenset({"repair", "repair_epochs", "device", "workers"})


@dataclass(frozen=True, slots=True)
class Request:
    """What to audit.

    Attributes:
        model: the suspect ONNX file.
        data: the suspect images.
        clean: the clean pool; None: found inside `data`.
        run: the run directory.
        control: an existing control; None: one is distilled.
    """

    model: Path
    data: Path
    clean: Path | None
    run: Path
    control: Path | None = None


def audit(request: Request, settings: Settings, watch: Watch) -> Document:
    """The whole audit; writes the run directory and returns the report.

    Raises:
        KdauditError: see `kdaudit.errors`; the run directory then says that it is unfinished.
    """
    clock = Clock(watch)
    check_ignores(settings.ignores)
    baseline = read_baseline(settings.baseline)
    teacher = admit(request.model)
    given = givens.check_control(request.control, teacher) if request.control else None
    trusted = None if given else backbones.check_backbone(settings.backbone, teacher)
    places = workbench.locate(request.data, request.clean)
    workbench.check_outside(request.run, places)
    command = "compare" if request.control else "scan"
    run = RunDirectory(request.run, teacher.digest, str(request.model), command)
    try:
        outputs.remove(run.path)  # an earlier pass may have left some, and they would speak of another result
        bench = workbench.set_up(teacher, settings)
        sets = workbench.survey_both(places, clock)
        bench.session.keep_incidents(run.state / "incidents.json", workbench.identity(bench, sets))
        preferred = givens.recipe_of(given) if given else None
        fitted = workbench.fit_preprocessing(bench, sets, settings, clock, preferred)
        bench = bench.with_fitted(fitted)
        pool = controls.read_clean(bench, sets, settings, run, clock)
        sets = sets.counted
        if request.control and given:
            control = givens.take_control(request.control, given, bench, pool, settings)
        else:
            trunk = backbones.open_backbone(trusted, bench, sets, settings, clock)
            control = controls.make_control(bench, pool, settings, run, clock, trunk=trunk)
        subjects = contrast.subjects(bench, control, pool, settings)
        calibration = contrast.compare_clean(subjects, control, pool, bench, settings, run, clock)
        control = controls.held_to(control, calibration)
        rows = contrast.compare_suspect(subjects, control, sets, bench, settings, run, clock)
        controls.demand_sound(control)
        judged = judgement.judge_rows(rows, calibration, subjects, control, pool, sets, settings, bench, run, clock)
        manifests = samples.write_samples(rows, judged, sets, settings.rule, run)
        repaired = None
        faithful = control.fidelity >= settings.fidelity_needed(bench.signature.classes)
        if settings.repair and control.distilled is not None and not faithful:
            clock.say("no repaired model: a control that is not faithful enough to judge with is none to use either")
        elif settings.repair and control.distilled is not None:
            repaired = repairs.repair(control, judged, sets, bench, settings, run, clock)
        seen = evidence.collect(judged, calibration, sets, bench, settings, run, clock)
        document = build_document(
            bench,
            sets,
            pool,
            control,
            judged,
            manifests,
            repaired,
            seen,
            settings,
            model=request.model,
            given_control=request.control,
            clock=clock,
        )
        document = conclude(document, settings, baseline, date.today(), run.path)  # noqa: DTZ011  the reader's own day
        outputs.write(document, run.path)
        run.finish(document.model_dump(mode="json"))
        return document
    except KdauditError as error:
        run.stop(str(error))
        raise
    finally:
        run.close()


def distil_alone(model: Path, clean: Path, output: Path, settings: Settings, watch: Watch) -> Distilled:
    """Distil a control and write it to `output`, for `compare` to use."""
    clock = Clock(watch)
    teacher = admit(model)
    trusted = backbones.check_backbone(settings.backbone, teacher)
    workbench.check_writable(output)
    places = workbench.locate_clean(clean)
    bench = workbench.set_up(teacher, settings)
    sets = workbench.survey_both(places, clock)
    bench = bench.with_fitted(workbench.fit_preprocessing(bench, sets, settings, clock))
    pool = controls.read_clean(bench, sets, settings, None, clock)
    trunk = backbones.open_backbone(trusted, bench, sets, settings, clock)
    control = controls.make_control(bench, pool, settings, None, clock, output, trunk)
    assert control.distilled is not None
    return control.distilled


def repair_run(path: Path, output: Path, settings: Settings, watch: Watch) -> RepairSection:
    """Tune the control of a finished run on its kept images, and write the repaired model to `output`.

    Returns:
        The report's `repair` section.

    Raises:
        UsageError: the control that the run was given has gone, or is none that can be tuned; the suspect images are
            not those that were audited.
        RunDirectoryError: not a finished run.
    """
    report = read_document(path)
    clock = Clock(watch)
    recipe = report.recipe
    workbench.check_writable(output)
    # The control follows from the run's own settings; only what shapes the tuning may differ now.
    merged = settings.model_copy(update={k: v for k, v in recipe.settings.items() if k not in TUNING_SETTINGS})
    model, data, clean = (as_typed(path, typed) for typed in (report.model.path, recipe.data, recipe.clean))
    teacher = admit(model)
    given_at = as_typed(path, recipe.control) if recipe.control else None
    given = givens.check_control(given_at, teacher) if given_at else None
    backbone_at = as_typed(path, str(merged.backbone)) if merged.backbone else None
    trusted = None if given else backbones.check_backbone(backbone_at, teacher, report.control.backbone)
    run = RunDirectory(path, teacher.digest, str(model), "repair", keep_report=True)
    try:
        bench = workbench.set_up(teacher, merged)
        sets = workbench.survey_both(workbench.locate(data, clean), clock)
        samples.demand_audited(run, sets)
        preferred = givens.recipe_of(given) if given else None
        bench = bench.with_fitted(workbench.fit_preprocessing(bench, sets, merged, clock, preferred))
        pool = controls.read_clean(bench, sets, merged, run, clock)
        if given_at and given:
            control = givens.take_control(given_at, given, bench, pool, merged)
            control = givens.revive(control, given, bench, pool, merged)
        else:
            trunk = backbones.open_backbone(trusted, bench, sets, merged, clock)
            control = controls.make_control(bench, pool, merged, run, clock, trunk=trunk)
        judged = samples.read_judged(run)
        repaired = repairs.repair(control, judged, sets, bench, merged, run, clock, output)
        return repair_section(repaired)
    finally:
        run.close()
