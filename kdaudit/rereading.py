"""Decoding chosen images of a set once more, in the order of its records."""

from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from kdaudit.sample import Decoded, Decoder, Geometry, Source

CHUNK = 256


def decode_chosen(
    source: Source,
    decoder: Decoder,
    geometry: Geometry,
    wanted: NDArray[np.bool_],
    on_image: Callable[[int], None] = lambda _n: None,
) -> Iterator[tuple[NDArray[np.int64], Decoded]]:
    """The chosen images, chunk by chunk, with what did not decode this time; ends behind the last of them.

    Args:
        source: the set.
        decoder: bytes to pixels.
        geometry: what the networks want.
        wanted: per record of the source, bool [N]; only records that were read before.
        on_image: told the number of records passed since the last call.

    Yields:
        Row numbers int64 [k], and pixels uint8 [k, H, W, C] with reasons [k].
    """
    records, first = source.records(), 0
    end = len(wanted) - int(wanted[::-1].argmax()) if wanted.any() else 0
    while first < end and (chunk := list(islice(records, min(CHUNK, end - first)))):
        chosen = np.flatnonzero(wanted[first : first + len(chunk)])
        if len(chosen):
            yield chosen + first, decoder.decode([chunk[i].data for i in chosen], geometry)
        first += len(chunk)
        on_image(len(chunk))
    on_image(max(len(wanted) - first, 0))


def reread(
    source: Source,
    decoder: Decoder,
    geometry: Geometry,
    wanted: NDArray[np.bool_],
    on_image: Callable[[int], None] = lambda _n: None,
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
    """The chosen images as row numbers int64 [k] and pixels uint8 [k, H, W, C]; arguments as for `decode_chosen`.

    An image that does not decode this time is black.
    """
    for rows, decoded in decode_chosen(source, decoder, geometry, wanted, on_image):
        yield rows, decoded.pixels


def gather(
    source: Source,
    decoder: Decoder,
    geometry: Geometry,
    wanted: NDArray[np.bool_],
    on_image: Callable[[int], None] = lambda _n: None,
) -> NDArray[np.uint8]:
    """The chosen images at once, uint8 [k, H, W, C]; arguments as for `decode_chosen`."""
    shape, first = (geometry.height, geometry.width, geometry.channels), 0
    out = np.empty((np.count_nonzero(wanted), *shape), np.uint8)
    for _, pixels in reread(source, decoder, geometry, wanted, on_image):
        out[first : first + len(pixels)] = pixels
        first += len(pixels)
    return out[:first]
