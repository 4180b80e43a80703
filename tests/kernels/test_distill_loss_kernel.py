"""The distillation loss: the kernel, interpreted, against its reference, both ways; the reference by hand."""

import pytest
import torch
from triton_here import needs_triton

from kdaudit.distillation import kd_loss
from kdaudit.kernels import distill_loss_ref

torch.set_num_threads(1)

SHAPES = [
    (1, 1),
    (1, 2),
    (3, 3),
    (128, 10),
    (129, 10),
    (37, 43),
    (1, 1000),
    (5, 1000),
    (4, 1023),
    (4, 1025),
    (2, 4095),
]


def logits(b: int, k: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(7 * b + k)
    student = 3 * torch.randn(b, k, generator=g)
    return student.to(dtype), (student + 2 * torch.randn(b, k, generator=g)).to(dtype)


@pytest.mark.parametrize("tau", [0.5, 1.0, 4.0, 20.0])
def test_the_reference_is_the_formula_and_its_gradient(tau):
    student, teacher = (z.double() for z in logits(6, 9))
    student.requires_grad_()
    loss = distill_loss_ref(student, teacher, tau)
    loss.backward()
    p, q = torch.softmax(teacher / tau, 1), torch.softmax(student / tau, 1)
    expected = tau**2 * (p * (p.log() - q.log())).sum() / 6
    assert float(expected.detach()) > 0.1
    assert torch.allclose(loss, expected, rtol=1e-12)
    assert torch.allclose(student.grad, (tau / 6 * (q - p)).detach(), rtol=0, atol=1e-14)
    assert float(distill_loss_ref(teacher, teacher, tau)) == pytest.approx(0, abs=1e-12)


def test_it_is_the_loss_that_distillation_uses():
    student, teacher = logits(17, 10)
    assert torch.equal(kd_loss(student, teacher, 4.0), distill_loss_ref(student, teacher, 4.0))


@needs_triton
@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_the_kernel_agrees_with_the_reference_in_loss_and_gradient(interpreted, tau):
    outer = 0.7  # what comes from further up in the graph
    cases = [logits(b, k) for b, k in SHAPES]
    found = interpreted("distill_loss", [((*pair, tau), outer) for pair in cases])
    for (student, teacher), (loss, gradient) in zip(cases, found, strict=True):
        shape = tuple(student.shape)
        exact = student.double().requires_grad_()
        expected = distill_loss_ref(exact, teacher.double(), tau)
        (outer * expected).backward()
        plain = student.clone().requires_grad_()
        in_float32 = distill_loss_ref(plain, teacher, tau)
        (outer * in_float32).backward()
        # Error against error: no more than twice what plain torch makes of it in the same type, over a small floor.
        error, usual = (abs(float(value.detach()) - float(expected.detach())) for value in (loss, in_float32))
        assert error <= 2 * usual + 2e-6 * (1 + float(expected.detach())), shape
        error, usual = (float((g.double() - exact.grad).abs().max()) for g in (gradient, plain.grad))
        assert error <= 2 * usual + 1e-6, shape
        assert gradient.shape == student.shape


@needs_triton
def test_the_kernel_in_half_precision_is_as_good_as_torch(interpreted):
    student, teacher = logits(64, 100, torch.float16)
    ((loss, gradient),) = interpreted("distill_loss", [((student, teacher, 4.0), 1.0)])
    exact = student.double().requires_grad_()
    expected = distill_loss_ref(exact, teacher.double(), 4.0)
    expected.backward()
    assert gradient.dtype == torch.float16
    assert float(loss) == pytest.approx(float(expected.detach()), rel=1e-4)
    assert torch.allclose(gradient.double(), exact.grad, rtol=2e-3, atol=1e-5)
