"""The manifests: nothing lost between them, and the kept one is a data set again."""

import csv
from pathlib import Path

import pyarrow as pa
import pytest

from kdaudit.quarantine import Manifests, write_manifests
from kdaudit.source import open_source, survey


def table(**columns: list) -> pa.Table:
    n = len(columns["path"])
    usual = {
        "id": [f"{i:032x}:{path}" for i, path in enumerate(columns["path"])],
        "label": [None] * n, "status": ["read"] * n, "flag": [False] * n, "reason": [""] * n,
        "score": [0.25] * n, "p_value": [0.5] * n, "doubtful": [False] * n,
    }  # fmt: skip
    return pa.table(usual | columns)


def written(folder: Path, *tables: pa.Table, classes: tuple[str, ...] | None = None):
    counts = write_manifests(iter(tables), classes, folder / "kept.csv", folder / "quarantine.csv")
    rows = []
    for name in ("kept.csv", "quarantine.csv"):
        with (folder / name).open(newline="", encoding="utf-8") as file:
            rows.append(list(csv.reader(file)))
    return counts, *rows


def test_read_and_unflagged_images_are_kept_and_all_others_quarantined(tmp_path):
    counts, kept, quarantine = written(
        tmp_path,
        table(
            path=["a", "b", "c", "d", "e"],
            label=[0, 1, None, 2, None],
            status=["read", "read", "read", "unreadable", "skipped"],
            flag=[False, True, False, False, False],
            reason=["", "model and control part", "", "truncated PNG", "hidden"],
            score=[0.1, 0.6, 0.2, None, None],
            p_value=[0.9, 1e-5, 0.5, None, None],
        ),
    )
    assert counts == Manifests(kept=2, quarantined=3)
    assert kept[0] == ["path", "label", "id", "doubtful"]
    assert [row[:2] for row in kept[1:]] == [["a", "0"], ["c", ""]]
    assert quarantine[0] == ["path", "label", "id", "status", "reason", "score", "p_value"]
    assert [row[0] for row in quarantine[1:]] == ["b", "d", "e"]
    assert quarantine[1][3:] == ["read", "model and control part", "0.6", "1e-05"]
    assert quarantine[2][3:] == ["unreadable", "truncated PNG", "", ""]
    assert quarantine[3][3:] == ["skipped", "hidden", "", ""]


def test_doubtful_images_are_kept_and_marked(tmp_path):
    counts, kept, _ = written(tmp_path, table(path=["a", "b"], doubtful=[True, False]))
    assert counts == Manifests(2, 0)
    assert [(row[0], row[3]) for row in kept[1:]] == [("a", "1"), ("b", "0")]


def test_labels_are_written_by_name(tmp_path):
    _, kept, quarantine = written(
        tmp_path, table(path=["a", "b", "c"], label=[1, None, 0], flag=[False, False, True]), classes=("cat", "dog")
    )
    assert [row[1] for row in kept[1:]] == ["dog", ""]
    assert quarantine[1][1] == "cat"


def test_parts_follow_each_other_and_none_is_fine(tmp_path):
    counts, kept, _ = written(tmp_path, table(path=["a"]), table(path=["b", "c"]), table(path=["d"]))
    assert [row[0] for row in kept[1:]] == ["a", "b", "c", "d"]
    assert counts == Manifests(4, 0)
    counts, kept, quarantine = written(tmp_path)
    assert counts == Manifests(0, 0)
    assert len(kept) == len(quarantine) == 1


def test_names_of_any_kind_survive(tmp_path):
    names = [
        "a,b.png",
        'a"b".png',
        "line\nbreak.png",
        "carriage\rreturn.png",
        "ünï/çøde 猫.png",
        " lead.png",
        "'=1+1.png",
    ]
    _, kept, quarantine = written(tmp_path, table(path=names), table(path=names, flag=[True] * len(names)))
    assert [row[0] for row in kept[1:]] == names
    assert [row[0] for row in quarantine[1:]] == names
    assert [row[2].partition(":")[2] for row in kept[1:]] == names


def test_the_kept_manifest_is_a_data_set(tmp_path):
    names = ["cat/a,1.png", "dog/ü 2.png", "cat/3.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    written(tmp_path, table(path=names, label=[0, 1, 0]), classes=("cat", "dog"))
    source = open_source(tmp_path / "kept.csv")
    assert [r.path for r in source.records()] == names
    assert [r.label for r in source.records()] == [0, 1, 0]
    assert source.classes == ("cat", "dog")
    assert survey(source).read == 3


def test_a_failure_leaves_the_old_manifests(tmp_path):
    written(tmp_path, table(path=["old"]))
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def tables():
        yield table(path=["new"])
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        write_manifests(tables(), None, tmp_path / "kept.csv", tmp_path / "quarantine.csv")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
