"""Messages between parent and worker, and the memory that both see.

A message is one JSON object in one packet, with file descriptors beside it on the way to the worker. None is ever
taken on the way back. Arrays lie in sealed memory files: a worker that cut one short would kill its parent.
"""

import array
import fcntl
import json
import mmap
import os
import socket
from collections.abc import Sequence
from typing import Any

MAX_MESSAGE = 1 << 16
"""Bytes of a packet."""

ALIGNMENT = 64
"""Arrays begin at multiples of it, as numpy and onnxruntime like it."""

F_ADD_SEALS, SEAL_SEAL, SEAL_SHRINK, SEAL_GROW = 1033, 1, 2, 4


def send(channel: socket.socket, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
    """Send a message.

    Raises:
        OSError: the other side is gone, or the message is too large.
    """
    data = json.dumps(message).encode()
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    channel.sendmsg([data], rights)


def receive(channel: socket.socket) -> dict[str, Any] | None:
    """The next message, without descriptors; None at the end.

    Raises:
        OSError: the other side is gone or silent for too long.
        ValueError: it is no JSON object.
    """
    data = channel.recv(MAX_MESSAGE)
    if not data:
        return None
    message = json.loads(data)
    if not isinstance(message, dict):
        raise ValueError("a message that is no object")
    return message


def receive_with_descriptors(channel: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """The next message with the descriptors that came along: the worker's side."""
    data, rights, _, _ = channel.recvmsg(MAX_MESSAGE, socket.CMSG_SPACE(64 * 4))
    descriptors = array.array("i")
    for level, kind, content in rights:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
    return (json.loads(data) if data else None), list(descriptors)


def shared_memory(size: int) -> tuple[int, mmap.mmap]:
    """Memory that a worker can map too: a descriptor to send, and the mapping. Its size is sealed."""
    descriptor = os.memfd_create("kdaudit", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, max(size, 1))
    fcntl.fcntl(descriptor, F_ADD_SEALS, SEAL_SEAL | SEAL_SHRINK | SEAL_GROW)
    return descriptor, mmap.mmap(descriptor, max(size, 1))


def aligned(offset: int) -> int:
    """The next place where an array may begin."""
    return -(-offset // ALIGNMENT) * ALIGNMENT
