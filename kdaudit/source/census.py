"""A survey: what a source holds, counted in one pass, and the digests that prove two sources disjoint."""

import hashlib
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from kdaudit.digest import DIGEST_BYTES, content_digest
from kdaudit.sample import Source, Status

Digests = NDArray[np.uint64]
"""Content digests, [N, 2]: first and second half of each as big-endian numbers, sorted by row.

Not numpy's "S16": that drops trailing zero bytes, and two digests could become one.
"""


@dataclass(frozen=True, slots=True, eq=False)
class Survey:
    """What a source holds.

    Attributes:
        count: records; `read + unreadable + skipped`.
        read: records whose bytes were read.
        unreadable: records that could not be read.
        skipped: records that were not tried.
        label_counts: READ records per class, int64 [K]; None when the source has no classes.
        unlabelled: READ records without a label.
        digests: digests of the READ contents, each once, sorted, uint64 [N, 2] (see `Digests`); none once `counted`.
        duplicates: READ records whose content stood before, `read - len(digests)`.
        contents: SHA-256 of the digests, hexadecimal: names what was read, in whatever order.
        unopened: records that stand for images of unknown number each (`Record.many`).
        aside: of the skipped ones, those that are no images by name and by content (`Record.aside`).
    """

    count: int
    read: int
    unreadable: int
    skipped: int
    label_counts: NDArray[np.int64] | None
    unlabelled: int
    digests: Digests
    duplicates: int
    contents: str
    unopened: int = 0
    aside: int = 0

    @property
    def images(self) -> int:
        """Records that are images, as far as anyone can tell: what a coverage is a share of."""
        return self.count - self.aside

    @property
    def counted(self) -> "Survey":
        """The counts without the digests, which are 16 bytes an image."""
        return replace(self, digests=np.empty((0, 2), np.uint64))

    def holds(self, digest: bytes) -> bool:
        """Whether an image with this content digest was read; O(log N)."""
        first, second = pack_digests(digest)[0]
        low = np.searchsorted(self.digests[:, 0], first, side="left")
        high = np.searchsorted(self.digests[:, 0], first, side="right")
        return bool((self.digests[low:high, 1] == second).any())


def survey(source: Source) -> Survey:
    """Read a source from front to back, keeping 16 bytes an image."""
    tally = dict.fromkeys(Status, 0)
    label_counts = None if source.classes is None else np.zeros(len(source.classes), np.int64)
    unlabelled = unopened = aside = 0
    digests = _Pile()
    for record in source.records():
        tally[record.status] += 1
        unopened += record.many
        aside += record.aside
        if record.status is not Status.READ:
            continue
        digests.add(content_digest(record.data))
        if record.label is None or label_counts is None:
            unlabelled += 1
        else:
            label_counts[record.label] += 1
    unique = digests.sorted()
    read = tally[Status.READ]
    return Survey(
        count=sum(tally.values()),
        read=read,
        unreadable=tally[Status.UNREADABLE],
        skipped=tally[Status.SKIPPED],
        label_counts=label_counts,
        unlabelled=unlabelled,
        digests=unique,
        duplicates=read - len(unique),
        contents=digests_of(unique),
        unopened=unopened,
        aside=aside,
    )


def digests_of(digests: Digests) -> str:
    """SHA-256 of digests, hexadecimal."""
    return hashlib.sha256(digests.data if len(digests) else b"").hexdigest()


class _Pile:
    """Digests by their first byte: sorting them takes little more memory than they do."""

    def __init__(self) -> None:
        self._piles = [bytearray() for _ in range(256)]

    def add(self, digest: bytes) -> None:
        """Take in a digest of `DIGEST_BYTES`."""
        self._piles[digest[0]] += digest

    def sorted(self) -> Digests:
        """All of them, each once; the pile is empty afterwards."""
        whole = np.empty((sum(map(len, self._piles)) // DIGEST_BYTES, 2), np.uint64)
        count = 0
        for first in range(256):
            part = unique_digests(pack_digests(self._piles[first]))
            self._piles[first] = bytearray()
            whole[count : count + len(part)] = part
            count += len(part)
        whole.resize((count, 2), refcheck=False)
        return whole


def shared_digests(a: Survey, b: Survey) -> Digests:
    """Digests of the contents that stand in both surveys, sorted, uint64 [N, 2]; empty: they are disjoint."""
    both = _sorted(np.concatenate([a.digests, b.digests]))
    is_second = np.all(both[1:] == both[:-1], axis=1)
    return np.compress(is_second, both[1:], axis=0)


def pack_digests(digests: bytes | bytearray) -> Digests:
    """Digests of `DIGEST_BYTES` each, one after the other, as uint64 [N, 2]."""
    return np.frombuffer(bytes(digests), ">u8").reshape(-1, 2).astype(np.uint64)


def unpack_digests(digests: Digests) -> list[bytes]:
    """The digests as bytes, as `content_digest` returns them."""
    packed = digests.astype(">u8").tobytes()
    return [packed[start : start + DIGEST_BYTES] for start in range(0, len(packed), DIGEST_BYTES)]


def unique_digests(digests: Digests) -> Digests:
    """The digests sorted by row, each once."""
    ordered = _sorted(digests)
    is_first = np.ones(len(ordered), np.bool_)
    is_first[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    return ordered[is_first]


def _sorted(digests: Digests) -> Digests:
    return digests[np.lexsort((digests[:, 1], digests[:, 0]))]
