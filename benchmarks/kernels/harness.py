"""What every kernel's benchmark does: correct first, then timed beside its reference, torch.compile and a plain copy.

GB/s are the bytes that the op has to move (each benchmark says which) over the median time, so that they can be held
against the copy, which moves as many bytes and does nothing else. On a GPU `triton.testing.do_bench` times, which
flushes the second-level cache between repeats; the rows go to results/kernels.csv. Without one nothing is claimed of
any kernel: the reference is timed on the CPU, where it is what runs, and nothing is written.
"""

import argparse
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from benchmarks import lab

NOT_MEASURED = "not measured on a GPU"
RESULTS = lab.RESULTS / "kernels.csv"
QUANTILES = (0.5, 0.2, 0.8)


@dataclass(frozen=True)
class Case:
    """One shape of an op, ready to run.

    Attributes:
        arguments: what reference and kernel take.
        moved: bytes that the op has to read and write.
        tolerances: relative and absolute, float32 inside the kernel against the reference.
    """

    arguments: tuple[Any, ...]
    moved: int
    tolerances: tuple[float, float]


@dataclass(frozen=True)
class Op:
    """A kernel's benchmark.

    Attributes:
        name: of the kernel's module and function in `kdaudit.kernels`.
        shapes: those that a scan uses.
        kinds: element types.
        set_up: (shape, type, device) -> the case.
        run: (function, arguments) -> tensors to compare: the op as it is used, its backward pass included.
        reference: the plain-torch definition.
    """

    name: str
    shapes: Sequence[tuple[int, ...]]
    kinds: Sequence[torch.dtype]
    set_up: Callable[[tuple[int, ...], torch.dtype, str], Case]
    run: Callable[[Callable[..., Any], tuple[Any, ...]], Sequence[Tensor]]
    reference: Callable[..., Any]


def main(op: Op, given: Sequence[str] | None = None) -> int:
    """Measure, print, and on a GPU append; returns the process's exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="of the reference on a CPU")
    parser.add_argument("--dry", action="store_true", help="append nothing")
    options = parser.parse_args(given)
    if not torch.cuda.is_available():
        print(f"{op.name}: {NOT_MEASURED}; the reference on this CPU, {torch.get_num_threads()} thread(s):")
        for row in on_cpu(op, options.repeats):
            print(f"  {row['shape']:<18}{row['type']:<10}{row['ms']:>10} ms {row['gb_s']:>8} GB/s")
        return 0
    rows = list(on_gpu(op))
    for row in rows:
        print(*(f"{value!s:>12}" for value in row.values()))
    if not options.dry:
        lab.append_rows(RESULTS, rows)
    return 0


def on_cpu(op: Op, repeats: int) -> Iterator[dict[str, str]]:
    """The reference, float32, the median of some repeats after one that warms up."""
    for shape in op.shapes:
        case = op.set_up(shape, torch.float32, "cpu")
        op.run(op.reference, case.arguments)
        seconds = []
        for _ in range(repeats):
            began = time.perf_counter()
            op.run(op.reference, case.arguments)
            seconds.append(time.perf_counter() - began)
        yield _timed(shape, torch.float32, statistics.median(seconds), case.moved)


def on_gpu(op: Op) -> Iterator[dict[str, str]]:
    """Kernel, torch.compile, reference and a copy of as many bytes, each shape and type; the kernel checked first.

    Raises:
        AssertionError: the kernel disagrees with its reference; nothing is timed then.
    """
    from triton.testing import do_bench

    kernel = getattr(import_module(f"kdaudit.kernels.{op.name}"), op.name)
    compiled = torch.compile(op.reference)
    conditions = machine()
    for shape in op.shapes:
        for kind in op.kinds:
            case = op.set_up(shape, kind, "cuda")
            agree(op, kernel, case)
            source = torch.empty(case.moved // 2, dtype=torch.uint8, device="cuda")  # a copy reads and writes each
            target = torch.empty_like(source)
            what: dict[str, Callable[[], Any]] = {"copy": lambda s=source, t=target: t.copy_(s)}
            for name, function in (("kernel", kernel), ("torch.compile", compiled), ("reference", op.reference)):
                what[name] = lambda f=function, c=case: op.run(f, c.arguments)
            for name, run in what.items():
                middle, low, high = (ms / 1000 for ms in do_bench(run, quantiles=list(QUANTILES)))
                row = _timed(shape, kind, middle, case.moved) | {"ms_low": _ms(low), "ms_high": _ms(high)}
                yield {"date": lab.today(), "op": op.name, "what": name} | row | conditions


def agree(op: Op, kernel: Callable[..., Any], case: Case) -> None:
    """Hold a kernel against its reference in float64, which must be such as could tell a wrong kernel.

    Beside the case's tolerance it may be off by twice as much as the reference is in the kernel's own type: plain torch
    keeps what lies between in that type (in bfloat16 its distillation loss is off by 1.4 %), the kernels do not.

    Raises:
        AssertionError: they differ, or the reference gives one and the same number everywhere.
    """
    rtol, atol = case.tolerances
    exact = op.run(op.reference, tuple(map(_exact, case.arguments)))
    results = (exact, op.run(op.reference, case.arguments), op.run(kernel, case.arguments))
    for truth, usual, found in zip(*([one.double() for one in result] for result in results), strict=True):
        assert truth.numel() == 1 or float(truth.std()) > 0, "a degenerate case proves nothing"
        allowed = atol + rtol * truth.abs() + 2 * (usual - truth).abs().max()
        assert bool(((found - truth).abs() <= allowed).all()), "the kernel disagrees"


def _exact(argument: Any) -> Any:
    """A floating-point tensor in float64, with a gradient of its own where it had one; anything else as it is."""
    if not isinstance(argument, Tensor) or not argument.is_floating_point():
        return argument
    return argument.detach().double().requires_grad_(argument.requires_grad)


def machine() -> dict[str, str]:
    """The GPU and what drives it."""
    import triton

    asked = "driver_version,power.limit"
    told = subprocess.run(
        ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader"], capture_output=True, text=True, check=False
    )
    driver, _, power = (told.stdout.splitlines() or [""])[0].partition(", ")
    return {
        "gpu": torch.cuda.get_device_name(0),
        "power_cap": power,
        "driver": driver,
        "torch": torch.__version__,
        "triton": triton.__version__,
    }


def _timed(shape: tuple[int, ...], kind: torch.dtype, seconds: float, moved: int) -> dict[str, str]:
    return {
        "shape": "x".join(map(str, shape)),
        "type": str(kind).removeprefix("torch."),
        "ms": _ms(seconds),
        "gb_s": f"{moved / seconds / 1e9:.2f}",
    }


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.4f}"
