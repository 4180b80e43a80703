"""Parquet files in the Hugging Face layout: encoded bytes in `image`, integers in `label`."""

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from kdaudit.errors import DataError
from kdaudit.sample import Record, Status
from kdaudit.source.files import head_of, regular_file
from kdaudit.source.labels import MAX_CLASSES, numbered_classes
from kdaudit.source.names import Repeated, printable
from kdaudit.source.parts import Leftover, Part, Unreadable, beside, chained, encoded

BATCH_ROWS = 64
"""Rows held at a time."""

MAX_ROWS_PER_BYTE = 64
"""A file that claims more rows than this per byte is an attack: every claimed row costs a record."""


class ParquetSource:
    """One Parquet file, or a folder of them, read in the order of file names and then of rows.

    The image column is a struct of `bytes` and `path`, or plain binary. A record's path is the row's own
    where it is there and stands nowhere else in the set, otherwise `file.parquet#row`, rows counted from 0.
    Class names come from the schema's metadata (`classes`, or Hugging Face's ClassLabel); a null, negative or
    too large label is none. A row group that turns out damaged gives its remaining rows as unreadable.
    """

    kind = "parquet"

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        """Make a source of the files `names` below `root`, or of the file `root` itself when empty.

        Raises:
            DataError: no file can be read or has an image column, or the files disagree on class names.
        """
        self.root = root
        folder = root.resolve() if names else root.resolve().parent
        repeated = Repeated()
        self._parts: list[Part] = []
        files: list[_File] = []
        fault = ""
        for name in names or [root.resolve().name]:
            if names and not name.lower().endswith(".parquet"):
                self._parts.append(Leftover(beside(printable(name), None, name, partial(head_of, folder, name))))
                continue
            try:
                file = _File(regular_file(folder, name)[0], printable(name), repeated)
            except Unreadable as outcome:
                fault = fault or f"{printable(name)}: {outcome.reason}"
                self._parts.append(Leftover(outcome.record(printable(name), None, many=True)))
                continue
            self._parts.append(file)
            files.append(file)
        repeated.close()
        if not any(file.count for file in files):
            where = f" ({fault})" if fault else ""
            raise DataError(
                f"{root} holds no images in Parquet files that can be read{where}: give files with rows "
                f"and a column `image` of encoded bytes."
            )
        self.classes = _agreed_classes(root, files)
        for file in files:
            file.limit = len(self.classes or ())

    def records(self, start: int = 0) -> Iterator[Record]:
        """Yield every row, file by file, from the `start`-th on; row groups before it are not read."""
        return chained(self._parts, start)


class _File:
    """One Parquet file with an image column.

    Attributes:
        name: as shown; part of a path that would be ambiguous.
        count: rows, by the file's metadata.
        names: class names in the metadata, if any.
        top: the highest label; -1 when there is none.
        limit: labels from here on count as none.
    """

    def __init__(self, path: str, name: str, repeated: Repeated) -> None:
        self._path = path
        self._repeated = repeated
        self.name = name
        self.limit = 0
        try:
            self._open(path)
        except _faults() as error:
            reason = f"not a readable Parquet file: {_first_line(error)}"
            raise Unreadable(Status.UNREADABLE, reason) from error
        self.top = self._scan(repeated)

    def _open(self, path: str) -> None:
        """Look at schema and metadata.

        Raises:
            Unreadable: there is no image column, or the row counts cannot be true.
        """
        from pyarrow import types

        with _parquet(path) as file:
            schema, metadata = file.schema_arrow, file.metadata
            self.columns = _image_columns(schema)
            if not self.columns:
                raise Unreadable(Status.UNREADABLE, "no column `image` of encoded bytes")
            if schema.names.count("label") == 1 and types.is_integer(schema.field("label").type):
                self.columns.append("label")
            self.names = _class_names(schema.metadata or {})
            self._groups = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self.count = sum(self._groups)
        size = Path(path).stat().st_size
        if min(self._groups, default=0) < 0 or self.count > MAX_ROWS_PER_BYTE * size:
            raise Unreadable(Status.UNREADABLE, f"claims {self.count} rows in {size} bytes")

    def _scan(self, repeated: Repeated) -> int:
        """Read labels and paths, not images; the highest label. Damage is left to `records` to report."""
        columns = [column for column in self.columns if column in {"label", "image.path"}]
        if not columns:
            return -1
        top = -1
        with _parquet(self._path) as file:
            for group in range(len(self._groups)):
                try:
                    for batch in _batches(file, group, columns, rows=64 * BATCH_ROWS):
                        _, paths, labels = _cells(batch)
                        top = max((label for label in labels if label is not None), default=top)
                        for path in filter(None, paths):
                            repeated.add(path)
                except _faults():
                    continue
        return top

    def records(self, start: int) -> Iterator[Record]:
        with _parquet(self._path) as file:
            first = 0  # row number of the group's first row
            for group, rows in enumerate(self._groups):
                if start < first + rows:
                    yield from self._group_records(file, group, first, max(start, first))
                first += rows

    def _group_records(self, file: Any, group: int, first: int, start: int) -> Iterator[Record]:
        row, end = first, first + self._groups[group]
        fault = "row missing from its row group"
        try:
            for batch in _batches(file, group, self.columns, rows=BATCH_ROWS):
                skipped = min(max(start - row, 0), batch.num_rows)
                row += skipped
                for data, path, label in zip(*_cells(batch.slice(skipped)), strict=True):
                    yield self._record(row, data, path, label)
                    row += 1
        except _faults() as error:
            fault = f"damaged row group: {_first_line(error)}"
        for lost in range(max(row, start), end):
            yield Record(f"{self.name}#{lost}", None, b"", Status.UNREADABLE, fault)

    def _record(self, row: int, data: bytes | None, path: str | None, label: int | None) -> Record:
        where = path if path and path not in self._repeated else f"{self.name}#{row}"
        if label is not None and label >= self.limit:
            label = None
        if data is None:
            reason = "names a file instead of holding its bytes" if path else "no image bytes"
            return Record(where, label, b"", Status.UNREADABLE, reason)
        return encoded(where, label, data)


def _parquet(path: str) -> Any:
    """Open a Parquet file; column chunks are streamed instead of read whole."""
    from pyarrow.parquet import ParquetFile

    return ParquetFile(path, buffer_size=1 << 20, pre_buffer=False, page_checksum_verification=True)


def _batches(file: Any, group: int, columns: list[str], rows: int) -> Iterator[Any]:
    batches: Iterator[Any] = file.iter_batches(rows, row_groups=[group], columns=columns, use_threads=False)
    return batches


def _faults() -> tuple[type[Exception], ...]:
    """What pyarrow raises for a damaged file."""
    from pyarrow import ArrowException

    return (ArrowException, OSError, ValueError, OverflowError)


def _cells(batch: Any) -> tuple[list[bytes | None], list[str | None], list[int | None]]:
    """Image bytes, paths and labels of a batch; None where a value or its column is not there."""
    import pyarrow as pa

    nothing: list[None] = [None] * batch.num_rows
    columns: dict[str, Any] = {}
    for name in batch.schema.names:
        column = batch.column(name)
        if pa.types.is_struct(column.type):  # flatten: a null struct has null fields
            fields = [column.type.field(place).name for place in range(column.type.num_fields)]
            columns |= dict(zip(fields, column.flatten(), strict=True))
        else:
            columns["label" if name == "label" else "bytes"] = column
    data: list[bytes | None] = list(nothing)
    if "bytes" in columns:
        data = columns["bytes"].to_pylist()
    paths: list[str | None] = list(nothing)
    if "path" in columns:  # as bytes: a hostile string need not be UTF-8
        is_large = pa.types.is_large_string(columns["path"].type)
        raw = columns["path"].view(pa.large_binary() if is_large else pa.binary()).to_pylist()
        paths = [None if path is None else printable(path) for path in raw]
    labels: list[int | None] = list(nothing)
    if "label" in columns:
        numbers = columns["label"].to_pylist()
        labels = [n if n is not None and 0 <= n < MAX_CLASSES else None for n in numbers]
    return data, paths, labels


def _image_columns(schema: Any) -> list[str]:
    """The leaf columns of `image` that are read; empty when there is no image column."""
    from pyarrow import types

    if schema.names.count("image") != 1:
        return []
    kind = schema.field("image").type
    if _is_binary(kind):
        return ["image"]
    if not types.is_struct(kind):
        return []
    fields = {kind.field(place).name: kind.field(place).type for place in range(kind.num_fields)}
    if "bytes" not in fields or not _is_binary(fields["bytes"]):
        return []
    has_path = "path" in fields and (types.is_string(fields["path"]) or types.is_large_string(fields["path"]))
    return ["image.bytes", "image.path"] if has_path else ["image.bytes"]


def _is_binary(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _class_names(metadata: dict[bytes, bytes]) -> tuple[str, ...] | None:
    """Class names in a schema's metadata: `classes`, comma separated, or Hugging Face's ClassLabel."""
    if metadata.get(b"classes"):
        return tuple(printable(name) for name in metadata[b"classes"].split(b","))
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"]["label"]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    if isinstance(names, dict):  # {"0": "cat", "1": "dog"}
        names = [names.get(str(number)) for number in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        return None
    return tuple(map(printable, names))


def _agreed_classes(root: Path, files: Sequence[_File]) -> tuple[str, ...] | None:
    top = max(file.top for file in files)
    if top < 0:
        return None
    named = [file for file in files if file.names]
    for file in named:
        if file.names != named[0].names:
            raise DataError(
                f"{root} holds files that disagree on class names ({named[0].name}, {file.name}): "
                f"audit them one by one."
            )
    return named[0].names if named else numbered_classes(top)


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:200].rstrip(".")
