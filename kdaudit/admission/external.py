"""External data: weights kept in files beside the model, loaded only when nothing about them is odd.

Three rounds of fixes in the libraries left ways to make a model read files that are not its own (`..`,
links, tensors in places that nobody walked). So nothing is left to them: every tensor, wherever it is, is
found by walking the whole message; every file is opened one path component at a time and no link is followed;
and what is read is put into the model, so that no later reader has a path to open.
"""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from kdaudit.admission.limits import MAX_MODEL_BYTES
from kdaudit.admission.refusal import refuse
from kdaudit.admission.tensors import expected_bytes

if TYPE_CHECKING:
    from onnx import ModelProto, SparseTensorProto, TensorProto

KEYS = frozenset({"location", "offset", "length", "checksum", "basepath"})
"""The keys that the ONNX specification knows. `checksum` and `basepath` are read past, never acted on."""


def tensors(message: Any) -> Iterator["TensorProto"]:
    """Yield every tensor below a protobuf message: initializers, sparse values, attributes, subgraphs,
    functions, training graphs, and whatever field a later ONNX version adds.
    """  # noqa: D205
    from onnx import TensorProto

    yield from _messages(message, TensorProto)


def sparse_tensors(message: Any) -> Iterator["SparseTensorProto"]:
    """Yield every sparse tensor below a protobuf message."""
    from onnx import SparseTensorProto

    yield from _messages(message, SparseTensorProto)


def _messages(message: Any, kind: Any) -> Iterator[Any]:
    if isinstance(message, kind):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for item in value if field.is_repeated else (value,):
            yield from _messages(item, kind)


def load_external(model: "ModelProto", folder: Path, opener: Callable[[Path, str, str], int]) -> tuple[str, ...]:
    """Load all external data into `model`, in place.

    Args:
        model: parsed model.
        folder: the model file's own directory; nothing outside it is opened.
        opener: opens a file of it by location, for a tensor; `open_external`, or the parent of a confined worker.

    Returns:
        Locations of the files that were read, sorted.

    Raises:
        ModelRefused: KDA002 (too much data), KDA005 (a file that is missing, not plain, or not in `folder`)
            or KDA006 (a range that does not fit).
    """
    from onnx import TensorProto

    total = model.ByteSize()
    opened: dict[str, tuple[int, int]] = {}
    with ExitStack() as stack:
        for tensor in tensors(model):
            if tensor.data_location != TensorProto.EXTERNAL and not tensor.external_data:
                continue
            name = tensor.name or "(unnamed tensor)"
            entries = _entries(tensor, name)
            location = entries["location"]
            if location not in opened:
                descriptor = opener(folder, location, name)
                stack.callback(os.close, descriptor)
                # Not fstat: a confined worker may not ask for a file's status, by whatever name.
                opened[location] = descriptor, os.lseek(descriptor, 0, os.SEEK_END)
            descriptor, size = opened[location]
            offset, length = _range(tensor, entries, size, name)
            total += length
            if total > MAX_MODEL_BYTES:
                refuse("KDA002", f"the model and its external data pass {MAX_MODEL_BYTES:,} bytes at {name}")
            data = read_range(descriptor, offset, length)
            if len(data) != length:
                refuse("KDA006", f"external data of {name} in {location} ended early; the file is changing")
            tensor.raw_data = data
            del tensor.external_data[:]
            tensor.ClearField("data_location")
    return tuple(sorted(opened))


def _entries(tensor: "TensorProto", name: str) -> dict[str, str]:
    """The key-value pairs of one external tensor, each known and given once."""
    entries: dict[str, str] = {}
    for entry in tensor.external_data:
        if entry.key not in KEYS or entry.key in entries:
            refuse("KDA005", f"external data of {name} has an unknown or repeated key {entry.key[:40]!r}")
        entries[entry.key] = entry.value
    if not entries.get("location"):
        refuse("KDA005", f"external data of {name} names no file")
    return entries


def open_external(folder: Path, location: str, name: str) -> int:
    """Open a plain file below `folder` without following any link; returns a file descriptor.

    Raises:
        ModelRefused: KDA005.
    """
    where = f"external data of {name} in {location[:200]!r}"
    parts = PurePosixPath(location).parts
    if location.startswith("/") or ".." in parts or not parts or "\\" in location or "\0" in location:
        refuse("KDA005", f"{where}: only a file in the model's own folder is taken, without `..`")
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        holder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for part in parts[:-1]:
                inner = os.open(part, flags | os.O_DIRECTORY, dir_fd=holder)
                os.close(holder)
                holder = inner
            descriptor = os.open(parts[-1], flags | os.O_NONBLOCK, dir_fd=holder)
        finally:
            os.close(holder)
    except FileNotFoundError:
        refuse("KDA005", f"{where} is missing; put the file beside the model")
    except OSError as error:
        link = (folder / location).is_symlink()
        why = "is a link; copy the real file beside the model" if link else f"cannot be opened: {error.strerror}"
        refuse("KDA005", f"{where} {why}")
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        os.close(descriptor)
        why = "has other hard links; copy it" if stat.S_ISREG(status.st_mode) else "is not a regular file"
        refuse("KDA005", f"{where} {why}")
    return descriptor


def _range(tensor: "TensorProto", entries: dict[str, str], size: int, name: str) -> tuple[int, int]:
    """Offset and length of a tensor's bytes, inside the file and equal to shape times element size."""
    where = f"external data of {name} in {entries['location'][:200]!r}"
    expected = expected_bytes(tensor)
    try:
        offset = int(entries.get("offset") or 0)
        length = int(entries["length"]) if entries.get("length") else size - offset
    except ValueError:
        refuse("KDA006", f"{where}: offset and length must be whole numbers")
    if offset < 0 or length < 0 or offset + length > size:
        refuse(
            "KDA006",
            f"{where}: bytes {offset:,} to {offset + length:,} of a file of {size:,}; fetch it again",
        )
    if length != expected:
        refuse("KDA006", f"{where}: {length:,} bytes given, its shape needs {expected:,}")
    return offset, length


def read_range(descriptor: int, offset: int, length: int) -> bytes:
    """Read exactly `length` bytes, or fewer if the file ends."""
    pieces: list[bytes] = []
    while length:
        piece = os.pread(descriptor, min(length, 1 << 26), offset)
        if not piece:
            break
        pieces.append(piece)
        offset += len(piece)
        length -= len(piece)
    return b"".join(pieces)
