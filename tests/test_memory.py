"""What judging holds grows by so many bytes an image and no more: a delivery may have millions."""

import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from deliveries import ROOT, environment

from kdaudit.aside import Aside
from kdaudit.calibration import Clean
from kdaudit.conduct import Behaved, conduct
from kdaudit.flagging import flag
from kdaudit.keys import Keys
from kdaudit.likeness import likeness_p_values
from kdaudit.memory import frugal, give_back
from kdaudit.odds import Columns, SecondLook, own_odds
from kdaudit.selection import highest
from kdaudit.stretches import stretches

WATCHED = """
import os, sys

class Finder:
    def find_spec(self, name, *_):
        if name == "numpy":
            print("numpy finds", os.environ.get("OPENBLAS_THREAD_TIMEOUT"))

sys.meta_path.insert(0, Finder())
from kdaudit.cli.main import main
main(["doctor"])
"""

FEW, MANY = 100_000, 250_000
K, CLEAN = 10, 800


def peak(work: Callable[[], object]) -> int:
    """Bytes that a piece of work holds at most, beyond what was there before."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def growth(work: Callable[[int], Callable[[], object]]) -> float:
    """Bytes an image between two sizes; `work` prepares one and is not counted."""
    work(20_000)()  # what is imported on the way is no image's
    few, many = (peak(work(m)) for m in (FEW, MANY))
    return (many - few) / (MANY - FEW)


def suspects(m: int) -> tuple[Columns, Clean]:
    rng = np.random.default_rng(m)
    groups = rng.integers(0, K, m).astype(np.int16)
    clean = Clean(rng.exponential(0.02, CLEAN), rng.integers(0, K, CLEAN))
    return Columns(np.ones(m, bool), groups, rng.random(m) < 0.05, np.minimum(rng.exponential(0.02, m), 0.6)), clean


def own(m: int) -> Callable[[], object]:
    columns, clean = suspects(m)
    return lambda: own_odds(columns, clean, "divergence")


def decided(m: int) -> Callable[[], object]:
    columns, clean = suspects(m)
    rng = np.random.default_rng(1)
    looks = [SecondLook(rng.random(m, np.float32), rng.uniform(1 / CLEAN, 1, CLEAN), "a look") for _ in range(2)]
    asked = own_odds(columns, clean, "divergence")
    return lambda: flag(columns, clean, "divergence", 0.05, looks, asked)


def carried(m: int) -> Callable[[], object]:
    rng = np.random.default_rng(m)
    scores, clean = rng.normal(size=m).astype(np.float32), rng.normal(size=CLEAN).astype(np.float32)
    return lambda: likeness_p_values(scores, clean, 0.0)


def behaved(m: int) -> Callable[[], object]:
    def images(n: int) -> Behaved:
        rng = np.random.default_rng(n)
        keys, width = rng.integers(0, 2**63, n, dtype=np.uint64), 8

        def rows():
            for span in stretches(n, 8192):
                yield np.random.default_rng(span.start).normal(size=(len(keys[span]), width)).astype(np.float32)

        answers = rng.integers(0, K, n).astype(np.int16)
        return Behaved(rows, answers, Keys.of(lambda: (keys[span] for span in stretches(n))), rng.exponential(0.02, n))

    suspect, clean = images(m), images(CLEAN)
    return lambda: conduct(suspect, clean)


@pytest.mark.parametrize(
    ("work", "bytes_an_image"),
    [(own, 36), (decided, 20), (carried, 9), (behaved, 14)],
    ids=["by their own score", "flags", "likeness", "behaviour"],
)
def test_judging_holds_a_few_bytes_an_image(work, bytes_an_image):
    assert growth(work) < bytes_an_image


def test_the_first_few_are_chosen_without_a_copy_of_the_column():
    def work(m: int) -> Callable[[], object]:
        values, every = np.random.default_rng(0).random(m), np.ones(m, bool)
        return lambda: highest(values, 1000, every)

    assert growth(work) < 4  # a copy has 8; the stretches of the smaller column are not all full


def test_a_column_put_aside_takes_no_memory(tmp_path):
    def work(m: int) -> Callable[[], object]:
        def put() -> Aside:
            aside = Aside(np.float64, tmp_path)
            for span in stretches(m):
                aside.append(np.zeros(span.stop - span.start))
            return aside

        return put

    assert growth(work) < 0.1


@pytest.mark.parametrize(
    ("variable", "own", "ours"),
    [("ARROW_DEFAULT_MEMORY_POOL", "mimalloc", "system"), ("OPENBLAS_THREAD_TIMEOUT", "20", "4")],
)
def test_the_user_may_choose_what_libraries_do(monkeypatch, variable, own, ours):
    monkeypatch.setenv(variable, own)
    frugal()
    assert os.environ[variable] == own
    monkeypatch.delenv(variable)
    frugal()
    assert os.environ[variable] == ours


def test_the_command_is_frugal_before_numpy_is_there():
    free = {name: value for name, value in environment().items() if not name.startswith("OPENBLAS_")}
    done = subprocess.run(
        [sys.executable, "-c", WATCHED], capture_output=True, text=True, check=False, env=free, cwd=ROOT
    )
    assert "numpy finds 4" in done.stdout.splitlines()


def test_giving_back_where_nothing_can_be_asked_is_no_error(monkeypatch):
    give_back()
    monkeypatch.setattr("sys.platform", "darwin")
    give_back()
