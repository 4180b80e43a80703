"""The control in the audit: made from the clean pool, and opened for comparing.

Stages 2, 4 and 5 with their files: what `audit` calls between the survey and the comparison. One that came as a file is
`kdaudit.given`'s.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from kdaudit.backbone import BACKBONE, Backbone
from kdaudit.clock import Clock
from kdaudit.compared import Comparison
from kdaudit.digest import joint_digest
from kdaudit.distillation import DistillationPlan, Distilled, distil
from kdaudit.errors import Inconclusive
from kdaudit.export import control_signature, export_student, stands_on_another
from kdaudit.machine import cores
from kdaudit.opening import open_session
from kdaudit.pool import MIN_POOL, Pool, Split, read_pool, split
from kdaudit.revival import Trainable
from kdaudit.rundir import RunDirectory
from kdaudit.session import Session
from kdaudit.settings import Settings
from kdaudit.workbench import Sets, Workbench

GUARDED = "kdaudit.guarded"
"""Metadata of a control of whose classes one was learned from unmixed images alone; a whole number."""


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
        guarded: the class that it has learned from unmixed images alone; None where there is no such class.
        distilled: how it was made; None for a control that was given.
        trainable: its network; None for a control that was given and not revived.
        backbone: SHA-256 of the file of the trusted network that it stands on; None for a network of its own.
    """

    session: Session
    digest: str
    agreed: int
    validated: int
    parity: float | None
    parts: Split
    guarded: int | None
    distilled: Distilled | None
    trainable: "Trainable | None" = None
    backbone: str | None = None

    @property
    def fidelity(self) -> float:
        """Share of held-out clean images on which it gives the teacher's answer."""
        return self.agreed / self.validated


def read_clean(bench: Workbench, sets: Sets, settings: Settings, run: RunDirectory | None, clock: Clock) -> Pool:
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
    bench: Workbench,
    pool: Pool,
    settings: Settings,
    run: RunDirectory | None,
    clock: Clock,
    output: Path | None = None,
    trunk: Backbone | None = None,
) -> Control:
    """Distil a control, a network of its own or a head over a trunk's features, and export it."""
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
    identity = joint_digest(bench.teacher.canonical_digest, bench.preprocess.recipe, *pool.ids)
    if run is not None:
        run.mark("distil the control")
    with clock.epochs("distil the control") as on_epoch:
        distilled = distil(
            bench.session,
            bench.preprocess,
            pool.pixels[parts.distillation],
            validation,
            plan,
            trunk=trunk,
            cost=bench.teacher.cost(*pool.pixels.shape[1:3]),
            threads=training_threads(bench),
            checkpoint=run.state / "distillation.pt" if run else None,
            identity=identity,
            on_epoch=on_epoch,
        )
    clock.say(f"control: fidelity {distilled.fidelity:.1%} on {distilled.validated} held-out clean images")
    if distilled.shown > 1 and trunk is None:
        clock.say(f"each view of the clean images was shown to the control {distilled.shown} times: the model is slow")
    if distilled.guarded is not None:
        clock.say(
            f"the control has learned the answer {distilled.guarded}, which the model gives to blends of clean images, "
            "from unmixed images alone: a faint trigger over the whole image looks like a blend"
        )
    assert run is not None or output is not None
    path = output or run.file("student.onnx")  # type: ignore[union-attr]
    metadata = {
        "kdaudit.teacher": bench.teacher.canonical_digest,
        "kdaudit.seed": str(settings.seed),
        "kdaudit.preprocess": bench.preprocess.recipe,
        "kdaudit.agreed": str(distilled.agreed),
        "kdaudit.validated": str(distilled.validated),
    }
    metadata |= {} if trunk is None else {BACKBONE: trunk.origin}
    metadata |= {} if distilled.guarded is None else {GUARDED: str(distilled.guarded)}
    with clock.stage("export the control"):
        parity = export_student(
            distilled.network, bench.preprocess, bench.signature, validation[:64], path, metadata=metadata
        )
    data = path.read_bytes()
    session = open_session(
        data,
        control_signature(bench.signature),
        provider=settings.provider,
        confined=stands_on_another(distilled.network),
        placement=bench.placement(settings),
    )
    digest = hashlib.sha256(data).hexdigest()
    return Control(
        session,
        digest,
        distilled.agreed,
        distilled.validated,
        parity,
        parts,
        distilled.guarded,
        distilled,
        distilled.network,
        None if trunk is None else trunk.origin,
    )


def held_to(control: Control, clean: Comparison) -> Control:
    """The control with its fidelity on all held-out images: what it was made with says a quarter of them alone.

    Of a small pool that is a few dozen, and a share of so few is mostly chance.

    Args:
        control: distilled or taken up.
        clean: the comparison of its held-out images.
    """
    return replace(control, agreed=int((clean.teacher_top1 == clean.student_top1).sum()), validated=len(clean))


def demand_sound(control: Control) -> None:
    """What the control did to its process must not be told as the model's doing.

    Raises:
        Inconclusive: it died, blocked, answered nonsense or rolled dice.
    """
    if control.session.incidents:
        raise Inconclusive(
            f"the control did what no sound one does on {len(control.session.incidents)} occasions (the first: "
            f"{control.session.incidents[0].detail}), so nothing can be compared with it: distil another"
        )


def training_threads(bench: Workbench) -> int:
    """Threads for torch on the cores: those that draw the batches need cores of their own, or both crowds crawl."""
    return max(1, cores() - 1) if bench.device == "cpu" else 1
