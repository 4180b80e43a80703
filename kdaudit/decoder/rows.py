"""Collects the images of one batch as they are decoded, and resizes them together where it can."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from kdaudit.decoder.header import MAX_PIXELS
from kdaudit.decoder.resize import luma, plan, resize
from kdaudit.sample import Decoded, Geometry

Outcome = NDArray[np.uint8] | str
"""A decoded image, [h, w, 3], or the reason why there is none."""

# Decoded images wait for others of their size until this much memory is held.
_PENDING_BYTES = 64 << 20

T = TypeVar("T")
R = TypeVar("R")


class Rows:
    """A batch being filled. Not thread-safe: each call of `decode` makes its own."""

    def __init__(self, count: int, geometry: Geometry) -> None:
        self._geometry = geometry
        self._pixels = np.zeros((count, geometry.height, geometry.width, 3), np.uint8)
        self._reasons = [""] * count
        self._pending: dict[tuple[int, int], list[tuple[int, NDArray[np.uint8]]]] = {}
        self._held = 0

    def put(self, index: int, outcome: Outcome) -> None:
        """Take an upright RGB image of any size, or the reason why it cannot be had."""
        if isinstance(outcome, str):
            self._reasons[index] = outcome
            return
        height, width, _ = outcome.shape
        if (height, width) == (self._geometry.height, self._geometry.width):
            self._pixels[index] = outcome
            return
        to = plan(height, width, self._geometry)
        if to.height * to.width > MAX_PIXELS:  # "crop" of a very long, thin image
            self._reasons[index] = too_large()
            return
        self._pending.setdefault((height, width), []).append((index, outcome))
        self._held += 3 * max(height * width, to.height * to.width)
        if self._held > _PENDING_BYTES:
            self._flush()

    def done(self) -> Decoded:
        """Resize what is left and hand the batch over."""
        self._flush()
        pixels = luma(self._pixels) if self._geometry.channels == 1 else self._pixels
        return Decoded(pixels, tuple(self._reasons))

    def _flush(self) -> None:
        for group in self._pending.values():
            indices = [index for index, _ in group]
            first = group[0][1]
            # torch wants memory that it may write to; a lone image that is so needs no copy.
            alone = len(group) == 1 and first.flags.writeable and first.flags.c_contiguous
            images = first[None] if alone else np.stack([image for _, image in group])
            self._pixels[indices] = resize(images, self._geometry)
        self._pending.clear()
        self._held = 0


def too_large() -> str:
    """Give the reason for an image that is over the cap."""
    return f"more than {MAX_PIXELS // 1_000_000} megapixels"


def each(function: Callable[[T], R], items: Sequence[T], threads: int) -> Iterator[R]:
    """Map in order over `threads` threads, never more than a few results ahead of the consumer."""
    if threads == 1 or len(items) < 2:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(threads) as pool:
        ahead: deque[Future[R]] = deque()
        for item in items:
            ahead.append(pool.submit(function, item))
            if len(ahead) > 2 * threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
