"""NVIDIA DALI: JPEG and PNG decoding on its own threads, or on a GPU.

The dynamic interface is used, not a pipeline: a pipeline that has met one bad image is dead, whereas here
the next call works. Files that are not plain (`header.plain`) go to Pillow, and so does an image that
DALI fails on, found by halving its batch: Pillow has the last word on what is readable, as everywhere.

On a CPU, DALI only decodes. Its pixels equal Pillow's, and the resize is torch's, as with simplejpeg:
DALI's own makes an image cost more than twice as much there.

On a GPU ("mixed") the images are resized and cut on the device, so that only the small batch comes back.
DALI's resize stays within 1 level of Pillow's except in the outermost row and column, where it repeats
the border pixel (seen: 41 levels at 300 -> 32). nvJPEG's pixels differ from libjpeg's as well; the
decoder's name in the report says which they are. The tests run the same calls with DALI's CPU backend in
its place; on an H200 it decoded and resized 7,000 photographs a second (benchmarks/results/gpu.md).
"""

import io
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdaudit.decoder import header
from kdaudit.decoder.pillow import read_rgb
from kdaudit.decoder.resize import plan
from kdaudit.decoder.rows import Rows, each
from kdaudit.errors import DeviceMissing, UsageError
from kdaudit.sample import Decoded, Geometry

# Decoded images of one DALI call together: 192 MB of RGB. Photos of 24 megapixels go two at a time.
_PIXELS_AT_ONCE = 64_000_000


class _Job(NamedTuple):
    """An image that DALI is asked to decode."""

    row: int
    data: bytes
    upright: tuple[int, int]


class DaliDecoder:
    """Decodes with DALI; one call at a time, on as many threads as asked for.

    Args:
        device_id: CUDA ordinal; None decodes on the CPU.
        threads: of DALI's own pool.
        resize_in_dali: resize with DALI instead of torch; None does so on a GPU only.

    Raises:
        UsageError: if DALI is not installed.
        DeviceMissing: if the GPU is not there or cannot decode a picture.
    """

    def __init__(self, device_id: int | None = None, threads: int = 1, *, resize_in_dali: bool | None = None) -> None:
        ndd = _dynamic()
        self.name = "dali-cpu" if device_id is None else "dali-mixed"
        self._threads = threads
        self._resize_in_dali = device_id is not None if resize_in_dali is None else resize_in_dali
        # An EvalContext may be active in one thread only.
        self._lock = threading.Lock()
        try:
            # "gpu" selects the backend that DALI calls "mixed". Without the explicit device, a context
            # made on a machine with a GPU would hold on to it even if it decodes on the CPU.
            self._device = ndd.Device("cpu") if device_id is None else ndd.Device("gpu", device_id)
            with self._device:
                self._context = ndd.EvalContext(num_threads=threads, device_id=device_id)
            if device_id is not None:
                self._prove()
        except (RuntimeError, ValueError) as error:
            raise DeviceMissing(f"DALI cannot use CUDA device {device_id}: {first_line(error)}") from error

    def decode(self, encoded: Sequence[bytes], geometry: Geometry) -> Decoded:
        """See `kdaudit.sample.Decoder`."""
        rows = Rows(len(encoded), geometry)
        jobs: list[_Job] = []
        others: list[int] = []
        for index, data in enumerate(encoded):
            head = header.plain(data)
            if head is None:
                others.append(index)
            else:
                jobs.append(_Job(index, data, head.upright))
        for some in _portions(jobs):
            self._decode(some, geometry, rows)
        outcomes = each(read_rgb, [encoded[index] for index in others], self._threads)
        for index, outcome in zip(others, outcomes, strict=True):
            rows.put(index, outcome)
        return rows.done()

    def _decode(self, jobs: list[_Job], geometry: Geometry, rows: Rows) -> None:
        """Decode a portion; halve it when DALI fails, until the images that it fails on are alone."""
        try:
            images = self._run(jobs, geometry)
        except RuntimeError:
            if len(jobs) == 1:
                rows.put(jobs[0].row, read_rgb(jobs[0].data))
                return
            half = len(jobs) // 2
            self._decode(jobs[:half], geometry, rows)
            self._decode(jobs[half:], geometry, rows)
            return
        for job, image in zip(jobs, images, strict=True):
            rows.put(job.row, image)

    def _run(self, jobs: Sequence[_Job], geometry: Geometry) -> list[NDArray[np.uint8]]:
        """Decode in one DALI call; resized to the geometry if that is DALI's part here."""
        ndd = _dynamic()
        # DALI borrows writable memory only, and wraps read-only arrays one by one, slowly.
        encoded = [np.frombuffer(bytearray(job.data), np.uint8) for job in jobs]
        with self._lock, self._context, ndd.EvalMode.sync_cpu:
            # Fancy upsampling is libjpeg's default and brings nvJPEG closer to it. EXIF orientation is
            # applied by default.
            images = ndd.decoders.image(ndd.as_batch(encoded), device=self._device, jpeg_fancy_upsampling=True)
            if self._resize_in_dali:
                start, end = _regions(jobs, geometry)
                images = ndd.resize(
                    images,
                    size=[float(geometry.height), float(geometry.width)],
                    roi_start=ndd.as_batch(start),
                    roi_end=ndd.as_batch(end),
                    antialias=True,
                )
            return [np.asarray(image) for image in images.cpu().tensors]

    def _prove(self) -> None:
        """Decode one small picture, so that a GPU that is listed but unusable shows up now."""
        from PIL import Image

        buffer = io.BytesIO()
        Image.new("RGB", (16, 16), (200, 30, 60)).save(buffer, "JPEG")
        (image,) = self._run([_Job(0, buffer.getvalue(), (16, 16))], Geometry(8, 8))
        if image.shape != (8, 8, 3):
            raise RuntimeError("it decoded a test picture wrongly")


def cuda_ordinal(device: str) -> int | None:
    """Turn "cpu" into None, "cuda" into 0 and "cuda:1" into 1.

    Raises:
        UsageError: for any other text.
    """
    if device == "cpu":
        return None
    kind, _, ordinal = device.partition(":")
    if kind != "cuda" or not (ordinal.isdecimal() or device == "cuda"):
        raise UsageError(f"the device must be cpu, cuda or cuda:N, not {device!r}")
    return int(ordinal or 0)


def first_line(error: Exception) -> str:
    """Cut an error down to its first line: DALI adds a stack trace."""
    return str(error).strip().partition("\n")[0]


def _dynamic() -> Any:
    """Import DALI's dynamic interface; untyped, since its stubs are incomplete."""
    try:
        import nvidia.dali.experimental.dynamic as ndd
    except ImportError as error:
        raise UsageError("the decoder dali is not installed: pip install 'kdaudit[dali]'") from error
    return ndd


def _portions(jobs: list[_Job]) -> Iterator[list[_Job]]:
    """Cut a batch so that no portion decodes to more than the cap, unless it is a single image."""
    portion: list[_Job] = []
    pixels = 0
    for job in jobs:
        height, width = job.upright
        if portion and pixels + height * width > _PIXELS_AT_ONCE:
            yield portion
            portion, pixels = [], 0
        portion.append(job)
        pixels += height * width
    if portion:
        yield portion


def _regions(jobs: Sequence[_Job], geometry: Geometry) -> tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]]:
    """Give each image's region, in its own pixels, that `plan` resizes to the target.

    Sampling that region at the target's size is the same as resizing all and cutting, and needs no
    room for the rest.
    """
    start, end = [], []
    for job in jobs:
        to = plan(*job.upright, geometry)
        scale = np.array(job.upright) / (to.height, to.width)
        corner = np.array((to.top, to.left))
        target = np.array((geometry.height, geometry.width))
        start.append((corner * scale).astype(np.float32))
        end.append(((corner + target) * scale).astype(np.float32))
    return start, end
