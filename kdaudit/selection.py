"""Choosing from columns as long as the delivery, in no more memory than that takes.

Arrays in, arrays out. Sorting a column of millions to see its first thousand takes twice its size again.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdaudit.stretches import stretches

Mask = NDArray[np.bool_]
Rows = NDArray[np.int64]


def lowest(values: NDArray[Any], count: int, among: Mask) -> Rows:
    """Row numbers of the `count` lowest values, the lowest first, equal ones in order.

    Args:
        values: numbers without NaN where they may be chosen, [m].
        count: how many, at least one; all there are where these are fewer.
        among: which may be chosen, [m].

    Returns:
        int64 [count]: what a stable argsort begins with.
    """
    return lowest_of((values[span] for span in stretches(len(values))), count, among)


def highest(values: NDArray[np.floating[Any]], count: int, among: Mask) -> Rows:
    """Row numbers of the `count` highest values, the highest first, equal ones in order; as `lowest`."""
    return lowest_of((-values[span] for span in stretches(len(values))), count, among)


def lowest_of(parts: Iterable[NDArray[Any]], count: int, among: Mask) -> Rows:
    """As `lowest`, of a column that comes part by part and of which no more is held than what may be chosen yet."""
    rows, values, first = np.empty(0, np.int64), None, 0
    for part in parts:
        own = np.flatnonzero(among[first : first + len(part)])
        values = part[own] if values is None else np.concatenate([values, part[own]])
        rows, first = np.concatenate([rows, own + first]), first + len(part)
        if len(rows) > count:
            bar = np.partition(values, count - 1)[count - 1]
            below, equal = np.flatnonzero(values < bar), np.flatnonzero(values == bar)
            kept = np.sort(np.concatenate([below, equal[: count - len(below)]]))
            rows, values = rows[kept], values[kept]
    return rows if values is None else rows[np.argsort(values, kind="stable")]


def taken(column: NDArray[Any], rows: Mask) -> NDArray[Any]:
    """A column's values at some rows; the column itself, not a copy, where that is all of them."""
    return column if rows.all() else column[rows]


def spread(values: NDArray[Any], rows: Mask, elsewhere: float) -> NDArray[Any]:
    """The opposite: a column [m] with the values at these rows; the values themselves where that is all of them."""
    if rows.all():
        return values
    column = np.full(len(rows), elsewhere, values.dtype)
    column[rows] = values
    return column
