"""Interventions: blends of an image with clean partners, b = a x + (1 - a) c.

A trigger carries over for the teacher alone; a real feature carries over for both networks and cancels; a blend is
new to both, so what the teacher remembers of its training images drops out (docs/design/detection.md).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdaudit.preprocess import Preprocess
from kdaudit.session import Session

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class InterventionPlan:
    """Which blends each image goes through.

    Attributes:
        strengths: the image's own weight a, one blend per strength and partner, each in 0..1.
        partners: clean partners per strength.
        seed: of the choice of partners; with the image's digest it decides, so that the order, the format or
            the batch in which an image comes never changes its row.
    """

    strengths: tuple[float, ...] = (0.8, 0.65, 0.5)
    partners: int = 2
    seed: int = 0

    @property
    def recipe(self) -> str:
        """Names everything that shapes the divergence score."""
        strengths = "+".join(f"{a:g}" for a in self.strengths)
        return f"js-blend-{strengths}-x{self.partners}-seed{self.seed}"


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


def blends(
    pixels: Pixels, answers: NDArray[np.int64], keys: NDArray[np.uint64], partners: Partners, plan: InterventionPlan
) -> Iterator[NDArray[np.float32]]:
    """The blends of some images, one batch float32 [B, H, W, C] in 0..255 per strength and partner.

    Args:
        pixels: uint8 [B, H, W, C].
        answers: the teacher's answers on the images, int64 [B].
        keys: from the images' digests, uint64 [B].
        partners: the clean images to blend with.
        plan: which blends.
    """
    for number in range(plan.partners * len(plan.strengths)):
        strength = np.float32(plan.strengths[number % len(plan.strengths)])
        others = partners.choose(keys, answers, plan.seed * 1009 + number)
        yield strength * pixels.astype(np.float32) + (1 - strength) * others.astype(np.float32)


def keys_of(ids: Sequence[str]) -> NDArray[np.uint64]:
    """A number from each id's content digest, uint64 [n]: the same image draws the same partners everywhere."""
    return np.array([int(i[:16], 16) for i in ids], np.uint64)


def _mixed(keys: NDArray[np.uint64], draw: int) -> NDArray[np.uint64]:
    """SplitMix64 of key and draw: evenly spread, the same on every machine (Steele et al., 2014)."""
    with np.errstate(over="ignore"):
        z = keys + np.uint64(0x9E3779B97F4A7C15) * np.uint64(draw + 1)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
