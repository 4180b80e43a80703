"""Names of files: which are images, how they are printed, which are ambiguous."""

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import overload

import numpy as np
from numpy.typing import NDArray

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
"""What counts as an image in a folder or an archive, in lower case; the decoder looks at the content."""

COMPANION_SUFFIXES = frozenset({
    ".txt", ".md", ".rst", ".json", ".jsonl", ".csv", ".tsv", ".xml", ".html", ".htm", ".yaml", ".yml", ".toml",
    ".ini", ".cfg", ".log", ".py", ".sh", ".pdf", ".cls", ".caption", ".md5", ".sha1", ".sha256",
})  # fmt: skip
COMPANION_NAMES = frozenset({
    "readme", "license", "licence", "copying", "notice", "authors", "changelog", "contributors", "makefile",
    "md5sums", "sha256sums", "thumbs.db", "desktop.ini",
})  # fmt: skip
"""What is delivered with images and holds none: labels, captions, notes, what file managers leave. In lower case."""


def printable(name: str | bytes) -> str:
    r"""The name as text that can be written anywhere; bytes that are not UTF-8 become ``\xff``."""
    if isinstance(name, bytes):
        return name.decode("utf-8", "backslashreplace")
    if name.isascii():
        return name
    try:
        raw = name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a lone surrogate out of JSON
        raw = name.encode("utf-8", "backslashreplace")
    return raw.decode("utf-8", "backslashreplace")


def is_image_name(name: str) -> bool:
    """Whether the name's extension is one of `IMAGE_SUFFIXES`, in any case."""
    stem, dot, suffix = name.rpartition("/")[2].rpartition(".")
    return bool(stem) and dot + suffix.lower() in IMAGE_SUFFIXES


def is_companion(name: str) -> bool:
    """Whether the name is that of a file which comes with images and is none, in any case."""
    last = name.rpartition("/")[2].lower()
    dot = last.rfind(".")
    return last in COMPANION_NAMES or (dot > 0 and last[dot:] in COMPANION_SUFFIXES)


def is_hidden(path: str) -> bool:
    """Whether any component of a path with forward slashes begins with a dot."""
    return path.startswith(".") or "/." in path


def excluded(exclude: Sequence[str]) -> frozenset[str]:
    """Names of sub-folders in one spelling: `./clean/` is `clean`."""
    names = ("/".join(part for part in name.split("/") if part not in {"", "."}) for name in exclude)
    return frozenset(name for name in names if name)


class Names(Sequence[str]):
    """Paths as `walk` lists them, at a few bytes more than the last component of each: there may be millions."""

    def __init__(self, paths: Iterable[str]) -> None:
        self._folders: list[str] = []
        self._starts: list[int] = []  # number of the first path in each of these
        self._lasts = bytearray()  # last components, one after the other
        self._ends = array("Q")
        for path in paths:
            folder, slash, last = path.rpartition("/")
            if not self._folders or folder + slash != self._folders[-1]:
                self._folders.append(folder + slash)
                self._starts.append(len(self._ends))
            self._lasts += last.encode("utf-8", "surrogateescape")
            self._ends.append(len(self._lasts))

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        place = range(len(self))[place]
        last = self._lasts[self._ends[place - 1] if place else 0 : self._ends[place]].decode("utf-8", "surrogateescape")
        return self._folders[bisect_right(self._starts, place) - 1] + last


class Repeated:
    """Finds the names that stand more than once, at 8 bytes a name.

    Call `add` for every name, then `close`, then ask with `in`. Two names whose 64-bit hashes agree are
    taken for one (below 10**-5 for 10 million names); the answer depends on the names alone, not on the run.
    """

    def __init__(self) -> None:
        self._hashes = array("Q")
        self._repeated: NDArray[np.uint64] = np.empty(0, np.uint64)

    def add(self, name: str) -> None:
        """Count a name."""
        self._hashes.append(_hash(name))

    def close(self) -> None:
        """Keep only what stands more than once."""
        hashes = np.frombuffer(self._hashes, np.uint64) if self._hashes else self._repeated
        hashes.sort()  # in place: there may be millions
        self._repeated = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
        self._hashes = array("Q")

    def __contains__(self, name: str) -> bool:
        if not len(self._repeated):
            return False
        wanted = np.uint64(_hash(name))
        place = int(np.searchsorted(self._repeated, wanted))
        return place < len(self._repeated) and bool(self._repeated[place] == wanted)


def _hash(name: str) -> int:
    digest = blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")
