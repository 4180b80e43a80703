"""Where the time went: one entry per stage, told to whoever watches; and inside a stage, on which part of it."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from kdaudit.progress import Advance, Watch


class Laps:
    """Seconds that the threads of a stage spent on each of its parts. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: dict[str, float] = {}

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Time a part. What is timed inside another part counts for both."""
        began = time.monotonic()
        try:
            yield
        finally:
            seconds = time.monotonic() - began
            with self._lock:
                self._seconds[part] = self._seconds.get(part, 0.0) + seconds

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds so far, added up over the threads."""
        with self._lock:
            return dict(self._seconds)


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a stage went, and on what.

    Attributes:
        images: images done in this pass: a run that was resumed counts those of the last pass only.
        seconds: by the clock.
        alone: seconds on each part that one thread does for all.
        shared: seconds on each part that the workers share, added up over them.
        workers: how many.
    """

    images: int
    seconds: float
    alone: dict[str, float]
    shared: dict[str, float]
    workers: int

    @property
    def images_per_s(self) -> float:
        """Images a second by the clock; 0 where nothing was done."""
        return self.images / self.seconds if self.images and self.seconds > 0 else 0.0

    @property
    def shares(self) -> dict[str, float]:
        """Each part's share of all working seconds, largest first."""
        parts = self.alone | self.shared
        total = sum(parts.values())
        ordered = sorted(parts.items(), key=lambda item: -item[1])
        return {name: seconds / total for name, seconds in ordered} if total > 0 else {}

    @property
    def wall(self) -> str:
        """The part to make faster: the largest of those that were busy longest; empty where nothing was done."""
        alone, shared = sum(self.alone.values()), sum(self.shared.values()) / max(self.workers, 1)
        parts = self.alone if alone > shared else self.shared
        return max(parts, key=parts.__getitem__) if alone + shared > 0 else ""


@dataclass(slots=True)
class Clock:
    """Times the stages of a run.

    Attributes:
        watch: who is told.
        seconds: wall-clock seconds per stage, in the order in which they began.
        pace: of the comparison of the suspect images, once it is done.
    """

    watch: Watch
    seconds: dict[str, float] = field(default_factory=dict)
    pace: Pace | None = None

    @contextmanager
    def stage(self, title: str, total: int | None = None, unit: str = "images") -> Iterator[Advance]:
        """Time a stage; stages of one title add up."""
        began = time.monotonic()
        with self.watch.stage(title, total, unit) as advance:
            try:
                yield advance
            finally:
                self.seconds[title] = self.seconds.get(title, 0.0) + time.monotonic() - began

    @contextmanager
    def epochs(self, title: str) -> Iterator[Callable[[int, int, float], None]]:
        """Time a training; what it yields is told (steps done, steps in all, mean loss) after each epoch."""
        done = 0
        with self.stage(title, None, "steps") as advance:

            def on_epoch(step: int, steps: int, _loss: float) -> None:
                nonlocal done
                advance(step - done, steps)
                done = step

            yield on_epoch

    def say(self, line: str) -> None:
        """A fact worth a line."""
        self.watch.say(line)
