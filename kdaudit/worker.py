"""What runs in a confined process: checking the suspect model, composing, loading and running it.

Started by `kdaudit.sandbox`. Everything is imported, and used once, before the walls go up: afterwards no file can be
opened, so nothing can be imported any more. Answers are plain JSON and arrays in shared memory.
"""

import contextlib
import mmap
import os
import socket
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdaudit.errors import ModelRefused
from kdaudit.sandbox.confine import Walls, confine
from kdaudit.sandbox.talk import aligned, receive_with_descriptors, send

WARM_MODEL = bytes.fromhex(
    "08083a3a0a100a017812017922084964656e7469747912047761726d5a0f0a0178120a0a08080112040a020801620f0a"
    "0179120a0a08080112040a02080142040a00100d"
)
"""A model of one node, Identity from x [1] to y [1], to load onnxruntime's libraries with."""


def main(descriptor: str) -> None:
    """Serve one parent until it is gone."""
    control = socket.socket(fileno=int(descriptor))
    setup, lanes = receive_with_descriptors(control)
    if setup is None:
        return
    role = str(setup["role"])
    if role == "run":
        _warm_up_running(setup)
    elif role == "fuse":
        from kdaudit.fusion import confined as fusion

        fusion.warm_up()
    else:
        from kdaudit.admission import confined as admission

        admission.warm_up()
    channels = [socket.socket(fileno=lane) for lane in lanes]  # Python asks a descriptor what it is: not later
    walls = Walls(setup["memory"], setup["cpu_s"], tuple(setup["readable"]), bool(setup["filter"]), setup["writable"])
    level = confine(walls)
    send(control, {"level": level})
    if role == "run":
        _serve_runs(control, channels)
    elif role == "fuse":
        fusion.serve(control)
    else:
        admission.serve(control)


def _warm_up_running(setup: dict[str, Any]) -> None:
    """Load every library that a run needs, by running a model of one node."""
    from kdaudit.runtime import Engine

    Engine(WARM_MODEL, "cpu", 1).run({"x": np.zeros(1, np.float32)}, ["y"])
    with contextlib.suppress(ModelRefused):  # its errors are types that it loads late
        Engine(b"", "cpu", 1)
    if not setup["filter"]:
        Engine(WARM_MODEL, "cuda", 1).run({"x": np.zeros(1, np.float32)}, ["y"])


def _serve_runs(control: socket.socket, lanes: list[socket.socket]) -> None:
    """Load what the parent sends, then answer on the lanes; leave when the parent is gone."""
    from kdaudit.machine import Gpu
    from kdaudit.runtime import Engine

    message, descriptors = receive_with_descriptors(control)
    if message is None:
        return
    try:
        with mmap.mmap(descriptors[0], message["bytes"], access=mmap.ACCESS_READ) as memory:
            model = bytes(memory)
        os.close(descriptors[0])
        engine = Engine(model, message["provider"], message["threads"], Gpu(**message["gpu"]))
        del model
    except ModelRefused as refused:
        send(control, {"refused": [refused.rule, str(refused).removesuffix(f" [{refused.rule}]")[:1000]]})
        return
    for lane in lanes:
        threading.Thread(target=_Lane(engine, lane).serve, daemon=True).start()
    send(control, {"provider": engine.provider})
    while control.recv(1):
        pass
    os._exit(0)  # a model that still computes is not waited for


class _Lane:
    """The worker's end of a lane."""

    def __init__(self, engine: Any, channel: socket.socket) -> None:
        self._engine, self._channel = engine, channel
        self._memory: mmap.mmap | None = None

    def serve(self) -> None:
        while True:
            try:
                message, descriptors = receive_with_descriptors(self._channel)
            except OSError:
                return
            if message is None:
                return
            if descriptors:
                self._memory = mmap.mmap(descriptors[0], message["size"])
                os.close(descriptors[0])
            try:
                send(self._channel, self._answer(message))
            except BaseException:  # noqa: BLE001  whatever it is, the parent must not wait for an answer
                os._exit(70)

    def _answer(self, message: dict[str, Any]) -> dict[str, Any]:
        assert self._memory is not None
        inputs: dict[str, NDArray[Any]] = {}
        for place in message["inputs"]:
            kind, shape = np.dtype(place["kind"]), tuple(place["shape"])
            count = int(np.prod(shape, dtype=np.int64))
            inputs[place["name"]] = np.frombuffer(self._memory, kind, count, place["at"]).reshape(shape)
        try:
            found = self._engine.run(inputs, message["outputs"], message["rows"])
        except ModelRefused as refused:
            return {"refused": [refused.rule, str(refused).removesuffix(f" [{refused.rule}]")[:1000]]}
        if any(array.dtype.kind not in "fiub" for array in found):
            return {"refused": ["KDA021", "an output of the model holds no numbers"]}
        needed = sum(aligned(array.nbytes) for array in found)
        if needed > message["room"]:
            return {"needs": needed}
        at, places = message["at"], []
        for array in found:
            flat = np.ascontiguousarray(array).reshape(-1)
            np.frombuffer(self._memory, array.dtype, array.size, at)[:] = flat
            places.append({"kind": array.dtype.name, "shape": list(array.shape), "at": at})
            at = aligned(at + array.nbytes)
        return {"outputs": places}
