"""What this process may use: cores, devices, library versions."""

import os
import platform
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
