"""Where the time went: parts add up over threads, and the wall is found among those that were busy longest."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from kdaudit.clock import Laps, Pace


def test_laps_add_up_over_threads_and_survive_an_error():
    laps = Laps()
    meet = threading.Barrier(4)

    def work(_n: int) -> None:
        with laps.of("decode"):
            meet.wait()
            time.sleep(0.02)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    with pytest.raises(KeyError), laps.of("teacher"):
        raise KeyError
    assert laps.seconds["decode"] >= 4 * 0.02  # four threads at once: more than the clock shows
    assert laps.seconds["teacher"] >= 0
    laps.seconds["decode"] = 0.0
    assert laps.seconds["decode"] > 0  # what is handed out is a copy


@pytest.mark.parametrize(
    ("alone", "shared", "workers", "wall"),
    [
        ({"read": 1.0, "write": 0.5}, {"teacher": 6.0, "control": 2.0}, 2, "teacher"),  # 1.5 against 4
        ({"read": 3.0, "write": 0.5}, {"teacher": 6.0, "control": 8.0}, 2, "control"),
        ({"read": 3.0, "write": 0.5}, {"teacher": 6.0, "control": 8.0}, 16, "read"),  # one thread reads for sixteen
        ({}, {"teacher": 1.0}, 1, "teacher"),
        ({}, {}, 1, ""),
    ],
)
def test_the_wall_is_the_largest_part_of_whoever_was_busy_longest(alone, shared, workers, wall):
    assert Pace(100, 5.0, alone, shared, workers).wall == wall


def test_shares_are_of_all_working_seconds_largest_first():
    pace = Pace(100, 4.0, {"read": 1.0}, {"decode": 1.0, "teacher": 6.0}, 2)
    assert pace.shares == {"teacher": 0.75, "read": 0.125, "decode": 0.125}
    assert next(iter(pace.shares)) == "teacher"
    assert pace.images_per_s == 25
    assert Pace(0, 0.0, {}, {}, 1).images_per_s == 0
    assert Pace(0, 0.0, {}, {}, 1).shares == {}
