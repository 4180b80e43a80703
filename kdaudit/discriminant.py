"""What some images have in common that others have not: Fisher's linear discriminant (1936) on whitened rows.

Arrays in, arrays out. A trigger is the same in every image that carries it; what the images show is not. Whitened by
the covariance of calm images, a trigger that the eye misses stands twenty standard deviations out
(docs/design/detection.md). The direction is cross-fitted: an image is never scored by one that it helped to find.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdaudit.keys import FOLDS
from kdaudit.stretches import stretches

SIDE = 32
"""Images are brought to at most this many pixels a side: a covariance of more pixels than images says nothing."""

LEAST_SEEDS = 20
"""Fewer seeds than this, spread over the folds, give no direction that could be trusted."""

NOISE = 5.0
"""Grey levels of noise that every pixel is granted: constant ones (borders, black ground) must not divide by zero."""

SHARPNESS_NOISE = 2.0
"""The same for sharpness, in units of its logarithm."""

DITHER = 9.0
"""Squared grey levels added to a curvature before its logarithm is taken: rounding alone gives about as much."""

BEHAVIOUR_NOISE = 0.22
"""The same for columns of behaviour, in their standard deviations."""

BLOCK = 1 << 19
"""Bytes of pixels that are made rows at once: what is made of them in between takes up to fourteen times as much."""

PART = 1024
"""Images whose rows are held at once where only their covariance or their score is wanted."""

Pixels = NDArray[np.uint8]
Matrix = NDArray[np.float32]


def appearance(pixels: Pixels) -> Matrix:
    """Images uint8 [n, H, W, C] as rows float32 [n, d]: mean over boxes, at most `SIDE` of them a side."""
    return _by_blocks(lambda part: _boxes(part.astype(np.float32)), pixels)


def reduced(plane: Matrix) -> Matrix:
    """A difference of images float32 [H, W, C] as `appearance` would show it, [d]."""
    row: Matrix = _boxes(plane[None])[0].ravel()
    return row


def sharpness(pixels: Pixels) -> Matrix:
    """Where each image uint8 [n, H, W, C] is sharp and where soft, as rows float32 [n, d].

    The logarithm of the squared Laplacian, over the channels' mean, at each place. What was bent, resampled, quantised
    or dithered shows here, whatever it shows: interpolation between pixels blurs as much as the place lies between
    them, and a warp is the same in every image (resampling traces: Popescu and Farid, IEEE TSP 2005).
    """
    return _by_blocks(_sharp, pixels)


def _by_blocks(rows: Callable[[Pixels], Matrix], pixels: Pixels) -> Matrix:
    """Rows [n, d] of images [n, H, W, C], which may be mapped from a file: a few of them in memory at a time."""
    step = max(1, BLOCK // max(1, int(np.prod(pixels.shape[1:]))))
    head = rows(pixels[:step])
    out = np.empty((len(pixels), int(np.prod(head.shape[1:]))), np.float32)
    out[: len(head)] = head.reshape(len(head), out.shape[1])
    for first in range(step, len(pixels), step):
        part = rows(pixels[first : first + step])
        out[first : first + len(part)] = part.reshape(len(part), out.shape[1])
    return out


def _sharp(pixels: Pixels) -> Matrix:
    padded = np.pad(pixels.astype(np.float32), ((0, 0), (1, 1), (1, 1), (0, 0)), "edge")
    middle = padded[:, 1:-1, 1:-1]
    around = padded[:, 2:, 1:-1] + padded[:, :-2, 1:-1] + padded[:, 1:-1, 2:] + padded[:, 1:-1, :-2]
    energy = ((4 * middle - around) ** 2).mean(axis=-1, keepdims=True)
    logarithms: Matrix = np.log(_boxes(energy) + np.float32(DITHER))
    return logarithms


def _boxes(values: Matrix) -> Matrix:
    """Means over boxes of [n, H, W, C], at most `SIDE` of them a side."""
    for axis in (1, 2):
        length = values.shape[axis]
        if length > SIDE:
            edges = np.linspace(0, length, SIDE + 1).astype(np.int64)
            shape = [1] * 4
            shape[axis] = SIDE
            counts = np.diff(edges).astype(np.float32).reshape(shape)
            values = (np.add.reduceat(values, edges[:-1], axis=axis) / counts).astype(np.float32)
    return values


@dataclass(frozen=True, slots=True, eq=False)
class Discriminant:
    """One direction per fold, found without the images of that fold.

    Attributes:
        center: mean of the calm images, float32 [d].
        directions: float32 [FOLDS, d]; calm images have variance about one along each.
    """

    center: Matrix
    directions: Matrix

    def score(self, rows: Matrix, folds: NDArray[np.uint8]) -> NDArray[np.float32]:
        """How far each image lies towards the seeds, [n], in standard deviations of calm images."""
        found = np.empty(len(rows), np.float32)
        for span in stretches(len(rows), PART):
            everywhere = (rows[span] - self.center) @ self.directions.T
            found[span] = everywhere[np.arange(len(everywhere)), folds[span]]
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Whitening:
    """Mean and covariance of calm images, ready to be divided by.

    Attributes:
        center: float32 [d].
        lower: lower Cholesky factor of the covariance, float32 [d, d], column by column in memory.
    """

    center: Matrix
    lower: Matrix

    @classmethod
    def of(cls, calm: Matrix, noise: float = NOISE) -> "Whitening":
        """From rows float32 [n, d]; few rows lean on an equal share for every direction."""
        center = calm.mean(0)
        rows = calm - center
        return cls.of_scatter(center, rows.T @ rows, len(calm), noise)

    @classmethod
    def of_images(
        cls, pixels: Pixels, chosen: NDArray[np.int64], rows: Callable[[Pixels], Matrix], noise: float = NOISE
    ) -> "Whitening":
        """From the rows of chosen images of uint8 [n, H, W, C], a few at a time: all together they would fill memory.

        Args:
            pixels: images.
            chosen: which of them, one at least.
            rows: makes rows of images.
            noise: granted to every column.
        """
        parts = np.array_split(chosen, -(-len(chosen) // PART))
        center = sum(rows(pixels[part]).sum(0, dtype=np.float64) for part in parts) / len(chosen)
        center = np.asarray(center, np.float32)
        scatter = np.zeros((len(center), len(center)), np.float32)
        for part in parts:
            differences = rows(pixels[part]) - center
            scatter += differences.T @ differences
        return cls.of_scatter(center, scatter, len(chosen), noise)

    @classmethod
    def of_scatter(cls, center: Matrix, scatter: Matrix, images: int, noise: float = NOISE) -> "Whitening":
        """From the sum of squares and products [d, d] of so many images' differences from their center [d]."""
        from scipy.linalg import cholesky

        n, d = images, len(center)
        covariance = scatter / max(1, n)
        # With fewer images than pixels most directions have no variance at all; how much to lend follows from d / n.
        lent = min(1.0, d / max(1, n)) * 0.1 * float(np.trace(covariance)) / d
        covariance[np.diag_indices(d)] += noise**2 + lent
        # In place, and column by column as LAPACK solves with it: of 32 x 32 pixels in colour it has 36 MiB.
        lower = cholesky(covariance.T, lower=True, overwrite_a=True, check_finite=False)
        return cls(center, np.asarray(lower, np.float32))

    def widest(self, rows: Matrix) -> Matrix:
        """The direction [d] along which rows [n, d] spread most; calm images have variance one along it."""
        from scipy.linalg import eigh, solve_triangular

        whitened = solve_triangular(self.lower, rows.T, lower=True, check_finite=False).T
        n, d = rows.shape
        product = whitened @ whitened.T if n < d else whitened.T @ whitened  # the smaller of the two
        _, vectors = eigh(product, subset_by_index=(len(product) - 1, len(product) - 1))
        direction = whitened.T @ vectors[:, 0] if n < d else vectors[:, 0]
        direction /= max(float(np.linalg.norm(direction)), 1e-12)
        found = solve_triangular(self.lower, direction, lower=True, trans="T", check_finite=False)
        return np.asarray(found, np.float32)

    def towards(self, seeds: Matrix, folds: NDArray[np.uint8]) -> Discriminant | None:
        """The discriminant between the seeds and the calm images.

        Args:
            seeds: rows float32 [n, d].
            folds: their folds, uint8 [n].

        Returns:
            None where some fold would be left without seeds.
        """
        if (folds == folds[:1]).all():
            return None
        return self.along([seeds[folds != fold].mean(0) - self.center for fold in range(FOLDS)])

    def along(self, shifts: Sequence[Matrix]) -> Discriminant | None:
        """The discriminant of what differs so from the calm images, [d] a fold; None where some shift is nothing."""
        from scipy.linalg import cho_solve

        differences = np.stack(shifts)
        directions = cho_solve((self.lower, True), differences.T, check_finite=False).T
        lengths = np.sqrt(np.maximum((differences * directions).sum(axis=1, keepdims=True), 0))
        return Discriminant(self.center, (directions / lengths).astype(np.float32)) if (lengths > 0).all() else None
