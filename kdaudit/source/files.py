"""Files below a root: listed in a fixed order, and read without trusting them."""

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from kdaudit.sample import Status
from kdaudit.source.names import is_hidden, is_image_name
from kdaudit.source.parts import EMPTY, HEAD_BYTES, MAX_IMAGE_BYTES, TOO_LARGE, Unreadable

CHANGED = "changed while it was read"
_SPECIAL = {stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket", stat.S_IFCHR: "device", stat.S_IFBLK: "device"}
FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
"""How a file is opened: one swapped for a FIFO after the look at it must not hang the audit, nor a link lead away."""


def walk(root: Path, exclude: Iterable[str]) -> Iterator[str]:
    """Yield the paths of all files below `root`, relative, in the order of their components.

    Links are yielded and not followed. So is a folder that cannot be listed. Hidden files are yielded only
    when they look like images: a loader may well read those.

    Raises:
        OSError: `root` itself cannot be listed.
    """
    left_out = frozenset(exclude)
    stack = [_listing(root, "")]
    while stack:
        entry = next(stack[-1], None)
        if entry is None:
            stack.pop()
            continue
        path, is_folder = entry
        if is_folder:
            if path not in left_out:
                try:
                    stack.append(_listing(root, path))
                except OSError:
                    yield path
        elif not is_hidden(path) or is_image_name(path):
            yield path


def _listing(root: Path, folder: str) -> Iterator[tuple[str, bool]]:
    """Paths in one folder, sorted by name, each with whether it is a folder (a link is not)."""
    prefix = folder and folder + "/"
    with os.scandir(f"{root}/{folder}") as entries:
        names = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    names.sort()
    return ((prefix + name, is_folder) for name, is_folder in names)


def regular_file(root: Path, path: str, *, through_links: bool = False) -> tuple[str, int]:
    """Find the file that `path` below `root` names, without opening it.

    Args:
        root: a resolved folder.
        path: relative, as found by `walk` or written in a manifest.
        through_links: also resolve links in the path's folders; `walk` never goes through one.

    Returns:
        The resolved path, inside `root`, and the size in bytes.

    Raises:
        Unreadable: it is no regular file, it leads out of `root`, or it cannot be looked at.
    """
    full = f"{root}/{path}"
    try:
        information = os.lstat(full)
        if through_links or stat.S_ISLNK(information.st_mode):
            is_link = stat.S_ISLNK(information.st_mode)
            full = _resolved(root, full)
            information = os.lstat(full)
            if is_link and stat.S_ISDIR(information.st_mode):
                raise Unreadable(Status.SKIPPED, "link to a folder, not followed")
    except OSError as error:
        raise Unreadable(Status.UNREADABLE, sentence(error)) from error
    except ValueError as error:  # a NUL or a lone surrogate
        raise Unreadable(Status.SKIPPED, "not a possible file name") from error
    kind = stat.S_IFMT(information.st_mode)
    if kind == stat.S_IFDIR:
        raise Unreadable(Status.UNREADABLE, "a folder, not a file", many=True)
    if kind != stat.S_IFREG:
        raise Unreadable(Status.SKIPPED, f"not a regular file but a {_SPECIAL.get(kind, 'special file')}")
    return full, information.st_size


def read_file(root: Path, path: str, *, through_links: bool = False) -> bytes:
    """Read a file below `root`; see `regular_file` for the arguments.

    Raises:
        Unreadable: as `regular_file`, or it is empty, or larger than `MAX_IMAGE_BYTES`.
    """
    full, size = regular_file(root, path, through_links=through_links)
    if size > MAX_IMAGE_BYTES:
        raise Unreadable(Status.SKIPPED, TOO_LARGE)
    try:
        with os.fdopen(os.open(full, FLAGS), "rb") as file:
            before = os.fstat(file.fileno())
            if not stat.S_ISREG(before.st_mode):  # it was one a moment ago
                raise Unreadable(Status.UNREADABLE, CHANGED)
            data = file.read(MAX_IMAGE_BYTES + 1)
            after = os.fstat(file.fileno())
    except OSError as error:
        raise Unreadable(Status.UNREADABLE, sentence(error)) from error
    if not data:
        raise Unreadable(Status.UNREADABLE, EMPTY)
    if len(data) > MAX_IMAGE_BYTES:  # it grew
        raise Unreadable(Status.SKIPPED, TOO_LARGE)
    if len(data) != after.st_size or before.st_mtime_ns != after.st_mtime_ns:
        raise Unreadable(Status.UNREADABLE, CHANGED)
    return data


def head_of(root: Path, path: str) -> bytes | None:
    """The first bytes of a file below `root`; None where it is no regular file inside, or cannot be read."""
    try:
        full, _ = regular_file(root, path)
        with os.fdopen(os.open(full, FLAGS), "rb") as file:
            return file.read(HEAD_BYTES) if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else None
    except (Unreadable, OSError):
        return None


def _resolved(root: Path, full: str) -> str:
    resolved = os.path.realpath(full, strict=True)
    if not f"{resolved}/".startswith(f"{root}".rstrip("/") + "/"):
        if Path(resolved).is_dir():
            raise Unreadable(Status.SKIPPED, "link to a folder out of the data set, not followed", many=True)
        raise Unreadable(Status.SKIPPED, "link out of the data set")
    return resolved


def sentence(error: OSError) -> str:
    """Why the system does not give a file, in a few words."""
    if error.errno == errno.ELOOP:
        return "link that leads back to itself"
    return (error.strerror or str(error)).lower()
