"""Stage 2, the clean half: trusted, unlabelled images, decoded once and split into parts that never mix."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdaudit.digest import content_digest
from kdaudit.sample import Decoder, Geometry, Source, Status
from kdaudit.source import Survey

VALIDATION_SHARE = 0.1
CALIBRATION_SHARE = 0.3
MIN_POOL = 100
"""Below this many clean images there is nothing left to calibrate on once a control has been distilled."""


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """The clean images.

    Attributes:
        ids: sample ids, in an order that depends on the images and the seed alone.
        pixels: uint8 [n, H, W, C], in memory or mapped from a file.
        shared: images left out because the suspect set holds them too.
        repeated: images left out because the pool holds them twice.
        unreadable: images that could not be read or decoded.
        unused: readable images beyond the limit.
    """

    ids: tuple[str, ...]
    pixels: NDArray[np.uint8]
    shared: int
    repeated: int
    unreadable: int
    unused: int

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """The pool in three disjoint parts: positions in the pool, int64.

    Attributes:
        distillation: trained on, and the source of partners.
        validation: measures the fidelity of a control as it is distilled; the audit measures it on all held-out images.
        calibration: never trained on, never looked at for a choice.
    """

    distillation: NDArray[np.int64]
    validation: NDArray[np.int64]
    calibration: NDArray[np.int64]

    @property
    def held_out(self) -> NDArray[np.int64]:
        """Images that nothing was trained on: the yardstick. Nothing is chosen by the validation images either."""
        return np.sort(np.concatenate([self.validation, self.calibration]))


def read_pool(
    source: Source,
    suspect: Survey,
    decoder: Decoder,
    geometry: Geometry,
    *,
    limit: int,
    seed: int,
    cache: Path | None = None,
    on_image: Callable[[int], None] = lambda _n: None,
) -> Pool:
    """Decode the clean pool.

    Args:
        source: the clean images; labels are not looked at.
        suspect: survey of the suspect set: images that it holds too are not clean.
        decoder: bytes to pixels.
        geometry: what the teacher wants.
        limit: images kept at most; which ones depends on their digests and the seed, not on their order.
        seed: of that choice.
        cache: file to map the pixels from, so that a large pool need not fit in memory; None: in memory.
        on_image: told the number of images since the last call.
    """
    chosen, shared, repeated, unreadable, total = _choose(source, suspect, limit, seed)
    shape = (len(chosen), geometry.height, geometry.width, geometry.channels)
    pixels: NDArray[np.uint8]
    if cache is None:
        pixels = np.empty(shape, np.uint8)
    else:
        pixels = np.lib.format.open_memmap(cache, mode="w+", dtype=np.uint8, shape=shape)
    ids = [""] * len(chosen)
    waiting: list[tuple[int, bytes]] = []

    def decode() -> None:
        decoded = decoder.decode([data for _, data in waiting], geometry)
        for (row, _), picture, reason in zip(waiting, decoded.pixels, decoded.reasons, strict=True):
            if reason:
                ids[row] = ""
            else:
                pixels[row] = picture
        on_image(len(waiting))
        waiting.clear()

    for record in source.records():
        row = chosen.get(content_digest(record.data)) if record.status is Status.READ else None
        if row is None or ids[row]:
            continue
        ids[row] = record.id
        waiting.append((row, record.data))
        if len(waiting) == 64:
            decode()
    if waiting:
        decode()
    kept = [row for row, i in enumerate(ids) if i]
    for row, old in enumerate(kept):  # closed up in place: a copy of a mapped pool would not fit in memory
        if row != old:
            pixels[row] = pixels[old]
    return Pool(
        ids=tuple(i for i in ids if i),
        pixels=pixels[: len(kept)],
        shared=shared,
        repeated=repeated,
        unreadable=unreadable + len(ids) - len(kept),
        unused=total - len(chosen),
    )


def split(pool: Pool, seed: int) -> Split:
    """Split a pool by the images' digests and the seed.

    Each image's part depends on nothing else, so a control that was distilled earlier, on this pool or a smaller
    one, has never seen what is calibrated on now.
    """
    salt = b"split" + seed.to_bytes(8, "little")
    draws = np.array([int.from_bytes(content_digest(salt + i[:32].encode())[:8], "little") / 2**64 for i in pool.ids])
    calibration = draws < CALIBRATION_SHARE
    validation = ~calibration & (draws < CALIBRATION_SHARE + VALIDATION_SHARE)
    return Split(
        distillation=np.flatnonzero(~calibration & ~validation),
        validation=np.flatnonzero(validation),
        calibration=np.flatnonzero(calibration),
    )


def _choose(source: Source, suspect: Survey, limit: int, seed: int) -> tuple[dict[bytes, int], int, int, int, int]:
    """Digest -> row of the images to keep, and how many were shared, repeated, unreadable, and eligible."""
    salt = seed.to_bytes(8, "little")
    rank: dict[bytes, bytes] = {}
    shared = repeated = unreadable = 0
    for record in source.records():
        if record.status is not Status.READ:
            unreadable += 1
            continue
        digest = content_digest(record.data)
        if suspect.holds(digest):
            shared += 1
        elif digest in rank:
            repeated += 1
        else:
            rank[digest] = content_digest(salt + digest)
    ordered = sorted(rank, key=rank.__getitem__)
    return (
        {digest: row for row, digest in enumerate(ordered[:limit])},
        shared,
        repeated,
        unreadable,
        len(ordered),
    )
