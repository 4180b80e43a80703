"""Stage 9: fine-tune the control on the kept images, with the data set's labels, never the teacher's.

The tuned control is for use. Judging stays with the distilled one: what was trained on the suspect set has learned
some of its poison and remembers its images (docs/design/distillation.md).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kdaudit.calibration import Answers
from kdaudit.distillation import top1_of
from kdaudit.rereading import reread
from kdaudit.sample import Decoder, Geometry, Source
from kdaudit.showings import SHOWN_FEATURES, affordable, as_learned
from kdaudit.trigger import Pattern
from kdaudit.views import ViewRecipe, draw_views, generator_of, to_planes, zoom_for

if TYPE_CHECKING:
    from torch import Tensor, nn

    from kdaudit.training import Curve

MAX_BYTES = 8 << 30
"""Kept images are decoded once, to a file of at most this size; more are thinned evenly."""

PASSES, MAX_STEPS = 25, 20_000
"""What tuning takes where nobody asks for another length: a network trained from scratch needs as many passes to get
where it stops getting better, and 20,000 steps are an hour of two cores for images of 32 px."""

HELD_OUT_SHARE = 0.05
STAMPED_SHARE = 0.15
"""Share of the views that a proven trigger is put onto."""

MIRRORED, MIRRORED_CLASS, MIRRORED_SHARE = 5000, 10, 0.9
"""Kept images that are looked at mirrored, how many a class needs to be judged alone, and the share to stay right."""

LABEL = 2
"""Places that a label takes beside a row of features, in float32."""

SMOOTHING = 0.05
"""Label smoothing: the labels of somebody else's data set are not all right."""


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """Decoded images of the suspect set for tuning.

    Attributes:
        pixels: kept images with a label, uint8 [n, H, W, C].
        targets: the model's output index of each label, int64 [n].
        quarantined: flagged images, uint8 [q, H, W, C], 2,000 at most.
        suspicious: the teacher's answers on these, int64 [q].
    """

    pixels: NDArray[np.uint8]
    targets: NDArray[np.int64]
    quarantined: NDArray[np.uint8]
    suspicious: NDArray[np.int64]

    def samples(self, n: int) -> NDArray[np.uint8]:
        """Up to `n` decoded images, kept ones first."""
        return np.concatenate([self.pixels[:n], self.quarantined[: max(0, n - len(self.pixels))]])


@dataclass(frozen=True, slots=True)
class Tuned:
    """A tuned control and what it does on images it was not tuned on.

    Attributes:
        network: x/255 float32 [B, C, H, W] -> logits [B, K]; evaluation mode, on the CPU.
        curve: loss per epoch.
        steps: optimizer steps.
        images: kept images tuned on.
        held_out: kept images held out.
        right: of these, how many get the data set's label.
        right_before: the same for the control as it was distilled.
        quarantined: flagged images asked about.
        still_suspicious: of these, how many still get the teacher's answer.
    """

    network: "nn.Module"
    curve: "Curve"
    steps: int
    images: int
    held_out: int
    right: int
    right_before: int
    quarantined: int
    still_suspicious: int


def read_kept(
    source: Source,
    decoder: Decoder,
    geometry: Geometry,
    keep: NDArray[np.bool_],
    flagged: NDArray[np.bool_],
    answers: Answers,
    labels: Answers,
    outputs: NDArray[np.int64],
    *,
    cache: Path,
    on_image: Callable[[int], None] = lambda _n: None,
) -> Kept:
    """Decode the kept images that have a label, and some of the flagged ones.

    Args:
        source: the suspect set.
        decoder: bytes to pixels.
        geometry: what the networks want.
        keep: per record of the source, bool [N]: read, not flagged, labelled.
        flagged: per record, bool [N].
        answers: per record, the teacher's answers, [N].
        labels: per record, the data set's label indices, [N]; -1 for none.
        outputs: label index -> model output index, int64 [K].
        cache: file that the pixels are mapped from.
        on_image: told the number of records done since the last call.
    """
    size = geometry.height * geometry.width * geometry.channels
    wanted = _thinned(keep, MAX_BYTES // size)
    shown = _thinned(flagged, 2000)
    shape = (int(wanted.sum()), geometry.height, geometry.width, geometry.channels)
    pixels = np.lib.format.open_memmap(cache, mode="w+", dtype=np.uint8, shape=shape)
    targets = np.zeros(shape[0], np.int64)
    quarantined: list[NDArray[np.uint8]] = []
    done = 0
    for rows, decoded in reread(source, decoder, geometry, wanted | shown, on_image):
        is_kept = wanted[rows]
        count = int(is_kept.sum())
        pixels[done : done + count] = decoded[is_kept]
        targets[done : done + count] = outputs[labels[rows[is_kept]]]
        quarantined.extend(decoded[~is_kept])
        done += count
    bad = np.stack(quarantined) if quarantined else np.empty((0, *shape[1:]), np.uint8)
    return Kept(pixels, targets, bad, answers[shown].astype(np.int64))


def tune(
    network: "nn.Module",
    kept: Kept,
    *,
    epochs: float | None = None,
    seed: int,
    patterns: Sequence[Pattern] = (),
    device: str = "cpu",
    threads: int = 1,
    batch: int = 128,
    checkpoint: Path | None = None,
    identity: str = "",
    on_epoch: Callable[[int, int, float], None] = lambda _step, _steps, _loss: None,
) -> Tuned:
    """Fine-tune a copy of the control.

    Args:
        network: the distilled control; left as it is.
        kept: images and labels.
        epochs: passes over the kept images; None: `PASSES`, or as many as `MAX_STEPS` allow.
        seed: of views and of what is held out.
        patterns: proven triggers; some views get one and keep their label, so that poison which was missed teaches
            nothing.
        device: "cpu" or "cuda".
        threads: of torch, on a CPU.
        batch: images per step.
        checkpoint: file to resume from and to write after each epoch.
        identity: digest of what shapes the run besides the arguments here.
        on_epoch: told (steps done, steps in all, mean loss).
    """
    import copy

    import torch
    import torch.nn.functional as F

    from kdaudit.student import Headed, learner
    from kdaudit.training import Schedule, train

    tuned = copy.deepcopy(network)
    held, used = _held_out(len(kept.targets), seed)
    pixels, targets = _Subset(kept.pixels, used), torch.from_numpy(kept.targets[used])
    views = ViewRecipe(flip=mirrors_harmlessly(network, kept), mix=0.0, zoom=zoom_for(*kept.pixels.shape[1:3]))
    steps = max(50, round((epochs or PASSES) * len(used) / batch))
    if epochs is None:
        steps = min(steps, MAX_STEPS)

    def draw(step: int) -> "tuple[Tensor, Tensor]":
        made = draw_views(pixels, batch, views, seed, step)
        drawn = made.pixels
        if patterns:
            few = slice(0, round(STAMPED_SHARE * batch))  # the order of a batch is random
            drawn[few] = patterns[step % len(patterns)].onto(drawn[few])
        return to_planes(drawn), targets[made.order]

    different = steps
    if isinstance(tuned, Headed):
        passes = max(-(-steps // SHOWN_FEATURES), -(-len(used) // batch))
        different = min(steps, passes, affordable(tuned.trunk.width + LABEL, batch))
    shown = as_learned(draw, tuned)
    curve = train(
        learner(tuned),
        lambda step: shown(step % different),
        lambda logits, labels: F.cross_entropy(logits, labels, label_smoothing=SMOOTHING),
        Schedule(steps, epoch=max(1, steps // 20)),
        device=device,
        threads=threads,
        checkpoint=checkpoint,
        recipe=f"{identity}|{views}|{steps}|{batch}|{seed}",
        on_epoch=lambda done, loss: on_epoch(done, steps, loss),
    )
    truth = kept.targets[held]
    return Tuned(
        network=tuned,
        curve=curve,
        steps=steps,
        images=len(used),
        held_out=len(held),
        right=int((top1_of(tuned, kept.pixels[held]) == truth).sum()),
        right_before=int((top1_of(network, kept.pixels[held]) == truth).sum()),
        quarantined=len(kept.suspicious),
        still_suspicious=int((top1_of(tuned, kept.quarantined) == kept.suspicious).sum()),
    )


def mirrors_harmlessly(network: "nn.Module", kept: Kept) -> bool:
    """Whether mirrored images still are what their labels say, as far as the distilled control can tell.

    Photographs are: 0.99 times as many are right when mirrored; of digits and traffic signs half are. A sign that
    points left is another class when mirrored, so no class may lose most of its images either.
    """
    some = _thinned(np.ones(len(kept.targets), bool), MIRRORED)
    pixels, targets = kept.pixels[some], kept.targets[some]
    right = top1_of(network, pixels) == targets
    mirrored = top1_of(network, np.ascontiguousarray(pixels[:, :, ::-1])) == targets
    if not right.any() or mirrored.sum() < MIRRORED_SHARE * right.sum():
        return False
    before, after = (np.bincount(targets[found], minlength=int(targets.max()) + 1) for found in (right, mirrored))
    return not ((before >= MIRRORED_CLASS) & (after < before / 2)).any()


class _Subset:
    """Rows of a mapped array, fetched as they are asked for: a copy of 8 GiB would be one too many."""

    def __init__(self, pixels: NDArray[np.uint8], index: NDArray[np.int64]) -> None:
        self.pixels, self.index = pixels, index

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        picked: NDArray[np.uint8] = self.pixels[self.index[rows]]
        return picked


def _held_out(n: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    order = generator_of(seed, 7).permutation(n)
    held = max(1, min(round(n * HELD_OUT_SHARE), 2000))
    return np.sort(order[:held]), np.sort(order[held:])


def _thinned(mask: NDArray[np.bool_], limit: int) -> NDArray[np.bool_]:
    """At most `limit` of the true rows, evenly spread."""
    rows = np.flatnonzero(mask)
    if len(rows) <= limit:
        return mask
    thin = np.zeros_like(mask)
    thin[rows[np.linspace(0, len(rows) - 1, limit).astype(np.int64)]] = True
    return thin
