"""Which ways to feed a teacher are worth asking about."""

from dataclasses import replace
from itertools import product

import numpy as np

from kdaudit.errors import UsageError
from kdaudit.fitting.pool import Pool
from kdaudit.preprocess import SCALES, Order, Preprocess, scale_named
from kdaudit.sample import Geometry
from kdaudit.signature import Layout, Signature

SIZES = (28, 32, 48, 64, 96, 128, 160, 192, 224, 256, 299, 384)
"""Sizes that people train at, tried where the graph takes any."""


def candidates(signature: Signature, pool: Pool, override: str | None) -> list[Preprocess]:
    """All ways to feed this signature that are worth asking about, coarse: one fit, a few sizes."""
    ranks = len(signature.input_shape)
    if override is not None and "-" in override:
        return [_override(override, signature, ranks)]
    names = [scale for scale in SCALES if scale.serves(signature.channels)]
    if signature.input_type == "uint8":
        names = [scale_named("raw")]
    if override is not None:
        names = [scale for scale in names if scale.name == override]
        if not names:
            raise UsageError(_choices(override, f"{override!r} is no scale for this model", signature))
    orders: tuple[Order, ...] = ("RGB", "BGR") if signature.channels == 3 else ("RGB",)
    layouts: tuple[Layout, ...] = (signature.layout,)
    if signature.layout == "flat" and signature.channels == 3:
        layouts = ("flatCHW", "flat")
    return [
        Preprocess(Geometry(height, width, signature.channels), scale, order, layout, signature.input_type, ranks)
        for (height, width), layout, order, scale in product(_sizes(signature, pool), layouts, orders, names)
    ]


def _sizes(signature: Signature, pool: Pool) -> list[tuple[int, int]]:
    """Sizes to try: the declared one, or the images' own and those that people train at near it."""
    if signature.height is not None and signature.width is not None:
        return [(signature.height, signature.width)]
    known = [size for size in pool.sizes() if size is not None]
    short = float(np.median([min(size) for size in known])) if known else 224.0
    near = [(size, size) for size in SIZES if short / 2 <= size <= 1.5 * short] or [(224, 224)]
    if len(set(known)) == 1 and known[0] not in near and max(known[0]) <= SIZES[-1]:
        near.insert(0, known[0])
    return list(dict.fromkeys((signature.height or height, signature.width or width) for height, width in near))


def _override(recipe: str, signature: Signature, ranks: int) -> Preprocess:
    """A recipe given by the user, checked against the graph."""
    try:
        preprocess = Preprocess.parse(recipe, signature.input_type, ranks)
    except ValueError as error:
        raise UsageError(_choices(recipe, str(error), signature)) from None
    geometry = preprocess.geometry
    fits = (
        geometry.channels == signature.channels
        and signature.height in (None, geometry.height)
        and signature.width in (None, geometry.width)
        and (preprocess.layout == signature.layout or (signature.layout == "flat" and preprocess.layout == "flatCHW"))
    )
    if not fits:
        raise UsageError(_choices(recipe, "it does not fit the model's input", signature))
    return preprocess


def _choices(given: str, why: str, signature: Signature) -> str:
    size = f"{signature.height or 224}x{signature.width or 224}x{signature.channels}"
    names = ", ".join(scale.name for scale in SCALES if scale.serves(signature.channels))
    return (
        f"--preprocess {given!r} cannot be used: {why}; give a scale ({names}) or a whole recipe such as "
        f"{size}-stretch-RGB-{signature.layout}-unit"
    )


def with_crop(preprocess: Preprocess, pool: Pool) -> list[Preprocess]:
    """The same with a centre crop, unless the images already have the right size."""
    geometry = preprocess.geometry
    if geometry.fit == "crop" or set(pool.sizes()) == {(geometry.height, geometry.width)}:
        return []
    return [replace(preprocess, geometry=replace(geometry, fit="crop"))]
