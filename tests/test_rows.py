"""The table on disk: whole parts or nothing, whatever happens to the process that writes it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdaudit import rows as room
from kdaudit.compared import Comparison
from kdaudit.rows import RowStore, to_table


def comparison(first: int, n: int, unread: tuple[int, ...] = ()) -> Comparison:
    """Rows numbered from `first`; those in `unread` as `kdaudit.comparison` leaves them."""
    number = np.arange(first, first + n)
    dark = np.isin(number, unread)

    def whole(values: np.ndarray) -> np.ndarray:
        return np.where(dark, -1, values).astype(np.int64)

    def real(values: np.ndarray) -> np.ndarray:
        return np.where(dark, np.nan, values).astype(np.float64)

    return Comparison(
        ids=tuple(f"{i:032x}:p{i}" for i in number),
        paths=tuple(f"p{i}" for i in number),
        labels=np.where(number % 3 == 0, -1, number % 3),
        status=tuple("unreadable" if d else "read" for d in dark),
        reasons=tuple("truncated PNG" if d else "" for d in dark),
        teacher_top1=whole(number % 10),
        student_top1=whole(number % 7),
        teacher_confidence=real(number / 1e6),
        student_confidence=real(number / 2e6),
        gap=real(number / 8),
        js=real(number / 1e7),
        divergence=real(number / 16),
        behaviour=np.stack([real(number), real(-number)], 1).astype(np.float32),
    )


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    monkeypatch.setattr(room, "PART_ROWS", 10)


def filled(directory: Path, *parts: Comparison, recipe: str = "one") -> RowStore:
    store = RowStore(directory, recipe)
    for part in parts:
        store.append(part)
    store.close()
    return store


def test_the_rows_of_behaviour_and_the_keys_come_back_in_order(tmp_path):
    store = filled(tmp_path, comparison(0, 12), comparison(12, 5, unread=(13,)))
    found = np.concatenate(list(store.behaviour()))
    assert found.shape == (17, 2)
    assert np.isnan(found[13]).all()
    keep = np.arange(17) != 13
    assert np.array_equal(found[keep, 0], np.arange(17)[keep])
    assert np.array_equal(found[keep, 1], -np.arange(17)[keep])
    keys = store.keys()
    read = np.concatenate(list(keys.parts()))
    assert np.array_equal(read, np.zeros(17, np.uint64))  # these ids differ in their last digits only
    assert np.array_equal(keys.folds, np.zeros(17, np.uint8))


def numbers(store: RowStore) -> list[int]:
    return (store.columns("divergence")["divergence"] * 16).astype(int).tolist()


def names(directory: Path) -> list[str]:
    return sorted(p.name for p in directory.iterdir())


def test_rows_come_back_in_order_with_their_values(tmp_path):
    store = filled(tmp_path, *(comparison(i, 4) for i in range(0, 28, 4)))
    assert store.count == 28
    assert numbers(store) == list(range(28))
    found = store.columns("teacher_top1", "label", "gap")
    assert found["teacher_top1"].tolist() == [i % 10 for i in range(28)]
    assert found["gap"].tolist() == [i / 8 for i in range(28)]
    assert [len(t) for t in store.tables()] == [12, 12, 4]


def test_rows_are_on_disk_once_a_part_is_full(tmp_path):
    store = RowStore(tmp_path, "one")
    store.append(comparison(0, 9))
    assert (store.count, names(tmp_path)) == (0, ["recipe.json"])
    store.append(comparison(9, 1))
    assert (store.count, names(tmp_path)) == (10, ["part-000000.parquet", "recipe.json"])
    store.close()
    store.close()
    assert names(tmp_path) == ["part-000000.parquet", "recipe.json"]


def test_a_new_store_goes_on_after_the_last_whole_part(tmp_path):
    killed = RowStore(tmp_path, "one")
    killed.append(comparison(0, 10))
    killed.append(comparison(10, 7))  # pending, lost
    resumed = RowStore(tmp_path, "one")
    assert resumed.count == 10
    resumed.append(comparison(resumed.count, 8))
    resumed.close()
    assert numbers(resumed) == list(range(18))


def test_a_half_written_part_is_ignored(tmp_path):
    filled(tmp_path, comparison(0, 10))
    (tmp_path / ".part-000001.parquet.k3j2h1").write_bytes(b"PAR1 half")
    resumed = RowStore(tmp_path, "one")
    assert resumed.count == 10
    resumed.append(comparison(10, 10))
    assert numbers(resumed) == list(range(20))


def test_rows_of_another_recipe_are_discarded(tmp_path):
    filled(tmp_path, comparison(0, 25), recipe="one")
    other = RowStore(tmp_path, "two")
    assert (other.count, names(tmp_path)) == (0, ["recipe.json"])
    other.append(comparison(100, 10))
    assert numbers(other) == list(range(100, 110))
    assert RowStore(tmp_path, "two").count == 10


def test_parts_without_a_recipe_are_discarded(tmp_path):
    filled(tmp_path, comparison(0, 10))
    (tmp_path / "recipe.json").unlink()
    assert RowStore(tmp_path, "one").count == 0


def test_rows_that_were_not_read_hold_nulls():
    table = to_table(comparison(0, 6, unread=(1, 4)))
    measured = ("teacher_top1", "student_top1", "teacher_confidence", "student_confidence", "gap", "js", "divergence")
    for name in measured:
        assert [v is None for v in table[name].to_pylist()] == [False, True, False, False, True, False], name
    assert table["label"].to_pylist() == [None, 1, 2, None, 1, 2]
    assert table["status"].to_pylist() == ["read", "unreadable", "read", "read", "unreadable", "read"]
    assert table["why_not_read"].to_pylist() == ["", "truncated PNG", "", "", "truncated PNG", ""]


def test_an_infinite_score_is_a_value_and_no_null():
    strange = comparison(0, 2)
    strange.divergence[1] = np.inf
    strange.teacher_top1[1] = -1
    table = to_table(strange)
    assert table["divergence"].to_pylist() == [0.0, np.inf]
    assert table["teacher_top1"].to_pylist() == [0, -1]


def test_nulls_come_back_as_nan_or_as_minus_one(tmp_path):
    store = filled(tmp_path, comparison(0, 10), comparison(10, 10, unread=(12,)))
    found = store.columns("divergence", "teacher_top1")
    assert np.flatnonzero(np.isnan(found["divergence"])).tolist() == [12]
    assert np.flatnonzero(found["teacher_top1"] == -1).tolist() == [12]
    assert (found["divergence"].dtype, found["teacher_top1"].dtype) == (np.float64, np.int16)
    parts = [part["teacher_top1"].tolist() for part in store.numbers("teacher_top1")]
    assert [len(part) for part in parts] == [10, 10]
    assert [*parts[0], *parts[1]] == found["teacher_top1"].tolist()


def test_whole_numbers_take_as_much_room_as_they_need(tmp_path):
    few, many, again = comparison(0, 10), comparison(10, 10), comparison(20, 10)
    many.labels[:] = 70_000
    found = filled(tmp_path, few, many, again).columns("label", "student_top1")
    assert (found["label"].dtype, found["student_top1"].dtype) == (np.int32, np.int16)
    wanted = [-1 if label < 0 else int(label) for one in (few, many, again) for label in one.labels]
    assert found["label"].tolist() == wanted


def test_finishing_keeps_the_order_adds_columns_and_leaves_columns_out(tmp_path):
    store = filled(tmp_path / "rows", *(comparison(i, 10, unread=(13,)) for i in range(0, 30, 10)))
    told = []

    def more(first: int, part: pa.Table) -> dict[str, pa.Array]:
        told.append((first, len(part)))
        return {"position": pa.array(range(first, first + len(part)), pa.int64())}

    store.finish(tmp_path / "samples.parquet", more, leave_out=("why_not_read", "js"))
    table = pq.read_table(tmp_path / "samples.parquet")
    assert told == [(0, 10), (10, 10), (20, 10)]
    assert table["position"].to_pylist() == list(range(30))
    assert table["path"].to_pylist() == [f"p{i}" for i in range(30)]
    assert not {"why_not_read", "js"} & set(table.column_names)
    assert table.column_names[:4] == ["id", "path", "label", "status"]
    assert table["divergence"].to_pylist()[13] is None


def test_a_failure_while_finishing_leaves_no_file(tmp_path):
    store = filled(tmp_path / "rows", comparison(0, 10))

    def more(first: int, part: pa.Table) -> dict[str, pa.Array]:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        store.finish(tmp_path / "samples.parquet", more)
    assert names(tmp_path) == ["rows"]


APPENDING = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from kdaudit import rows
from test_rows import comparison
rows.PART_ROWS = 10
store = rows.RowStore(Path(sys.argv[1]), "one")
first = store.count
while True:
    store.append(comparison(first, 3))
    first += 3
    print(first, flush=True)
"""


def test_a_kill_leaves_whole_parts_only(tmp_path):
    """SIGKILL at several moments of the writing; each run goes on where the last one was cut off."""
    for cut in (7, 23, 42):
        process = subprocess.Popen(
            [sys.executable, "-c", APPENDING, str(tmp_path), str(Path(__file__).parent)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        with process.stdout:
            for _ in range(cut):
                assert process.stdout.readline()
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        store = RowStore(tmp_path, "one")
        assert store.count > 0
        assert numbers(store) == list(range(store.count))
        assert all(len(table) == 12 for table in store.tables())
