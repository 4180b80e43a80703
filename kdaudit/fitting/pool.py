"""The images that candidates are tried on: drawn once, decoded once per geometry."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kdaudit.decoder.header import plain
from kdaudit.errors import DataError
from kdaudit.sample import Decoder, Geometry

MIN_LABELLED = 20
"""Fewer labelled images than this say too little; the labels are then left aside."""

GROUP = 8
"""Images of one class in a row: half of them show its place, the other half prove it."""

HEADERS = 32
"""Images whose size is looked up."""

Pixels = NDArray[np.uint8]


def chosen(
    images: Sequence[bytes], labels: Sequence[int | None] | None, most: int
) -> tuple[list[bytes], list[int] | None]:
    """Up to `most` images in a fixed order, only labelled ones if there are enough of them.

    Unlabelled images come in random order. Labelled ones come in groups of `GROUP` of one class, a group of each
    class before a second one of any: a class order can be learned from several images of few classes, not from
    one image of each.

    Returns:
        The images, and their labels; None instead of labels when there are too few.
    """
    if labels is not None and len(labels) != len(images):
        raise ValueError(f"{len(labels)} labels for {len(images)} images")
    shuffled = np.random.default_rng(0).permutation(len(images)).tolist()
    if labels is not None:
        pairs = [(i, label) for i in shuffled if (label := labels[i]) is not None]
        if len(pairs) >= min(MIN_LABELLED, len(images)) and pairs:
            pairs = _grouped(pairs)[:most]
            return [images[i] for i, _ in pairs], [label for _, label in pairs]
    return [images[i] for i in shuffled[:most]], None


def _grouped(pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """(index, label) pairs in groups of one class; classes in the order in which they first appear."""
    members: dict[int, list[tuple[int, int]]] = {}
    for pair in pairs:
        members.setdefault(pair[1], []).append(pair)
    turns = range(0, max(len(group) for group in members.values()), GROUP)
    return [pair for turn in turns for group in members.values() for pair in group[turn : turn + GROUP]]


class Pool:
    """The images, decoded once per geometry and only as far as a round needs them."""

    def __init__(self, images: list[bytes], decoder: Decoder) -> None:
        self._images = images
        self._decoder = decoder
        self._decoded: dict[Geometry, Pixels] = {}
        self.kept = list(range(len(images)))

    def drop_unreadable(self, geometry: Geometry) -> None:
        """Leave out images that do not decode."""
        pixels, reasons = self._decoder.decode(self._images, geometry)
        self.kept = [i for i, reason in enumerate(reasons) if not reason]
        if not self.kept:
            why = reasons[0] if reasons else "there are none"
            raise DataError(f"none of {len(reasons)} images can be decoded ({why}); check the data set's location")
        self._images = [self._images[i] for i in self.kept]
        self._decoded[geometry] = np.ascontiguousarray(pixels[self.kept])

    def pixels(self, geometry: Geometry, start: int, stop: int) -> Pixels:
        """Decoded images [stop - start, H, W, C]."""
        have = self._decoded.get(geometry)
        done = 0 if have is None else len(have)
        if stop > done:
            more = self._decoder.decode(self._images[done:stop], geometry).pixels
            have = more if have is None else np.concatenate([have, more])
            self._decoded[geometry] = have
        assert have is not None
        return have[start:stop]

    def __len__(self) -> int:
        return len(self._images)

    def sizes(self) -> list[tuple[int, int] | None]:
        """Height and width of each image as its header says; None where the header is unusual."""
        headers = [plain(image) for image in self._images[:HEADERS]]
        return [header.upright if header else None for header in headers]
