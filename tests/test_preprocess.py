"""From pixels to the input tensor."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdaudit.preprocess import SCALES, Preprocess, scale_named
from kdaudit.sample import Geometry

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 3), np.uint8)


def recipe(layout: str = "NCHW", order: str = "RGB", scale: str = "unit") -> Preprocess:
    return Preprocess.parse(f"4x6x3-stretch-{order}-{layout}-{scale}", ranks=2 if "flat" in layout else 4)


def test_layouts():
    unit = PIXELS.astype(np.float32) / 255
    assert np.allclose(recipe("NHWC").apply(PIXELS), unit)
    assert np.allclose(recipe("NCHW").apply(PIXELS), unit.transpose(0, 3, 1, 2))
    assert np.allclose(recipe("flat").apply(PIXELS), unit.reshape(2, -1))
    assert np.allclose(recipe("flatCHW").apply(PIXELS), unit.transpose(0, 3, 1, 2).reshape(2, -1))
    assert Preprocess.parse("4x6x3-stretch-RGB-flat-unit", ranks=3).apply(PIXELS).shape == (2, 72, 1)


def test_scale_is_given_in_rgb_and_the_order_changed_afterwards():
    x = recipe("NHWC", "BGR", "imagenet").apply(PIXELS)
    red = (PIXELS[..., 0] / 255 - 0.485) / 0.229
    assert np.allclose(x[..., 2], red, atol=1e-5)


def test_types():
    assert recipe().apply(PIXELS).dtype == np.float32
    assert Preprocess.parse("4x6x3-stretch-RGB-NHWC-unit", "float16").apply(PIXELS).dtype == np.float16
    raw = Preprocess.parse("4x6x3-stretch-RGB-NHWC-raw", "uint8")
    assert np.array_equal(raw.apply(PIXELS), PIXELS)
    blended = raw.apply(PIXELS.astype(np.float32) + 0.4)
    assert blended.dtype == np.uint8
    assert np.array_equal(blended, PIXELS)
    too_bright = raw.apply(np.full((1, 4, 6, 3), 300.0, np.float32))
    assert (too_bright == 255).all()


@given(
    scale=st.sampled_from([scale for scale in SCALES if len(scale.mean) <= 3]),
    size=st.tuples(st.integers(1, 4096), st.integers(1, 4096)),
    fit=st.sampled_from(["stretch", "crop"]),
    order=st.sampled_from(["RGB", "BGR"]),
    layout=st.sampled_from(["NCHW", "NHWC", "flat", "flatCHW"]),
)
def test_recipe_and_parse_are_inverse(scale, size, fit, order, layout):
    preprocess = Preprocess(Geometry(*size, 3, fit), scale, order, layout)
    assert Preprocess.parse(preprocess.recipe) == preprocess


@pytest.mark.parametrize(
    "text",
    [
        "", "unit", "32x32-stretch-RGB-NCHW-unit", "32x32x4-stretch-RGB-NCHW-unit",
        "0x32x3-stretch-RGB-NCHW-unit", "32x32x3-squash-RGB-NCHW-unit", "32x32x3-stretch-GBR-NCHW-unit",
        "32x32x3-stretch-RGB-CHWN-unit", "32x32x3-stretch-RGB-NCHW-none", "32x32x1-stretch-RGB-NCHW-imagenet",
        "²x32x3-stretch-RGB-NCHW-unit", "99999x32x3-stretch-RGB-NCHW-unit",
    ],
)  # fmt: skip
def test_parse_refuses(text):
    with pytest.raises(ValueError, match=r"parts|HEIGHT|none of|does not fit|channels"):
        Preprocess.parse(text)


def test_scale_names_are_unique_and_free_of_hyphens():
    names = [scale.name for scale in SCALES]
    assert len(set(names)) == len(names)
    assert not any("-" in name for name in names)
    assert all(scale_named(name).name == name for name in names)
    with pytest.raises(ValueError, match="unit"):
        scale_named("nothing")


def test_inverted_and_symmetric():
    black = np.zeros((1, 2, 2, 1), np.uint8)
    assert (Preprocess.parse("2x2x1-stretch-RGB-NHWC-inverted").apply(black) == 1).all()
    assert (Preprocess.parse("2x2x1-stretch-RGB-NHWC-symmetric").apply(black) == -1).all()
