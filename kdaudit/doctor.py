"""What this machine offers: every door tried for real, nothing taken on a library's word."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import Literal

from kdaudit.errors import KdauditError
from kdaudit.machine import cores, versions


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at.

    Attributes:
        name: what.
        state: ok, absent (optional and not there), or broken (there or needed, and does not work).
        detail: one sentence.
        mend: the command that mends it, in a checkout of kdaudit; empty where it works or no command helps.
    """

    name: str
    state: Literal["ok", "absent", "broken"]
    detail: str
    mend: str = ""


INSTALL = "pip install -c constraints.txt"
"""As the README installs: the versions that the tests ran with."""


def examine() -> Iterator[Check]:
    """Try each door in turn."""
    found = versions()
    yield Check("machine", "ok", f"{found['system']}, Python {found['python']}, {cores()} cores")
    yield _runtime_packages()
    yield _torch()
    yield from _providers()
    yield _confinement()
    for name in ("simplejpeg", "pillow", "dali"):
        yield _decoder(name)
    shown = {k: v for k, v in found.items() if k not in ("python", "system")}
    yield Check("versions", "ok", ", ".join(f"{name} {version}" for name, version in shown.items()))


def _runtime_packages() -> Check:
    both = []
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            both.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    if len(both) == 2:
        return Check(
            "onnxruntime",
            "broken",
            f"{' and '.join(both)} overwrite each other's files",
            f"pip uninstall -y onnxruntime onnxruntime-gpu && {INSTALL} .",
        )
    if not both:
        return Check("onnxruntime", "broken", "not installed", f"{INSTALL} .")
    return Check("onnxruntime", "ok", both[0])


def _torch() -> Check:
    try:
        import torch
    except (ImportError, OSError) as error:
        return Check("torch", "broken", f"does not import: {error}", f"{INSTALL} --force-reinstall torch torchvision")
    from kdaudit.training import cpu_has_bfloat16

    gpu = f"GPU {torch.cuda.get_device_name(0)}" if torch.cuda.is_available() else "no GPU"
    return Check(
        "torch",
        "ok",
        f"{torch.__version__}, {gpu}, bfloat16 on the CPU: {'yes' if cpu_has_bfloat16() else 'no'}",
    )


def _providers() -> Iterator[Check]:
    from kdaudit.runtime import available_providers, cuda_devices

    try:
        offered, gpus = available_providers(), cuda_devices()
    except (ImportError, KdauditError) as error:
        yield Check("providers", "broken", str(error), f"{INSTALL} --force-reinstall .")
        return
    for name in ("cpu", "cuda", "tensorrt"):
        if name in offered:
            yield Check(f"provider {name}", "ok", "works")
        elif gpus == 0:
            yield Check(f"provider {name}", "absent", "no NVIDIA driver reports a GPU here (nvidia-smi would list it)")
        elif name == "cuda":
            yield Check(
                f"provider {name}", "broken", f"{gpus} GPUs, and its libraries are missing", f"{INSTALL} '.[gpu]'"
            )
        else:
            yield Check(f"provider {name}", "absent", "libnvinfer.so.10 (TensorRT 10) is not on the library path")


def _confinement() -> Check:
    """Start a worker as for a model, and see which walls stand around it."""
    from kdaudit.admission.confined import Admitter
    from kdaudit.sandbox.process import WorkerLost

    try:
        admitter = Admitter()
    except WorkerLost as lost:
        return Check("confinement", "broken", f"the process that checks models does not start: {lost.detail}")
    admitter.close()
    missing = [wall for wall in ("landlock", "seccomp") if wall not in admitter.level]
    if not missing:
        return Check("confinement", "ok", admitter.level)
    return Check("confinement", "absent", f"{admitter.level} only: this kernel offers no {' and no '.join(missing)}")


MEND_DECODER = {
    "simplejpeg": f"{INSTALL} simplejpeg",
    "pillow": f"{INSTALL} --force-reinstall Pillow",
    "dali": f"{INSTALL} '.[dali]'",
}


def _decoder(name: str) -> Check:
    """Decode one small image with it."""
    import io

    from PIL import Image

    from kdaudit.decoder import open_decoder
    from kdaudit.sample import Geometry

    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), (200, 100, 50)).save(buffer, "JPEG")
    try:
        decoder = open_decoder(name)
        reasons = decoder.decode([buffer.getvalue()], Geometry(16, 16)).reasons
    except KdauditError as error:
        return Check(f"decoder {name}", "absent", str(error), MEND_DECODER[name])
    if reasons[0]:
        return Check(f"decoder {name}", "broken", f"cannot decode a plain JPEG: {reasons[0]}", MEND_DECODER[name])
    return Check(f"decoder {name}", "ok", f"works as {decoder.name}")
