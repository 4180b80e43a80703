"""What a process holds and does not need: memory is given back, and threads without work sleep.

Allocators keep freed memory for the next request. The stages of an audit ask for other sizes each, so what one leaves
is of no use to the next, and the process grows from stage to stage.
"""

import ctypes
import os
import sys


def frugal() -> None:
    """Choose thrifty libraries, unless the user has chosen; to be called before numpy and pyarrow are imported.

    Arrow uses the C library's allocator: its own keeps tens of megabytes of what reading a table part by part had taken
    (peak of an audit of 10,000 images of 14x14: 427 MiB with it, 393 without). numpy's OpenBLAS lets its threads sleep
    when they have nothing to do: else they look for work for 60 ms after each product, on cores that the networks need
    (3 to 7 % of a scan's computing at 224 px). The number is the logarithm of cycles, 4 the least.
    """
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")


def give_back() -> None:
    """Return freed memory to the system where the C library can be asked to (glibc)."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
