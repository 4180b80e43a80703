"""What this process may use: cores, devices, library versions."""

import os
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from kdaudit.errors import DeviceMissing

LIBRARIES = (
    "torch",
    "torchvision",
    "onnx",
    "onnxscript",
    "onnxruntime-gpu",
    "onnxruntime",
    "simplejpeg",
    "pillow",
    "numpy",
    "scipy",
    "scikit-learn",
    "pyarrow",
    "pydantic",
    "nvidia-dali-cuda130",
    "triton",
)


GPU_BATCH, GPU_BATCH_SMALL = 64, 256
"""Images per batch on a GPU where nobody asked for another number; of small ones 64 are hardly any work (32 px: 5,300
images a second by the default rule, 8,300 by 256, 8,800 by 1,024; benchmarks/results/gpu.md)."""

SMALL_SIDE = 64
"""Images of at most so many pixels on the longer side are small."""

GPU_RUNS = 3
"""Runs at a time on a GPU: one computes, the next one's images are on their way, the last one's answer is read. Every
further one is in the way of those (ResNet-50, TensorFloat-32: 2,900 images a second with 3, 2,300 with 8)."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """How a GPU's provider is set up; means nothing on a CPU.

    Attributes:
        device: which one, from 0.
        memory: cap on its memory in bytes; None: no cap.
        fp16: whether TensorRT may round to float16.
        profile: the one shape that TensorRT serves, as "input:64x3x32x32"; empty: any.
        engines: folder for TensorRT's engines (`kdaudit.enginecache`); empty: none are kept.
        tf32: whether CUDA may round what it multiplies to TensorFloat-32.
    """

    device: int = 0
    memory: int | None = None
    fp16: bool = False
    profile: str = ""
    engines: str = ""
    tf32: bool = False


@dataclass(frozen=True, slots=True)
class Placement:
    """How the settings want models run on GPUs; means nothing on a CPU.

    Attributes:
        gpus: how many GPUs share the images.
        fp16: whether TensorRT may round to float16.
        batch: images per run where the shape has to be one and the same (TensorRT).
        tf32: whether CUDA may round what it multiplies to TensorFloat-32.
    """

    gpus: int = 1
    fp16: bool = False
    batch: int = GPU_BATCH
    tf32: bool = False

    def fill(self, provider: str) -> int | None:
        """How many images a run is filled up to; None: it takes those at hand.

        On CUDA, onnxruntime plans every convolution anew whenever a run has another size than the one before: 20 ms
        for a small network, 0.1 to 0.5 s for a ResNet-50 (benchmarks/results/gpu.md).
        """
        return self.batch if provider == "cuda" else None


def is_small(side: int | None) -> bool:
    """Whether images are small, given the longer side in pixels of what the model takes; None: it takes any size."""
    return side is not None and side <= SMALL_SIDE


def gpu_batch(side: int | None) -> int:
    """Images per batch on a GPU; `side`: as `is_small` takes it."""
    return GPU_BATCH_SMALL if is_small(side) else GPU_BATCH


def cores() -> int:
    """Cores that this process may use: its affinity, cut by its control group's CPU quota; at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            allowed = min(allowed, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass  # no control group of version 2: the affinity is all there is to know
    return max(1, allowed)


def choose_device(wanted: str) -> str:
    """What the control is trained on: cpu or cuda.

    Raises:
        DeviceMissing: cuda was demanded and torch cannot use it.
    """
    if wanted == "cpu":
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if wanted == "cuda":
        raise DeviceMissing(
            "--device cuda was demanded and torch sees no GPU: run `kdaudit doctor`, or leave --device at auto"
        )
    return "cpu"


def versions() -> dict[str, str]:
    """Versions of Python, the system and every library that shapes a result; absent ones are left out."""
    found = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
