"""Progress on stderr: bars with rate and time left on a terminal, one line per stage elsewhere."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kdaudit.progress import Advance, Silent, Watch

if TYPE_CHECKING:
    from rich.progress import ProgressColumn


def watch(*, quiet: bool) -> Watch:
    """What listens to a run: nothing, bars, or lines."""
    if quiet:
        return Silent()
    if sys.stderr.isatty() and not os.environ.get("CI"):
        return Bars()
    return Lines()


REPORT_EVERY = 30.0
"""Seconds between lines of a stage that lasts, where there is no terminal to draw a bar on."""


WIDE = 100
"""Columns from which there is room for the bar itself; counts, rate and time left come first."""


class Lines:
    """One line when a stage ends, and one every half minute while it lasts: for logs and CI."""

    @contextmanager
    def stage(self, title: str, total: int | None, unit: str = "images") -> Iterator[Advance]:
        """Print the stage with its count, time and rate."""
        began = told = time.monotonic()
        done = 0

        def advance(count: int, known: int | None = None) -> None:
            nonlocal done, told, total
            done += count
            total = known or total
            now = time.monotonic()
            if now - told >= REPORT_EVERY:
                told = now
                pace = done / (now - began)
                left = f" of {total:,}, about {_clocked(max(0, total - done) / max(pace, 1e-9))} left" if total else ""
                self.say(f"{title}: {done:,}{left} ({_pace(pace)} {unit}/s)")

        yield advance
        seconds = time.monotonic() - began
        pace = f" ({done:,} {unit}, {_pace(done / seconds)}/s)" if done and seconds > 0.05 else ""
        print(f"{title}: {seconds:.1f} s{pace}", file=sys.stderr, flush=True)  # noqa: T201

    def say(self, line: str) -> None:
        """Print the line."""
        print(f"  {line}", file=sys.stderr, flush=True)  # noqa: T201


def _pace(rate: float) -> str:
    """A rate, to a tenth where it is small."""
    return f"{rate:,.0f}" if rate >= 9.95 else f"{rate:.1f}"


def _count(done: int, total: int | None) -> str:
    """How far a stage has come; nothing where that is not known."""
    return f"{done:,}/{total:,}" if total else f"{done:,}" if done else ""


def _clock() -> "list[ProgressColumn]":
    """Time left where it can be told, else time gone; what a stage took once it is over."""
    from rich.progress import ProgressColumn, Task
    from rich.text import Text

    class Clock(ProgressColumn):
        max_refresh = 0.5

        def render(self, task: Task) -> Text:
            gone = task.finished_time if task.finished else task.elapsed
            left = None if task.finished else task.time_remaining
            if left is None:
                return Text(_clocked(gone or 0.0), style="progress.elapsed")
            return Text(f"{_clocked(left)} left", style="progress.remaining")

    return [Clock()]


def _clocked(seconds: float) -> str:
    """`4 s`, `3:05`, `2:03:05`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Bars:
    """A bar with rate and time left per stage."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False)

    @contextmanager
    def stage(self, title: str, total: int | None, unit: str = "images") -> Iterator[Advance]:
        """Show the bar while the stage lasts, and leave one line behind."""
        from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, TextColumn

        wide = self._console.width >= WIDE
        columns: list[ProgressColumn] = [
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description:<28}" if wide else "{task.description}"),
            TextColumn("{task.fields[facts]}"),
            *_clock(),
        ]
        if wide:
            columns.insert(2, BarColumn(bar_width=24))
        with Progress(*columns, console=self._console) as progress:
            task = progress.add_task(title, total=total, facts=_count(0, total))
            began = time.monotonic()

            def advance(count: int, known: int | None = None) -> None:
                done = int(progress.tasks[0].completed) + count
                seconds = max(time.monotonic() - began, 1e-3)
                facts = f"{_count(done, known or total)} {_pace(done / seconds)} {unit}/s"
                progress.update(task, advance=count, total=known or total, facts=facts)

            yield advance
            done = int(progress.tasks[0].completed)
            seconds = max(time.monotonic() - began, 1e-3)
            facts = f"{done:,} {unit}, {_pace(done / seconds)}/s" if done else ""
            progress.update(task, total=max(done, 1), completed=max(done, 1), facts=facts)

    def say(self, line: str) -> None:
        """Print the line above the bars."""
        from rich.text import Text

        self._console.print(Text(f"  {line}"))
