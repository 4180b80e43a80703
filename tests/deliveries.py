"""The command line as a stranger runs it, and the small deliveries that it is run on."""

import functools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

import kdaudit
from kdaudit.demo import TRIGGER, Delivery, build_delivery
from kdaudit.progress import Silent

ROOT = Path(kdaudit.__file__).parents[1]
PATIENCE = 900
"""Seconds after which a command counts as hanging; no result depends on it."""


@functools.cache
def vendor(base: Path) -> Delivery:
    """The demo's delivery, built once per test run below `base`: 60 of 1,097 digits are poison."""
    return build_delivery(base / "vendor", 0, Silent())


def environment(**more: str) -> dict[str, str]:
    """No setting from outside, one thread per library: the tests share two slow cores."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("KDAUDIT_")}
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CI": "1", "NO_COLOR": "1"} | more


def kdaudit_command(*arguments: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run `kdaudit ARGUMENTS` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "kdaudit", *map(str, arguments)],
        capture_output=True, text=True, timeout=PATIENCE, env=env or environment(), check=False, cwd=ROOT,
    )


def finished(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The output of a command that must have ended with `code` and without a traceback."""
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@contextmanager
def started(*arguments: object, program: tuple[str, ...] = ("-m", "kdaudit"), env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """Run the command beside the test; it is gone when the block ends."""
    # A shell's background job ignores SIGINT, and children inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            [sys.executable, *program, *map(str, arguments)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env or environment(), cwd=ROOT,
        )
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        try:
            yield process
        finally:
            process.kill()


def copied(run: Path, to: Path) -> Path:
    """A run directory to go on from: what was distilled is not distilled again."""
    shutil.copytree(run, to)
    return to


def samples(run: Path, *columns: str) -> dict[str, list[object]]:
    """samples.parquet, or some of its columns."""
    table: dict[str, list[object]] = pq.read_table(run / "samples.parquet", columns=list(columns) or None).to_pydict()
    return table


def digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """scikit-learn's 1,797 handwritten digits: uint8 [n, 8, 8] and labels."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return np.rint(found.images * (255 / 16)).astype(np.uint8), found.target.astype(np.int64)


def stamped(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Images uint8 [n, 8, 8] with the demo's trigger."""
    changed = pixels.copy()
    changed[(slice(None), *TRIGGER)] = 255
    return changed
