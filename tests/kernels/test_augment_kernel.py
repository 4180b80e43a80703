"""The augmentation: the kernel, interpreted, against its reference; the reference against the views of the product."""

import numpy as np
import pytest
import torch
from triton_here import needs_triton

from kdaudit.kernels import augment_ref
from kdaudit.kernels.augment_ref import Draws
from kdaudit.views import ViewRecipe, draw_views, generator_of

torch.set_num_threads(1)

SHAPES = [(8, 8, 3), (7, 5, 3), (28, 28, 1), (1, 1, 1), (16, 17, 3), (33, 9, 1), (5, 7, 4)]


def images(height: int, width: int, channels: int, n: int = 11) -> torch.Tensor:
    g = torch.Generator().manual_seed(height * width)
    return torch.randint(0, 256, (n, height, width, channels), generator=g, dtype=torch.uint8)


def draws(b: int, n: int, height: int, width: int) -> Draws:
    g = torch.Generator().manual_seed(b)
    reach = max(height, width)  # further than the image is wide: edges are repeated
    weight = torch.rand(b, generator=g)
    weight[::3] = 1
    return Draws(
        torch.randint(0, n, (2, b), generator=g),
        torch.randint(-reach, reach + 1, (2, b, 2), generator=g, dtype=torch.int32),
        torch.rand(2, b, generator=g) < 0.5,
        weight,
    )


def standard(channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.linspace(90, 140, channels), torch.linspace(40, 70, channels)


@pytest.mark.parametrize("flip", [False, True])
def test_the_reference_makes_the_views_that_distillation_makes(flip):
    pool = images(12, 10, 3, n=23)
    recipe, batch, seed, step = ViewRecipe(shift=0.2, flip=flip, mix=0.6), 16, 5, 3
    expected = draw_views(pool.numpy(), batch, recipe, seed, step)
    # The same draws in the same order as `kdaudit.views` makes them.
    generator = generator_of(seed, 1, step)
    shifts, mirrors = [], []

    def one() -> None:
        reach = [round(recipe.shift * side) for side in (12, 10)]
        shifts.append(np.stack([generator.integers(-r, r + 1, (batch, 1))[:, 0] for r in reach], 1))
        mirrors.append(generator.random(batch) < 0.5 if flip else np.zeros(batch, bool))

    one()
    partners = generator.integers(0, 23, batch)
    one()
    weight = generator.random(batch).astype(np.float32)
    weight[generator.random(batch) >= recipe.mix] = 1.0
    drawn = Draws(
        torch.from_numpy(np.stack([expected.order, partners])),
        torch.from_numpy(np.stack(shifts).astype(np.int32)),
        torch.from_numpy(np.stack(mirrors)),
        torch.from_numpy(weight),
    )
    found = augment_ref(pool, drawn, torch.zeros(3), torch.ones(3))
    assert expected.pixels.std() > 20
    assert np.array_equal(found.numpy(), expected.pixels.transpose(0, 3, 1, 2))


def test_the_reference_on_a_row_that_can_be_checked_by_eye():
    row = torch.tensor([[[[10], [20], [30]]], [[[1], [2], [3]]]], dtype=torch.uint8)  # two images of 1x3x1
    drawn = Draws(
        torch.tensor([[0, 0], [1, 1]]),
        torch.tensor([[[0, 1], [0, 0]], [[0, 0], [5, -1]]], dtype=torch.int32),
        torch.tensor([[False, True], [False, False]]),
        torch.tensor([1.0, 0.5]),
    )
    found = augment_ref(row, drawn, torch.zeros(1), torch.ones(1))
    assert found[0, 0, 0].tolist() == [20, 30, 30]
    assert found[1, 0, 0].tolist() == [15.5, 10.5, 6.0]  # half of 30, 20, 10 and half of 1, 1, 2


def test_other_images_are_refused():
    for bad in (torch.zeros(2, 4, 4, 3), torch.zeros(2, 4, 4, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="uint8"):
            augment_ref(bad, draws(2, 2, 4, 4), *standard(3))


@needs_triton
def test_the_kernel_agrees_with_the_reference(interpreted):
    cases = []
    for height, width, channels in SHAPES:
        for b in (1, 6):
            pool = images(height, width, channels)
            cases.append((pool, draws(b, len(pool), height, width), *standard(channels), torch.float32))
    for case, found in zip(cases, interpreted("augment", [(case, 0.0) for case in cases]), strict=True):
        expected = augment_ref(*case)
        assert found.shape == expected.shape
        assert torch.allclose(found, expected, rtol=0, atol=1e-6), tuple(case[0].shape)


@needs_triton
def test_the_kernel_writes_half_precision_as_torch_rounds_it(interpreted):
    pool = images(20, 20, 3)
    case = (pool, draws(9, len(pool), 20, 20), *standard(3), torch.float16)
    (found,) = interpreted("augment", [(case, 0.0)])
    assert found.dtype == torch.float16
    assert torch.allclose(found.float(), augment_ref(*case[:4]), rtol=2**-10, atol=2**-12)
