"""Compile every kernel for an architecture without having a GPU: what cannot be built is found on any machine.

    python -m kdaudit.kernels.ahead        builds for sm_90 and prints what came out

It proves that code is produced, for the types and shapes listed here, and nothing about its speed.
"""

import os
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

from kdaudit.kernels.launch import tiling

ARCHITECTURE = 90  # H100, H200

SHAPES = ((4096, 10), (4096, 1000), (1024, 4096))
"""Rows and classes of a scan: CIFAR-10, ImageNet, the widest that are served."""


class Built(NamedTuple):
    """A kernel that was compiled."""

    name: str
    variant: str
    ptx: str
    cubin: bytes


def build_all(architecture: int = ARCHITECTURE) -> Iterator[Built]:
    """Compile each kernel for each of its types and shapes.

    Raises:
        RuntimeError: this process runs kernels in the interpreter, which leaves nothing to compile.
    """
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise RuntimeError("TRITON_INTERPRET=1 is set: start another process to compile")
    from kdaudit.kernels.augment import BLOCK, augment_kernel
    from kdaudit.kernels.distill_loss import distill_loss_kernel
    from kdaudit.kernels.divergence import divergence_kernel

    for kind in ("fp32", "fp16", "bf16"):
        for n, k in SHAPES:
            tile = tiling(n, k)
            constants = {"ROWS": tile.rows, "COLUMNS": tile.columns}
            logits = {"teacher": f"*{kind}", "student": f"*{kind}"}
            variant = f"{kind} [{n}, {k}]"
            yield _built(
                divergence_kernel,
                logits | {"teacher_top1": "*i64", "student_top1": "*i64", "numbers": "*fp32", "N": "i32", "K": "i32"},
                constants, tile.warps, variant, architecture,
            )  # fmt: skip
            yield _built(
                distill_loss_kernel,
                logits | {"losses": "*fp32", "gradient": f"*{kind}", "B": "i32", "K": "i32", "temperature": "fp32"},
                constants, tile.warps, variant, architecture,
            )  # fmt: skip
        for channels in (1, 3):
            pointers = {"images": "*u8", "image": "*i64", "shift": "*i32", "mirror": "*u8", "weight": "*fp32"}
            pointers |= {"mean": "*fp32", "std": "*fp32", "views": f"*{kind}", "B": "i32", "H": "i32", "W": "i32"}
            constants = {"C": channels, "BLOCK": BLOCK}
            yield _built(augment_kernel, pointers, constants, 4, f"{kind}, {channels} channels", architecture)


def _built(
    kernel: Any, types: dict[str, str], constants: dict[str, int], warps: int, variant: str, architecture: int
) -> Built:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    # Triton wants every argument named, in the kernel's own order, constants among them.
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    source = ASTSource(kernel, signature, constexprs=dict(constants))
    made = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options={"num_warps": warps})
    return Built(kernel.__name__, variant, made.asm["ptx"], made.asm["cubin"])


if __name__ == "__main__":
    for built in build_all():
        sys.stdout.write(f"{built.name:<22}{built.variant:<24}sm_{ARCHITECTURE} cubin {len(built.cubin):>7,} bytes\n")
