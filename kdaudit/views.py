"""Augmented views of clean images, drawn by step number: the same view goes to teacher and control.

Many distinct views are worth ten times the images (docs/design/distillation.md). Only clean images are mixed with
clean images: a suspect or synthetic image in a mixture can carry a trigger into the control.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Pixels = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ViewRecipe:
    """Which changes a view may have.

    Attributes:
        shift: largest translation, as a share of each side; edges are repeated.
        flip: mirror left and right in half of the views; right only where left and right do not matter.
        mix: share of views that are mixtures of two images (mixup, Zhang et al., 2018), weights uniform in 0..1.
        zoom: largest relative change of scale, for images that were photographs rather than icons.
    """

    shift: float = 0.11
    flip: bool = False
    mix: float = 0.6
    zoom: float = 0.0


ICON_SIDE = 64
"""Up to this many pixels an image shows its object at one size; larger ones are photographs, which views may zoom."""


def zoom_for(height: int, width: int) -> float:
    """The zoom of views of images of this size."""
    return 0.3 if max(height, width) > ICON_SIDE else 0.0


def generator_of(seed: int, *keys: int) -> np.random.Generator:
    """A generator that depends on the seed and the keys alone: step 700 draws the same after a resume."""
    return np.random.default_rng(np.random.SeedSequence(entropy=seed, spawn_key=keys))


def shifted(pixels: Pixels, shift: float, generator: np.random.Generator) -> Pixels:
    """Translate each image [B, H, W, C] by its own random whole number of pixels."""
    batch, height, width, _ = pixels.shape
    reach_y, reach_x = round(shift * height), round(shift * width)
    if reach_y == reach_x == 0:
        return pixels
    dy = generator.integers(-reach_y, reach_y + 1, (batch, 1))
    dx = generator.integers(-reach_x, reach_x + 1, (batch, 1))
    rows = np.clip(np.arange(height) + dy, 0, height - 1)
    columns = np.clip(np.arange(width) + dx, 0, width - 1)
    moved: Pixels = pixels[np.arange(batch)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return moved


def flipped(pixels: Pixels, generator: np.random.Generator) -> Pixels:
    """Mirror a random half of the images [B, H, W, C]."""
    turn = generator.random(len(pixels)) < 0.5
    return np.where(turn[:, None, None, None], pixels[:, :, ::-1], pixels)


def zoomed(pixels: Pixels, zoom: float, generator: np.random.Generator) -> Pixels:
    """Scale the whole batch by one random factor in 1..1+zoom (bilinear) and cut a random window."""
    import torch
    import torch.nn.functional as F

    _, height, width, _ = pixels.shape
    factor = 1 + zoom * generator.random()
    size = (max(height, round(height * factor)), max(width, round(width * factor)))
    y = int(generator.integers(0, size[0] - height + 1))
    x = int(generator.integers(0, size[1] - width + 1))
    planes = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
    larger = F.interpolate(planes, size=size, mode="bilinear", align_corners=False)
    window: Pixels = larger[:, :, y : y + height, x : x + width].permute(0, 2, 3, 1).contiguous().numpy()
    return window


class Rows(Protocol):
    """Images that can be fetched by position: an array uint8 [n, H, W, C], or something that picks from one."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: NDArray[np.int64], /) -> NDArray[np.uint8]: ...


class Views(NamedTuple):
    """The views of one training step."""

    order: NDArray[np.int64]  # [batch], which image each view (its first part, if mixed) was made from
    partners: NDArray[np.int64]  # [batch], which image its second part was made from
    pixels: Pixels  # [batch, H, W, C] in 0..255
    weight: NDArray[np.float32]  # [batch], the first part's share of the mixture; 1: not mixed


def to_planes(pixels: NDArray[np.float32] | NDArray[np.uint8]) -> "Tensor":
    """Pixels [B, H, W, C], 0..255, as the control's input: float32 [B, C, H, W] in 0..1."""
    import torch

    # Not div_: for one channel the transposed array is contiguous already and is the caller's own memory.
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32)) / 255


def draw_views(images: Rows, batch: int, recipe: ViewRecipe, seed: int, step: int) -> Views:
    """The views of one training step.

    Args:
        images: clean images, n of them.
        batch: number of views.
        recipe: which changes.
        seed: of the run.
        step: 0-based; the views depend on (seed, step) and nothing else.
    """
    generator = generator_of(seed, 1, step)
    # Walking through fresh permutations shows every image equally often; drawing with replacement would not.
    order = _walk(len(images), batch, seed, step)
    first = _changed(images[order].astype(np.float32), recipe, generator)
    if recipe.mix <= 0:
        return Views(order, order, first, np.ones(batch, np.float32))
    partners = generator.integers(0, len(images), batch)
    second = _changed(images[partners].astype(np.float32), recipe, generator)
    weight = generator.random(batch).astype(np.float32)
    weight[generator.random(batch) >= recipe.mix] = 1.0
    w = weight[:, None, None, None]
    return Views(order, partners, w * first + (1 - w) * second, weight)


def _changed(pixels: Pixels, recipe: ViewRecipe, generator: np.random.Generator) -> Pixels:
    pixels = shifted(pixels, recipe.shift, generator)
    if recipe.flip:
        pixels = flipped(pixels, generator)
    if recipe.zoom > 0:
        pixels = zoomed(pixels, recipe.zoom, generator)
    return pixels


def _walk(n: int, batch: int, seed: int, step: int) -> NDArray[np.int64]:
    """Indices of one step in an endless row of permutations of range(n)."""
    positions = np.arange(step * batch, (step + 1) * batch)
    rounds = positions // n
    index = np.empty(batch, np.int64)
    for which in np.unique(rounds):
        here = rounds == which
        index[here] = generator_of(seed, 0, int(which)).permutation(n)[positions[here] % n]
    return index
