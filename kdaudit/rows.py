"""The table of images on disk: written in parts while the comparison runs, put together when it is judged.

A door to pyarrow. A part is written beside and renamed, so what a killed run leaves is whole parts, and the next
run goes on after the last of them.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdaudit.compared import Comparison, concatenate
from kdaudit.digest import replacing, write_bytes
from kdaudit.errors import RunDirectoryError
from kdaudit.keys import Keys, keys_of
from kdaudit.memory import give_back

if TYPE_CHECKING:
    import pyarrow as pa

FIRST = (
    "id", "path", "label", "status", "teacher_top1", "student_top1", "score", "p_value", "flag", "reason",
)  # fmt: skip
"""What samples.parquet begins with; whatever else a rule needs comes after."""

PART_ROWS = 8192
"""Rows per part: what a killed run does over, and what one step of putting the table together holds in memory."""


class RowStore:
    """Parts of the comparison's table in one directory, all made by one recipe.

    Attributes:
        directory: where the parts lie.
        count: rows in whole parts.
    """

    def __init__(self, directory: Path, recipe: str) -> None:
        """Open the store; parts made by another recipe are removed, since they cannot be mixed with new ones."""
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        note = directory / "recipe.json"
        if not note.exists() or json.loads(note.read_text())["recipe"] != recipe:
            for part in self._parts():
                part.unlink()
            write_bytes(note, json.dumps({"recipe": recipe}).encode())
        self._pending: list[Comparison] = []
        self._pending_rows = 0
        self._number = len(self._parts())
        self.count = sum(self._rows(part) for part in self._parts())

    def append(self, comparison: Comparison) -> None:
        """Take rows in; they are on disk once a part is full or `close` was called."""
        self._pending.append(comparison)
        self._pending_rows += len(comparison)
        if self._pending_rows >= PART_ROWS:
            self._write()

    def close(self) -> None:
        """Write what is pending as the last part."""
        if self._pending_rows:
            self._write()

    def columns(self, *names: str) -> dict[str, NDArray[Any]]:
        """Numeric columns over all parts, each [n]: as `numbers` gives them, in no more memory than they take.

        Whole numbers are int16 where that holds them all.
        """
        whole: dict[str, NDArray[Any]] = {}
        first = 0
        for part in self.numbers(*names):
            for name, column in part.items():
                kind = _narrowest(column)
                if name not in whole:
                    whole[name] = np.empty(self.count, kind)
                elif not np.can_cast(kind, whole[name].dtype):
                    whole[name] = whole[name].astype(kind)
                whole[name][first : first + len(column)] = column
            first += len(part[names[0]])
        return whole

    def numbers(self, *names: str) -> Iterator[dict[str, NDArray[Any]]]:
        """Numeric columns part by part, each [k]; nulls are -1 where the numbers are whole (int32), NaN elsewhere."""
        import pyarrow as pa

        for table in self.tables(*names):
            columns = {name: table[name] for name in names}
            whole = {name: column.fill_null(-1) for name, column in columns.items() if pa.types.is_integer(column.type)}
            yield {name: column.to_numpy() for name, column in (columns | whole).items()}

    def behaviour(self) -> Iterator[NDArray[np.float32]]:
        """The rows of behaviour part by part, float32 [k, F]; NaN where an image was not read."""
        for part in self.tables("behaviour"):
            column = part["behaviour"].combine_chunks()
            yield column.flatten().to_numpy().reshape(len(column), -1).astype(np.float32)

    def keys(self) -> Keys:
        """A number from each row's content digest."""
        return Keys.of(lambda: (keys_of(part["id"].to_pylist()) for part in self.tables("id")))

    def tables(self, *columns: str) -> "Iterator[pa.Table]":
        """The parts, in order: these columns of them, or all."""
        import pyarrow.parquet as pq

        for part in self._parts():
            # Not read_table: what that loads and the threads it starts take forty megabytes.
            with pq.ParquetFile(part) as file:
                yield file.read(columns=list(columns) or None, use_threads=False)

    def finish(
        self,
        path: Path,
        more: "Callable[[int, pa.Table], dict[str, Any]]",
        leave_out: tuple[str, ...] = (),
    ) -> None:
        """Put the parts together as one Parquet file.

        Args:
            path: file to write, in one step.
            more: columns to add to a part, given the number of its first row and its table.
            leave_out: columns of the parts that the file does not take over.
        """
        import pyarrow.parquet as pq

        writer, first = None, 0
        with replacing(path) as file:
            for part in self.tables():
                whole = part.drop_columns(list(leave_out))
                for name, column in more(first, part).items():
                    whole = whole.append_column(name, column)
                names = whole.column_names
                whole = whole.select([*(n for n in FIRST if n in names), *(n for n in names if n not in FIRST)])
                first += len(part)
                writer = writer or pq.ParquetWriter(file, whole.schema, compression="zstd")
                writer.write_table(whole)
                give_back()  # the little that a writer keeps of each part lies behind all that was made of it
            if writer is not None:
                writer.close()

    def _write(self) -> None:
        write_table(concatenate(self._pending), self.directory / f"part-{self._number:06d}.parquet")
        self._number += 1
        self.count += self._pending_rows
        self._pending, self._pending_rows = [], 0

    def _parts(self) -> list[Path]:
        return sorted(self.directory.glob("part-*.parquet"))

    @staticmethod
    def _rows(part: Path) -> int:
        import pyarrow.parquet as pq

        return int(pq.read_metadata(part).num_rows)


def _narrowest(column: NDArray[Any]) -> np.dtype[Any]:
    """int16 where that holds the whole numbers of a column, or its own type."""
    limits = np.iinfo(np.int16)
    if column.dtype.kind != "i" or column.min(initial=0) < limits.min or column.max(initial=0) > limits.max:
        return column.dtype
    return np.dtype(np.int16)


def write_table(comparison: Comparison, path: Path) -> None:
    """A comparison as one Parquet file, in one step."""
    import pyarrow.parquet as pq

    with replacing(path) as file:
        pq.write_table(to_table(comparison), file, compression="zstd")


def to_table(comparison: Comparison) -> "pa.Table":
    """A comparison as a table; rows that were not read hold nulls."""
    import pyarrow as pa

    read = np.array([s == "read" for s in comparison.status], bool)

    def numbers(values: NDArray[Any], kind: Any) -> Any:
        return pa.array(values, kind, mask=~read)

    return pa.table(
        {
            "id": pa.array(comparison.ids, pa.string()),
            "path": pa.array(comparison.paths, pa.string()),
            "label": pa.array(comparison.labels, pa.int32(), mask=comparison.labels < 0),
            "status": pa.array(comparison.status, pa.string()),
            "why_not_read": pa.array(comparison.reasons, pa.string()),
            "teacher_top1": numbers(comparison.teacher_top1, pa.int32()),
            "student_top1": numbers(comparison.student_top1, pa.int32()),
            "teacher_confidence": numbers(comparison.teacher_confidence, pa.float32()),
            "student_confidence": numbers(comparison.student_confidence, pa.float32()),
            "gap": numbers(comparison.gap, pa.float64()),
            "js": numbers(comparison.js, pa.float64()),
            "divergence": numbers(comparison.divergence, pa.float64()),
            # Three digits are enough for a discriminant, and this is the widest column by far.
            "behaviour": pa.FixedSizeListArray.from_arrays(
                pa.array(comparison.behaviour.ravel().astype(np.float16)), comparison.behaviour.shape[1]
            ),
        }
    )


def flagged_contents(samples: Path) -> frozenset[str]:
    """Content digests (32 hexadecimal digits) of the flagged rows of a samples.parquet, a row group at a time.

    Raises:
        RunDirectoryError: it cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    found: set[str] = set()
    try:
        with pq.ParquetFile(samples) as file:
            for group in range(file.num_row_groups):
                rows = file.read_row_group(group, ["id", "flag"], use_threads=False)
                ids = rows.filter(rows["flag"].fill_null(fill_value=False))["id"]
                found.update(name.partition(":")[0] for name in ids.to_pylist())
    except (pa.ArrowException, OSError) as error:
        raise RunDirectoryError(f"{samples} cannot be read: it is damaged or not a table of kdaudit") from error
    return frozenset(found)
