"""Stage 6: teacher and control over the suspect images, on each image as it is and on interventions.

Both networks see the same tensor, so a difference in preprocessing can never look like a backdoor.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdaudit import divergence
from kdaudit.clock import Laps
from kdaudit.compared import Comparison, concatenate
from kdaudit.interventions import InterventionPlan, Partners, intervened, parse_step, perturbed
from kdaudit.keys import keys_of
from kdaudit.looks import Both, Look, ask_both, look_of
from kdaudit.machine import GPU_BATCH, gpu_batch
from kdaudit.onegraph import OneGraph
from kdaudit.preprocess import Preprocess
from kdaudit.sample import Decoder, Geometry, Record, Status
from kdaudit.session import Session

Pixels = NDArray[np.uint8]

USUAL_BATCH, BATCH_PIXELS = GPU_BATCH, 16 * 224 * 224
"""Images and pixels per batch on a CPU: what a network makes of more no longer fits into the caches, and every batch
takes its memory from the system anew (a small network at 224 px: 555 images a second by 8 or 16, 420 by 64)."""


@dataclass(frozen=True, slots=True)
class Subjects:
    """The two networks under comparison and what both are fed.

    Attributes:
        teacher: the suspect model.
        student: the control, with the teacher's input signature.
        preprocess: from pixels to the input tensor of both.
        partners: the clean images for the interventions.
        plan: which interventions.
        guarded: the class that the control has learned from unmixed images alone; None: none.
        laps: where the time goes.
        graph: both networks as one graph, for images as they are; None: the two sessions are asked.
        apart: why they are not one graph, where that was tried; a few words.
    """

    teacher: Session
    student: Session
    preprocess: Preprocess
    partners: Partners
    plan: InterventionPlan
    guarded: int | None = None
    laps: Laps = field(default_factory=Laps)
    graph: OneGraph | None = None
    apart: str = ""

    def __post_init__(self) -> None:
        assert self.graph is None or not self.plan.throughout  # there, more is asked of the logits than it gives

    def ask(self, pixels: Pixels | NDArray[np.float32]) -> Both:
        """What both networks say of B images, the teacher's features too."""
        return ask_both(self.teacher, self.student, self.preprocess, pixels, self.laps)

    def logits(self, pixels: Pixels | NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Both networks' logits [B, K] on one and the same tensor."""
        tensor = self.preprocess.apply(pixels)
        with self.laps.of("teacher"):
            teacher = self.teacher.logits(tensor)
        with self.laps.of("control"):
            return teacher, self.student.logits(tensor)


def usual_batch(geometry: Geometry, provider: str) -> int:
    """Images per batch where nobody asked for another number."""
    if provider != "cpu":
        return gpu_batch(max(geometry.height, geometry.width))
    return min(max(BATCH_PIXELS // (geometry.height * geometry.width), 8), USUAL_BATCH)


def compare(
    subjects: Subjects,
    records: Iterable[Record],
    decoder: Decoder,
    *,
    batch: int = 64,
    workers: int = 1,
    on_batch: Callable[[int], None] = lambda _n: None,
) -> Iterator[Comparison]:
    """Compare the two networks over a stream of records, in order and in bounded memory.

    Args:
        subjects: the networks and the plan.
        records: encoded images.
        decoder: bytes to pixels.
        batch: images per chunk.
        workers: threads, each with a chunk of its own; decoding and inference both release the GIL.
        on_batch: told the number of images done since the last call.

    Yields:
        One `Comparison` per chunk, in the order of the records.
    """
    stream = iter(records)

    def read() -> list[Record]:
        with subjects.laps.of("read"):
            return list(islice(stream, batch))

    chunks = iter(read, [])
    with ThreadPoolExecutor(workers, thread_name_prefix="kdaudit-compare") as pool:
        waiting: deque[Future[Comparison]] = deque()
        try:
            for chunk in chunks:
                waiting.append(pool.submit(_compare_chunk, subjects, chunk, decoder))
                if len(waiting) > workers + 1:
                    yield _told(waiting.popleft().result(), on_batch)
            while waiting:
                yield _told(waiting.popleft().result(), on_batch)
        finally:
            # On an interrupt the chunks not yet begun are not worth waiting for.
            pool.shutdown(wait=True, cancel_futures=True)


def compare_pixels(
    subjects: Subjects, pixels: Pixels, ids: Sequence[str], *, batch: int = 64, workers: int = 1
) -> Comparison:
    """The same for decoded images, uint8 [n, H, W, C]: the calibration half of the clean pool."""

    def one(start: int) -> Comparison:
        part = slice(start, start + batch)
        return _columns(subjects, pixels[part], ids[part])

    with ThreadPoolExecutor(workers, thread_name_prefix="kdaudit-compare") as pool:
        return concatenate(list(pool.map(one, range(0, len(ids), batch))))


def _told(done: Comparison, on_batch: Callable[[int], None]) -> Comparison:
    on_batch(len(done))
    return done


def _compare_chunk(subjects: Subjects, chunk: list[Record], decoder: Decoder) -> Comparison:
    with subjects.laps.of("chunk"):
        return _compared(subjects, chunk, decoder)


def _compared(subjects: Subjects, chunk: list[Record], decoder: Decoder) -> Comparison:
    with subjects.laps.of("decode"):
        decoded = decoder.decode([record.data for record in chunk], subjects.preprocess.geometry)
    status, reasons = [], []
    for record, reason in zip(chunk, decoded.reasons, strict=True):
        ok = record.status is not Status.READ
        status.append(record.status if ok else Status.UNREADABLE if reason else Status.READ)
        reasons.append(record.reason if ok else reason)
    read = np.array([s is Status.READ for s in status], bool)
    ids = [record.id for record in chunk]
    found = _columns(subjects, decoded.pixels[read], [i for i, r in zip(ids, read, strict=True) if r])
    return _spread(found, chunk, ids, status, reasons, read)


def _spread(
    found: Comparison,
    chunk: list[Record],
    ids: list[str],
    status: list[Status],
    reasons: list[str],
    read: NDArray[np.bool_],
) -> Comparison:
    """Put the columns of the read images back among those that were not."""

    def wide(column: NDArray[np.generic], nothing: float) -> NDArray[np.generic]:
        out = np.full((len(chunk), *column.shape[1:]), nothing, column.dtype)
        out[read] = column
        return out

    numbers = {
        name: wide(getattr(found, name), -1 if name.endswith("top1") else np.nan)
        for name in (
            "teacher_top1",
            "student_top1",
            "teacher_confidence",
            "student_confidence",
            "gap",
            "js",
            "divergence",
            "behaviour",
        )
    }
    return Comparison(
        ids=tuple(ids),
        paths=tuple(record.path for record in chunk),
        labels=np.array([-1 if record.label is None else record.label for record in chunk], np.int64),
        status=tuple(str(s) for s in status),
        reasons=tuple(reasons),
        **numbers,  # type: ignore[arg-type]
    )


def _columns(subjects: Subjects, pixels: Pixels, ids: Sequence[str]) -> Comparison:
    """Compare decoded images uint8 [B, H, W, C]; B may be 0."""
    look, divergences = _looked(subjects, pixels, ids)
    found, finite = look.answers, look.finite
    # A suspect model chooses its outputs: an answer that is no number is the strongest disagreement there is.
    return Comparison(
        ids=tuple(ids),
        paths=("",) * len(ids),
        labels=np.full(len(ids), -1, np.int64),
        status=(str(Status.READ),) * len(ids),
        reasons=("",) * len(ids),
        teacher_top1=np.where(finite, found.teacher_top1, -1),
        student_top1=found.student_top1,
        teacher_confidence=found.teacher_confidence,
        student_confidence=found.student_confidence,
        gap=np.where(finite, found.gap, np.inf),
        js=np.where(finite, found.js, np.log(2)),
        divergence=np.where(finite, divergences, np.inf),
        behaviour=look.behaviour,
    )


def _looked(subjects: Subjects, pixels: Pixels, ids: Sequence[str]) -> tuple[Look, NDArray[np.float64]]:
    """What both networks do with images, and the mean divergence over the interventions."""
    if subjects.plan.throughout:
        return _looked_throughout(subjects, pixels, ids)
    look = _as_they_are(subjects, pixels)
    above = subjects.plan.above
    if above is None:  # the cheap pass
        return look, look.answers.js
    index = np.flatnonzero(look.answers.js >= above)
    mixed = _mixed(subjects, pixels[index], look.answers.teacher_top1[index], [ids[i] for i in index.tolist()])
    finite, divergences = look.finite.copy(), np.zeros(len(pixels))
    finite[index] &= mixed.finite
    divergences[index] = mixed.amounts.mean(axis=0)
    return look._replace(finite=finite), divergences


def _as_they_are(subjects: Subjects, pixels: Pixels) -> Look:
    """What both networks do with images as they are: from one graph where there is one and it answers."""
    if subjects.graph is not None:
        with subjects.laps.of("both networks"):
            look = subjects.graph.look(pixels)
        if look is not None:
            return look
    return look_of(subjects.ask(pixels))


def _looked_throughout(subjects: Subjects, pixels: Pixels, ids: Sequence[str]) -> tuple[Look, NDArray[np.float64]]:
    """The same where every image goes through all interventions and perturbed views, and they are its behaviour."""
    both = subjects.ask(pixels)
    found = divergence.answers(both.teacher, both.student)
    mixed = _mixed(subjects, pixels, found.teacher_top1, ids)
    finite, views = both.finite & mixed.finite, []
    for picture in perturbed(pixels):
        on = subjects.ask(picture)
        finite &= on.finite
        views.append((on.teacher, on.student))
    kinds = np.array([parse_step(step)[0] for step in subjects.plan.steps])
    nothing = np.zeros(len(pixels))
    parted = tuple(
        mixed.amounts[kinds == kind].mean(axis=0) if (kinds == kind).any() else nothing for kind in ("blend", "cut")
    )
    seen = divergence.behaviour(both.teacher, both.student, parted, tuple(views), both.features)
    return Look(found, seen, finite), mixed.amounts.mean(axis=0)


class _Mixed(NamedTuple):
    """What both networks say of B images mixed with clean ones."""

    amounts: NDArray[np.float64]  # [S, B], divergence on each of S steps
    finite: NDArray[np.bool_]  # [B]


def _mixed(subjects: Subjects, pixels: Pixels, answers: NDArray[np.int64], ids: Sequence[str]) -> _Mixed:
    plan = subjects.plan
    finite, amounts = np.ones(len(pixels), bool), np.zeros((len(plan.steps), len(pixels)))
    pictures = intervened(pixels, answers, keys_of(ids), subjects.partners, plan)
    for amount, on in zip(amounts, _asked(subjects, pictures), strict=True):
        finite &= on.finite
        amount[:] = divergence.jensen_shannon(on.teacher, on.student)
    return _Mixed(amounts, finite)


def _asked(subjects: Subjects, pictures: Iterable[Pixels | NDArray[np.float32]]) -> Iterator[Both]:
    """Ask about one batch after another; on a GPU, whose runs are filled up to one size, about few images at once."""
    if subjects.teacher.provider == "cpu" or subjects.plan.throughout:
        yield from map(subjects.ask, pictures)
        return
    several = [picture.astype(np.float32, copy=False) for picture in pictures]
    size = len(several[0])
    on = subjects.ask(np.concatenate(several))
    for number in range(len(several)):
        part = slice(number * size, (number + 1) * size)
        yield Both(on.teacher[part], on.student[part], on.features[part], on.finite[part])
