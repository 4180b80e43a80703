"""The records of a source that lies in several pieces, and the reasons that all formats share."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from kdaudit.errors import DataError
from kdaudit.sample import Record, Status
from kdaudit.source.names import is_companion, is_hidden

MAX_IMAGE_BYTES = 256 << 20
"""A larger file is skipped: no photograph has this size, and one file must not fill the memory."""

NOT_AN_IMAGE = "not an image extension"
COMPANION = "no image, by name and by content"
HEAD_BYTES = 16
IMAGE_HEAD = re.compile(rb"\xff\xd8|\x89PNG|GIF8|BM|RIFF|II[*+]\0|MM\0[*+]|P[1-7]\s|....(ftyp|jP  )", re.DOTALL)
"""How an image begins whatever its name: JPEG, PNG, GIF, BMP, WebP, TIFF, Netpbm; AVIF, HEIC, JPEG 2000 in boxes."""

HIDDEN = "hidden file or folder"
UNOPENED = "an archive, not opened"
COMPRESSED = (".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip", ".7z", ".rar")
CONTAINERS = (*COMPRESSED, ".tar", ".parquet", ".arrow", ".npz", ".h5", ".hdf5", ".tfrecord", ".lmdb")
"""Extensions of files that may hold any number of images."""
EMPTY = "empty file"
TOO_LARGE = f"larger than {MAX_IMAGE_BYTES >> 20} MiB"


class Unreadable(Exception):
    """Why a file gives no bytes, whether it was tried at all, and whether it may hold many images."""

    def __init__(self, status: Status, reason: str, *, many: bool = False) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.many = many

    def record(self, path: str, label: int | None, *, many: bool = False) -> Record:
        """The record that says so; `many`: it is a shard."""
        return Record(path, label, b"", self.status, self.reason, many=many or self.many)


def beside(path: str, label: int | None, name: str, head: Callable[[], bytes | None]) -> Record:
    """The record of a file called `name` that is none of the source's images or shards.

    Args:
        path: as shown.
        label: of the folder or sample that it lies in.
        name: with its folders.
        head: gives its first `HEAD_BYTES` bytes, None where they cannot be read; asked where the name leaves it open.
    """
    if is_hidden(name):
        return Record(path, label, b"", Status.SKIPPED, HIDDEN)
    if is_companion(name) and (begins := head()) is not None and not IMAGE_HEAD.match(begins):
        return Record(path, label, b"", Status.SKIPPED, COMPANION, aside=True)
    many = name.lower().endswith(CONTAINERS)
    return Record(path, label, b"", Status.SKIPPED, UNOPENED if many else NOT_AN_IMAGE, many=many)


class Part(Protocol):
    """A piece of a source with a known number of records: a shard, a Parquet file, a file left over."""

    name: str
    count: int

    def records(self, start: int) -> Iterator[Record]:
        """Yield the part's records from the `start`-th on."""
        ...


class Leftover:
    """A part of one record: a file beside the shards, or a shard that cannot be read at all."""

    def __init__(self, record: Record) -> None:
        self.name = record.path
        self.record = record
        self.count = 1

    def records(self, start: int) -> Iterator[Record]:
        """Yield the record."""
        if start == 0:
            yield self.record


def chained(parts: Sequence[Part], start: int) -> Iterator[Record]:
    """Yield the records of all parts in turn, from the `start`-th on; parts before it are not opened.

    Raises:
        DataError: a part that could be opened once cannot be opened any more.
    """
    for part in parts:
        if start >= part.count:
            start -= part.count
            continue
        try:
            yield from part.records(start)
        except (Unreadable, OSError, ValueError) as error:
            raise DataError(f"{part.name} changed while it was read ({error}): start again.") from error
        start = 0


def encoded(path: str, label: int | None, data: bytes) -> Record:
    """The record of an image whose bytes are at hand: READ, unless there are none or too many."""
    if not data:
        return Record(path, label, b"", Status.UNREADABLE, EMPTY)
    if len(data) > MAX_IMAGE_BYTES:
        return Record(path, label, b"", Status.SKIPPED, TOO_LARGE)
    return Record(path, label, data)
