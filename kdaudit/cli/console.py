"""Progress on stderr: bars with rate and time left on a terminal, one line per stage elsewhere."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from kdaudit.progress import Advance, Silent, Watch


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
                left = f" of {total:,}, about {max(0, total - done) / max(pace, 1e-9):.0f} s left" if total else ""
                self.say(f"{title}: {done:,}{left} ({pace:,.0f} {unit}/s)")

        yield advance
        seconds = time.monotonic() - began
        pace = f" ({done:,} {unit}, {done / seconds:,.0f}/s)" if done and seconds > 0.05 else ""
        print(f"{title}: {seconds:.1f} s{pace}", file=sys.stderr, flush=True)  # noqa: T201

    def say(self, line: str) -> None:
        """Print the line."""
        print(f"  {line}", file=sys.stderr, flush=True)  # noqa: T201


class Bars:
    """A bar with rate and time left per stage."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False)

    @contextmanager
    def stage(self, title: str, total: int | None, unit: str = "images") -> Iterator[Advance]:
        """Show the bar while the stage lasts, and leave one line behind."""
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            ProgressColumn,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        wide = self._console.width >= WIDE
        columns: list[ProgressColumn] = [
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description:<28}" if wide else "{task.description}"),
            MofNCompleteColumn(),
            TextColumn("{task.fields[pace]}"),
            TimeRemainingColumn(),
        ]
        if wide:
            columns.insert(2, BarColumn(bar_width=24))
            columns.insert(-1, TimeElapsedColumn())
        with Progress(*columns, console=self._console) as progress:
            task = progress.add_task(title, total=total, pace="")
            began = time.monotonic()

            def advance(count: int, known: int | None = None) -> None:
                done = progress.tasks[0].completed + count
                seconds = max(time.monotonic() - began, 1e-3)
                progress.update(task, advance=count, total=known or total, pace=f"{done / seconds:,.0f} {unit}/s")

            yield advance
            done = progress.tasks[0].completed
            progress.update(task, total=max(done, 1), completed=max(done, 1))

    def say(self, line: str) -> None:
        """Print the line above the bars."""
        from rich.text import Text

        self._console.print(Text(f"  {line}"))
