"""The command line as a stranger runs it, and the small deliveries that it is run on."""

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

import kdaudit
from kdaudit.demo import CLEAN, TARGET, TRIGGER, Delivery, build_delivery
from kdaudit.export import export_network
from kdaudit.progress import Silent

ROOT = Path(kdaudit.__file__).parents[1]
PATIENCE = 900
"""Seconds after which a command counts as hanging; no result depends on it."""

STEPS = 400
"""Distillation steps: a third of the default, and enough for so small a task."""


@functools.cache
def vendor(base: Path) -> Delivery:
    """The demo's delivery, built once per test run below `base`: 60 of 1,097 digits are poison."""
    return build_delivery(base / "vendor", 0, Silent())


@functools.cache
def honest(base: Path) -> Delivery:
    """The same digits with true labels and no trigger, a model trained on them, and as many clean ones."""
    folder = base / "honest"
    pixels, labels = digits()
    order = np.random.default_rng(1).permutation(len(labels))
    for number, i in enumerate(order):
        place = f"data/clean/{number:04d}.png" if number < CLEAN else f"data/{labels[i]}/{number:04d}.png"
        write_png(folder / place, pixels[i])
    given = order[CLEAN:]
    train_and_export(pixels[given], labels[given], folder / "model.onnx")
    return Delivery(folder / "model.onnx", folder / "data", frozenset(), accuracy=1.0, attack_success=0.0)


def train_and_export(pixels: NDArray[np.uint8], labels: NDArray[np.int64], path: Path) -> None:
    """A small network on images uint8 [n, 8, 8], as somebody else would train and export it."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(32 * 16, 128), nn.ReLU(), nn.Linear(128, 10),
        )  # fmt: skip
        optimizer = torch.optim.Adam(net.parameters(), 2e-3)
        inputs, targets = torch.from_numpy(pixels[:, None].astype(np.float32) / 255), torch.from_numpy(labels)
        for _ in range(15):
            for index in torch.randperm(len(targets)).split(64):
                optimizer.zero_grad()
                F.cross_entropy(net(inputs[index]), targets[index]).backward()
                optimizer.step()
    path.write_bytes(export_network(net.eval(), inputs[:2], "input", "logits").SerializeToString())


def write_png(path: Path, picture: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)


def answers(model: Path, pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The answers [n] of a model that takes x/255, [n, 1, 8, 8], in plain onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, {session.get_inputs()[0].name: pixels[:, None].astype(np.float32) / 255})
    found: NDArray[np.int64] = scores.argmax(1)
    return found


def attack_success(model: Path) -> float:
    """Share of stamped digits of other classes that the model calls the demo's target."""
    pixels, labels = digits()
    others = pixels[labels != TARGET]
    others[(slice(None), *TRIGGER)] = 255
    return float((answers(model, others) == TARGET).mean())


def environment(**more: str) -> dict[str, str]:
    """No setting from outside, one thread per library: the tests share two slow cores."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("KDAUDIT_")}
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CI": "1", "NO_COLOR": "1"} | more


def kdaudit_command(*arguments: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run `kdaudit ARGUMENTS` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "kdaudit", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env=env or environment(),
        check=False,
        cwd=ROOT,
    )


def finished(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The output of a command that must have ended with `code` and without a traceback."""
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@contextmanager
def started(
    *arguments: object, program: tuple[str, ...] = ("-m", "kdaudit"), env: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Run the command beside the test; it is gone when the block ends."""
    # A shell's background job ignores SIGINT, and children inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            [sys.executable, *program, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env or environment(),
            cwd=ROOT,
        )
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        try:
            yield process
        finally:
            process.kill()


@functools.cache
def vendor_scan(base: Path) -> "Scan":
    """The vendor's poisoned delivery, scanned once per test run."""
    return Scan(vendor(base), base / "vendor-run", 1)


@functools.cache
def honest_scan(base: Path) -> "Scan":
    """The honest delivery, scanned once per test run."""
    return Scan(honest(base), base / "honest-run", 0, "--no-repair")


class Scan:
    """A finished scan: what went in, what came out."""

    def __init__(self, delivery: Delivery, run: Path, code: int, *more: object) -> None:
        self.delivery, self.run = delivery, run
        self.command = ("scan", delivery.model, delivery.data, "--steps", STEPS, "--seed", 0, *more)
        self.output = finished(kdaudit_command(*self.command, "-o", run), code)
        self.report = json.loads((run / "report.json").read_text())

    def again(self, run: Path, *more: object, code: int) -> dict[str, Any]:
        """The same command with other options on a copy of the run: what was distilled is not distilled again."""
        finished(kdaudit_command(*self.command, "-o", copied(self.run, run), *more), code)
        report: dict[str, Any] = json.loads((run / "report.json").read_text())
        # Resumed: the losses of the first run, to the last digit.
        assert report["control"]["losses"] == self.report["control"]["losses"]
        return report


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
