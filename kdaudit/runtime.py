"""The one door to onnxruntime: which providers there are, loading a model, running it.

Used by the process that runs a model: the parent for the auditor's own controls, a confined worker for the suspect
model (`kdaudit.worker`).
"""

import contextlib
import ctypes
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdaudit.errors import ModelRefused
from kdaudit.machine import GPU_RUNS, Gpu

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

ORT_NAMES = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
TENSORRT = "libnvinfer.so.10"  # what onnxruntime's provider links against
_BLOCKING_SYNC = 4  # CU_CTX_SCHED_BLOCKING_SYNC
_QUIET = 4  # onnxruntime's "fatal": what went wrong arrives as an exception, not on the user's terminal


class Engine:
    """A loaded model in this process. Thread-safe.

    Attributes:
        provider: the execution provider that was really obtained: cpu, cuda or tensorrt.
        confinement: what confines it.
    """

    confinement = "none"

    def __init__(self, model: bytes, provider: str, threads: int, gpu: Gpu | None = None) -> None:
        """Load a model.

        Args:
            model: canonical bytes.
            provider: cpu, cuda or tensorrt.
            threads: onnxruntime threads inside one run.
            gpu: how a GPU is set up; None: the first one, with all its memory.

        Raises:
            ModelRefused: KDA020, with onnxruntime's own first line.
        """
        self._inner = _load(model, provider, threads, gpu or Gpu())
        obtained = {name: short for short, name in ORT_NAMES.items()}
        first = self._inner.get_providers()[0]
        self.provider = obtained.get(first, first)
        self._gate = contextlib.nullcontext() if self.provider == "cpu" else threading.BoundedSemaphore(GPU_RUNS)

    def run(
        self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str], rows: int | None = None
    ) -> list[NDArray[Any]]:
        """Run once, or as often as a batch of fixed size needs.

        Args:
            inputs: tensors by name, [n, ...].
            outputs: names of the outputs that are wanted.
            rows: images per run; the last run is filled with copies of its last image, so that no foreign image
                joins it. None: all in one.

        Returns:
            One array per name, as the model gives them: nothing about them is checked. With `rows`, each is
            [n, everything that the model gives for an image].

        Raises:
            ModelRefused: KDA021, with onnxruntime's own first line, or an output does not divide by `rows`.
        """
        if rows is None:
            return self._once(inputs, outputs)
        total = len(next(iter(inputs.values())))
        parts: list[list[NDArray[Any]]] = [[] for _ in outputs]
        for start in range(0, total, rows):
            count = min(rows, total - start)
            part = {name: _filled(tensor[start : start + count], rows) for name, tensor in inputs.items()}
            for into, array in zip(parts, self._once(part, outputs), strict=True):
                if array.size % rows:
                    raise ModelRefused("KDA021", f"an output gave {list(array.shape)} for a batch of {rows}")
                into.append(array.reshape(rows, -1)[:count])
        try:
            return [np.concatenate(some) for some in parts]
        except ValueError:
            raise ModelRefused("KDA021", "an output has another size for every image") from None

    def _once(self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> list[NDArray[Any]]:
        try:
            with self._gate:
                return [np.asarray(value) for value in self._inner.run(list(outputs), dict(inputs))]
        except _failures() as error:
            raise ModelRefused("KDA021", f"onnxruntime cannot run the model: {first_line(error)}") from None


def _filled(part: NDArray[Any], rows: int) -> NDArray[Any]:
    """A run's images, filled up with copies of the last."""
    return part if len(part) == rows else np.concatenate([part, np.repeat(part[-1:], rows - len(part), axis=0)])


def available_providers() -> list[str]:
    """What really works here, best first; "cpu" is always among it.

    onnxruntime-gpu lists CUDA on machines without a GPU and then prints errors, so the driver is asked first.
    """
    ort = _onnxruntime()
    built = set(ort.get_available_providers())
    found = ["cpu"]
    if ORT_NAMES["cuda"] in built and cuda_devices() > 0:
        found.insert(0, "cuda")
        if ORT_NAMES["tensorrt"] in built and _loads(TENSORRT):
            found.insert(0, "tensorrt")
    return found


def cuda_devices() -> int:
    """Number of CUDA devices that the driver reports; 0 without a driver. Prints nothing."""
    driver, count = _driver(), ctypes.c_int(0)
    if driver is None or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def gpu_architecture(device: int) -> str:
    """Compute capability of a GPU, such as sm_90; empty where the driver does not say."""
    driver, handle, value, found = _driver(), ctypes.c_int(0), ctypes.c_int(0), []
    if driver is None or driver.cuDeviceGet(ctypes.byref(handle), device) != 0:
        return ""
    for attribute in (75, 76):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
        if driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, handle) != 0:
            return ""
        found.append(value.value)
    return "sm_{}{}".format(*found)


def sleep_while_waiting(device: int) -> None:
    """Let threads of this process that wait for a GPU sleep until it is done.

    CUDA's own choice is to ask again and again, a core for each thread that waits: cores that the decoder needs. It
    takes effect where the driver knows the call, whoever else uses the device.
    """
    driver, handle = _driver(), ctypes.c_int(0)
    if driver is not None and driver.cuDeviceGet(ctypes.byref(handle), device) == 0:
        driver.cuDevicePrimaryCtxSetFlags_v2(handle, ctypes.c_uint(_BLOCKING_SYNC))


def engine_versions() -> tuple[str, str]:
    """Versions of onnxruntime and of TensorRT's library; the second is 0 where there is none."""
    try:
        trt = int(ctypes.CDLL(TENSORRT).getInferLibVersion())
    except OSError:
        trt = 0
    return str(_onnxruntime().__version__), str(trt)


def provider_options(wanted: str, gpu: Gpu) -> list[tuple[str, dict[str, str]]]:
    """The providers to ask onnxruntime for, best first, each with its options.

    Args:
        wanted: cpu, cuda or tensorrt; behind it stand those that take the operators it lacks.
        gpu: how a GPU is set up.
    """
    # TensorFloat-32 rounds what is multiplied to 10 bits, and the audit compares small differences: only on demand.
    cuda = {"device_id": str(gpu.device), "use_tf32": str(int(gpu.tf32))}
    cuda |= {"gpu_mem_limit": str(gpu.memory)} if gpu.memory else {}
    trt = {"device_id": str(gpu.device), "trt_fp16_enable": str(int(gpu.fp16))}
    if gpu.profile:
        # One shape for all: an engine is built once, and never again for the last batch.
        trt |= {f"trt_profile_{which}_shapes": gpu.profile for which in ("min", "opt", "max")}
    if gpu.engines:
        trt |= {"trt_engine_cache_enable": "1", "trt_engine_cache_path": gpu.engines}
        trt |= {"trt_timing_cache_enable": "1", "trt_timing_cache_path": gpu.engines}
    options = {"cpu": {}, "cuda": cuda, "tensorrt": trt}
    return [(ORT_NAMES[name], options[name]) for name in _with_fallbacks(wanted)]


def first_line(error: BaseException) -> str:
    """What onnxruntime says went wrong, without its prefix, one line."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line.split(" : ", 3)[-1] if line.startswith("[ONNXRuntimeError]") else line


def _onnxruntime() -> Any:
    """onnxruntime, told to keep quiet."""
    import onnxruntime as ort

    ort.set_default_logger_severity(_QUIET)
    return ort


def _driver() -> ctypes.CDLL | None:
    """CUDA's driver, ready to be asked; None where there is none."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    return driver if driver.cuInit(0) == 0 else None


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _failures() -> tuple[type[BaseException], ...]:
    """What onnxruntime raises; its classes share no base below Exception."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = "EPFail EngineError Fail InvalidArgument InvalidGraph InvalidProtobuf ModelLoaded NoModel NoSuchFile"
    names += " NotImplemented RuntimeException ModelRequiresCompilation"
    own = tuple(getattr(state, name) for name in names.split() if hasattr(state, name))
    return (*own, RuntimeError, ValueError, MemoryError)


def _load(model: bytes, wanted: str, threads: int, gpu: Gpu) -> "InferenceSession":
    """Create the onnxruntime session."""
    ort = _onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _QUIET
    # Spinning threads take the cores away from the decoder and from other sessions.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    providers = provider_options(wanted, gpu)
    if wanted != "cpu":
        sleep_while_waiting(gpu.device)
    if wanted != "cpu" and hasattr(ort, "preload_dlls"):
        ort.preload_dlls()  # finds the CUDA libraries that pip installed
    try:
        return ort.InferenceSession(model, options, providers=providers)
    except _failures() as error:
        raise ModelRefused("KDA020", f"onnxruntime cannot load the model: {first_line(error)}") from None


def _with_fallbacks(provider: str) -> tuple[str, ...]:
    """A provider and those that take the operators it lacks."""
    return {"cpu": ("cpu",), "cuda": ("cuda", "cpu"), "tensorrt": ("tensorrt", "cuda", "cpu")}[provider]
