"""Kills a scan at random instants and lets it go on: what comes out must be what an undisturbed scan leaves.

    python benchmarks/kill.py --times 50

The demo's delivery (scikit-learn's digits, 60 of 1,097 poisoned) is scanned once undisturbed. Then the same command
is begun in new directories, killed (SIGKILL) at random instants of distillation, comparison, tuning and what lies
between, taken up again by the same command, killed again or left to finish, until enough kills were made. Counted
are: run directories that differ from the undisturbed one, verdicts in unfinished reports, commands that did not go
on, and confined workers that outlive their parent. Timestamps and timings are aside, nothing else is.
"""

import argparse
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import lab
from kdaudit.demo import Delivery, build_delivery
from kdaudit.progress import Silent

PROGRAM = "import sys, kdaudit.rows as r; r.PART_ROWS = 128; from kdaudit.cli.main import main; main()"
"""Parts of 128 rows instead of 8,192: so small a delivery then leaves several of them."""

STAGES = ("distil the control", "compare", "repair")
"""Where most kills fall; every fourth falls anywhere."""

PATIENCE = 3600
TIMES = {"created", "timings", "seconds", "pace"}
CLOCKS = {
    "junit.xml": re.compile(rb' (?:time|timestamp)="[^"]*"'),
    "report.html": re.compile(  # the table's rows stand by their length
        rb"<h3>Where the time went.*?</table>|\d{4}-\d\d-\d\d \d\d:\d\d UTC", re.DOTALL
    ),
}
"""Clock readings in the renderings of the report."""


def command(delivery: Delivery, steps: int) -> list[str]:
    """The scan; its run directory is `run` in the working directory, so that every report names the same paths."""
    words = (
        "scan",
        delivery.model,
        delivery.data,
        "--steps",
        steps,
        "--repair-epochs",
        4,
        "--seed",
        0,
        "-q",
        "-o",
        "run",
    )
    return [sys.executable, "-c", PROGRAM, *map(str, words)]


def started(words: list[str], where: Path) -> subprocess.Popen[str]:
    """Begin the command in a directory, or go on there."""
    root = str(Path(__file__).resolve().parent.parent)
    env = dict(os.environ, OMP_NUM_THREADS="1", CI="1", PYTHONPATH=root)
    where.mkdir(parents=True, exist_ok=True)
    return subprocess.Popen(words, cwd=where, env=env, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def stage_of(run: Path) -> str:
    """The stage that the run directory's note names."""
    try:
        return str(json.loads((run / "state/run.json").read_text())["stage"])
    except (OSError, ValueError, KeyError):
        return ""


def watched(process: subprocess.Popen[str], run: Path) -> dict[str, float]:
    """Seconds per stage of a run that is left alone."""
    began, stage = time.monotonic(), ""
    seconds: dict[str, float] = {}
    while process.poll() is None:
        now = stage_of(run)
        if now != stage:
            began, stage = time.monotonic(), now
        seconds[stage] = time.monotonic() - began
        time.sleep(0.02)
    return seconds


def killed(process: subprocess.Popen[str], run: Path, stage: str, delay: float) -> str | None:
    """Kill once the stage has lasted so long; None if the command ended before."""
    patience = time.monotonic() + PATIENCE
    while stage_of(run) != stage:
        if process.poll() is not None:
            return None
        if time.monotonic() > patience:
            raise SystemExit("the command hangs")
        time.sleep(0.005)
    try:
        process.wait(delay)
        return None
    except subprocess.TimeoutExpired:
        where = stage_of(run) or "before the first note"
        workers = children(process.pid)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if outlived(workers):
            where += " (a worker outlived it)"
        return where


def children(pid: int) -> list[int]:
    """Processes that a process has started."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += map(int, task.read_text().split())
        except OSError:
            continue
    return found


def outlived(pids: list[int]) -> bool:
    """Whether one of them is still there after half a minute."""
    patience = time.monotonic() + 30
    while time.monotonic() < patience:
        if not any(Path(f"/proc/{pid}/cmdline").exists() and state(pid) != "Z" for pid in pids):
            return False
        time.sleep(0.05)
    return True


def state(pid: int) -> str:
    """A process's state letter; Z where it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def differences(run: Path, reference: Path) -> list[str]:
    """Files that are not the same, timestamps and timings aside."""
    names = [{p.relative_to(d).as_posix() for p in d.rglob("*") if p.is_file()} for d in (run, reference)]
    found = sorted(names[0] ^ names[1])
    for name in sorted(names[0] & names[1]):
        one, other = (content(directory / name) for directory in (run, reference))
        if one != other:
            found.append(name)
    return found


def content(path: Path) -> Any:
    """What of a file must be the same."""
    data = path.read_bytes()
    if path.name == "report.json":
        return without_times(json.loads(data))
    if path.suffix == ".pt":
        import torch

        return flat(without_times(torch.load(io.BytesIO(data), weights_only=True)))
    return CLOCKS[path.name].sub(b"", data) if path.name in CLOCKS else data


def without_times(value: Any) -> Any:
    """A document without its clock readings."""
    if isinstance(value, dict):
        return {name: without_times(inner) for name, inner in value.items() if name not in TIMES}
    return [without_times(inner) for inner in value] if isinstance(value, list) else value


def flat(value: Any) -> Any:
    """Tensors as bytes, so that they compare."""
    if isinstance(value, dict):
        return {str(name): flat(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [flat(inner) for inner in value]
    return value.numpy().tobytes() if hasattr(value, "numpy") else value


def main() -> None:
    """Kill, go on, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=400, help="of distilling; with much fewer no model is repaired")
    given = parser.parse_args()
    rng = random.Random(given.seed)
    base = lab.LAB / f"kill-{os.getpid()}"
    delivery = build_delivery(base / "vendor", 0, Silent())
    words = command(delivery, given.steps)
    reference = base / "reference"
    process = started(words, reference)
    seconds = watched(process, reference / "run")
    code = process.returncode
    again = base / "again"
    started(words, again).wait()
    shaky = differences(again / "run", reference / "run")
    print(f"two undisturbed runs: exit {code}, differences: {shaky or 'none'}", flush=True)
    print("seconds: " + ", ".join(f"{stage} {s:.1f}" for stage, s in seconds.items() if stage), flush=True)
    kills: list[str] = []
    wrong: list[str] = []
    trials = 0
    while len(kills) < given.times:
        where = base / f"trial-{trials}"
        trials += 1
        left = rng.randint(2, 8)
        while True:
            process = started(words, where)
            aim = rng.choice(STAGES if rng.random() < 0.75 else sorted(seconds.keys() - {"done", ""}))
            length = seconds.get(aim, 0.0)
            spot = None
            if left and len(kills) < given.times:
                spot = killed(process, where / "run", aim, rng.random() * length)
            if spot is None:
                errors = process.communicate()[1]
                break
            kills.append(spot)
            left -= 1
            if "outlived" in spot:
                wrong.append(f"trial {trials}: {spot}")
            wrong += [f"trial {trials}: {fault}" for fault in faults(where / "run")]
        if process.returncode != code:
            wrong.append(f"trial {trials}: exit {process.returncode} instead of {code}: {errors.strip()[-200:]}")
            continue
        wrong += [f"trial {trials}: {name} differs" for name in differences(where / "run", reference / "run")]
        print(f"trial {trials}: {len(kills)} kills so far, {len(wrong)} faults", flush=True)
    by_stage = {spot: kills.count(spot) for spot in sorted(set(kills))}
    print(f"\n{len(kills)} kills in {trials} runs ({by_stage}), seed {given.seed}; {lab.machine()}; {lab.today()}")
    print("every final run directory equals the undisturbed one" if not wrong else "\n".join(wrong))
    raise SystemExit(1 if wrong or shaky else 0)


def faults(run: Path) -> list[str]:
    """What an interrupted run must not show: a report that says more than that it is unfinished."""
    try:
        report = json.loads((run / "report.json").read_text())
    except OSError:
        return []
    except ValueError:
        return ["a report that is half written"]
    if report["status"] == "finished":
        return [] if stage_of(run) in {"done", "repair", "write the manifests"} else ["a finished report"]
    return ["a verdict in an unfinished report"] if report["verdict"] is not None else []


if __name__ == "__main__":
    main()
