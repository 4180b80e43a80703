"""The discriminant: what seeds share is found, what they do not share is not, and nobody is judged by himself."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdaudit import discriminant
from kdaudit.discriminant import SIDE, Whitening, appearance, reduced, sharpness
from kdaudit.keys import FOLDS, fold_of


def natural(n: int, d: int, seed: int) -> np.ndarray:
    """Rows with strongly correlated neighbours, as pixels are."""
    rng = np.random.default_rng(seed)
    return (np.cumsum(rng.normal(0, 12, (n, d)), axis=1) + rng.normal(0, 4, (n, d))).astype(np.float32)


def folds(n: int, seed: int = 0) -> np.ndarray:
    return fold_of(np.random.default_rng(seed).integers(0, 2**63, n, dtype=np.uint64))


@given(st.integers(1, 80), st.integers(1, 80), st.sampled_from([1, 3]))
@settings(max_examples=40, deadline=None)
def test_the_appearance_of_an_image_is_the_mean_over_boxes(height, width, channels):
    pixels = np.random.default_rng(height * 100 + width).integers(0, 256, (2, height, width, channels), dtype=np.uint8)
    rows = appearance(pixels)
    assert rows.dtype == np.float32
    assert rows.shape == (2, min(height, SIDE) * min(width, SIDE) * channels)
    if max(height, width) <= SIDE:
        assert np.array_equal(rows, pixels.reshape(2, -1).astype(np.float32))
    if height % SIDE == width % SIDE == 0:
        boxes = pixels.reshape(2, SIDE, height // SIDE, SIDE, width // SIDE, channels).mean((2, 4))
        assert np.allclose(rows, boxes.reshape(2, -1), atol=1e-3)
    assert rows.min() >= pixels.min() - 1e-3
    assert rows.max() <= pixels.max() + 1e-3


@pytest.mark.parametrize("rows", [appearance, sharpness])
@pytest.mark.parametrize("n", [0, 1, 7, 9])
def test_rows_are_made_block_by_block(rows, n, monkeypatch):
    """A pool is mapped from a file, so that it need not fit in memory; as float32 at once it had to, fourteen times."""
    pixels = np.random.default_rng(n).integers(0, 256, (n, 40, 36, 3), np.uint8)
    whole = rows(pixels)
    seen = []
    boxes = discriminant._boxes
    monkeypatch.setattr(discriminant, "_boxes", lambda part: (seen.append(len(part)), boxes(part))[1])
    monkeypatch.setattr(discriminant, "BLOCK", 2 * pixels[:1].size or 1)
    assert (rows(pixels) == whole).all()
    assert whole.shape == (n, 32 * 32 * (3 if rows is appearance else 1))
    assert max(seen) <= 2


def test_folds_are_even_and_follow_from_the_digest():
    keys = np.random.default_rng(0).integers(0, 2**63, 5000, dtype=np.uint64)
    assert np.array_equal(fold_of(keys), fold_of(keys.copy()))
    counts = np.bincount(fold_of(keys), minlength=FOLDS)
    assert counts.min() > 850


def test_a_pattern_hidden_in_natural_variation_stands_far_out():
    calm, fresh = natural(3000, 100, 0), natural(2000, 100, 1)
    pattern = np.where(np.arange(100) % 7 == 0, 14.0, 0.0).astype(np.float32)
    carriers = natural(400, 100, 2) + pattern
    plain = (carriers @ pattern - fresh.mean(0) @ pattern).std()
    assert plain > (pattern @ pattern) / 3  # along the pattern itself nobody would see it
    found = Whitening.of(calm).towards(carriers[:60], folds(60))
    assert found is not None
    null, hits = found.score(fresh, folds(2000)), found.score(carriers[60:], folds(340))
    assert abs(null.mean()) < 0.2
    assert 0.7 < null.std() < 1.1  # below one: the noise that is granted to every pixel
    assert np.quantile(hits, 0.05) > np.quantile(null, 0.999)


def test_seeds_that_share_nothing_are_scored_like_everybody_else():
    """Cross-fitting: scored by a direction that it helped to find, each of them would stand out."""
    calm, seeds, fresh = natural(2000, 150, 0), natural(40, 150, 1), natural(1000, 150, 2)
    whitening, where = Whitening.of(calm), folds(40)
    found = whitening.towards(seeds, where)
    assert found is not None
    own = found.score(seeds, where)
    assert abs(own.mean()) < 0.6
    assert own.max() < 4.5
    biased = found.score(seeds, (where + 1) % FOLDS)
    assert biased.mean() > own.mean() + 1
    assert abs(found.score(fresh, folds(1000)).mean()) < 0.2


@pytest.mark.parametrize("n", [1, 5, 40])
def test_fewer_images_than_pixels_give_no_infinities(n):
    rows = natural(n, 300, 0)
    rows[:, :50] = 0  # black ground
    found = Whitening.of(rows).towards(natural(30, 300, 1), folds(30))
    assert found is not None
    assert np.isfinite(found.score(natural(20, 300, 2), folds(20))).all()


@pytest.mark.parametrize("side", [16, 32, 50])
def test_a_difference_of_images_is_reduced_as_they_are(side):
    one, other = np.random.default_rng(side).integers(0, 256, (2, 1, side, side, 3), dtype=np.uint8)
    row = reduced(one[0].astype(np.float32) - other[0])
    assert np.allclose(row, (appearance(one) - appearance(other))[0], atol=1e-3)


def test_the_discriminant_of_seeds_is_that_of_what_they_differ_in():
    calm, seeds, of = natural(400, 60, 1), natural(50, 60, 2) + 5, folds(50)
    whitening = Whitening.of(calm)
    shifts = [seeds[of != fold].mean(0) - whitening.center for fold in range(FOLDS)]
    found, same = whitening.towards(seeds, of), whitening.along(shifts)
    assert found is not None
    assert same is not None
    assert np.array_equal(found.directions, same.directions)
    assert whitening.along([*shifts[1:], np.zeros(60, np.float32)]) is None


@pytest.mark.parametrize("rows", [appearance, sharpness])
def test_images_are_whitened_a_few_at_a_time_as_all_at_once(rows, monkeypatch):
    pixels = np.random.default_rng(7).integers(0, 256, (300, 6, 6, 3), dtype=np.uint8)
    chosen = np.arange(0, 300, 3)
    together = Whitening.of(rows(pixels[chosen]))
    for part in (7, 100, 4096):
        monkeypatch.setattr(discriminant, "PART", part)
        found = Whitening.of_images(pixels, chosen, rows)
        assert np.allclose(found.center, together.center, rtol=1e-5)
        assert np.allclose(found.lower, together.lower, rtol=1e-3, atol=1e-3)


def test_seeds_of_one_fold_only_have_no_discriminant():
    assert Whitening.of(natural(100, 10, 0)).towards(natural(5, 10, 1), np.zeros(5, np.int64)) is None
