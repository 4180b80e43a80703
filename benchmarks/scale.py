"""Whether memory and speed depend on the size of the delivery: `kdaudit compare` from 1,000 to 1,000,000 images.

    python benchmarks/scale.py
    python benchmarks/scale.py --rule divergence --sizes 10000,100000

Each size is one run of the public command, in a process of its own and with one worker thread. The images are MNIST's,
made 14x14 so that a million take minutes; each row of the Parquet file has a name and, by a comment inside the JPEG,
content of its own, so that every digest and every id stands once. The teacher is a small network trained on the same
images, the control is distilled from it, once (both in the laboratory).

Memory is what the command and all processes below it hold (`processes.memory`), looked at ten times a second; `peak_at`
is the stage it was highest in. What else runs beside it makes no difference: pages of libraries count once, whole.
(Rows of 2026-11-27 and before are sums of PSS, which divides these among all processes of the environment, also those
of other runs: one was counted 65 MiB too low until the others ended.)
Speed is images by the clock and by seconds of computing of all processes, everything from start to report included, and
`marginal`: the further images by the further seconds of computing since the smallest size, which no fixed cost touches.
Rows go to results/scale.csv.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from torch import nn

from benchmarks import lab, processes

SIZES = "1000,10000,100000,1000000"
SIDE, RECIPE = 14, "14x14x1-stretch-RGB-NCHW-unit"
DIFFERENT, CLEAN = 20_000, 2_000
"""Different pictures in the deliveries, and clean images."""

GROUP = 2_000
INTERVAL = 0.1
KEEP_MEMORY, KEEP_SPEED = 1.10, 0.95
"""What must hold from 10,000 images to the largest size."""


@dataclass(frozen=True)
class Stand:
    """What every run needs: two models, the clean pool, and the pictures that deliveries are made of."""

    teacher: Path
    control: Path
    clean: Path
    pictures: list[bytes]
    labels: list[int]


def small(images: lab.Images) -> lab.Images:
    """MNIST at half its size."""
    pixels = [
        np.asarray(Image.fromarray(p[..., 0]).resize((SIDE, SIDE), Image.Resampling.BILINEAR)) for p in images.pixels
    ]
    return lab.Images(np.stack(pixels)[..., None], images.labels, images.classes)


def set_up() -> Stand:
    """Models and pictures, made where they are not there yet."""
    folder = lab.LAB / "scale"
    folder.mkdir(parents=True, exist_ok=True)
    teacher, control, clean = (folder / name for name in ("teacher.onnx", "control.onnx", "clean.parquet"))
    some = np.arange(DIFFERENT)
    images = small(lab.load("mnist", "train").take(some))
    pictures = [lab.encode(p, jpeg_quality=90) for p in images.pixels]
    if not teacher.exists():
        net = nn.Sequential(
            nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Flatten(),
            nn.Linear(32 * 16, 32), nn.ReLU(), nn.Linear(32, 10),
        )  # fmt: skip
        lab.export(lab.train(net, images, epochs=4, seed=0), images, teacher)
    if not clean.exists():
        held_out = small(lab.load("mnist", "test").take(some[:CLEAN]))
        write_rows(clean, CLEAN, [lab.encode(p, jpeg_quality=90) for p in held_out.pixels], held_out.labels.tolist())
    if not control.exists():
        command = ["distill", str(teacher), str(clean), "-o", str(control), "--preprocess", RECIPE]
        subprocess.run([*kdaudit(), *command, "--steps", "600", "-q"], check=True)
    return Stand(teacher, control, clean, pictures, images.labels.tolist())


def kdaudit() -> list[str]:
    """The command of this checkout."""
    return [sys.executable, "-m", "kdaudit"]


def write_rows(path: Path, n: int, pictures: list[bytes], labels: list[int]) -> None:
    """A Parquet file of n rows, a row group in memory at a time."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", kind), ("label", pa.int32())])
    with pq.ParquetWriter(path, schema, compression="none") as writer:
        for first in range(0, n, GROUP):
            numbers = range(first, min(n, first + GROUP))
            rows = [
                {"bytes": numbered(pictures[i % len(pictures)], i), "path": f"delivery/{i % 100:02d}/{i:08d}.jpg"}
                for i in numbers
            ]
            column = pa.array([labels[i % len(labels)] for i in numbers], pa.int32())
            writer.write_table(pa.table({"image": pa.array(rows, kind), "label": column}, schema))


def numbered(jpeg: bytes, number: int) -> bytes:
    """The JPEG with a comment that holds a number: the same picture, other bytes."""
    return jpeg[:2] + b"\xff\xfe\x00\x0a" + number.to_bytes(8, "big") + jpeg[2:]


def stage_of(run: Path) -> str:
    """What a run is doing."""
    try:
        return str(json.loads((run / "state" / "run.json").read_text())["stage"])
    except (OSError, ValueError, KeyError):
        return "start"


@dataclass(frozen=True)
class Seen:
    """What one run took."""

    seconds: float
    computed: float
    peaks: dict[str, int]
    report: dict[str, object]


def watched(command: list[str], run: Path) -> Seen:
    """Run a command to its end, watching its memory."""
    peaks: dict[str, int] = {}
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while True:
        ended, status, used = os.wait4(process.pid, os.WNOHANG)
        if ended:
            break
        stage = stage_of(run)
        peaks[stage] = max(peaks.get(stage, 0), processes.memory(process.pid))
        time.sleep(INTERVAL)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    seconds = time.perf_counter() - began
    # What its workers computed counts with it, since it waits for each of them.
    return Seen(seconds, used.ru_utime + used.ru_stime, peaks, json.loads((run / "report.json").read_text()))


def measure(stand: Stand, n: int, rule: str, folder: Path) -> Seen:
    """One size."""
    data, run = folder / f"delivery-{n}.parquet", folder / f"run-{n}-{rule}"
    if not data.exists():
        write_rows(data, n, stand.pictures, stand.labels)
    shutil.rmtree(run, ignore_errors=True)  # an earlier run would be taken up again
    given = [str(stand.teacher), str(stand.control), str(data), "--clean", str(stand.clean), "-o", str(run)]
    how = ["--rule", rule, "--preprocess", RECIPE, "--workers", "1", "--exit-zero", "-q"]
    return watched([*kdaudit(), "compare", *given, *how], run)


def row(n: int, rule: str, seen: Seen, first: tuple[int, Seen] | None, note: str) -> dict[str, object]:
    """A line of the table."""
    pace, peak = seen.report["pace"], max(seen.peaks, key=seen.peaks.__getitem__)
    assert isinstance(pace, dict)
    further = (n - first[0]) / (seen.computed - first[1].computed) if first else float("nan")
    return {
        "date": lab.today(),
        "note": note,
        "machine": lab.machine(),
        "rule": rule,
        "n": n,
        "peak_mib": round(seen.peaks[peak] / 2**20, 1),
        "peak_at": peak,
        "images_per_s": round(n / seen.seconds, 1),
        "images_per_cpu_s": round(n / seen.computed, 1),
        "marginal_per_cpu_s": round(further, 1),
        "compare_images_per_s": pace["images_per_s"],
        "verdict": seen.report["verdict"],
    }


def concluded(rows: list[dict[str, object]], base: int = 10_000) -> str:
    """Whether memory and speed hold from `base` images to the most."""
    by_size = {int(str(r["n"])): r for r in rows}
    most = max(by_size)
    if base not in by_size or most == base:
        return "nothing to compare: give 10000 and a larger size"
    memory_ratio, clock, speed = (
        float(str(by_size[most][name])) / float(str(by_size[base][name]))
        for name in ("peak_mib", "images_per_s", "images_per_cpu_s")
    )
    holds = memory_ratio < KEEP_MEMORY and speed > KEEP_SPEED
    return (
        f"{base:,} -> {most:,} images: peak memory x {memory_ratio:.3f}, images per second of computing x {speed:.3f}, "
        f"by the clock x {clock:.3f}: {'holds' if holds else 'does not hold'}"
    )


def main() -> None:
    """Measure, print, append."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default=SIZES, help="numbers of images, with commas")
    parser.add_argument("--rule", default="argmax", choices=["argmax", "score", "divergence"])
    parser.add_argument("--folder", type=Path, help="keep deliveries and runs here; a temporary folder when left out")
    parser.add_argument("--note", default="", help="a word for the table: what was different")
    parser.add_argument("--dry", action="store_true", help="append nothing")
    given = parser.parse_args()
    stand = set_up()
    rows, first = [], None
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for n in sorted(map(int, given.sizes.split(","))):
            seen = measure(stand, n, given.rule, folder)
            rows.append(row(n, given.rule, seen, first, given.note))
            first = first or (n, seen)
            print(*(f"{value!s}" for value in list(rows[-1].values())[3:]), flush=True)
            print("    MiB by stage:", {k: round(v / 2**20) for k, v in seen.peaks.items()}, flush=True)
            print("    seconds by stage:", seen.report["timings"], flush=True)
    print(concluded(rows))
    if given.dry:
        return
    lab.append_rows(lab.RESULTS / "scale.csv", rows)


if __name__ == "__main__":
    main()
