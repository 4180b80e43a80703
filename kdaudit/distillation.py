"""Stage 4: distil a clean control from the suspect teacher, on clean, unlabelled images.

Loss (Hinton et al., 2015; Yoshida & Fujino, 2020): tau^2 KL(softmax(z_T / tau) || softmax(z_S / tau)), batch mean.
The trigger is not in the images, so the control learns the task and not the backdoor.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kdaudit.digest import joint_digest, write_bytes
from kdaudit.mixtures import BLENDS, FEW, LEANS, attractor, top1_by
from kdaudit.preprocess import Preprocess
from kdaudit.session import Session
from kdaudit.showings import SHOWN, SHOWN_FEATURES, affordable, as_learned, drawer, is_dear
from kdaudit.views import ViewRecipe, is_photograph, to_planes, zoom_for

if TYPE_CHECKING:
    from torch import Tensor, nn

    from kdaudit.student import HeadSpec, StudentSpec, Trunk
    from kdaudit.training import Curve

FLIP_AGREEMENT = 0.9
"""Mirrored views are used when the teacher keeps this share of its own answers on mirrored clean images. At 75 % all
photographs' controls would be two points more faithful, and find no more (docs/design/distillation.md)."""

ASKED = 500
"""Distillation images that say how a backbone's features usually are, at most about so many."""


@dataclass(frozen=True, slots=True)
class DistillationPlan:
    """How the control is made.

    Attributes:
        temperature: tau.
        batch: views per step.
        steps: optimizer steps; None: as many as `budget_s` allows, or `default_steps`.
        budget_s: seconds to spend on the training; None: no limit. With a limit views of photographs are shown `SHOWN`
            times.
        seed: of weights and views.
        device: "cpu" or "cuda".
    """

    temperature: float = 4.0
    batch: int = 128
    steps: int | None = None
    budget_s: float | None = None
    seed: int = 0
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class Distilled:
    """A control and how it came about.

    Attributes:
        network: takes x/255 float32 [B, C, H, W], gives logits [B, K]; in evaluation mode, on the CPU.
        spec: its architecture.
        curve: loss per epoch.
        steps: optimizer steps done.
        views: the view recipe used.
        agreed: validation images on which control and teacher give the same answer.
        validated: number of validation images; agreed / validated is the fidelity.
        guarded: the class that the teacher gives blends of others to, learned from unmixed images alone; None where
            no class has to be (`kdaudit.mixtures.attractor`).
        shown: how often each view was shown for one answer of the teacher.
    """

    network: "nn.Module"
    spec: "StudentSpec | HeadSpec"
    curve: "Curve"
    steps: int
    views: ViewRecipe
    agreed: int
    validated: int
    guarded: int | None = None
    shown: int = 1

    @property
    def fidelity(self) -> float:
        """Share of held-out clean images on which the control gives the teacher's answer, 0..1."""
        return self.agreed / self.validated


def distil(
    session: Session,
    preprocess: Preprocess,
    images: NDArray[np.uint8],
    validation: NDArray[np.uint8],
    plan: DistillationPlan,
    *,
    spec: "StudentSpec | None" = None,
    trunk: "Trunk | None" = None,
    cost: int = 0,
    threads: int = 1,
    checkpoint: Path | None = None,
    identity: str = "",
    on_epoch: Callable[[int, int, float], None] = lambda _step, _steps, _loss: None,
) -> Distilled:
    """Distil a control.

    Args:
        session: the teacher.
        preprocess: from pixels to its input.
        images: the distillation images, uint8 [n, H, W, C].
        validation: held-out clean images for the fidelity, uint8 [v, H, W, C]; never trained on.
        plan: schedule, temperature, seed.
        spec: the control's architecture; None: sized from the images.
        trunk: a trusted network's, whose features the control is a head over; None: it is a network of its own.
        cost: multiplications that the teacher takes for an image, as far as is known.
        threads: of torch, on a CPU; the teacher answers in one more.
        checkpoint: file to resume from and to write after each epoch; which class is guarded, and with a budget the
            number of steps that it was measured to allow, lie beside it, so that a run that goes on has the same
            targets and the same schedule.
        identity: digest of everything outside the plan that shapes the run (teacher, images).
        on_epoch: told (steps done, steps in all, mean loss).

    Returns:
        The control, with its fidelity measured on `validation`.
    """
    from kdaudit.student import learner
    from kdaudit.training import Schedule, form_of, train

    network, made = _fresh(session.signature.classes, images, plan, spec, trunk)
    views = ViewRecipe(
        flip=ignores_mirroring(session, preprocess, images),
        zoom=zoom_for(*images.shape[1:3]),
    )
    # Thousands of questions: a pass that goes on, or a repair of a finished run, does not ask them again.
    note = checkpoint.with_suffix(".attractor.json") if checkpoint else None
    terms = joint_digest(identity, str(plan.seed), str(BLENDS), str(LEANS), str(FEW))
    guarded = _noted(note, terms, "attractor", lambda: attractor(session, preprocess, images, plan.seed))
    shown = _showings(plan, made, images, cost)
    draw = drawer(
        session,
        preprocess,
        images,
        views,
        batch=plan.batch,
        temperature=plan.temperature,
        seed=plan.seed,
        guarded=guarded,
        keep=shown > 1 and trunk is None,  # of a head the whole batches are kept
    )
    draw, learns = as_learned(draw, network), learner(network)
    shaped = f"{identity}|{made}|{views}|{guarded}|{plan.temperature}|{plan.batch}|{shown}"
    steps = plan.steps
    if steps is None and plan.budget_s is not None:
        note = checkpoint.with_suffix(".budget.json") if checkpoint else None
        terms = joint_digest(shaped, str(plan.seed), str(plan.budget_s), plan.device, form_of(learns))
        steps = _noted(note, terms, "steps", lambda: _steps_for(plan, learns, draw, shown, threads))
    steps = steps or default_steps(len(images), plan.batch)
    recipe = f"{shaped}|{steps}|{plan.seed}"
    different = -(-steps // shown)  # rounded up
    if trunk is not None:
        different = min(different, affordable(trunk.width + session.signature.classes, plan.batch))
    curve = train(
        learns,
        lambda step: draw(step % different),
        lambda logits, targets: kd_loss(logits, targets, plan.temperature),
        Schedule(steps, epoch=max(1, steps // 40)),
        device=plan.device,
        threads=threads,
        checkpoint=checkpoint,
        recipe=recipe,
        on_epoch=lambda done, loss: on_epoch(done, steps, loss),
    )
    agreed = int((top1_of(network, validation) == top1_by(session, preprocess, validation)).sum())
    return Distilled(network, made, curve, steps, views, agreed, len(validation), guarded, shown)


def _fresh(
    classes: int,
    images: NDArray[np.uint8],
    plan: DistillationPlan,
    spec: "StudentSpec | None",
    trunk: "Trunk | None",
) -> "tuple[nn.Module, StudentSpec | HeadSpec]":
    """A control that has learned nothing yet, and what it is."""
    from kdaudit.student import HeadSpec, build, headed

    if trunk is None:
        spec = spec or size_student(images, classes, plan.device)
        return build(spec, plan.seed), spec
    some = images[:: max(1, len(images) // ASKED)]
    usual = np.concatenate([trunk.features(to_planes(some[i : i + 64]).numpy()) for i in range(0, len(some), 64)])
    return headed(trunk, usual, classes, plan.seed), HeadSpec(trunk.origin, trunk.digest, trunk.width, classes)


def _showings(plan: DistillationPlan, made: "StudentSpec | HeadSpec", images: NDArray[np.uint8], cost: int) -> int:
    """How often the control is shown each view."""
    from kdaudit.student import HeadSpec

    if isinstance(made, HeadSpec):
        return SHOWN_FEATURES
    limited = plan.budget_s is not None and is_photograph(*images.shape[1:3])
    return SHOWN if limited or is_dear(cost, made, plan.device) else 1


def kd_loss(student: "Tensor", teacher: "Tensor", temperature: float) -> "Tensor":
    """tau^2 KL(softmax(z_T/tau) || softmax(z_S/tau)), batch mean, in nats; logits [B, K] both."""
    from kdaudit.kernels import distill_loss_ref

    return distill_loss_ref(student, teacher, temperature)


def size_student(images: NDArray[np.uint8], classes: int, device: str) -> "StudentSpec":
    """The control's architecture for images uint8 [n, H, W, C] of a pool and a class count."""
    from kdaudit.student import StudentSpec, choose_architecture

    _, height, width, channels = images.shape
    # A thousand images say enough about mean and spread, and a memory-mapped pool is not read whole.
    some = images[:: max(1, len(images) // 1000)].astype(np.float32) / 255
    mean = tuple(float(m) for m in some.mean((0, 1, 2)))
    std = tuple(float(max(s, 0.05)) for s in some.std((0, 1, 2)))
    architecture = choose_architecture(height, width, on_gpu=device == "cuda")
    return StudentSpec(architecture, channels, height, width, classes, mean, std)


def default_steps(images: int, batch: int) -> int:
    """Steps without a budget: 200 views of each image, 1,200 steps at least, 6,000 at most."""
    return int(np.clip(200 * images / batch, 1200, 6000))


def top1_of(network: "nn.Module", pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The control's answers [n] for pixels uint8 [n, H, W, C], in torch."""
    import torch

    with torch.inference_mode():
        parts = [network(to_planes(pixels[i : i + 256])).argmax(1).numpy() for i in range(0, len(pixels), 256)]
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def _noted(note: Path | None, terms: str, what: str, measure: Callable[[], int | None]) -> int | None:
    """What an earlier pass on these terms has measured and noted, or a new measure."""
    if note is not None and note.is_file():
        found = json.loads(note.read_text())
        if found["terms"] == terms:
            return None if found[what] is None else int(found[what])
    value = measure()
    if note is not None:
        write_bytes(note, json.dumps({"terms": terms, what: value}).encode())
    return value


def _steps_for(
    plan: DistillationPlan,
    network: "nn.Module",
    draw: Callable[[int], "tuple[Tensor, Tensor]"],
    shown: int,
    threads: int,
    probe: int = 12,
) -> int:
    """How many steps the budget allows, measured on a copy of the network."""
    assert plan.budget_s is not None
    import copy

    from kdaudit.training import Schedule, train

    trial = copy.deepcopy(network)

    def timed(steps: int, first: int) -> float:
        began = time.monotonic()
        schedule = Schedule(steps, steps)
        train(
            trial,
            lambda step: draw(first + step),
            lambda s, t: kd_loss(s, t, plan.temperature),
            schedule,
            device=plan.device,
            threads=threads,
        )
        return time.monotonic() - began

    timed(2, 0)  # the first steps pay for thread pools and kernel selection
    new = timed(probe, 2)
    again = timed(probe, 2) if shown > 1 else new  # their answers are there by now
    return max(50, int(plan.budget_s / ((new + (shown - 1) * again) / shown / probe)))


def ignores_mirroring(session: Session, preprocess: Preprocess, images: NDArray[np.uint8]) -> bool:
    """Whether the teacher gives mirrored images the same answers; asked about 200 of them, uint8 [n, H, W, C]."""
    some = images[:200]
    plain, mirrored = top1_by(session, preprocess, some), top1_by(session, preprocess, some[:, :, ::-1])
    return bool((plain == mirrored).mean() >= FLIP_AGREEMENT)
