"""Interventions: an image and a clean partner in one picture, blended or side by side.

A trigger carries over for the teacher alone; a real feature carries over for both networks and cancels; the picture is
new to both, so what the teacher remembers of its training images drops out (docs/design/detection.md).

- `blend-a`: b = a x + (1 - a) c. Keeps what is spread over the whole image: sinusoids, blended pictures.
- `cut-s`: a box of the partner covers the share s of the image (CutMix, Yun et al., 2019). Keeps a patch as it is.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdaudit.preprocess import Preprocess
from kdaudit.session import Session

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class InterventionPlan:
    """What each image goes through.

    Attributes:
        steps: `blend-a` or `cut-s`, a and s in 0..1; each with a partner of its own. None: the cheap pass, in which
            each image is looked at as it is and nothing else is asked, no perturbed view either.
        above: images on which the two networks part less than this as they are (Jensen-Shannon, nats) are not
            intervened on; None: all are, and go through perturbed views as well.
        seed: of the choice of partners and boxes; with the image's digest it decides, so that the order, the format
            or the batch in which an image comes never changes its row.
    """

    steps: tuple[str, ...]
    seed: int = 0
    above: float | None = None

    @property
    def throughout(self) -> bool:
        """Whether every image goes through everything, perturbed views among it."""
        return bool(self.steps) and self.above is None

    @property
    def recipe(self) -> str:
        """Names everything that shapes the divergence score."""
        return f"js-{'+'.join(self.steps)}-seed{self.seed}" + ("" if self.above is None else f"-above{self.above:.9g}")


def parse_step(step: str) -> tuple[str, float]:
    """Kind and strength of a step, as the settings admit them."""
    kind, _, strength = step.partition("-")
    return kind, float(strength)


@dataclass(frozen=True, slots=True)
class Partners:
    """The clean images to blend with, sorted by the teacher's answer so that one answer is easily left out.

    Attributes:
        pixels: uint8 [n, H, W, C], distillation images, never calibration images.
        starts: int64 [K + 1]; images of answer k stand at starts[k]:starts[k + 1].
    """

    pixels: Pixels
    starts: NDArray[np.int64]

    @classmethod
    def of(cls, pixels: Pixels, teacher: Session, preprocess: Preprocess, batch: int = 64) -> "Partners":
        """Ask the teacher about the images and sort them by its answer."""
        parts = [teacher.logits(preprocess.apply(pixels[i : i + batch])) for i in range(0, len(pixels), batch)]
        answers = np.concatenate(parts).argmax(1)
        order = np.argsort(answers, kind="stable")
        counts = np.bincount(answers, minlength=teacher.signature.classes)
        return cls(pixels[order], np.concatenate([[0], np.cumsum(counts)]))

    def choose(self, keys: NDArray[np.uint64], answers: NDArray[np.int64], draw: int) -> Pixels:
        """One partner for each image, never one that the teacher gives the same answer.

        Args:
            keys: uint64 [B], from the images' digests.
            answers: int64 [B], the teacher's answers on the images.
            draw: which draw this is; other numbers give other partners.
        """
        start, stop = self.starts[answers], self.starts[answers + 1]
        eligible = len(self.pixels) - (stop - start)
        # Where every clean image has the same answer there is no other partner to be had: take any.
        nothing_left = eligible == 0
        size = np.where(nothing_left, len(self.pixels), eligible)
        index = (_mixed(keys, draw) % size.astype(np.uint64)).astype(np.int64)
        index += np.where((index >= start) & ~nothing_left, stop - start, 0)
        return self.pixels[index]


def intervened(
    pixels: Pixels, answers: NDArray[np.int64], keys: NDArray[np.uint64], partners: Partners, plan: InterventionPlan
) -> Iterator[Pixels | NDArray[np.float32]]:
    """The images after each step of the plan, one batch [B, H, W, C] in 0..255 per step: blends float32, cuts uint8.

    Args:
        pixels: uint8 [B, H, W, C].
        answers: the teacher's answers on the images, int64 [B].
        keys: from the images' digests, uint64 [B].
        partners: the clean images.
        plan: which steps.
    """
    B, H, W, C = pixels.shape
    for number, step in enumerate(plan.steps):
        kind, strength = parse_step(step)
        draw = plan.seed * 1009 + number
        others = partners.choose(keys, answers, draw)
        if kind == "blend":
            blend = np.multiply(pixels, np.float32(strength), dtype=np.float32)
            blend += np.multiply(others, np.float32(1 - strength), dtype=np.float32)
            yield blend
        else:
            rows, columns = _boxes(keys, draw, strength, H, W)
            # Whole rows at a time: numpy is slow where the innermost side is three channels long.
            inside = rows[:, :, None] & np.repeat(columns, C, axis=1)[:, None]
            yield np.where(inside, others.reshape(B, H, W * C), pixels.reshape(B, H, W * C)).reshape(B, H, W, C)


NOISE_LEVEL, BLUR_WIDTH = 10.0, 0.7
"""Standard deviations of the perturbations: noise in grey levels, blur in pixels."""


def perturbed(pixels: Pixels) -> Iterator[NDArray[np.float32]]:
    """The images with a little noise, then with a little blur, float32 [B, H, W, C] in 0..255.

    What the eye does not notice, a fragile trigger does: warps and quantisation do not survive it, and the teacher's
    answer goes with them while the control's stays. The noise is one and the same field for all images, so that a row
    depends on its image alone.
    """
    from scipy.ndimage import gaussian_filter

    own = pixels.astype(np.float32)
    noisy = own + _noise(*pixels.shape[1:])
    yield np.clip(noisy, 0, 255, out=noisy)
    yield np.asarray(gaussian_filter(own, (0, BLUR_WIDTH, BLUR_WIDTH, 0), mode="nearest"), np.float32)


@functools.lru_cache(maxsize=2)
def _noise(height: int, width: int, channels: int) -> NDArray[np.float32]:
    """The noise field, float32 [H, W, C]; drawn once, since drawing costs more than adding."""
    field = np.random.default_rng(0).normal(0, NOISE_LEVEL, (height, width, channels)).astype(np.float32)
    field.flags.writeable = False
    return field


def _boxes(
    keys: NDArray[np.uint64], draw: int, share: float, height: int, width: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """A box each, of the image's own proportions, that covers `share` of it: its rows [B, H] and columns [B, W]."""
    tall, wide = round(height * share**0.5), round(width * share**0.5)
    # Other draws than those of the partners, or place and partner would go together.
    top = (_mixed(keys, draw + 500_009) % np.uint64(height - tall + 1)).astype(np.int64)[:, None]
    left = (_mixed(keys, draw + 700_001) % np.uint64(width - wide + 1)).astype(np.int64)[:, None]
    rows, columns = np.arange(height), np.arange(width)
    return (rows >= top) & (rows < top + tall), (columns >= left) & (columns < left + wide)


def _mixed(keys: NDArray[np.uint64], draw: int) -> NDArray[np.uint64]:
    """SplitMix64 of key and draw: evenly spread, the same on every machine (Steele et al., 2014)."""
    with np.errstate(over="ignore"):
        z = keys + np.uint64(0x9E3779B97F4A7C15) * np.uint64(draw + 1)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
