"""A manifest: a CSV or JSONL file that names image files below its own folder, and their labels."""

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TextIO

from kdaudit.errors import DataError
from kdaudit.sample import Record, Status
from kdaudit.source.files import read_file
from kdaudit.source.labels import MAX_CLASSES, class_number, is_integer, numbered_classes
from kdaudit.source.names import Repeated, printable
from kdaudit.source.parts import Unreadable

MAX_LINE = 1 << 20
"""Characters in a line; what a line holds beyond is dropped."""

DELIMITERS = ",;\t"

_ABSOLUTE = re.compile(r"/|[A-Za-z]:/")


class Row(NamedTuple):
    """One row. `path` has forward slashes and no leading `./`; a faulty row has a reason instead."""

    path: str
    label: str
    fault: str = ""


class ManifestSource:
    """Image files named by a CSV (header with `path` and, if any, `label`) or JSONL manifest, in its order.

    Labels that are all integers keep their value; otherwise the labels are names, sorted. An empty or
    negative label is none. Paths are hostile until proven otherwise: an absolute path, or one that leaves the
    manifest's folder, by `..` or through a link, is skipped, and so is the second row with the same path.
    The rows are read twice and not kept; names of sub-folders in `exclude` leave out what lies in them.
    """

    kind = "manifest"

    def __init__(self, root: Path, exclude: frozenset[str] = frozenset()) -> None:
        """Make a source of the manifest `root`.

        Raises:
            DataError: there is no path column or no row, or there are more labels than classes can be.
        """
        self.root = root
        self._file = root.resolve()
        self._exclude = tuple(f"{name}/" for name in exclude)
        self._repeated = Repeated()
        labels: set[str] = set()
        count = 0
        for row in self._rows():
            count += not row.fault
            self._repeated.add(row.path)
            if row.label:
                labels.add(row.label)
            if len(labels) > MAX_CLASSES:
                raise DataError(f"{root} has over {MAX_CLASSES} different labels: is `label` really the class?")
        self._repeated.close()
        if not count:
            raise DataError(f"{root} names no images: give a manifest with a `path` in every row.")
        self._labels: dict[str, int | None]
        if all(map(is_integer, labels)):
            self._labels = {label: class_number(label) for label in labels}
            numbers = (number for number in self._labels.values() if number is not None)
            self.classes = numbered_classes(max(numbers, default=-1))
        else:
            names = sorted(labels)
            self._labels = {name: number for number, name in enumerate(names)}
            self.classes = tuple(map(printable, names))

    def records(self, start: int = 0) -> Iterator[Record]:
        """Yield an image per row, in the manifest's order, from the `start`-th on."""
        seen: set[str] = set()
        for place, row in enumerate(self._rows()):
            is_second = row.path in seen
            if not row.fault and row.path in self._repeated:
                seen.add(row.path)
            if place >= start:
                yield self._record(place, row, is_second=is_second)

    def _record(self, place: int, row: Row, *, is_second: bool) -> Record:
        label = self._labels.get(row.label)
        if row.fault:
            path = f"{printable(self._file.name)}#{place}"
            return Record(path, label, b"", Status.UNREADABLE, row.fault)
        path = printable(row.path)
        reason = "second row with this path" if is_second else escape(row.path)
        if reason:
            return Record(path, label, b"", Status.SKIPPED, reason)
        try:
            return Record(path, label, read_file(self._file.parent, row.path, through_links=True))
        except Unreadable as outcome:
            return outcome.record(path, label)

    def _rows(self) -> Iterator[Row]:
        """All rows that are not excluded.

        Raises:
            DataError: the CSV has no path column, or the manifest cannot be opened.
        """
        read = _json_rows if self._file.suffix.lower() == ".jsonl" else self._csv_rows
        try:
            with self._file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
                for row in read(file):
                    if not row.path.startswith(self._exclude):
                        yield row
        except OSError as error:
            raise DataError(f"{self.root} cannot be read: {error.strerror}.") from error

    def _csv_rows(self, file: TextIO) -> Iterator[Row]:
        lines = _lines(file)
        delimiter, columns = _columns(next(lines, ""))
        if "path" not in columns:
            raise DataError(f"{self.root} has no `path` column: the first line must name the columns, path and label.")
        path_column = columns.index("path")
        label_column = columns.index("label") if "label" in columns else len(columns)
        reader = csv.reader(lines, delimiter=delimiter)
        while True:
            try:
                cells = next(reader, None)
            except csv.Error as error:  # such as an endless field; the reader goes on with the next line
                yield Row("", "", f"line {reader.line_num + 1}: {error}")
                continue
            if cells is None:
                return
            if cells:
                path = cells[path_column] if path_column < len(cells) else ""
                label = cells[label_column] if label_column < len(cells) else ""
                yield _row(path, label, f"line {reader.line_num + 1}")


def escape(path: str) -> str:
    """Why a path with forward slashes may not be followed; empty when it may."""
    if "://" in path:
        return "a URL, not a file below the manifest"
    if _ABSOLUTE.match(path):
        return "absolute path"
    depth = 0
    for part in path.split("/"):
        depth += -1 if part == ".." else part not in {"", "."}
        if depth < 0:
            return "path that leaves the manifest's folder"
    return ""


def _row(path: str, label: str, where: str) -> Row:
    if not path.strip():
        return Row("", label.strip(), f"{where} has no path")
    path = path.replace("\\", "/")
    while path.startswith("./"):
        path = path[2:].lstrip("/")
    return Row(path, label.strip())


def _columns(header: str) -> tuple[str, list[str]]:
    """The delimiter and the lower-case column names of a CSV's first line."""
    for delimiter in DELIMITERS:
        try:
            cells = next(csv.reader([header], delimiter=delimiter), [])
        except csv.Error:
            continue
        columns = [cell.strip().lower() for cell in cells]
        if "path" in columns:
            return delimiter, columns
    return ",", []


def _json_rows(file: TextIO) -> Iterator[Row]:
    for number, line in enumerate(_lines(file), start=1):
        if line.strip():
            yield _json_row(line, f"line {number}")


def _json_row(line: str, where: str) -> Row:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return Row("", "", f"{where} is not JSON")
    path = value.get("path") if isinstance(value, dict) else None
    if not isinstance(path, str):
        return Row("", "", f"{where} has no path")
    label = value.get("label")
    is_label = isinstance(label, str | int | float) and not isinstance(label, bool)
    return _row(path, str(label) if is_label else "", where)


def _lines(file: TextIO) -> Iterator[str]:
    """The lines of a text file, each cut to `MAX_LINE` characters."""
    while line := file.readline(MAX_LINE):
        rest = line
        while len(rest) == MAX_LINE and not rest.endswith("\n"):
            rest = file.readline(MAX_LINE)
        yield line
