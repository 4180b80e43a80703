"""Views of clean images: repeatable by step, fair to every image, harmless to the caller's memory."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdaudit.distillation import to_planes
from kdaudit.views import ViewRecipe, draw_moves, draw_views, generator_of, moved

torch.set_num_threads(1)

ALL = ViewRecipe(shift=0.2, flip=True, mix=0.6, zoom=0.3)


def images(n: int = 20, side: int = 12, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, side, side + 2, channels), dtype=np.uint8)


def numbered(n: int) -> np.ndarray:
    """Images of one colour each, which is their number: a shift cannot hide which one it was."""
    return np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, 6, 6, 1)).copy()


# -- what the views depend on


@pytest.mark.parametrize("recipe", [ViewRecipe(), ALL])
def test_views_depend_on_seed_and_step_alone(recipe):
    pool = images()
    first = draw_views(pool, 8, recipe, seed=3, step=5)
    draw_views(pool, 8, recipe, seed=3, step=6)
    np.random.default_rng(0).random(10)
    again = draw_views(pool, 8, recipe, seed=3, step=5)
    assert np.array_equal(first.order, again.order)
    assert np.array_equal(first.pixels, again.pixels)
    for seed, step in ((3, 6), (4, 5)):
        assert not np.array_equal(draw_views(pool, 8, recipe, seed, step).pixels, first.pixels)


def test_generators_of_other_keys_are_other_generators():
    drawn = {generator_of(seed, *keys).integers(2**60) for seed in (0, 1) for keys in ((), (0,), (1,), (0, 1), (1, 0))}
    assert len(drawn) == 10


@given(st.integers(1, 30), st.integers(1, 50), st.integers(0, 2**31 - 1))
def test_every_image_is_used_equally_often(n, batch, seed):
    pool = numbered(n)
    steps = n  # n steps of any batch are whole rounds
    drawn = np.concatenate([draw_views(pool, batch, ViewRecipe(mix=0), seed, step).order for step in range(steps)])
    assert np.bincount(drawn, minlength=n).tolist() == [batch] * n


def test_rounds_have_different_orders():
    pool = numbered(30)
    rounds = [draw_views(pool, 30, ViewRecipe(mix=0), 0, step).order.tolist() for step in range(3)]
    assert all(sorted(r) == list(range(30)) for r in rounds)
    assert rounds[0] != rounds[1] != rounds[2]


# -- what is in a view


def test_without_mixture_a_view_is_the_shifted_image_that_its_order_names():
    pool = numbered(40)
    views = draw_views(pool, 25, ViewRecipe(mix=0), 1, 2)
    assert (views.pixels == views.order[:, None, None, None]).all()


def test_a_shift_moves_whole_pixels_and_repeats_the_edges():
    pool = images().astype(np.float32)
    there = moved(pool, draw_moves(ViewRecipe(shift=0.2), 20, (12, 14), generator_of(0)))
    reach_y, reach_x = round(0.2 * 12), round(0.2 * 14)
    seen = set()
    for before, after in zip(pool, there, strict=True):
        wide = np.pad(before, ((reach_y, reach_y), (reach_x, reach_x), (0, 0)), mode="edge")
        places = [
            (y, x)
            for y in range(2 * reach_y + 1)
            for x in range(2 * reach_x + 1)
            if np.array_equal(wide[y : y + 12, x : x + 14], after)
        ]
        assert len(places) == 1
        seen.add(places[0])
    assert len(seen) > 5


def test_no_shift_at_all_for_images_too_small_to_move():
    pool = images(side=3).astype(np.float32)
    assert np.array_equal(moved(pool, draw_moves(ViewRecipe(shift=0.1), 20, (3, 5), generator_of(0))), pool)


def test_about_half_of_the_images_are_mirrored():
    pool = images(n=300, side=4).astype(np.float32)
    turned = moved(pool, draw_moves(ViewRecipe(shift=0, flip=True), 300, (4, 6), generator_of(0)))
    same = (turned == pool).all((1, 2, 3))
    assert ((turned == pool[:, :, ::-1]).all((1, 2, 3)) | same).all()
    assert 100 < same.sum() < 200


def test_a_zoom_keeps_size_and_range():
    pool = images().astype(np.float32)
    recipe = ViewRecipe(shift=0, zoom=0.5)
    seen = [moved(pool, draw_moves(recipe, 20, (12, 14), generator_of(step))) for step in range(5)]
    for picture in seen:
        assert picture.shape == pool.shape
        assert picture.dtype == np.float32
        assert picture.min() >= 0
        assert picture.max() <= 255
    assert not np.array_equal(seen[0], seen[1])
    still = draw_moves(ViewRecipe(shift=0, zoom=0.0), 20, (12, 14), generator_of(0))
    assert np.allclose(moved(pool, still), pool)


@pytest.mark.parametrize("recipe", [ViewRecipe(), ALL])
def test_a_view_does_not_depend_on_how_many_are_made_at_once(monkeypatch, recipe):
    pool = images()
    whole = draw_views(pool, 30, recipe, 0, 1)
    for few in (1, 7):
        monkeypatch.setattr("kdaudit.views.VALUES_AT_ONCE", few * pool[0].size)
        assert np.array_equal(draw_views(pool, 30, recipe, 0, 1).pixels, whole.pixels)


def test_a_mirrored_image_is_moved_first():
    pool = images(n=60, side=8).astype(np.float32)
    recipe = ViewRecipe(shift=0.3, flip=True)
    moves = draw_moves(recipe, 60, (8, 10), generator_of(4))
    plain = moved(pool, moves._replace(turned=np.zeros(60, bool)))
    turned = moves.turned[:, None, None, None]
    assert np.array_equal(moved(pool, moves), np.where(turned, plain[:, :, ::-1], plain))
    assert 10 < moves.turned.sum() < 50


def test_the_share_of_mixtures_is_the_recipes():
    pool = numbered(200)
    pixels = draw_views(pool, 2000, ViewRecipe(mix=0.6), 0, 0).pixels
    mixed = (pixels != np.rint(pixels)).any((1, 2, 3))
    assert 0.55 < mixed.mean() < 0.65
    none = draw_views(pool, 500, ViewRecipe(mix=0.0), 0, 0).pixels
    assert (none == np.rint(none)).all()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("recipe", [ViewRecipe(), ALL, ViewRecipe(mix=1.0), ViewRecipe(shift=0, mix=0)])
def test_values_stay_in_range(recipe, channels):
    pool = images(channels=channels)
    pool[:3], pool[3:6] = 0, 255
    for step in range(10):
        views = draw_views(pool, 16, recipe, 0, step)
        assert views.pixels.shape == (16, 12, 14, channels)
        assert views.pixels.dtype == np.float32
        assert views.pixels.min() >= 0
        assert views.pixels.max() <= 255.001  # a mixture of two 255s rounds


# -- the caller's memory


@pytest.mark.parametrize("recipe", [ALL, ViewRecipe(shift=0, mix=0)])
def test_views_share_no_memory_with_the_images(recipe):
    pool = images()
    before = pool.copy()
    views = draw_views(pool, 8, recipe, 0, 0)
    assert not np.shares_memory(views.pixels, pool)
    views.pixels[:] = -1
    assert np.array_equal(pool, before)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_planes_are_scaled_and_the_argument_is_left_alone(channels, dtype):
    pixels = images(channels=channels).astype(dtype)
    before = pixels.copy()
    planes = to_planes(pixels)
    assert planes.dtype == torch.float32
    assert tuple(planes.shape) == (20, channels, 12, 14)
    assert np.allclose(planes.numpy(), before.transpose(0, 3, 1, 2) / 255, atol=1e-7)
    planes.mul_(0)  # what happens to the result must not reach the argument either
    assert np.array_equal(pixels, before)


def test_the_teacher_sees_a_view_unchanged_after_the_control_has_got_it():
    """What `distillation` does at every step, with one channel, where memory could be shared."""
    pixels = draw_views(images(channels=1), 8, ViewRecipe(), 0, 0).pixels
    before = pixels.copy()
    to_planes(pixels)
    assert np.array_equal(pixels, before)
    assert before.max() > 1
