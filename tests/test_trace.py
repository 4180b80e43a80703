"""Warps: seen in where images are sharp, believed only where they go with suspicious behaviour."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter, map_coordinates

from kdaudit.discriminant import SHARPNESS_NOISE, SIDE, Whitening, sharpness
from kdaudit.keys import fold_of
from kdaudit.trace import RARE, most_suspicious, weigh

N, POISON, SMALL = 3000, 150, 24


def photographs(n: int, seed: int, side: int = SMALL) -> np.ndarray:
    """Random scenes: smooth shapes, and texture that is stronger here and weaker there."""
    rng = np.random.default_rng(seed)
    shapes = gaussian_filter(rng.normal(0, 400, (n, side, side, 3)), (0, 4, 4, 0))
    where = np.abs(gaussian_filter(rng.normal(0, 6, (n, side, side, 1)), (0, 3, 3, 0)))
    texture = gaussian_filter(rng.normal(0, 40, (n, side, side, 3)), (0, 0.6, 0.6, 0)) * (0.3 + 4 * where)
    return np.clip(120 + shapes + texture, 0, 255).astype(np.uint8)


def warped(pixels: np.ndarray, seed: int) -> np.ndarray:
    """All images bent by the same smooth field of about half a pixel."""
    side = pixels.shape[1]
    field = gaussian_filter(np.random.default_rng(seed).normal(0, 1, (2, side, side)), (0, 4, 4))
    field *= 0.6 / np.abs(field).mean()
    at = np.clip(np.mgrid[:side, :side] + field, 0, side - 1)
    out = np.stack([
        np.stack([map_coordinates(p[..., c].astype(float), at, order=1) for c in range(3)], -1) for p in pixels
    ])  # fmt: skip
    return np.rint(out).astype(np.uint8)


def test_a_warp_shows_in_where_images_are_sharp():
    pixels = photographs(N, 0)
    pixels[:POISON] = warped(pixels[:POISON], 7)
    other = warped(photographs(200, 5), 8)  # bent by another field
    rows, folds = sharpness(pixels), fold_of(np.random.default_rng(2).integers(0, 2**63, N, dtype=np.uint64))
    calm, seeds = np.arange(1500, N), np.arange(POISON // 2)
    found = Whitening.of(rows[calm], SHARPNESS_NOISE).towards(rows[seeds], folds[seeds])
    assert found is not None
    scores = found.score(rows, folds)
    unseen, innocent = scores[POISON // 2 : POISON], scores[POISON:]
    assert (unseen > np.quantile(innocent, 0.99)).mean() > 0.9
    elsewhere = found.score(sharpness(other), np.zeros(200, np.int64))
    assert np.median(elsewhere) < np.median(unseen) - 1


@given(st.integers(3, 70), st.integers(3, 70), st.sampled_from([1, 3]))
@settings(max_examples=30, deadline=None)
def test_sharpness_has_one_number_a_box_and_none_for_what_is_flat(height, width, channels):
    rng = np.random.default_rng(height * 71 + width)
    pixels = rng.integers(0, 256, (2, height, width, channels), dtype=np.uint8)
    pixels[1] = 93
    rows = sharpness(pixels)
    assert rows.dtype == np.float32
    assert rows.shape == (2, min(height, SIDE) * min(width, SIDE))
    assert np.allclose(rows[1], rows[1, 0])
    assert (rows[0] >= rows[1, 0] - 1e-6).all()


def p_values(m: int, carriers: int, seed: int = 0) -> np.ndarray:
    p = np.random.default_rng(seed).uniform(0, 1, m)
    p[:carriers] = 1e-5
    return p


def test_a_trace_counts_where_its_carriers_are_the_suspicious_ones():
    m, carriers = 20_000, 800
    score = np.random.default_rng(1).exponential(1, m)
    score[:carriers] += 4
    found = weigh(p_values(m, carriers), most_suspicious(score))
    assert found is not None
    assert abs(found.carriers - carriers - RARE * m) < 40
    assert found.parting > 0.9 * carriers


@pytest.mark.parametrize("carriers", [0, 800, 6000])
@pytest.mark.parametrize("seed", range(3))
def test_another_camera_is_no_trigger(carriers, seed):
    """Images that share a trace and part the networks no more than others do."""
    m = 20_000
    assert weigh(p_values(m, carriers, seed), most_suspicious(np.random.default_rng(seed).exponential(1, m))) is None


def test_a_camera_on_whose_images_the_networks_part_somewhat_more_is_none_either():
    m, carriers = 20_000, 2000
    score = np.random.default_rng(3).exponential(1, m)
    score[:carriers] *= 1.6  # 24 % of them among the upper tenth
    assert weigh(p_values(m, carriers), most_suspicious(score)) is None


def test_a_handful_of_carriers_is_chance():
    m = 20_000
    score = np.zeros(m)
    p = p_values(m, 20)
    score[p <= RARE] = 9
    assert weigh(p, most_suspicious(score)) is None
