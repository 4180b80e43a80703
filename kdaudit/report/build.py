"""From the values of an audit to its report document."""

import json
import shlex
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np

from kdaudit.clock import Clock, Pace
from kdaudit.control import Control
from kdaudit.errors import Exit
from kdaudit.fitting import Fitted
from kdaudit.gate import candidates_section, fingerprinted
from kdaudit.interventions import InterventionPlan
from kdaudit.judgement import Judged
from kdaudit.machine import versions
from kdaudit.pool import Pool
from kdaudit.quarantine import Manifests
from kdaudit.repair import Repaired
from kdaudit.report.candidates import Evidence, rate_of
from kdaudit.report.document import Document
from kdaudit.report.results import GatheringRow, JudgementSection, LabelRow, RepairSection, ValidityRow
from kdaudit.report.sections import (
    ControlSection,
    CoverageSection,
    FindingRow,
    MachineSection,
    ModelSection,
    PaceSection,
    PreprocessSection,
    RecipeSection,
    SetSection,
)
from kdaudit.sample import Source
from kdaudit.settings import Settings
from kdaudit.source import Survey
from kdaudit.stretches import stretches
from kdaudit.verdict import Verdict
from kdaudit.version import __version__
from kdaudit.workbench import Sets, Workbench

WITHOUT_OPTION = ("interventions", "ignores")
NOT_OF_COMPARE = ("budget", "steps", "temperature", "backbone", "repair", "repair_epochs")
"""How a control is made and tuned: a given one is neither."""


def build_document(
    bench: Workbench,
    sets: Sets,
    pool: Pool,
    control: Control,
    judged: Judged,
    manifests: Manifests,
    repaired: Repaired | None,
    seen: Evidence,
    settings: Settings,
    *,
    model: Path,
    given_control: Path | None,
    clock: Clock,
) -> Document:
    """Put the report together; arithmetic on counts only, nothing is run. The gate has not seen it yet."""
    assert judged.verdict is not None
    assert sets.suspect is not None
    assert bench.fitted is not None
    verdict = judged.verdict
    survey = sets.suspect_survey
    scanned = verdict.evidence.scanned
    return Document(
        verdict=verdict.state,
        why=list(verdict.why),
        exit_code=Exit.INCONCLUSIVE,  # until the gate has decided
        findings=fingerprinted(
            [
                FindingRow(rule=f.rule, severity=f.severity, message=f.message, subject=f.subject)
                for f in verdict.findings
            ],
            bench.teacher.canonical_digest,
        ),
        coverage=CoverageSection(
            scanned=scanned,
            unreadable=survey.count - survey.skipped - scanned,
            skipped=survey.skipped,
            share=scanned / survey.images,
            unopened=survey.unopened,
            aside=survey.aside,
            reasons=list(seen.found.reasons),
            examples=list(seen.found.unread),
        ),
        model=_model(bench, model),
        suspect=_set(sets.suspect, survey),
        clean=_set(sets.clean, sets.clean_survey),
        preprocessing=_preprocessing(bench.fitted),
        control=_control(control, pool),
        judgement=_judgement(judged, verdict, sets, bench, settings),
        validity=[
            ValidityRow(
                name=one.name,
                state="holds" if one.holds else "violated",
                p_value=one.p_value,
                statement=one.statement,
            )
            for one in judged.validity
        ],
        clusters=seen.clusters,
        candidates=candidates_section(seen.found.digests),
        plots=seen.plots,
        kept=manifests.kept,
        quarantined=manifests.quarantined,
        repair=repair_section(repaired) if repaired else None,
        machine=MachineSection(
            device=bench.device,
            teacher_provider=bench.session.provider,
            student_provider=control.session.provider,
            confinement=bench.session.confinement,
            student_confinement=control.session.confinement,
            decoder=bench.decoder.name,
            workers=bench.workers,
            versions=versions(),
        ),
        timings={stage: round(s, 3) for stage, s in clock.seconds.items()},
        pace=_pace(clock.pace) if clock.pace else None,
        recipe=RecipeSection(
            kdaudit=__version__,
            command=command_line(model, given_control, sets.suspect.root, sets.clean.root, settings),
            data=str(sets.suspect.root),
            clean=str(sets.clean.root),
            control=str(given_control) if given_control else None,
            settings=settings.model_dump(mode="json"),
        ),
    )


def _pace(pace: Pace) -> PaceSection:
    return PaceSection(
        images=pace.images,
        images_per_s=round(pace.images_per_s, 1),
        shares={part: round(share, 4) for part, share in pace.shares.items()},
        wall=pace.wall,
    )


def answer_names(bench: Workbench, sets: Sets) -> dict[int, str]:
    """Class names by the model's output index: its own, or the data set's at the outputs where they were found."""
    names = bench.signature.class_names
    order = bench.fitted.class_order if bench.fitted else None
    if names is None and order is not None and sets.suspect is not None and sets.suspect.classes:
        classes = sets.suspect.classes
        return {output: classes[label] for label, output in enumerate(order) if label < len(classes)}
    return dict(enumerate(names or ()))


def repair_section(repaired: Repaired) -> RepairSection:
    """The repaired model, before and after."""
    tuned = repaired.tuned
    return RepairSection(
        file=str(repaired.path),
        tuned=tuned is not None,
        images=tuned.images if tuned else 0,
        steps=tuned.steps if tuned else 0,
        seconds=tuned.curve.seconds if tuned else 0.0,
        parity=repaired.parity,
        accuracy_before=rate_of(tuned.right_before, tuned.held_out) if tuned else None,
        accuracy=rate_of(tuned.right, tuned.held_out) if tuned else None,
        still_suspicious=rate_of(tuned.still_suspicious, tuned.quarantined) if tuned and tuned.quarantined else None,
    )


def _model(bench: Workbench, path: Path) -> ModelSection:
    teacher = bench.teacher
    return ModelSection(
        path=str(path),
        digest=teacher.digest,
        canonical_digest=teacher.canonical_digest,
        producer=teacher.producer,
        nodes=teacher.nodes,
        parameters=teacher.parameters,
        opsets=dict(teacher.opsets),
        signature=asdict(bench.signature),
    )


def _set(source: Source, survey: Survey) -> SetSection:
    return SetSection(
        location=str(source.root),
        kind=source.kind,
        records=survey.count,
        read=survey.read,
        unreadable=survey.unreadable,
        skipped=survey.skipped,
        duplicates=survey.duplicates,
        classes=list(source.classes) if source.classes else None,
    )


def _preprocessing(fitted: Fitted) -> PreprocessSection:
    return PreprocessSection(
        recipe=fitted.preprocess.recipe,
        how=fitted.how,
        sure=fitted.sure,
        margin=fitted.margin,
        error=fitted.error,
        runner_up=fitted.runner_up.recipe if fitted.runner_up else None,
        accuracy=fitted.accuracy,
        class_order=list(fitted.class_order) if fitted.class_order is not None else None,
        class_basis=fitted.class_basis,
        note=fitted.note,
    )


def _control(control: Control, pool: Pool) -> ControlSection:
    made = control.distilled
    return ControlSection(
        made_by="distil" if made else "given",
        fidelity=rate_of(control.agreed, control.validated),
        parity=control.parity,
        architecture=made.spec.architecture if made else None,
        backbone=control.backbone,
        steps=made.steps if made else None,
        seconds=made.curve.seconds if made else None,
        losses=made.curve.losses if made else [],
        distillation_images=len(control.parts.distillation),
        calibration_images=len(control.parts.held_out),
        clean_shared=pool.shared,
        clean_repeated=pool.repeated,
        clean_unreadable=pool.unreadable,
        clean_unused=pool.unused,
    )


def _judgement(judged: Judged, verdict: Verdict, sets: Sets, bench: Workbench, settings: Settings) -> JudgementSection:
    evidence = verdict.evidence
    by_output = answer_names(bench, sets)
    return JudgementSection(
        rule=settings.rule,
        fdr=settings.fdr,
        recipe=_recipe(settings),
        flagged=rate_of(evidence.flagged, evidence.scanned),
        extrapolated=evidence.extrapolated,
        doubtful=int(judged.flags.doubtful.sum()),
        visible_rate=evidence.visible_rate,
        disagreement=evidence.disagreement,
        disagreement_clean=evidence.disagreement_clean,
        excess=evidence.excess,
        by_answer=[
            GatheringRow(
                answer=g.answer,
                name=by_output.get(g.answer),
                flagged=rate_of(g.flagged, g.images),
                share_of_flags=g.share_of_flags,
            )
            for g in evidence.gatherings
        ],
        by_label=_by_label(judged, sets.suspect.classes if sets.suspect else None),
        statement=_statement(verdict, settings),
    )


def _by_label(judged: Judged, classes: tuple[str, ...] | None) -> list[LabelRow]:
    images, flagged = Counter[int](), Counter[int]()
    for span in stretches(len(judged.labels)):
        read, flag, labels = judged.columns.read[span], judged.flags.flag[span], judged.labels[span]
        for count, here in ((images, read), (flagged, read & flag)):
            found, numbers = np.unique(labels[here], return_counts=True)
            count.update(dict(zip(found.tolist(), numbers.tolist(), strict=True)))
    names = dict(enumerate(classes or ()))
    return [
        LabelRow(label=label, name=names.get(label), flagged=rate_of(flagged[label], images[label]))
        for label in sorted(images)
    ]


def command_line(model: Path, control: Path | None, data: Path, clean: Path, settings: Settings) -> str:
    """The line that does it again, with every setting that is not the default, wherever it came from.

    A setting of no option goes before it as a variable; what `compare` does not take cannot have shaped its result.
    """
    words = ["kdaudit", "compare", str(model), str(control)] if control else ["kdaudit", "scan", str(model)]
    words += [str(data), "--clean", str(clean), "--seed", str(settings.seed)]
    variables = []
    given = settings.model_dump(mode="json")
    for name, field in type(settings).model_fields.items():
        value, default = getattr(settings, name), field.default
        if name == "seed" or value == default or (control and name in NOT_OF_COMPARE):
            continue
        if name in WITHOUT_OPTION:
            variables.append(f"KDAUDIT_{name.upper()}={json.dumps(given[name])}")
        elif isinstance(value, bool):
            words.append(f"--{'' if value else 'no-'}{name.replace('_', '-')}")
        else:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(["env", *variables, *words] if variables else words)


def _recipe(settings: Settings) -> str:
    if settings.rule == "argmax":
        return "argmax"
    if settings.rule == "score":
        return "log-probability-gap"
    return InterventionPlan(settings.interventions, settings.seed).recipe


def _statement(verdict: Verdict, settings: Settings) -> str:
    evidence = verdict.evidence
    if settings.rule == "argmax":
        return "the argmax rule states no error rate: innocent images are flagged as often as clean ones disagree"
    text = (
        f"of the flagged images at most {settings.fdr:.0%} are expected to be innocent; {evidence.calibration:,} "
        f"calibration images show poison with one target from {evidence.visible_rate:.2%} on by counting"
    )
    if evidence.extrapolated:
        text += (
            f"; the p-values of {evidence.extrapolated:,} flags lie beyond that and come from a fitted "
            "tail (extrapolated)"
        )
    return text
