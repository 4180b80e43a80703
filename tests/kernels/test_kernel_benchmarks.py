"""The kernels' benchmarks: without a GPU they claim nothing of a kernel and end well; what they check can fail."""

import csv
import sys
from dataclasses import replace
from importlib import import_module
from types import ModuleType, SimpleNamespace

import pytest
import torch
from deliveries import ROOT

from benchmarks import lab
from benchmarks.kernels import harness
from benchmarks.kernels.harness import Case, Op

OPS = ("divergence", "distill_loss", "augment")
SMALL = {"divergence": (5, 7), "distill_loss": (4, 7), "augment": (3, 8, 8, 3)}


def small(name: str) -> Op:
    return replace(import_module(f"benchmarks.kernels.{name}").OP, shapes=(SMALL[name],))


def test_every_kernel_has_a_benchmark_of_its_own_name():
    kernels = {p.stem for p in (ROOT / "kernels").glob("*_ref.py")}
    assert kernels == {f"{name}_ref" for name in OPS}
    assert {p.stem for p in (ROOT / "benchmarks" / "kernels").glob("*.py")} == {*OPS, "__init__", "harness"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("name", OPS)
def test_without_a_gpu_the_reference_is_timed_and_nothing_is_claimed(name, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(harness, "RESULTS", tmp_path / "kernels.csv")
    assert harness.main(small(name), ["--repeats", "1"]) == 0
    first, row = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{name}: not measured on a GPU")
    assert row.split()[0] == "x".join(map(str, SMALL[name]))
    assert not (tmp_path / "kernels.csv").exists()


@pytest.mark.parametrize("name", OPS)
def test_the_bytes_are_those_of_the_arguments_and_results(name):
    op = small(name)
    case = op.set_up(SMALL[name], torch.float32, "cpu")
    results = op.run(op.reference, case.arguments)
    if name == "augment":
        views = results[0].numel()
        assert case.moved == 2 * views + 4 * views
    elif name == "divergence":
        n, k = SMALL[name]
        assert case.moved == sum(z.nbytes for z in case.arguments) + n * (2 * 8 + 3 * 4)
        assert 2 * n * k * 4 == sum(z.nbytes for z in case.arguments)
    else:
        assert case.moved == case.arguments[0].nbytes + case.arguments[1].nbytes + results[1].nbytes


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", OPS)
def test_a_wrong_kernel_is_not_timed(name, kind):
    op = small(name)
    case = op.set_up(SMALL[name], kind, "cpu")
    harness.agree(op, op.reference, case)
    for place in range(len(op.run(op.reference, case.arguments))):

        def run(function, arguments, place=place):
            found = [one.detach().clone() for one in op.run(op.reference, arguments)]
            found[place] += 1 if function is wrong else 0
            return found

        def wrong(*arguments):
            raise AssertionError("only its name matters")

        with pytest.raises(AssertionError, match="disagrees"):
            harness.agree(replace(op, run=run), wrong, case)


def test_a_kernel_that_is_more_exact_than_plain_torch_agrees():
    """In bfloat16 plain torch loses a percent of the distillation loss; the kernel computes in float32."""
    op = import_module("benchmarks.kernels.distill_loss").OP
    case = op.set_up((128, 10), torch.bfloat16, "cpu")

    def exact(student, teacher, temperature):
        return op.reference(student.float(), teacher.float(), temperature)

    usual, better = (float(op.run(how, case.arguments)[0]) for how in (op.reference, exact))
    assert abs(usual - better) > 0.01 * better
    harness.agree(op, exact, case)


def test_a_case_that_could_not_fail_is_refused():
    op = replace(small("divergence"), run=lambda function, arguments: [torch.zeros(3)])
    with pytest.raises(AssertionError, match="degenerate"):
        harness.agree(op, op.reference, Case((), 0, (0, 0)))


def test_on_a_gpu_each_row_says_under_what_conditions(monkeypatch, tmp_path):
    """The path of a GPU with its parts replaced: what is written, not how fast anything is."""
    op = small("divergence")
    timing = ModuleType("triton.testing")
    timing.do_bench = lambda run, quantiles: (run(), [2.0, 1.0, 3.0])[1]
    monkeypatch.setitem(sys.modules, "triton.testing", timing)
    monkeypatch.setattr(harness, "import_module", lambda name: SimpleNamespace(divergence=op.reference))
    monkeypatch.setattr(harness, "machine", lambda: {"gpu": "none", "driver": "0"})
    monkeypatch.setattr(harness.torch, "compile", lambda function: function)
    empty = torch.empty
    monkeypatch.setattr(harness.torch, "empty", lambda *shape, **options: empty(*shape, **options | {"device": "cpu"}))
    monkeypatch.setattr(harness, "RESULTS", tmp_path / "kernels.csv")
    on_cpu = replace(op, set_up=lambda shape, kind, device: op.set_up(shape, kind, "cpu"))
    rows = list(harness.on_gpu(on_cpu))
    lab.append_rows(harness.RESULTS, rows)
    lab.append_rows(harness.RESULTS, rows)
    with (tmp_path / "kernels.csv").open() as file:
        written = list(csv.DictReader(file))
    assert len(written) == 2 * 4 * 3
    assert [row["what"] for row in written[:4]] == ["copy", "kernel", "torch.compile", "reference"]
    assert {row["type"] for row in written} == {"float32", "float16", "bfloat16"}
    assert written[0]["ms"] == "2.0000"
    assert float(written[0]["gb_s"]) == pytest.approx((2 * 5 * 7 * 4 + 28 * 5) / 2e-3 / 1e9, abs=0.01)
    assert written[0]["gpu"] == "none"
