"""What sets a group of candidates apart, as pictures: its mean, what it should look like, the difference."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdaudit.report.candidates import Candidates
from kdaudit.sample import Geometry

MAX_PICTURED = 40
"""Groups with pictures of their own, largest first."""

FLOOR = 6.0
"""Levels of 255 that are added to a standard deviation: a pixel that never varies must not divide by nothing."""


@dataclass(frozen=True, slots=True)
class Pictures:
    """Four WebP images, base64, and how large the difference is.

    Attributes:
        mean: mean of the group's images.
        usual: mean of kept images that get the answers which the control gives to the group.
        difference: mean minus usual; grey is no difference, the largest one black or white.
        steady: where the difference is the same in all images: its size over its spread; bright is steady.
        largest: the largest difference, levels of 255.
        images: images in the group.
        compared: kept images behind `usual`.
    """

    mean: str
    usual: str
    difference: str
    steady: str
    largest: float
    images: int
    compared: int


class Likeness:
    """Sums over the groups of candidates and over the kept images, filled one image at a time."""

    def __init__(self, geometry: Geometry, found: Candidates, clusters: int) -> None:
        """Make room for sums.

        Args:
            geometry: of the images to come.
            found: candidates; images are added by their number in it.
            clusters: number of groups.
        """
        shape = (geometry.height, geometry.width, geometry.channels)
        self._found = found
        self._number = {int(answer): i for i, answer in enumerate(np.unique(found.control))}
        self._kept_sum = np.zeros((len(self._number), *shape))
        self._kept_n = np.zeros(len(self._number), np.int64)
        self._sum = np.zeros((clusters, *shape))
        self._square = np.zeros((clusters, *shape))
        self._answers = np.zeros((clusters, len(self._number)), np.int64)

    def add(self, candidate: int, picture: NDArray[np.uint8]) -> None:
        """Count a candidate's image, uint8 [h, w, C]."""
        cluster = self._found.clusters[candidate]
        pixels = picture.astype(np.float64)
        self._sum[cluster] += pixels
        self._square[cluster] += pixels * pixels
        self._answers[cluster, self._number[int(self._found.control[candidate])]] += 1

    def compare(self, answer: int, picture: NDArray[np.uint8]) -> None:
        """Count a kept image to which the control gives `answer`."""
        self._kept_sum[self._number[answer]] += picture
        self._kept_n[self._number[answer]] += 1

    def of_clusters(self, ids: Sequence[str]) -> dict[str, Pictures]:
        """By cluster id; groups of which no image could be read are left out."""
        made = {name: self._draw([i]) for i, name in enumerate(ids[:MAX_PICTURED])}
        return {name: pictures for name, pictures in made.items() if pictures is not None}

    def of_targets(self, targets: Sequence[int]) -> dict[str, Pictures]:
        """By target answer, over all its groups.

        Args:
            targets: the target of each group.
        """
        distinct = list(dict.fromkeys(targets))[:MAX_PICTURED]
        made = {str(t): self._draw([i for i, of in enumerate(targets) if of == t]) for t in distinct}
        return {name: pictures for name, pictures in made.items() if pictures is not None}

    def _draw(self, clusters: list[int]) -> Pictures | None:
        answers = self._answers[clusters].sum(0)
        n = int(answers.sum())
        if not n:
            return None
        mean = self._sum[clusters].sum(0) / n
        weights = answers * (self._kept_n > 0)
        means = self._kept_sum / np.maximum(self._kept_n, 1)[:, None, None, None]
        if weights.sum():
            usual = np.tensordot(weights / weights.sum(), means, 1)
            compared = int(self._kept_n[weights > 0].sum())
        else:
            usual, compared = mean, 0
        difference = mean - usual
        spread = np.sqrt(np.maximum(self._square[clusters].sum(0) / n - mean * mean, 0))
        steady = (np.abs(difference) / (spread + FLOOR)).mean(-1)
        largest = float(np.abs(difference).max())
        return Pictures(
            mean=_text(mean),
            usual=_text(usual),
            difference=_text(128 + difference * (127 / max(largest, 1e-9)) * (largest > 0)),
            steady=_text(_heat(steady / max(float(steady.max()), 1e-9))),
            largest=round(largest, 1),
            images=n,
            compared=compared,
        )


def encode(pixels: NDArray[np.uint8], quality: int | None) -> bytes:
    """Pixels uint8 [h, w, 1 or 3] as WebP; lossless where `quality` is None."""
    from PIL import Image

    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).convert("RGB")
    buffer = io.BytesIO()
    if quality is None:
        image.save(buffer, "WEBP", lossless=True, quality=60, method=4)
    else:
        image.save(buffer, "WEBP", quality=quality, method=4)
    return buffer.getvalue()


def _text(pixels: NDArray[np.float64]) -> str:
    whole = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    return base64.b64encode(encode(whole, None if whole.size <= 3 * 48 * 48 else 82)).decode()


_HEAT = np.array(
    [(12, 10, 34), (74, 16, 92), (160, 32, 92), (224, 84, 48), (252, 170, 40), (254, 244, 170)], np.float64
)
"""From dark to bright, even in lightness: readable without colour."""


def _heat(share: NDArray[np.float64]) -> NDArray[np.float64]:
    """Numbers 0..1, [h, w], as colours [h, w, 3]."""
    at = np.clip(share, 0, 1) * (len(_HEAT) - 1)
    low = np.minimum(at.astype(int), len(_HEAT) - 2)
    part = (at - low)[..., None]
    return np.asarray(_HEAT[low] * (1 - part) + _HEAT[low + 1] * part)
