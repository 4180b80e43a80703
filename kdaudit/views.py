"""Augmented views of clean images, drawn by step number: the same view goes to teacher and control.

Many distinct views are worth ten times the images (docs/design/distillation.md). Only clean images are mixed with
clean images: a suspect or synthetic image in a mixture can carry a trigger into the control.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Pixels = NDArray[np.float32]

VALUES_AT_ONCE = 1 << 20
"""Numbers that are moved and mixed together: they stay in a cache, and their memory is used again for the next ones (at
224 px, taking it anew from the system for a whole batch was most of the work)."""


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


def is_photograph(height: int, width: int) -> bool:
    """Whether images of this size are taken for photographs rather than icons."""
    return max(height, width) > ICON_SIDE


def zoom_for(height: int, width: int) -> float:
    """The zoom of views of images of this size."""
    return 0.3 if is_photograph(height, width) else 0.0


def generator_of(seed: int, *keys: int) -> np.random.Generator:
    """A generator that depends on the seed and the keys alone: step 700 draws the same after a resume."""
    return np.random.default_rng(np.random.SeedSequence(entropy=seed, spawn_key=keys))


class Moves(NamedTuple):
    """How the images of one step are moved; drawn for all of them before any is touched."""

    down: NDArray[np.int64]  # [batch], pixels from which each row is taken further down
    right: NDArray[np.int64]  # [batch], the same for columns
    turned: NDArray[np.bool_]  # [batch], mirrored left and right
    scaled: tuple[int, int]  # height and width that all of them are brought to
    corner: tuple[int, int]  # where in that the window of the old size begins, y and x


def draw_moves(recipe: ViewRecipe, batch: int, size: tuple[int, int], generator: np.random.Generator) -> Moves:
    """Draw what happens to a batch of images of a size: each is moved by itself, all are scaled by one factor."""
    height, width = size
    reach_y, reach_x = round(recipe.shift * height), round(recipe.shift * width)
    down = right = np.zeros(batch, np.int64)
    if reach_y or reach_x:
        down = generator.integers(-reach_y, reach_y + 1, batch)
        right = generator.integers(-reach_x, reach_x + 1, batch)
    turned = generator.random(batch) < 0.5 if recipe.flip else np.zeros(batch, bool)
    if recipe.zoom <= 0:
        return Moves(down, right, turned, size, (0, 0))
    factor = 1 + recipe.zoom * generator.random()
    scaled = (max(height, round(height * factor)), max(width, round(width * factor)))
    y, x = (int(generator.integers(0, big - side + 1)) for big, side in zip(scaled, size, strict=True))
    return Moves(down, right, turned, scaled, (y, x))


def moved(pixels: NDArray[np.uint8] | Pixels, moves: Moves, first: int = 0) -> Pixels:
    """Move images [B, H, W, C] as was drawn for them; edges are repeated, scaling is bilinear.

    Args:
        pixels: some of the batch, in its order.
        moves: what was drawn for the whole batch.
        first: which of the batch the first one is.
    """
    some = slice(first, first + len(pixels))
    here = _shifted(pixels, moves.down[some], moves.right[some])
    there = here.astype(np.float32)
    turned = moves.turned[some]
    there[turned] = here[turned][:, :, ::-1]
    return there if moves.scaled == pixels.shape[1:3] else _window(there, moves)


def _shifted(pixels: NDArray[Any], down: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[Any]:
    """Images [B, H, W, C], the rows and columns of each taken from so many pixels further on."""
    y, x = int(np.abs(down).max()), int(np.abs(right).max())
    if y == x == 0:
        return pixels
    # All in a few calls: a loop over the images would hold the lock that the thread which learns is waiting for.
    wide = np.pad(pixels, ((0, 0), (y, y), (x, x), (0, 0)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(wide, pixels.shape[1:], (1, 2, 3))
    taken: NDArray[Any] = windows[np.arange(len(pixels)), y + down, x + right, 0]
    return taken


def _window(pixels: Pixels, moves: Moves) -> Pixels:
    import torch
    import torch.nn.functional as F

    _, height, width, _ = pixels.shape
    y, x = moves.corner
    planes = torch.from_numpy(pixels.transpose(0, 3, 1, 2))
    larger = F.interpolate(planes, size=moves.scaled, mode="bilinear", align_corners=False)
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
    shape = images[order[:1]].shape[1:]
    moves = draw_moves(recipe, batch, (shape[0], shape[1]), generator)
    parts = [(order, moves)]
    partners, weight = order, np.ones(batch, np.float32)
    if recipe.mix > 0:
        partners = generator.integers(0, len(images), batch)
        parts.append((partners, draw_moves(recipe, batch, (shape[0], shape[1]), generator)))
        weight = generator.random(batch).astype(np.float32)
        weight[generator.random(batch) >= recipe.mix] = 1.0
    views = np.empty((batch, *shape), np.float32)
    few = max(1, VALUES_AT_ONCE // views[0].size)
    for first in range(0, batch, few):
        some = slice(first, first + few)
        one, *other = (moved(images[index[some]], to, first) for index, to in parts)
        if other:
            share = weight[some, None, None, None]
            one *= share
            one += (1 - share) * other[0]
        views[some] = one
    return Views(order, partners, views, weight)


def _walk(n: int, batch: int, seed: int, step: int) -> NDArray[np.int64]:
    """Indices of one step in an endless row of permutations of range(n)."""
    positions = np.arange(step * batch, (step + 1) * batch)
    rounds = positions // n
    index = np.empty(batch, np.int64)
    for which in np.unique(rounds):
        here = rounds == which
        index[here] = generator_of(seed, 0, int(which)).permutation(n)[positions[here] % n]
    return index
