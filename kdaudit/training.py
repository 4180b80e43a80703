"""The one training loop: distillation and tuning differ in what they draw and in their loss, not in this.

A torch door. Batches are drawn by step number, so that a run is repeatable, resumable at any epoch, and the next
batch (with the teacher's answers) can be drawn in a second thread while the control learns from this one.
"""

import contextlib
import io
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from kdaudit.digest import joint_digest, write_bytes
from kdaudit.machine import cores

Batch = tuple[Tensor, Tensor]
"""Inputs, x/255 float32 [B, C, H, W] or features [B, D], and targets, whatever the loss compares the logits with."""


AHEAD = 2
"""Batches that may be drawn before they are needed, beside those under way."""

MOST_DRAWERS = 8
"""Threads that draw for a GPU, which learns from a batch in a hundredth of the time that one core takes to draw it (224
px). More would only hold more batches, 77 MB each there."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast.

    Attributes:
        steps: number of optimizer steps.
        epoch: steps between checkpoints and progress reports.
        rate: peak learning rate of AdamW; warm-up over the first 10 % of the steps, then a cosine to zero.
        weight_decay: AdamW's.
    """

    steps: int
    epoch: int
    rate: float = 2e-3
    weight_decay: float = 0.05

    def rate_at(self, step: int) -> float:
        """Learning rate of one step, 0-based."""
        warm = max(1, self.steps // 10)
        if step < warm:
            return self.rate * (step + 1) / warm
        return self.rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, self.steps - warm)))


@dataclass(slots=True)
class Curve:
    """Mean loss of each epoch, in nats, and the seconds spent."""

    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0


def cpu_has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware (AVX-512 BF16 or AMX); emulated, it is slower than float32."""
    flags = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(flags.get("avx512_bf16") or flags.get("amx_bf16"))


def autocast(device: str) -> torch.autocast:
    """bfloat16 where the hardware multiplies it."""
    return torch.autocast(device, torch.bfloat16, enabled=device == "cuda" or cpu_has_bfloat16())


def train(
    net: nn.Module,
    draw: Callable[[int], Batch],
    loss_of: Callable[[Tensor, Tensor], Tensor],
    schedule: Schedule,
    *,
    device: str = "cpu",
    threads: int = 1,
    checkpoint: Path | None = None,
    recipe: str = "",
    on_epoch: Callable[[int, float], None] = lambda _step, _loss: None,
) -> Curve:
    """Train `net` in place and leave it in evaluation mode on the CPU.

    Args:
        net: takes the first of a batch; gives logits [B, K].
        draw: batch of a step; called once per step, from another thread, or from several where a GPU learns.
        loss_of: (logits float32, targets) -> scalar.
        schedule: steps and learning rate.
        device: "cpu" or "cuda".
        threads: torch's own, on a CPU; what draws the batches needs a core of its own.
        checkpoint: written after each epoch, and resumed from if it exists and its recipe and network are these.
        recipe: names everything that shapes the run besides the network; a checkpoint of another recipe is ignored.
        on_epoch: told (steps done, mean loss of the epoch).

    Returns:
        The training curve.
    """
    recipe = f"{recipe}|{form_of(net)}"
    torch.set_num_threads(threads)
    net.to(device).train()
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's own stubs
    optimizer = torch.optim.AdamW(_groups(net, schedule.weight_decay), schedule.rate)
    curve, start = _resume(net, optimizer, checkpoint, recipe)
    began, total, counted = time.monotonic() - curve.seconds, 0.0, 0
    if start:
        on_epoch(start, curve.losses[-1])
    with _prefetched(draw, start, schedule.steps, drawers_for(device)) as batches:
        for step, (inputs, targets) in enumerate(batches, start):
            optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = schedule.rate_at(step)
            with autocast(device):
                logits = net(_placed(inputs, device))
            loss = loss_of(logits.float(), targets.to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
            optimizer.step()
            total, counted = total + float(loss.detach()), counted + 1
            if (step + 1) % schedule.epoch == 0 or step + 1 == schedule.steps:
                curve.losses.append(total / counted)
                curve.seconds = time.monotonic() - began
                total, counted = 0.0, 0
                _save(net, optimizer, checkpoint, recipe, curve, step + 1)
                on_epoch(step + 1, curve.losses[-1])
    net.cpu().eval()
    return curve


def _placed(inputs: Tensor, device: str) -> Tensor:
    """A batch where it is learned from; images with the channels last, rows of features as they are."""
    return inputs.to(device, memory_format=torch.channels_last) if inputs.ndim == 4 else inputs.to(device)


def drawers_for(device: str) -> int:
    """How many threads draw: on a CPU the cores are the control's, a GPU leaves them free."""
    return 1 if device == "cpu" else min(MOST_DRAWERS, max(1, cores() - 1))


def form_of(net: nn.Module) -> str:
    """What a network is without its weights: SHA-256 of its modules, their settings, and what its weights are called.

    An architecture's name stays when a release changes what is behind it; a checkpoint of the old one must not be taken
    for one of the new.
    """
    weights = [f"{name} {tuple(weight.shape)} {weight.dtype}" for name, weight in net.state_dict().items()]
    return joint_digest(repr(net), *weights)


def _groups(net: nn.Module, decay: float) -> list[dict[str, object]]:
    """Weight decay for matrices and filters only: decaying a norm's scale or a bias does harm."""
    matrices = [p for p in net.parameters() if p.ndim > 1]
    vectors = [p for p in net.parameters() if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]


def _save(
    net: nn.Module, optimizer: torch.optim.Optimizer, path: Path | None, recipe: str, curve: Curve, step: int
) -> None:
    if path is None:
        return
    buffer = io.BytesIO()
    torch.save(
        {
            "recipe": recipe,
            "step": step,
            "losses": curve.losses,
            "seconds": curve.seconds,
            "net": net.state_dict(),
            "optimizer": optimizer.state_dict(),
        },
        buffer,
    )
    write_bytes(path, buffer.getvalue())


def _resume(net: nn.Module, optimizer: torch.optim.Optimizer, path: Path | None, recipe: str) -> tuple[Curve, int]:
    if path is None or not path.exists():
        return Curve(), 0
    saved = torch.load(path, map_location="cpu", weights_only=True)
    if saved["recipe"] != recipe:
        return Curve(), 0
    net.load_state_dict(saved["net"])
    optimizer.load_state_dict(saved["optimizer"])
    return Curve(saved["losses"], saved["seconds"]), saved["step"]


@contextlib.contextmanager
def _prefetched(draw: Callable[[int], Batch], start: int, stop: int, drawers: int) -> Iterator[Iterator[Batch]]:
    """Draw ahead in threads; an error in one of them is raised where its batch is taken."""
    pool = ThreadPoolExecutor(drawers, thread_name_prefix="kdaudit-draw")

    def take() -> Iterator[Batch]:
        steps = iter(range(start, stop))
        waiting = deque(pool.submit(draw, step) for step in islice(steps, drawers + AHEAD))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(draw, step) for step in islice(steps, 1))

    try:
        yield take()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
