"""Columns as long as the delivery that are put aside on disk while others are worked on."""

from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from kdaudit.stretches import stretches


class Aside:
    """One column, in a file without a name: nothing is left of it once nobody holds it, nor after a kill."""

    def __init__(self, kind: DTypeLike, folder: Path | None = None) -> None:
        """An empty column; `folder`: where the file lies, the system's own place for such files when None."""
        self._kind = np.dtype(kind)
        self._file = TemporaryFile(dir=folder)  # noqa: SIM115  it lives as long as the column

    def __del__(self) -> None:
        """Let the file go with the column."""
        self._file.close()

    @classmethod
    def of(cls, column: NDArray[Any], folder: Path | None = None) -> "Aside":
        """A whole column."""
        out = cls(column.dtype, folder)
        out.append(column)
        return out

    def append(self, part: NDArray[Any]) -> None:
        """Write further rows, [k]."""
        for span in stretches(len(part)):  # a column of one value may be no longer than that
            self._file.write(np.ascontiguousarray(part[span], self._kind).data)

    def column(self) -> NDArray[Any]:
        """All rows, [m]."""
        return self.part(slice(0, None))

    def part(self, span: slice) -> NDArray[Any]:
        """Some rows; `span` has no step."""
        first = span.start * self._kind.itemsize
        self._file.seek(first)
        return np.fromfile(self._file, self._kind, -1 if span.stop is None else span.stop - span.start)
