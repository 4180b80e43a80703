"""Encoded images to pixels: the only room that knows Pillow, simplejpeg and DALI.

    decoder = open_decoder()                       # simplejpeg on a CPU
    batch = decoder.decode(encoded, Geometry(224, 224))
    batch.pixels[3], batch.reasons[3]              # zeros and "truncated JPEG", if the fourth was cut

All decoders agree on what is readable and on the reasons. On a CPU they agree on every decoded pixel
before the resize, and within 1 level (2 in one pixel of millions) after it.
"""

import contextlib

from kdaudit.decoder.dali import DaliDecoder, cuda_ordinal
from kdaudit.decoder.header import MAX_PIXELS
from kdaudit.decoder.pillow import PillowDecoder
from kdaudit.decoder.turbo import TurboDecoder
from kdaudit.errors import DeviceMissing, UsageError
from kdaudit.machine import is_small
from kdaudit.sample import Decoder

NAMES = ("auto", "pillow", "simplejpeg", "dali")

__all__ = ["MAX_PIXELS", "NAMES", "open_decoder"]


def open_decoder(
    name: str = "auto", *, device: str = "cpu", threads: int = 1, pool: int | None = None, side: int | None = None
) -> Decoder:
    """Open a decoder.

    Args:
        name: one of `NAMES`. "auto" is DALI on a GPU unless the images are small, and simplejpeg elsewhere, with the
            next best one where a library or the GPU is missing; the decoder's own `name` says which it became.
        device: "cpu", "cuda" or "cuda:N". pillow and simplejpeg decode on the CPU whatever it says.
        threads: how many images are decoded at a time.
        pool: the same of DALI, which takes one call at a time from however many threads; None: `threads`.
        side: the longer side of what is wanted, pixels; None: not known.

    Raises:
        UsageError: unknown name or device, or the decoder is not installed.
        DeviceMissing: DALI was demanded for a CUDA device that it cannot use.
    """
    if name not in NAMES:
        raise UsageError(f"unknown decoder {name!r}: choose one of {', '.join(NAMES)}")
    if threads < 1:
        raise UsageError(f"a decoder needs at least one thread, not {threads}")
    ordinal = cuda_ordinal(device)
    if name == "dali":
        return DaliDecoder(ordinal, pool or threads)
    if name == "simplejpeg":
        return TurboDecoder(threads)
    if name == "pillow":
        return PillowDecoder(threads)
    # A call of DALI's costs more than decoding small images: at 32 px a scan is twice as fast without it.
    if ordinal is not None and not is_small(side):
        with contextlib.suppress(UsageError, DeviceMissing):
            return DaliDecoder(ordinal, pool or threads)
    with contextlib.suppress(UsageError):
        return TurboDecoder(threads)
    return PillowDecoder(threads)
