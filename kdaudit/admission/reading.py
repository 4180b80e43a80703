"""From a path to a parsed ONNX model, with every refusal that needs no look at the graph."""

import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING

from kdaudit.admission.limits import MAX_MODEL_BYTES
from kdaudit.admission.refusal import refuse
from kdaudit.admission.wire import look

if TYPE_CHECKING:
    from onnx import ModelProto

FOREIGN: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer; fetch the model itself with `git lfs pull`"),
    (b"PK\x03\x04", "a zip archive, as PyTorch and Keras save them; export the model to ONNX first"),
    (b"\x89HDF", "an HDF5 file, as Keras saves them; convert it with tf2onnx first"),
    (b"\x80\x02", "a Python pickle; kdaudit does not open pickles, export the model to ONNX first"),
    (b"\x80\x04", "a Python pickle; kdaudit does not open pickles, export the model to ONNX first"),
    (b"\x80\x05", "a Python pickle; kdaudit does not open pickles, export the model to ONNX first"),
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
    (b"<", "a web page or XML; download the model file itself"),
    (b"ORTM", "an ORT-format file; give the ONNX file that it was made from"),
)
"""First bytes of what people hand in by mistake, and what to do about it."""

_LENGTH_DELIMITED = 2


def open_model(path: Path) -> BufferedReader:
    """Open a model file without waiting for whatever it is.

    Raises:
        ModelRefused: KDA001 (no such file, not a regular file, no permission), KDA002, KDA003 (empty).
    """
    try:
        # Not blocking: a FIFO would otherwise wait for a writer before it can be told what it is.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        status = os.fstat(descriptor)
    except (OSError, ValueError) as error:
        why = "no such file" if isinstance(error, FileNotFoundError) else getattr(error, "strerror", None)
        refuse("KDA001", f"cannot read the model {path}: {why or error}; check the path")
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        refuse("KDA001", f"{path} is {kind}; give the .onnx file itself")
    if not 0 < status.st_size <= MAX_MODEL_BYTES:
        os.close(descriptor)
        if status.st_size:
            refuse("KDA002", f"{path} has {status.st_size:,} bytes; kdaudit takes up to {MAX_MODEL_BYTES:,}")
        refuse("KDA003", f"{path} is empty; fetch it again")
    return os.fdopen(descriptor, "rb")


def read_file(path: Path) -> bytes:
    """Read a model file whole.

    Raises:
        ModelRefused: as `open_model`.
    """
    with open_model(path) as file:
        try:
            return file.read(MAX_MODEL_BYTES + 1)
        except OSError as error:
            refuse("KDA001", f"cannot read the model {path}: {error.strerror or error}; check the path")


def parse(data: bytes, path: Path) -> "ModelProto":
    """Parse the bytes of an ONNX file; no external data is touched and nothing is run.

    Args:
        data: the file's content.
        path: where it came from, for the sentence.

    Raises:
        ModelRefused: KDA003 (truncated), KDA004 (not an ONNX file), KDA007 (a text that is none) or KDA017 (more
            messages than are parsed).
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    for magic, what in FOREIGN:
        if data.startswith(magic):
            refuse("KDA004", f"{path} is not an ONNX file but {what}")
    seen = look(data, onnx.ModelProto.DESCRIPTOR)
    if seen.excess:
        refuse("KDA017", f"{path} holds {seen.excess}, as no classifier does; do not use it")
    try:
        model: ModelProto = onnx.ModelProto.FromString(data)
    except (DecodeError, UnicodeDecodeError) as error:
        missing = missing_bytes(data)
        if missing:
            refuse("KDA003", f"{path} is truncated: at least {missing:,} bytes are missing; fetch it again")
        refuse("KDA004", f"{path} is not an ONNX file ({_first_line(error)})")
    if not model.HasField("graph"):
        if data[0] == 0x08:  # field 1, ir_version: it began like an ONNX file
            refuse("KDA003", f"{path} has no graph: truncated or not an ONNX model; fetch it again")
        refuse("KDA004", f"{path} is not an ONNX file: it holds no graph")
    if not model.opset_import:
        refuse("KDA003", f"{path} names no operator set: truncated or not an ONNX model; fetch it again")
    if seen.foreign:
        refuse("KDA007", f"{path}: {seen.foreign} is not UTF-8: fetch the file again, or export the model anew")
    return model


def missing_bytes(data: bytes) -> int:
    """How many bytes an ONNX file lacks at its end, by walking its outermost fields; 0 if it is none."""
    from onnx import ModelProto

    known = ModelProto.DESCRIPTOR.fields_by_number
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        kind = tag & 7
        if tag >> 3 not in known:
            return 0
        if kind == _LENGTH_DELIMITED:
            length, position = _varint(data, position)
            position += length
        elif kind == 0:
            _, position = _varint(data, position)
        elif kind in (1, 5):
            position += 8 if kind == 1 else 4
        else:
            return 0  # no protobuf at all
        if position > len(data) + MAX_MODEL_BYTES:
            return 0
    return position - len(data)


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """Decode one base-128 number; one that runs past the end counts as one byte short."""
    value = shift = 0
    while position < len(data):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            break
    return value, len(data) + 1


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
