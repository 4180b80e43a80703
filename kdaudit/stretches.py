"""Long columns in stretches: what is computed on the way stays small however many images there are."""

from collections.abc import Iterator

STRETCH = 1 << 16
"""Rows in a stretch: half a megabyte of float64."""


def stretches(rows: int, length: int = STRETCH) -> Iterator[slice]:
    """Slices that cover `rows` rows in order."""
    return (slice(first, min(first + length, rows)) for first in range(0, rows, length))
