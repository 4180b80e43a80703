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
from kdaudit.errors import Inconclusive
from kdaudit.mixtures import BLENDS, FEW, LEANS, attractor, guarded_targets, share_of, top1_by
from kdaudit.preprocess import Preprocess
from kdaudit.session import Session
from kdaudit.views import ViewRecipe, Views, draw_views, is_photograph, to_planes, zoom_for

if TYPE_CHECKING:
    from torch import Tensor, nn

    from kdaudit.student import StudentSpec
    from kdaudit.training import Curve

FLIP_AGREEMENT = 0.9
"""Mirrored views are used when the teacher keeps this share of its own answers on mirrored clean images. At 75 % all
photographs' controls would be two points more faithful, and find no more (docs/design/distillation.md)."""

SHOWN = 4
"""How often a control is shown a view where the teacher is dear, or where the control of photographs has a limited
time. Else every view is new, which is a little better."""

DEAR = 4
"""A teacher whose answer takes so many times the arithmetic that learning from it takes the control is dear: asked once
for four showings, distilling takes two fifths of the time, or less (docs/design/distillation.md)."""

LEARNING = 3
"""What learning from a view takes, in answers: forward, and backward to the activations and to the weights."""

KEPT_BYTES = 256 << 20
"""Answers that are kept until their views are shown again; beyond these the teacher is asked once more."""


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
    spec: "StudentSpec"
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
    from kdaudit.student import build
    from kdaudit.training import Schedule, form_of, train

    spec = spec or size_student(images, session.signature.classes, plan.device)
    views = ViewRecipe(
        flip=ignores_mirroring(session, preprocess, images),
        zoom=zoom_for(*images.shape[1:3]),
    )
    network = build(spec, plan.seed)
    # Thousands of questions: a pass that goes on, or a repair of a finished run, does not ask them again.
    note = checkpoint.with_suffix(".attractor.json") if checkpoint else None
    terms = joint_digest(identity, str(plan.seed), str(BLENDS), str(LEANS), str(FEW))
    guarded = _noted(note, terms, "attractor", lambda: attractor(session, preprocess, images, plan.seed))
    limited = plan.budget_s is not None and is_photograph(*images.shape[1:3])
    shown = SHOWN if limited or _is_dear(cost, spec, plan.device) else 1
    draw = _drawer(session, preprocess, images, views, plan, guarded, keep=shown > 1)
    shaped = f"{identity}|{spec}|{views}|{guarded}|{plan.temperature}|{plan.batch}|{shown}"
    steps = plan.steps
    if steps is None and plan.budget_s is not None:
        note = checkpoint.with_suffix(".budget.json") if checkpoint else None
        terms = joint_digest(shaped, str(plan.seed), str(plan.budget_s), plan.device, form_of(network))
        steps = _noted(note, terms, "steps", lambda: _steps_for(plan, network, draw, shown, threads))
    steps = steps or default_steps(len(images), plan.batch)
    recipe = f"{shaped}|{steps}|{plan.seed}"
    different = -(-steps // shown)  # rounded up
    curve = train(
        network,
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
    return Distilled(network, spec, curve, steps, views, agreed, len(validation), guarded, shown)


def _is_dear(cost: int, spec: "StudentSpec", device: str) -> bool:
    """Whether the teacher's answers are most of the work; not asked of a GPU, which takes a minute for all of it."""
    from kdaudit.student import multiplications

    return device == "cpu" and cost >= DEAR * LEARNING * multiplications(spec)


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


def _drawer(
    session: Session,
    preprocess: Preprocess,
    images: NDArray[np.uint8],
    views: ViewRecipe,
    plan: DistillationPlan,
    guarded: int | None,
    *,
    keep: bool,
) -> Callable[[int], "tuple[Tensor, Tensor]"]:
    share = np.empty(0, np.float32)
    if guarded is not None:
        share = share_of(session, preprocess, images, guarded, plan.temperature)
    kept: dict[int, NDArray[np.float32]] = {}

    def draw(step: int) -> "tuple[Tensor, Tensor]":
        import torch

        made = draw_views(images, plan.batch, views, plan.seed, step)
        targets = kept[step] if step in kept else told(made)
        if keep and (len(kept) + 1) * targets.nbytes <= KEPT_BYTES:
            kept[step] = targets
        return to_planes(made.pixels), torch.from_numpy(targets)

    def told(made: Views) -> NDArray[np.float32]:
        targets = session.logits(preprocess.apply(made.pixels))
        if guarded is not None:
            targets = guarded_targets(targets, made, guarded, share, plan.temperature)
        if not np.isfinite(targets).all():
            raise Inconclusive(
                "the model answers clean images with values that are no numbers, so no control can be distilled from "
                "it: check --preprocess, and do not use the model"
            )
        return targets

    return draw


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
