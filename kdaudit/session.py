"""The one door to onnxruntime: a teacher or a control as a function from a batch to its scores.

What graphs leave to the caller is settled here: fixed batches, batches that influence each other, float16,
trailing ones, probabilities instead of logits. `Session.provider` is what was obtained, never what was asked.
"""

import ctypes
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from kdaudit.errors import DeviceMissing, ModelRefused, UsageError
from kdaudit.signature import Signature

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

PROBABILITY_FLOOR = 1e-7
"""Probabilities are raised to it before their logarithm is taken: float16 and rounding give exact zeros."""

BATCH_TOLERANCE = 1e-3
"""How far an image's scores may move with its batch mates, relative to how far they lie apart."""

Provider = Literal["auto", "cpu", "cuda", "tensorrt"]
PROVIDERS: tuple[str, ...] = ("auto", "cpu", "cuda", "tensorrt")

_ORT_NAMES = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
_QUIET = 4  # onnxruntime's "fatal": what went wrong arrives as an exception, not on the user's terminal


class Session:
    """A model that is ready to answer. Thread-safe.

    Attributes:
        provider: the execution provider that was really obtained: cpu, cuda or tensorrt.
        signature: the model's input and output.
        threads: onnxruntime threads inside one run.
    """

    provider: str
    signature: Signature
    threads: int

    def __init__(self, inner: "InferenceSession", signature: Signature, threads: int) -> None:
        obtained = {name: short for short, name in _ORT_NAMES.items()}
        self._inner = inner
        self._lock = threading.Lock()
        self._together: bool | None = None  # whether images may share a run; None until the first run shows it
        self.signature = signature
        self.threads = threads
        self.provider = obtained.get(inner.get_providers()[0], inner.get_providers()[0])

    @property
    def one_by_one(self) -> bool:
        """Whether images run one at a time: the graph wants it, or answers depend on batch mates."""
        return self.signature.batch == 1 or self._together is False

    def settled(self, signature: Signature) -> "Session":
        """The same loaded model under a signature that says more (the output kind, say)."""
        other = Session(self._inner, signature, self.threads)
        other._together = self._together
        return other

    def raw(self, tensor: NDArray[np.generic]) -> NDArray[np.float32]:
        """The class scores as the graph gives them.

        Args:
            tensor: input [n, ...] in the signature's layout; n may be any number, also 0.

        Returns:
            Scores [n, K], float32; non-finite values are left in.

        Raises:
            ModelRefused: KDA021, onnxruntime cannot run the model on this tensor.
        """
        tensor = tensor.astype(self.signature.input_type, copy=False)
        if len(tensor) == 0:
            return np.empty((0, self.signature.classes), np.float32)
        if self._together is None:
            with self._lock:
                if self._together is None:
                    self._together = self._may_share(tensor)
        return np.concatenate([self._run(part, count) for part, count in self._parts(tensor)])

    def logits(self, tensor: NDArray[np.generic]) -> NDArray[np.float32]:
        """Scores whose softmax is the model's belief.

        Probabilities are raised to `PROBABILITY_FLOOR` and brought back to sum one, then their logarithm is
        taken; logits and log-probabilities pass as they are.

        Args:
            tensor: input [n, ...] in the signature's layout.

        Returns:
            Logits [n, K], float32; non-finite values of the model are left in.

        Raises:
            ModelRefused: KDA021, onnxruntime cannot run the model on this tensor.
        """
        scores = self.raw(tensor)
        return from_probabilities(scores) if self.signature.output_kind == "probabilities" else scores

    def _parts(self, tensor: NDArray[np.generic]) -> Iterator[tuple[NDArray[np.generic], int]]:
        """Cut a batch into runs; yields (run, number of rows that count)."""
        batch = self.signature.batch
        step = (batch or len(tensor)) if self._together else 1
        for start in range(0, len(tensor), step):
            part = tensor[start : start + step]
            count = len(part)
            if batch is not None and count < batch:  # filled with copies: no foreign image joins the run
                part = np.concatenate([part, np.repeat(part[-1:], batch - count, axis=0)])
            yield part, count

    def _run(self, part: NDArray[np.generic], count: int) -> NDArray[np.float32]:
        """Run once and cut the answer to [count, K]."""
        signature = self.signature
        try:
            (scores,) = self._inner.run([signature.output_name], {signature.input_name: part})
        except _failures() as error:
            raise ModelRefused("KDA021", f"onnxruntime cannot run the model: {first_line(error)}") from None
        array = np.asarray(scores)
        if array.size != len(part) * signature.classes or array.dtype.kind != "f":
            given = f"{array.dtype} {list(array.shape)} for a batch of {len(part)}"
            raise ModelRefused(
                "KDA021",
                f"output {signature.output_name} gave {given}; {signature.classes} scores each are needed",
            )
        return array.reshape(len(part), signature.classes)[:count].astype(np.float32, copy=False)

    def _may_share(self, tensor: NDArray[np.generic]) -> bool:
        """Whether an image's answer is the same alone and beside others.

        Some exports fix the batch inside the graph although they declare it free, and dynamically quantised
        graphs take their ranges over the whole batch: such models are asked one image at a time.
        """
        if self.signature.batch == 1:
            return True
        rng = np.random.default_rng(0)
        noise = rng.random((2, *tensor.shape[1:]), dtype=np.float32)
        noise *= np.float32(np.abs(tensor.astype(np.float32)).max() or 1)
        rows = np.concatenate([noise[:1] / 64, noise[1:]]).astype(tensor.dtype)
        fill = (self.signature.batch or 2) - 2
        alone = np.repeat(rows[:1], self.signature.batch or 1, axis=0)
        expected = self._run(alone, 1)
        mates = np.concatenate([rows, np.repeat(rows[1:], fill, axis=0)])
        try:
            beside = self._run(mates, 1)
        except ModelRefused:
            return False
        span = float(np.ptp(expected)) or 1.0
        return bool(np.abs(beside - expected).max() <= BATCH_TOLERANCE * span)


def open_session(model: bytes, signature: Signature, *, provider: str = "auto", threads: int = 1) -> Session:
    """Load a model and prove that it runs.

    Args:
        model: canonical bytes of an admitted model.
        signature: its input and output.
        provider: auto (the best that really works), cpu, cuda or tensorrt.
        threads: onnxruntime threads inside one run; more sessions of one thread beat one session of many.

    Raises:
        UsageError: no such provider.
        DeviceMissing: a demanded provider was not obtained.
        ModelRefused: KDA020 or KDA021, with onnxruntime's own first line.
    """
    if provider not in PROVIDERS:
        raise UsageError(f"no provider is called {provider!r}; choose one of {', '.join(PROVIDERS)}")
    offered = available_providers()
    # TensorRT rounds and takes minutes to build an engine: it is there for those who ask for it.
    wanted = next(name for name in ("cuda", "cpu") if name in offered) if provider == "auto" else provider
    if wanted not in offered:
        raise DeviceMissing(
            f"provider {provider} was demanded and is not there (this machine offers {', '.join(offered)}); "
            "leave --provider out or run on another machine"
        )
    session = Session(_load(model, wanted, threads), signature, threads)
    if provider not in ("auto", session.provider):
        raise DeviceMissing(
            f"provider {provider} was demanded and onnxruntime gave {session.provider}; "
            "run `kdaudit doctor` to see what is broken"
        )
    _prove(session)
    return session


def available_providers() -> list[str]:
    """What really works here, best first; "cpu" is always among it.

    onnxruntime-gpu lists CUDA on machines without a GPU and then prints errors, so the driver is asked first.
    """
    ort = _onnxruntime()
    built = set(ort.get_available_providers())
    found = ["cpu"]
    if _ORT_NAMES["cuda"] in built and cuda_devices() > 0:
        found.insert(0, "cuda")
        if _ORT_NAMES["tensorrt"] in built and _loads("libnvinfer.so.10"):
            found.insert(0, "tensorrt")
    return found


def cuda_devices() -> int:
    """Number of CUDA devices that the driver reports; 0 without a driver. Prints nothing."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def from_probabilities(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logarithms of probabilities [n, K], floored at `PROBABILITY_FLOOR` and brought back to sum one."""
    floored = np.maximum(scores, np.float32(PROBABILITY_FLOOR))
    with np.errstate(invalid="ignore"):  # infinite scores are the caller's finding, not a warning
        logits: NDArray[np.float32] = np.log(floored / floored.sum(axis=1, keepdims=True))
    return logits


def first_line(error: BaseException) -> str:
    """What onnxruntime says went wrong, without its prefix, one line."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line.split(" : ", 3)[-1] if line.startswith("[ONNXRuntimeError]") else line


def _onnxruntime() -> Any:
    """onnxruntime, told to keep quiet."""
    import onnxruntime as ort

    ort.set_default_logger_severity(_QUIET)
    return ort


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


def _load(model: bytes, wanted: str, threads: int) -> "InferenceSession":
    """Create the onnxruntime session."""
    ort = _onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _QUIET
    # Spinning threads take the cores away from the decoder and from other sessions.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    # TensorFloat-32 rounds the teacher's answers to 10 bits; the audit compares small differences.
    settings = {"cuda": {"use_tf32": "0"}}
    providers = [(_ORT_NAMES[name], settings.get(name, {})) for name in _with_fallbacks(wanted)]
    if wanted != "cpu" and hasattr(ort, "preload_dlls"):
        ort.preload_dlls()  # finds the CUDA libraries that pip installed
    try:
        return ort.InferenceSession(model, options, providers=providers)
    except _failures() as error:
        raise ModelRefused("KDA020", f"onnxruntime cannot load the model: {first_line(error)}") from None


def _with_fallbacks(provider: str) -> tuple[str, ...]:
    """A provider and those that take the operators it lacks."""
    return {"cpu": ("cpu",), "cuda": ("cuda", "cpu"), "tensorrt": ("tensorrt", "cuda", "cpu")}[provider]


def _prove(session: Session) -> None:
    """Run the model once on noise; where the graph leaves the size open, the first batch will show."""
    signature = session.signature
    if signature.height is None or signature.width is None:
        return
    shape = tuple(side or 1 for side in signature.input_shape[1:])
    if signature.layout == "NCHW":
        shape = (signature.channels, signature.height, signature.width)
    elif signature.layout == "NHWC":
        shape = (signature.height, signature.width, signature.channels)
    session.raw(np.random.default_rng(0).random((1, *shape), dtype=np.float32))
