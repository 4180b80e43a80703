"""TensorRT's engines on disk: a private folder, and a list of our own of what we have written there.

An engine is machine code for a GPU, and reading one is running it. So none is read that is not ours: the folder belongs
to this user alone, each engine's digest stands in a list beside the folder (which the process that writes engines
cannot reach), and what the list does not vouch for is removed before the folder is handed out.
"""

import hashlib
import json
import os
import shutil
import stat
from pathlib import Path

from kdaudit.digest import joint_digest, write_bytes
from kdaudit.errors import UsageError

PRIVATE = 0o700


def cache_root() -> Path:
    """Where engines are kept: `$XDG_CACHE_HOME/kdaudit/engines`, or below ~/.cache."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "kdaudit" / "engines"


def key_of(model: bytes, versions: tuple[str, ...], architecture: str, *, fp16: bool, profile: str) -> str:
    """Names everything that an engine depends on, 64 hexadecimal digits.

    Args:
        model: the bytes that it is built from.
        versions: of onnxruntime and TensorRT.
        architecture: of the GPU, such as sm_90.
        fp16: whether it rounds to float16.
        profile: the shapes that it serves; empty: any.
    """
    precision = "fp16" if fp16 else "fp32"
    return joint_digest(hashlib.sha256(model).hexdigest(), *versions, architecture, precision, profile)


def open_folder(root: Path, key: str) -> Path:
    """The folder for the engines of a key; holds nothing but what `seal` has seen there.

    Args:
        root: of all engines; made when it is not there.
        key: from `key_of`.

    Raises:
        UsageError: root or folder is a link or no folder, belongs to somebody else, or others may enter it.
    """
    folder = root / key
    for path in (root, folder):
        _make_private(path)
    known = _listed(_list_of(root, key))
    digests = {path: _digest(path) for path in folder.iterdir()}  # all of them before one goes: links count names
    for path, digest in digests.items():
        if digest is None or digest != known.get(path.name):
            _remove(path)
    return folder


def seal(root: Path, key: str) -> None:
    """Vouch for what now lies in a key's folder: called when the process that was given it has built its engines.

    Raises:
        UsageError: as `open_folder`.
    """
    for path in (root, root / key):
        _make_private(path)
    found = {path.name: _digest(path) for path in (root / key).iterdir()}
    vouched = {name: digest for name, digest in sorted(found.items()) if digest is not None}
    write_bytes(_list_of(root, key), (json.dumps(vouched, indent=1) + "\n").encode())


def _list_of(root: Path, key: str) -> Path:
    """Beside the folder and not in it: who may write engines may not vouch for them."""
    return root / f"{key}.json"


def _listed(path: Path) -> dict[str, str]:
    """Digest by name of file; empty where there is no list of ours."""
    if _digest(path) is None:
        return {}
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return {str(name): str(digest) for name, digest in content.items()} if isinstance(content, dict) else {}


def _make_private(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.mkdir(mode=PRIVATE)
    except FileExistsError:
        pass
    except OSError as error:
        raise UsageError(
            f"{path} for TensorRT's engines cannot be made ({error.strerror}): set XDG_CACHE_HOME"
        ) from None
    found = path.lstat()
    why = ""
    if not stat.S_ISDIR(found.st_mode):
        why = "is a link or no folder"
    elif found.st_uid != os.geteuid():
        why = "belongs to another user"
    elif stat.S_IMODE(found.st_mode) & ~PRIVATE:
        why = f"has permissions {stat.S_IMODE(found.st_mode):o}, and others may enter it"
    if why:
        raise UsageError(
            f"{path} {why}, and an engine that somebody else wrote would be run: remove it, or set XDG_CACHE_HOME"
        )


def _digest(path: Path) -> str | None:
    """SHA-256 of a plain file of our own under this one name; None for anything else."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_nlink != 1:
        os.close(descriptor)
        return None
    with os.fdopen(descriptor, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
