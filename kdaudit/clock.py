"""Where the time went: one entry per stage, told to whoever watches."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from kdaudit.progress import Advance, Watch


@dataclass(slots=True)
class Clock:
    """Times the stages of a run.

    Attributes:
        watch: who is told.
        seconds: wall-clock seconds per stage, in the order in which they began.
    """

    watch: Watch
    seconds: dict[str, float] = field(default_factory=dict)

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
