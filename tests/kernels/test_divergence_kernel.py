"""The divergence kernel, interpreted, against its reference; the reference against the audit's own arithmetic."""

import math

import numpy as np
import pytest
import torch
from triton_here import needs_triton

from kdaudit import divergence as audit
from kdaudit.kernels import divergence_ref
from kdaudit.kernels.launch import check, power_of_two, tiling

torch.set_num_threads(1)

SHAPES = [
    (n, k) for k in (1, 2, 3, 10, 43, 100, 1000, 1023, 1025) for n in ((1, 2, 7, 205) if k < 1000 else (1, 5))
] + [(0, 10), (3, 4095), (2049, 2), (64, 16), (65, 16)]


def logits(n: int, k: int, seed: int = 0, apart: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed + 1000 * n + k)
    teacher = 4 * torch.randn(n, k, generator=g)
    far = torch.logspace(-3, 1, n)[:, None] * apart
    return teacher, teacher + far * torch.randn(n, k, generator=g)


def test_the_reference_is_the_audits_own_arithmetic():
    teacher, student = logits(300, 10)
    found = divergence_ref(teacher, student)
    expected = audit.answers(teacher.numpy(), student.numpy())
    assert np.array_equal(found.teacher_top1, expected.teacher_top1)
    assert np.array_equal(found.student_top1, expected.student_top1)
    assert float(found.js.max() - found.js.min()) > 0.3  # rows that could be told apart
    assert np.allclose(found.gap, expected.gap, rtol=0, atol=1e-12)
    assert np.allclose(found.js, expected.js, rtol=0, atol=1e-12)
    ordered = teacher.double().sort(descending=True).values
    assert torch.equal(found.margin, ordered[:, 0] - ordered[:, 1])


def test_properties_of_the_reference():
    teacher, student = logits(200, 7)
    found, turned = divergence_ref(teacher, student), divergence_ref(student, teacher)
    assert torch.allclose(found.js, turned.js, rtol=0, atol=1e-14)
    assert bool(((found.js >= 0) & (found.js <= math.log(2)) & (found.margin >= 0)).all())
    same = divergence_ref(teacher, teacher)
    assert float(same.js.abs().max()) < 1e-15
    assert float(same.gap.abs().max()) == 0
    moved = divergence_ref(teacher.double() + 5, student.double() - 3)
    plain = divergence_ref(teacher.double(), student.double())
    for one, other in zip(moved, plain, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-12)
    assert divergence_ref(torch.zeros(2, 1), torch.ones(2, 1)).margin.tolist() == [math.inf] * 2


@pytest.mark.parametrize("strange", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_a_finding_and_spoils_no_other_row(strange):
    teacher, student = logits(6, 5)
    plain = divergence_ref(teacher, student)
    teacher[1, 2], student[4, 0] = strange, strange
    found = divergence_ref(teacher, student)
    sound = [0, 2, 3, 5]
    for column, expected in zip(found, plain, strict=True):
        assert torch.equal(column[sound], expected[sound])
    assert found.teacher_top1[[1, 4]].tolist() == found.student_top1[[1, 4]].tolist() == [-1, -1]
    assert all(bool(column[[1, 4]].isnan().all()) for column in found[2:])


@needs_triton
def test_the_kernel_agrees_with_the_reference(interpreted):
    cases = [logits(n, k) for n, k in SHAPES]
    for pair, found in zip(cases, interpreted("divergence", [(pair, 0.0) for pair in cases]), strict=True):
        expected = divergence_ref(*pair)
        shape = tuple(pair[0].shape)
        assert torch.equal(found[0], expected.teacher_top1), shape
        assert torch.equal(found[1], expected.student_top1), shape
        for name, column, exact in zip(("gap", "js", "margin"), found[2:], expected[2:], strict=True):
            # float32 at logits of up to 60: 1e-5 of a nat.
            assert torch.allclose(column.double(), exact, rtol=1e-5, atol=2e-5), (shape, name)


@needs_triton
def test_the_kernel_on_what_a_hostile_model_may_answer(interpreted):
    k = 5
    sure = torch.tensor([[1e4, 0.0, -1e4, 0.0, 0.0]])
    equal = torch.zeros(1, k)
    rows = [
        (sure, sure), (sure, sure.flip(1)), (equal, equal), (equal, sure),
        (torch.full((1, k), 3e38), torch.full((1, k), -3e38)),
    ]  # fmt: skip
    for value in (math.nan, math.inf, -math.inf):
        for place in (0, k - 1):
            bad = torch.zeros(1, k)
            bad[0, place] = value
            rows += [(bad, equal), (equal, bad)]
    teacher, student = (torch.cat(side) for side in zip(*rows, strict=True))
    (found,) = interpreted("divergence", [((teacher, student), 0.0)])
    expected = divergence_ref(teacher, student)
    for column, exact in zip(found, expected, strict=True):
        assert torch.allclose(column.double(), exact.double(), rtol=1e-6, atol=1e-6, equal_nan=True)
    assert int((found[0] == -1).sum()) == 12


@needs_triton
def test_the_kernel_reads_half_precision(interpreted):
    pair = tuple(side.half() for side in logits(33, 100))
    (found,) = interpreted("divergence", [(pair, 0.0)])
    expected = divergence_ref(*pair)
    assert torch.equal(found[0], expected.teacher_top1)
    assert torch.allclose(found[3].double(), expected.js, rtol=1e-5, atol=1e-5)


def test_short_rows_share_a_program_and_long_ones_do_not():
    assert tiling(1000, 10).rows == 128
    assert tiling(1000, 10).programs == 8
    assert (tiling(5, 3000).rows, tiling(5, 3000).columns, tiling(5, 3000).programs) == (1, 4096, 5)
    assert tiling(0, 3).programs == 0
    assert [power_of_two(n) for n in (1, 2, 3, 1000, 1024, 1025)] == [1, 2, 4, 1024, 1024, 2048]
    for k in (0, 65537):
        with pytest.raises(ValueError, match="columns"):
            tiling(4, k)


def test_a_kernel_refuses_what_it_would_misread(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    good = torch.zeros(4, 6)
    check("x", good, (None, 6), torch.float32)
    for bad, words in (
        (torch.zeros(4), r"must be \[\*, 6\]"), (torch.zeros(4, 5), r"not \[4, 5\]"),
        (good.double(), "float64"), (torch.zeros(6, 4).T, "contiguous"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            check("x", bad, (None, 6), torch.float32)
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ValueError, match="run on a GPU"):
        check("x", good, (None, 6), torch.float32)
