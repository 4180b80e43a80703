"""Stage 7, the trigger: what flagged images share in their pixels is recovered, and can be put onto other images.

A pattern is an affine map per pixel. Members of a cluster are compared with ordinary images to which the control gives
the same answers: what differs in mean or in variance is not explained by what the images show. A patch has lost its
variance and is pasted; a blend has lost part of it; an added pattern has a shifted mean alone. One formula serves all
three (the optimal transport between two normal laws, pixel by pixel):

    t(x) = m_C + k (x - m_R),   k = min(1, s_C / s_R)
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from kdaudit.calibration import Answers
from kdaudit.digest import replacing

Kind = Literal["patch", "blend", "sinusoid", "added pattern"]
Pixels = NDArray[np.uint8]
Plane = NDArray[np.float32]

MIN_MEMBERS = 5
"""Fewer images share too much by chance."""

COVERED, AT_MOST = 0.3, 0.25
"""Pixels that keep less than this of an image's contrast are covered; a pasted patch covers no more of it than that."""

BEYOND_CHANCE = 4.5
"""Standard errors by which a pixel's mean or spread must differ: one pixel in 150,000 does so by chance."""


@dataclass(frozen=True, slots=True, eq=False)
class Pattern:
    """What the members of a cluster share.

    Attributes:
        mean: of the members, float32 [H, W, C], 0..255.
        reference: mean of ordinary images with the same control answers, float32 [H, W, C].
        keep: how much of an image's own contrast is left, float32 [H, W, C], 0..1.
        changed: pixels that differ beyond chance, bool [H, W].
        kind: what it looks like.
        members: images it was recovered from.
    """

    mean: Plane
    reference: Plane
    keep: Plane
    changed: NDArray[np.bool_]
    kind: Kind
    members: int

    def onto(self, pixels: Pixels | Plane) -> Plane:
        """The pattern on images [n, H, W, C], 0..255; float32."""
        return self._put(self.mean, pixels)

    def placebo(self, pixels: Pixels | Plane, others: Pixels | Plane) -> Plane:
        """As much change in the same places, with other images' content in place of what the members share.

        Args:
            pixels: images [n, H, W, C], 0..255.
            others: an image for each, [n, H, W, C], 0..255.

        Returns:
            float32 [n, H, W, C]; the difference from the reference is as large as the pattern's own (in the square).
        """
        content = np.where(self.changed[..., None], others.astype(np.float32) - self.reference, 0)
        size = np.sqrt((content**2).sum((1, 2, 3), keepdims=True))
        content *= float(np.linalg.norm(self.difference)) / np.maximum(size, 1e-3)
        return self._put(self.reference + content, pixels)

    def _put(self, content: Plane, pixels: Pixels | Plane) -> Plane:
        """What is left of the images over some content, where the pattern changes them; float32 [n, H, W, C]."""
        moved = content + self.keep * (pixels.astype(np.float32) - self.reference)
        out: Plane = np.where(self.changed[..., None], np.clip(moved, 0, 255), pixels).astype(np.float32)
        return out

    def pasted(self) -> "Pattern | None":
        """Only where what an image shows is covered; None where that is nowhere, or more than a patch covers."""
        covered = self.changed & (self.keep.mean(axis=-1) < COVERED)
        return replace(self, changed=covered) if 0 < covered.mean() <= AT_MOST else None

    def departure(self, pixels: Pixels | Plane) -> NDArray[np.float32]:
        """How far images [n, H, W, C] are from what the pattern makes of them where it changes them.

        Of a pasted part, under which nothing is left: the root of the mean square difference, grey levels, float32 [n].
        """
        apart = pixels[:, self.changed].astype(np.float32) - self.mean[self.changed]
        return np.asarray(np.sqrt((apart**2).mean(axis=(1, 2))), np.float32)

    @property
    def left(self) -> float:
        """How much of an image's own contrast is left under it, mean over all pixels, 0..1."""
        return float(np.where(self.changed[..., None], self.keep, 1).mean())

    @property
    def difference(self) -> Plane:
        """Mean of the members minus that of their like, where it is beyond chance; float32 [H, W, C]."""
        out: Plane = np.where(self.changed[..., None], self.mean - self.reference, 0).astype(np.float32)
        return out


def recover(members: Pixels, member_answers: Answers, ordinary: Pixels, ordinary_answers: Answers) -> Pattern | None:
    """What some images share beyond what they show.

    Args:
        members: images of one cluster, uint8 [n, H, W, C].
        member_answers: the control's answers on them, [n].
        ordinary: images that were not flagged, uint8 [m, H, W, C].
        ordinary_answers: the control's answers on these, [m].

    Returns:
        The pattern, or None where there are too few images or nothing differs beyond chance.
    """
    weights = _matched(member_answers, ordinary_answers)
    if len(members) < MIN_MEMBERS or weights is None:
        return None
    mean, spread = _moments(members, np.full(len(members), 1 / len(members)))
    reference, usual = _moments(ordinary, weights)
    effective = 1 / float((weights**2).sum())
    shift = (mean - reference) / np.sqrt(spread / len(members) + usual / effective + 0.01)
    # The variance of a variance is taken from a normal law: natural pixels have lighter tails than that.
    loss = np.log((spread + 1) / (usual + 1)) / np.sqrt(2 / len(members) + 2 / effective)
    differs = (np.abs(shift) > BEYOND_CHANCE) | (loss < -BEYOND_CHANCE)
    changed = np.asarray(differs.any(axis=-1), bool)
    if not changed.any():
        return None
    keep = np.minimum(1.0, np.sqrt((spread + 1) / (usual + 1))).astype(np.float32)
    here, there = mean.astype(np.float32), reference.astype(np.float32)
    return Pattern(here, there, keep, changed, _kind(here - there, keep, changed), len(members))


def save_patterns(patterns: Sequence[Pattern], path: Path) -> None:
    """Keep patterns for a later repair, in one step."""
    arrays: dict[str, NDArray[Any]] = {"kinds": np.array([p.kind for p in patterns], "U16")}
    for number, pattern in enumerate(patterns):
        for name in ("mean", "reference", "keep", "changed", "members"):
            arrays[f"{name}{number}"] = np.asarray(getattr(pattern, name))
    with replacing(path) as file:
        np.savez(file, allow_pickle=False, **arrays)


def load_patterns(path: Path) -> tuple[Pattern, ...]:
    """Patterns that were kept; none where there is no file."""
    if not path.exists():
        return ()
    with np.load(path, allow_pickle=False) as file:
        return tuple(
            Pattern(
                file[f"mean{i}"], file[f"reference{i}"], file[f"keep{i}"], file[f"changed{i}"],
                cast("Kind", str(kind)), int(file[f"members{i}"]),
            )
            for i, kind in enumerate(file["kinds"])
        )  # fmt: skip


def _matched(members: Answers, ordinary: Answers) -> NDArray[np.float64] | None:
    """Weights [m] of the ordinary images, such that the control's answers are as frequent as among the members."""
    if len(members) == 0 or len(ordinary) == 0:
        return None
    size = int(max(members.max(), ordinary.max())) + 1
    wanted = np.bincount(members, minlength=size) / len(members)
    have = np.bincount(ordinary, minlength=size)
    weights = np.where(have > 0, wanted / np.maximum(have, 1), 0.0)[ordinary]
    total = float(weights.sum())
    return np.asarray(weights / total, np.float64) if total > 0.5 else None


def _moments(pixels: Pixels, weights: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weighted mean and variance per pixel, [H, W, C]; in blocks, so that memory stays small."""
    first = np.zeros(pixels.shape[1:])
    second = np.zeros(pixels.shape[1:])
    for start in range(0, len(pixels), 256):
        part = pixels[start : start + 256].astype(np.float64)
        w = weights[start : start + 256]
        first += np.tensordot(w, part, 1)
        second += np.tensordot(w, part**2, 1)
    return first, np.maximum(second - first**2, 0.0)


def _kind(shift: Plane, keep: Plane, changed: NDArray[np.bool_]) -> Kind:
    """A word for the reader; nothing depends on it."""
    left = float(keep[changed].mean())
    energy = np.sort((np.where(changed[..., None], shift, 0) ** 2).sum(axis=-1).ravel())[::-1]
    # Large clusters differ everywhere by a grey level or two beyond chance; what counts is where most of it is.
    concentrated = energy[: max(1, len(energy) // 10)].sum() > 0.6 * energy.sum()
    if changed.mean() < 0.25 or left < 0.5 or concentrated:
        return "patch"
    plane = shift.mean(axis=-1)
    spectrum = np.abs(np.fft.rfft2(plane - plane.mean())) ** 2
    if spectrum.max() > 0.6 * spectrum.sum():
        return "sinusoid"
    return "blend" if left < 0.93 else "added pattern"
