"""A run that is interrupted says so, cannot be mistaken for a passed one, and goes on to the same table.

One run directory is interrupted four times, at places that its own state files show, and then left to finish.
"""

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import pytest
from deliveries import PATIENCE, finished, kdaudit_command, samples, started, vendor

pytestmark = pytest.mark.slow

# Parts of 128 rows instead of 8,192: so small a delivery then leaves several of them.
KDAUDIT = ("-c", "import sys, kdaudit.rows as r; r.PART_ROWS = 128; from kdaudit.cli.main import main; main()")


class Stop(NamedTuple):
    """One interruption, and what the run directory said after it."""

    code: int
    errors: str
    note: dict[str, Any]
    report: dict[str, Any]
    refusal: subprocess.CompletedProcess[str]
    parts: int
    leftovers: list[str]


class Story(NamedTuple):
    """The same audit twice: undisturbed, and interrupted four times."""

    undisturbed: Path
    stops: dict[str, Stop]
    run: Path
    code: int


def parts_of(run: Path) -> int:
    return len(list((run / "state/rows").glob("part-*.parquet")))


def checkpoint_of(run: Path) -> float:
    file = run / "state/distillation.pt"
    return file.stat().st_mtime_ns if file.exists() else 0


def interrupted(command: tuple[object, ...], run: Path, how: signal.Signals, reached: Callable[[], bool]) -> Stop:
    """Begin or go on, send the signal once the run has come as far as `reached` says, and look at what is left."""
    with started(*command, "-o", run, program=KDAUDIT) as process:
        patience = time.monotonic() + PATIENCE
        while not reached():
            assert process.poll() is None, f"it ended before it was interrupted:\n{process.communicate()[1]}"
            assert time.monotonic() < patience, "it never came so far"
            time.sleep(0.01)
        process.send_signal(how)
        _, errors = process.communicate(timeout=PATIENCE)
    return Stop(
        process.returncode,
        errors,
        json.loads((run / "state/run.json").read_text()),
        json.loads((run / "report.json").read_text()),
        kdaudit_command("report", run),
        parts_of(run),
        [path.name for path in run.rglob(".*")],
    )


@pytest.fixture(scope="module")
def story(tmp_path_factory) -> Story:
    base = tmp_path_factory.mktemp("interruption")
    delivery = vendor(tmp_path_factory.getbasetemp())
    command = ("scan", delivery.model, delivery.data, "--steps", 160, "--no-repair", "--fail-on", "never")
    undisturbed, run = base / "undisturbed", base / "run"
    with started(*command, "-o", undisturbed, program=KDAUDIT) as process:
        _, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, errors
    stops = {}
    stops["SIGINT, distilling"] = interrupted(command, run, signal.SIGINT, lambda: checkpoint_of(run) > 0)
    before = checkpoint_of(run)
    stops["SIGTERM, distilling"] = interrupted(command, run, signal.SIGTERM, lambda: checkpoint_of(run) > before)
    stops["SIGINT, comparing"] = interrupted(command, run, signal.SIGINT, lambda: parts_of(run) > 0)
    done = parts_of(run)
    stops["SIGKILL, comparing"] = interrupted(command, run, signal.SIGKILL, lambda: parts_of(run) > done)
    with started(*command, "-o", run, program=KDAUDIT) as process:
        process.communicate(timeout=PATIENCE)
    return Story(undisturbed, stops, run, process.returncode)


STOPS = ("SIGINT, distilling", "SIGTERM, distilling", "SIGINT, comparing", "SIGKILL, comparing")


@pytest.mark.parametrize("stop", STOPS[:3])
def test_an_interrupted_scan_ends_with_130_and_one_line_that_says_how_to_go_on(stop, story):
    found = story.stops[stop]
    assert found.code == 130
    assert "Traceback" not in found.errors
    assert found.errors.splitlines()[-1].startswith("kdaudit: interrupted")
    assert "the same command" in found.errors.splitlines()[-1]
    assert found.leftovers == []


def test_a_killed_scan_is_gone_at_once(story):
    assert story.stops["SIGKILL, comparing"].code == -signal.SIGKILL


@pytest.mark.parametrize("stop", STOPS)
def test_the_report_of_an_interrupted_scan_says_unfinished_and_gives_no_verdict(stop, story):
    found = story.stops[stop]
    assert found.report["status"] == found.note["status"] == "unfinished"
    assert found.report["verdict"] is None
    assert found.report["stage"] == ("distil the control" if "distilling" in stop else "compare")


@pytest.mark.parametrize("stop", STOPS)
def test_report_refuses_an_interrupted_run_with_a_sentence(stop, story):
    refusal = story.stops[stop].refusal
    assert finished(refusal, 2) == ""
    assert refusal.stderr.count("\n") == 1
    assert "is unfinished" in refusal.stderr
    assert "run the same `kdaudit scan` again" in refusal.stderr


def test_each_interruption_came_where_it_was_meant_to(story):
    parts = [story.stops[stop].parts for stop in STOPS]
    whole = -(-len(samples(story.undisturbed, "id")["id"]) // 128)
    assert parts[:2] == [0, 0]
    assert 0 < parts[2] < parts[3] < whole


def test_the_same_command_goes_on_to_the_same_table(story):
    assert story.code == 0
    assert samples(story.run) == samples(story.undisturbed)
    assert (story.run / "kept.csv").read_bytes() == (story.undisturbed / "kept.csv").read_bytes()
    assert (story.run / "quarantine.csv").read_bytes() == (story.undisturbed / "quarantine.csv").read_bytes()
    finished(kdaudit_command("report", story.run), 0)


def test_the_control_went_on_learning_where_it_stopped(story):
    ours, theirs = (json.loads((run / "report.json").read_text()) for run in (story.run, story.undisturbed))
    assert ours["control"]["losses"] == theirs["control"]["losses"]
    assert ours["verdict"] == theirs["verdict"]


def test_what_was_compared_before_the_interruption_was_not_compared_again(story):
    first = story.stops["SIGINT, comparing"].parts
    finished_parts = sorted((story.run / "state/rows").glob("part-*.parquet"))
    assert [pq.read_metadata(part).num_rows for part in finished_parts[:first]] == [128] * first
    ages = [part.stat().st_mtime_ns for part in finished_parts]
    assert ages == sorted(ages)
