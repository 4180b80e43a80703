"""Numbers from the digests of images: what is drawn for an image, or among images, is drawn by these.

So the same image draws the same everywhere, in any order, format or batch.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdaudit.selection import Mask, Rows, lowest_of

FOLDS = 5


def keys_of(ids: Sequence[str]) -> NDArray[np.uint64]:
    """A number from each id's content digest, uint64 [n]: the same image draws the same partners everywhere."""
    return np.array([int(i[:16], 16) for i in ids], np.uint64)


def fold_of(keys: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """The fold of each image [n], 0..`FOLDS` - 1, from its digest: the same in every format and order."""
    return ((keys >> np.uint64(17)).astype(np.int64) % FOLDS).astype(np.uint8)


@dataclass(frozen=True, slots=True, eq=False)
class Keys:
    """The keys of many images, of which only the folds are held: the rest is read again where it is needed.

    Attributes:
        folds: uint8 [n].
        parts: gives the keys in order and part by part, uint64 [k].
    """

    folds: NDArray[np.uint8]
    parts: Callable[[], Iterable[NDArray[np.uint64]]]

    @classmethod
    def of(cls, parts: Callable[[], Iterable[NDArray[np.uint64]]]) -> "Keys":
        """Read them once."""
        return cls(np.concatenate([fold_of(part) for part in parts()] or [np.empty(0, np.uint8)]), parts)

    @classmethod
    def these(cls, ids: Sequence[str]) -> "Keys":
        """Those of ids at hand."""
        keys = keys_of(ids)
        return cls(fold_of(keys), lambda: [keys])

    def lowest(self, count: int, among: Mask) -> Rows:
        """Row numbers of the `count` lowest, as `selection.lowest`: a draw that does not depend on the order."""
        return lowest_of(self.parts(), count, among)

    def where(self, rows: Mask) -> "Keys":
        """Those of some of the images; `rows`: bool [n]."""
        if rows.all():
            return self

        def parts() -> Iterator[NDArray[np.uint64]]:
            first = 0
            for part in self.parts():
                yield part[rows[first : first + len(part)]]
                first += len(part)

        return Keys(self.folds[rows], parts)
