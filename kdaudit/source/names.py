"""Names of files: which are images, how they are printed, which are ambiguous."""

from array import array
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
"""What counts as an image in a folder or an archive, in lower case; the decoder looks at the content."""


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


def is_hidden(path: str) -> bool:
    """Whether any component of a path with forward slashes begins with a dot."""
    return path.startswith(".") or "/." in path


def excluded(exclude: Sequence[str]) -> frozenset[str]:
    """Names of sub-folders in one spelling: `./clean/` is `clean`."""
    names = ("/".join(part for part in name.split("/") if part not in {"", "."}) for name in exclude)
    return frozenset(name for name in names if name)


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
