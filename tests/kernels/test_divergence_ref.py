"""The torch reference of the Jensen-Shannon divergence, against the numpy one that the audit uses."""

import math

import numpy as np
import pytest
import torch

from kdaudit.divergence import jensen_shannon
from kdaudit.kernels import jensen_shannon_ref

torch.set_num_threads(1)


def random_pair(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    teacher = 4 * torch.randn(200, 10, generator=generator, dtype=torch.float64)
    apart = torch.logspace(-4, 1.5, 200, dtype=torch.float64)[:, None]
    return teacher.to(dtype), (teacher + apart * torch.randn(200, 10, generator=generator, dtype=torch.float64)).to(
        dtype
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_reference_agrees_with_numpy_for_every_float_type(dtype):
    teacher, student = random_pair(dtype)
    found = jensen_shannon_ref(teacher, student)
    assert found.dtype == torch.float64
    assert float(found.max() - found.min()) > 0.5
    assert np.allclose(
        found.numpy(), jensen_shannon(teacher.double().numpy(), student.double().numpy()), rtol=0, atol=1e-12
    )


def test_the_reference_is_symmetric_and_bounded():
    teacher, student = random_pair()
    found = jensen_shannon_ref(teacher, student)
    assert torch.allclose(found, jensen_shannon_ref(student, teacher), rtol=0, atol=1e-14)
    assert bool(((found >= 0) & (found <= math.log(2))).all())


def test_equal_and_extreme_rows():
    sure = torch.tensor([[1e4, 0.0, -1e4], [0.0, 0.0, 0.0]])
    assert jensen_shannon_ref(sure, sure).tolist() == [0.0, 0.0]
    assert jensen_shannon_ref(sure, sure.flip(1)).tolist() == pytest.approx([math.log(2), 0.0])


@pytest.mark.parametrize("shapes", [((2, 3), (2, 4)), ((2, 3), (3, 3)), ((3,), (3,)), ((2, 3, 1), (2, 3, 1))])
def test_other_shapes_are_refused(shapes):
    with pytest.raises(ValueError, match=r"\[N, K\]"):
        jensen_shannon_ref(*(torch.zeros(shape) for shape in shapes))
