"""Content digests: how files and images are told apart, and how a written file is never half written."""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

DIGEST_BYTES = 16
"""Image digests are SHA-256 cut to 128 bits: 10**9 images collide with probability below 10**-20."""

UNFINISHED = ".kdaudit-tmp"
"""How the names of files end that are still being written; one that is left over belongs to a killed process."""


def content_digest(data: bytes) -> bytes:
    """SHA-256 of `data`, cut to `DIGEST_BYTES`."""
    return hashlib.sha256(data).digest()[:DIGEST_BYTES]


def file_digest(path: Path) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def joint_digest(*parts: str) -> str:
    """SHA-256 of several texts together, as 64 hexadecimal digits: names what a stored result was made from."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file beside `path` for writing, and rename it to `path` when the block ends well.

    A reader sees the old content or the new, never half of it. If the block raises, `path` is untouched
    and the temporary file is gone.
    """
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=UNFINISHED, dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_unfinished(folder: Path) -> None:
    """Remove what killed processes have left half written in a folder and below; no other may be writing there."""
    for path in folder.rglob(f".*{UNFINISHED}"):
        path.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` in one step (see `replacing`)."""
    with replacing(path) as file:
        file.write(data)
