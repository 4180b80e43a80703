"""From a model's bytes to what runs it: which provider, on which GPUs, behind which walls, with which engines kept.

The rooms below know one model in one process; here they are put together as the settings say.
"""

import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from kdaudit import enginecache
from kdaudit.errors import DeviceMissing
from kdaudit.machine import Gpu, Placement, cores
from kdaudit.runtime import Engine, cuda_devices, engine_versions, gpu_architecture
from kdaudit.sandbox.engine import ConfinedEngine
from kdaudit.signature import Signature

PLAIN_NAME = re.compile(r"[\w./-]{1,200}", re.ASCII)
"""Input names that can stand in a profile; the suspect model chooses its own."""


class Fleet:
    """One model on several GPUs, a process each: whichever has the least to do takes the next batch. Thread-safe.

    A row depends on its image alone, so it does not matter which of them has made it.

    Attributes:
        provider: the execution provider that all of them obtained; "cpu" where one of them did not.
        confinement: of the first.
    """

    provider: str
    confinement: str

    def __init__(self, engines: Sequence[Engine | ConfinedEngine]) -> None:
        """Take up at least one loaded engine."""
        self._engines = list(engines)
        self._under_way, self._runs = [0] * len(engines), [0] * len(engines)
        self._lock = threading.Lock()
        obtained = {engine.provider for engine in engines}
        self.provider = obtained.pop() if len(obtained) == 1 else "cpu"
        self.confinement = engines[0].confinement

    def run(
        self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str], rows: int | None = None
    ) -> list[NDArray[Any]]:
        """Run on one of them; see `kdaudit.runtime.Engine.run` and `kdaudit.sandbox.engine.ConfinedEngine.run`."""
        with self._one() as engine:
            return engine.run(inputs, outputs, rows)

    def isolated(self) -> ConfinedEngine:
        """The same model in a worker that nobody else uses."""
        first = self._engines[0]
        assert isinstance(first, ConfinedEngine)
        return first.isolated()

    def close(self) -> None:
        """End all workers; no run may be under way."""
        for engine in self._engines:
            if isinstance(engine, ConfinedEngine):
                engine.close()

    @contextmanager
    def _one(self) -> Iterator[Engine | ConfinedEngine]:
        with self._lock:
            number = min(range(len(self._engines)), key=lambda i: (self._under_way[i], self._runs[i]))
            self._under_way[number] += 1
            self._runs[number] += 1
        try:
            yield self._engines[number]
        finally:
            with self._lock:
                self._under_way[number] -= 1


AnyEngine = Engine | ConfinedEngine | Fleet


def open_engine(
    model: bytes, provider: str, threads: int, *, confined: bool, placement: Placement, profile: str = ""
) -> AnyEngine:
    """Load a model, on as many GPUs as are wanted.

    Args:
        model: canonical bytes.
        provider: cpu, cuda or tensorrt.
        threads: onnxruntime threads inside one run.
        confined: whether each runs in a worker behind walls.
        placement: which GPUs, and how.
        profile: from `profile_of`.

    Raises:
        DeviceMissing: there are fewer GPUs than wanted.
        ModelRefused: KDA020, onnxruntime cannot load it; KDA022, a worker did not survive it.
        UsageError: the folder for TensorRT's engines is not private.
    """
    if provider == "cpu":
        return _one(model, provider, threads, confined, Gpu())
    there = cuda_devices()
    if placement.gpus > there:
        raise DeviceMissing(
            f"{placement.gpus} GPUs were demanded and the driver reports {there}: give a smaller --gpus, or look at "
            "CUDA_VISIBLE_DEVICES"
        )
    found: list[Engine | ConfinedEngine] = []
    try:
        for device in range(placement.gpus):
            gpu = Gpu(device, fp16=placement.fp16, tf32=placement.tf32, profile=profile)
            found.append(_placed(model, provider, threads, confined, gpu))
    except BaseException:
        for engine in found:
            if isinstance(engine, ConfinedEngine):
                engine.close()
        raise
    return found[0] if len(found) == 1 else Fleet(found)


def profile_of(signature: Signature, batch: int) -> str:
    """The one shape that TensorRT is to serve, such as "input:64x3x32x32"; empty where the graph leaves a side open.

    Args:
        signature: the model's input.
        batch: images per run.
    """
    sides = signature.input_shape[1:]
    if None in sides or not PLAIN_NAME.fullmatch(signature.input_name):
        return ""
    return f"{signature.input_name}:{'x'.join(map(str, (batch, *sides)))}"


def _one(
    model: bytes,
    provider: str,
    threads: int,
    confined: bool,
    gpu: Gpu,
    prepare: Callable[[], object] = lambda: None,
) -> Engine | ConfinedEngine:
    if confined:
        return ConfinedEngine(model, provider, threads, cores() + 1, gpu, prepare)
    prepare()
    return Engine(model, provider, threads, gpu)


def _placed(model: bytes, provider: str, threads: int, confined: bool, gpu: Gpu) -> Engine | ConfinedEngine:
    """On one GPU; TensorRT's engines are kept, and vouched for once the model is loaded."""
    if provider != "tensorrt" or not gpu.profile:
        return _one(model, provider, threads, confined, gpu)
    root = enginecache.cache_root()
    key = enginecache.key_of(model, engine_versions(), gpu_architecture(gpu.device), fp16=gpu.fp16, profile=gpu.profile)
    kept = replace(gpu, engines=str(enginecache.open_folder(root, key)))
    # A worker may write there as long as it lives: whoever takes its place reads only what was vouched for.
    engine = _one(model, provider, threads, confined, kept, lambda: enginecache.open_folder(root, key))
    enginecache.seal(root, key)  # with a profile, the engine is built while the model is loaded
    return engine
