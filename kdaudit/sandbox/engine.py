"""A model that runs in a confined worker: `run` as in `kdaudit.runtime.Engine`, through shared memory.

One worker holds the model once and answers on several lanes, so that the threads of the comparison do not wait for
each other. A worker that is lost is replaced, and the caller is told.
"""

import contextlib
import math
import mmap
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdaudit.errors import Inconclusive, ModelRefused
from kdaudit.machine import Gpu
from kdaudit.sandbox.process import Worker, WorkerLost
from kdaudit.sandbox.talk import aligned, shared_memory

LOAD_S = 30
"""Seconds to load a model, of the clock and of computing."""

BUILD_S = 1800
"""Seconds for TensorRT to build an engine: minutes for a large network."""

FIRST_RUN_S = 20
"""Seconds for an answer while nothing is known of the model's pace."""

PATIENCE = 50
"""A run may take so many times as long as the slowest one so far, image for image."""

WORKING_BYTES = 4 << 30
"""Address space for what a model computes, on top of three times its own size."""

GPU_BYTES = 16 << 30
"""Cap on a GPU's memory, where the address space cannot be capped."""

GPU_READABLE = ("/usr", "/lib", "/lib64", "/opt", "/etc", "/proc", "/sys", "/dev")
"""What CUDA's libraries read after they were loaded; beside them Python's own folder."""

MAX_ANSWER = 1 << 30
"""Bytes of one answer."""

MAX_RESTARTS = 24
"""A model that loses more workers than this has answered enough."""

KINDS = {name: np.dtype(name) for name in ("float32", "float16", "float64", "int64", "int32", "int8", "uint8", "bool")}


class ConfinedEngine:
    """A loaded model in a process of its own. Thread-safe.

    Attributes:
        provider: the execution provider that the worker obtained.
        confinement: the level of confinement that it reached.
    """

    provider: str
    confinement: str

    def __init__(
        self,
        model: bytes,
        provider: str,
        threads: int,
        lanes: int,
        gpu: Gpu | None = None,
        prepare: Callable[[], object] = lambda: None,
    ) -> None:
        """Load a model in a worker.

        Args:
            model: canonical bytes of an admitted model.
            provider: cpu, cuda or tensorrt.
            threads: onnxruntime threads inside one run.
            lanes: runs at a time.
            gpu: how a GPU is set up; its memory is capped in any case.
            prepare: called before each worker is started, those that replace a lost one too.

        Raises:
            ModelRefused: KDA020 (onnxruntime cannot load it) or KDA022 (the worker did not survive it).
        """
        self._model, self._wanted, self._threads, self._count = model, provider, threads, lanes
        self._gpu, self._prepare = replace(gpu or Gpu(), memory=GPU_BYTES), prepare
        # The last one used is taken first: its memory is still in the cache.
        self._lanes: queue.LifoQueue[_Lane] = queue.LifoQueue()
        self._lock = threading.Lock()
        self._restarts = 0
        self._slowest = 0.0  # seconds per image
        self._failed: Exception | None = None
        try:
            self._worker = self._start()
        except WorkerLost as lost:
            raise ModelRefused("KDA022", f"the model cannot be loaded: {lost.detail}; do not use it") from None

    def run(
        self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str], rows: int | None = None
    ) -> list[NDArray[Any]]:
        """Run; see `kdaudit.runtime.Engine.run`. One message and one answer, however many runs it takes.

        Raises:
            ModelRefused: KDA021, onnxruntime cannot run the model on this.
            WorkerLost: the worker died, blocked or answered nonsense, here or for another lane; a new one is up.
            Inconclusive: that has happened too often.
        """
        images = max((len(tensor) for tensor in inputs.values()), default=1)
        with self._lane() as lane:
            began = time.monotonic()
            try:
                found = lane.run(inputs, outputs, self._patience(images), rows)
            except WorkerLost:
                lane.worker.end()
                self._replace(lane.worker)
                raise
            self._slowest = max(self._slowest, (time.monotonic() - began) / max(images, 1))
        return found

    def isolated(self) -> "ConfinedEngine":
        """The same model in a worker that nobody else uses."""
        return ConfinedEngine(self._model, self._wanted, self._threads, 1, self._gpu, self._prepare)

    def close(self) -> None:
        """End the worker; no run may be under way."""
        self._worker.close()

    def _patience(self, images: int) -> float:
        return max(FIRST_RUN_S, PATIENCE * self._slowest * images)

    @contextlib.contextmanager
    def _lane(self) -> "Iterator[_Lane]":
        while True:
            try:
                lane = self._lanes.get(timeout=0.5)
            except queue.Empty:
                if self._failed is not None:
                    raise self._failed from None
                continue
            if lane.worker is self._worker:
                break
        try:
            yield lane
        finally:
            if lane.worker is self._worker:
                self._lanes.put(lane)

    def _replace(self, lost: Worker) -> None:
        """Start another worker, unless another thread has done so."""
        with self._lock:
            if self._worker is not lost:
                return
            self._restarts += 1
            try:
                if self._restarts > MAX_RESTARTS:
                    raise Inconclusive(
                        f"the model ended or blocked its confined process {self._restarts} times, so nothing can be "
                        "said about it: do not use it"
                    )
                self._worker = self._start()
            except WorkerLost as again:
                self._failed = Inconclusive(f"the model's confined process cannot be started again: {again.detail}")
                raise self._failed from None
            except Inconclusive as enough:
                self._failed = enough
                raise

    def _start(self) -> Worker:
        self._prepare()
        on_cpu = self._wanted == "cpu"
        setup = {
            "memory": WORKING_BYTES + 3 * len(self._model) if on_cpu else None,
            "cpu_s": LOAD_S if on_cpu else None,
            "readable": [] if on_cpu else [*GPU_READABLE, os.path.realpath(os.__file__ + "/../../..")],
            "filter": on_cpu,
            "writable": "" if on_cpu else self._gpu.engines,
        }
        worker = Worker("run", setup, self._count)
        descriptor, memory = shared_memory(len(self._model))
        try:
            memory[: len(self._model)] = self._model
            request = {
                "do": "load",
                "bytes": len(self._model),
                "provider": self._wanted,
                "threads": self._threads,
                "gpu": asdict(self._gpu),
            }
            seconds = BUILD_S if self._wanted == "tensorrt" else LOAD_S
            answer = worker.ask(worker.control, request, seconds, [descriptor])
        finally:
            memory.close()
            os.close(descriptor)
        _raise_refusal(answer)
        worker.lift_cpu_limit()
        self.provider, self.confinement = str(answer.get("provider", ""))[:40], worker.level
        for channel in worker.lanes:
            self._lanes.put(_Lane(worker, channel))
        return worker


class _Lane:
    """One channel to a worker and the memory for its arrays; one thread at a time."""

    def __init__(self, worker: Worker, channel: Any) -> None:
        self.worker, self._channel = worker, channel
        self._memory: mmap.mmap | None = None
        self._size = 0
        self._room = 1 << 16  # bytes for the answer

    def run(
        self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str], seconds: float, rows: int | None = None
    ) -> list[NDArray[Any]]:
        places: list[dict[str, Any]] = []
        end = 0
        for name, tensor in inputs.items():
            places.append({"name": name, "kind": tensor.dtype.name, "shape": list(tensor.shape), "at": end})
            end = aligned(end + tensor.nbytes)
        while True:
            fresh = self._make_room(end + self._room)
            assert self._memory is not None
            for place, tensor in zip(places, inputs.values(), strict=True):
                view = np.frombuffer(self._memory, tensor.dtype, tensor.size, place["at"])
                view[:] = tensor.reshape(-1)
                del view
            request = {"inputs": places, "outputs": list(outputs), "rows": rows, "at": end, "room": self._room}
            request |= {"size": self._size} if fresh else {}
            try:
                answer = self.worker.ask(
                    self._channel, request | ({"size": self._size} if fresh else {}), seconds, fresh
                )
            finally:
                for descriptor in fresh:
                    os.close(descriptor)
            _raise_refusal(answer)
            needed = answer.get("needs")
            if needed is None:
                return self._taken(answer, outputs, end)
            if not isinstance(needed, int) or not self._room < needed <= MAX_ANSWER:
                raise WorkerLost("confused", "its answer has an impossible size")
            self._room = needed

    def _make_room(self, size: int) -> list[int]:
        """Map more memory if it is needed; the descriptor to send, then."""
        if size <= self._size:
            return []
        if self._memory is not None:
            self._memory.close()
        self._size = size
        descriptor, self._memory = shared_memory(size)
        return [descriptor]

    def _taken(self, answer: dict[str, Any], outputs: Sequence[str], start: int) -> list[NDArray[Any]]:
        """Copies of the arrays that the worker says it has written: what it changes later changes nothing here."""
        assert self._memory is not None
        places = answer.get("outputs")
        if not isinstance(places, list) or len(places) != len(outputs):
            raise WorkerLost("confused", "its answer does not hold what was asked for")
        found = []
        for place in places:
            try:
                kind, shape, at = KINDS[place["kind"]], tuple(map(int, place["shape"])), int(place["at"])
                count = math.prod(shape)
                if (
                    len(shape) > 8
                    or any(not 0 <= size < 1 << 31 for size in shape)
                    or count * kind.itemsize > self._room
                ):
                    raise ValueError("an impossible shape")
                if not start <= at <= start + self._room - count * kind.itemsize:
                    raise ValueError("outside its place")
            except (KeyError, TypeError, ValueError, OverflowError):
                raise WorkerLost("confused", "its answer has an impossible shape, type or place") from None
            view = np.frombuffer(self._memory, kind, count, at)
            found.append(view.reshape(shape).copy())
            del view
        return found


def _raise_refusal(answer: dict[str, Any]) -> None:
    """Raise what the worker says onnxruntime said; its words are printable and short."""
    refused = answer.get("refused")
    if refused is None:
        return
    rule, text = refused if isinstance(refused, list) and len(refused) == 2 else ("", "")
    rule = rule if rule in {"KDA020", "KDA021"} else "KDA022"
    raise ModelRefused(rule, "".join(c if c.isprintable() else "?" for c in str(text)[:500]) or "no reason given")
