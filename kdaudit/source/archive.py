"""The bytes of an archive in pieces: read, not mapped.

A file that is cut short while it is mapped kills the process that touches it (SIGBUS), and whoever delivers a data set
can do that. Reading gives an error instead, and costs next to nothing: one call fetches a window of many small members,
and of large ones no more than what is asked for (docs/performance.md).
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol

from kdaudit.sample import Status
from kdaudit.source.files import FLAGS, sentence
from kdaudit.source.parts import EMPTY, Unreadable

SMALL, LARGE = 4 << 10, 256 << 10
"""Bytes in a window: at first, and where one piece was asked for right behind another."""


class Bytes(Protocol):
    """What can be read piece by piece.

    Attributes:
        size: bytes in all.
    """

    size: int

    def read(self, start: int, size: int) -> bytes:
        """Up to `size` bytes from `start` on; fewer only where they end, none behind it."""
        ...


class Held:
    """Bytes that are in memory already."""

    def __init__(self, data: bytes) -> None:
        self.size = len(data)
        self._data = data

    def read(self, start: int, size: int) -> bytes:
        """See `Bytes.read`."""
        return self._data[start : start + size]


class Stamp(NamedTuple):
    """What changes with a file: its size in bytes, and when it was last written to in nanoseconds."""

    size: int
    written: int


class Archive:
    """An open file of a fixed size.

    Attributes:
        size: bytes in it when it was opened.
        stamp: what it was then.
    """

    def __init__(self, descriptor: int) -> None:
        """Read from `descriptor`, which stays the caller's.

        Raises:
            Unreadable: it is empty, or no regular file.
        """
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):  # it was one a moment ago
            raise Unreadable(Status.UNREADABLE, "no regular file any more")
        if not found.st_size:
            raise Unreadable(Status.UNREADABLE, EMPTY)
        self.size = found.st_size
        self.stamp = Stamp(found.st_size, found.st_mtime_ns)
        self._descriptor = descriptor
        self._first, self._window = 0, b""  # the window and its place
        self._reach = SMALL

    def read(self, start: int, size: int) -> bytes:
        """See `Bytes.read`.

        Raises:
            Unreadable: the file is shorter than it was when it was opened.
            OSError: the disk does not give it.
        """
        place = start - self._first
        if place >= 0 and place + size <= len(self._window):
            return self._window[place : place + size]
        size = max(0, min(size, self.size - start))
        if size >= self._reach:  # no window would save a call
            return self._fetched(start, size)
        end = self._first + len(self._window)
        follows = 0 <= start - end < self._reach
        self._reach = min(2 * self._reach, LARGE) if follows else SMALL
        self._window = self._fetched(start, min(max(size, self._reach), self.size - start)) if size else b""
        self._first = start
        return self._window[:size]

    def demand_unchanged(self, stamp: Stamp) -> None:
        """Check that the file is what `stamp` says.

        Raises:
            Unreadable: it has been written to.
        """
        found = os.fstat(self._descriptor)
        if Stamp(found.st_size, found.st_mtime_ns) != stamp:
            raise Unreadable(Status.UNREADABLE, "written to while it was read")

    def _fetched(self, start: int, size: int) -> bytes:
        """Exactly `size` bytes; the system may give them in several pieces."""
        data = os.pread(self._descriptor, size, start)
        while len(data) < size:
            more = os.pread(self._descriptor, size - len(data), start + len(data))
            if not more:
                raise Unreadable(Status.UNREADABLE, "cut short while it was read")
            data += more
        return data


@contextmanager
def opened(path: str) -> Iterator[Archive]:
    """A file, open while the block runs; a pipe put into its place hangs nothing.

    Raises:
        Unreadable: it cannot be opened, is empty, or is no regular file.
    """
    try:
        descriptor = os.open(path, FLAGS)
    except OSError as error:
        raise Unreadable(Status.UNREADABLE, sentence(error)) from error
    try:
        yield Archive(descriptor)
    finally:
        os.close(descriptor)
