"""Choosing from columns as long as the delivery, in no more memory than that takes.

Arrays in, arrays out. Sorting a column of millions to see its first thousand takes twice its size again.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

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
    own = values[among]
    if count < len(own):
        own.partition(count - 1)
        rows = np.flatnonzero(among & (values <= own[count - 1]))
    else:
        rows = np.flatnonzero(among)
    return np.asarray(rows[np.argsort(values[rows], kind="stable")][:count], np.int64)


def highest(values: NDArray[np.floating[Any]], count: int, among: Mask) -> Rows:
    """Row numbers of the `count` highest values, the highest first, equal ones in order; as `lowest`."""
    return lowest(-values, count, among)


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
