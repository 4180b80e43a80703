"""Manifests: spellings people use, and paths that attackers use."""

import json
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from source_builders import by_path, outcomes, rows, write, write_csv, write_jsonl

from kdaudit.errors import DataError
from kdaudit.sample import Status
from kdaudit.source import manifest, open_source
from kdaudit.source.manifest import escape

READ = (Status.READ, "")
LEAVES = (Status.SKIPPED, "path that leaves the manifest's folder")
ABSOLUTE = (Status.SKIPPED, "absolute path")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "set"
    for name in ("a.jpg", "b.jpg", "sub/c.jpg"):
        write(folder / name, name.encode())
    write(tmp_path / "secret.jpg", b"secret")
    return folder


def labels(location: Path) -> list[int | None]:
    return [record.label for record in open_source(location).records()]


def test_escapes(root: Path) -> None:
    (root / "link.jpg").symlink_to("../secret.jpg")
    (root / "up").symlink_to("..")
    (root / "in.jpg").symlink_to("sub/c.jpg")
    os.mkfifo(root / "fifo.jpg")
    out = (Status.SKIPPED, "link out of the data set")
    expected = {
        "a.jpg": READ,
        "sub/../b.jpg": READ,
        "in.jpg": READ,
        "../secret.jpg": LEAVES,
        "sub/../../secret.jpg": LEAVES,
        "/etc/passwd": ABSOLUTE,
        "//etc/passwd": ABSOLUTE,
        "C:/windows/x.jpg": ABSOLUTE,
        "http://example.org/a.jpg": (Status.SKIPPED, "a URL, not a file below the manifest"),
        "file:///etc/passwd": (Status.SKIPPED, "a URL, not a file below the manifest"),
        "link.jpg": out,
        "up/secret.jpg": out,
        "fifo.jpg": (Status.SKIPPED, "not a regular file but a FIFO"),
        "sub": (Status.UNREADABLE, "a folder, not a file"),
        ".": (Status.UNREADABLE, "a folder, not a file"),
        "gone.jpg": (Status.UNREADABLE, "no such file or directory"),
        "a.jpg/x.jpg": (Status.UNREADABLE, "not a directory"),
        "x" * 5000: (Status.UNREADABLE, "file name too long"),
        "nul\0.jpg": (Status.SKIPPED, "not a possible file name"),
    }
    source = open_source(write_jsonl(root / "m.jsonl", [{"path": path} for path in expected]))
    assert outcomes(source) == expected
    assert b"secret" not in [record.data for record in source.records()]
    in_csv = write_csv(root / "m.csv", [(path, "") for path in expected if "\0" not in path])
    assert rows(open_source(in_csv)) == rows(source)[:-1]


def test_second_row_with_a_path_is_skipped(root: Path) -> None:
    source = open_source(
        write_csv(root / "m.csv", [("a.jpg", 0), ("b.jpg", 1), ("./a.jpg", 1), ("../x", 0), ("../x", 0)])
    )
    records = list(source.records())
    second = "second row with this path"
    assert [record.reason for record in records] == ["", "", second, LEAVES[1], second]
    assert rows(source, 2) == rows(source)[2:]


def test_spellings_of_a_path(root: Path) -> None:
    source = open_source(write_csv(root / "m.csv", [("././a.jpg",), ("sub\\c.jpg",)], header=("path",)))
    assert outcomes(source) == {"a.jpg": READ, "sub/c.jpg": READ}


@pytest.mark.parametrize(
    "text",
    [
        b"\xef\xbb\xbfpath,label\r\na.jpg,1\r\nb.jpg,0\r\n",
        b"label;path\n1;a.jpg\n0;b.jpg",
        b"id\tPath \tLabel\n7\ta.jpg\t1\n8\tb.jpg\t0\n",
        b'path,label\n\n"a.jpg",1.0\n\nb.jpg,0.0\n',
        b"path,label\n./a.jpg, 1\nb.jpg,0,more,cells\n",
    ],
)
def test_csv_dialects(text: bytes, root: Path) -> None:
    source = open_source(write(root / "m.csv", text))
    assert source.classes == ("0", "1")
    assert [(r.path, r.label, r.status) for r in source.records()] == [
        ("a.jpg", 1, Status.READ),
        ("b.jpg", 0, Status.READ),
    ]


def test_labels(root: Path) -> None:
    def made(*values: object) -> Path:
        return write_csv(root / "m.csv", zip(["a.jpg", "b.jpg", "sub/c.jpg"], values, strict=True))

    assert open_source(made(2, 0, "")).classes == ("0", "1", "2")
    assert labels(made(2, 0, "")) == [2, 0, None]
    assert labels(made(-1, "", 4.0)) == [None, None, 4]
    assert open_source(made("", "", "")).classes is None
    assert open_source(made(-1, -1, -1)).classes is None
    assert open_source(made("dog", "cat", "")).classes == ("cat", "dog")
    assert labels(made("dog", "cat", "")) == [1, 0, None]
    assert open_source(made("2", "cat", "10")).classes == ("10", "2", "cat")
    assert labels(made(10**9, 1, 0)) == [None, 1, 0]


def test_labels_in_jsonl(root: Path) -> None:
    values = [3, "4", None, True, [1], {}, 5.0, -1]
    objects = [{"path": f"{number}.jpg", "label": value} for number, value in enumerate(values)]
    assert labels(write_jsonl(root / "m.jsonl", objects)) == [3, 4, None, None, None, None, 5, None]


def test_too_many_labels(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "MAX_CLASSES", 2)
    location = write_csv(root / "m.csv", [("a.jpg", "x"), ("b.jpg", "y"), ("c.jpg", "z")])
    with pytest.raises(DataError, match="over 2 different labels"):
        open_source(location)


def test_faulty_rows_of_jsonl_lose_only_themselves(root: Path) -> None:
    lines = [
        b'{"path": "a.jpg"}',
        b"{",
        b"",
        b"[]",
        b'{"path": 3}',
        b'{"path": " "}',
        b"[" * 100_000,
        b"\xff",
    ]
    lines += [
        b'{"path": "\\ud800.jpg"}',
        b'{"path": "b.jpg", "label": ' + b"9" * 5000 + b"}",
        b'{"path": "b.jpg"}',
    ]
    source = open_source(write(root / "m.jsonl", b"\n".join(lines)))
    found = outcomes(source)
    assert found["a.jpg"] == found["b.jpg"] == READ
    assert found["m.jsonl#1"] == (Status.UNREADABLE, "line 2 is not JSON")
    assert found["m.jsonl#2"] == (Status.UNREADABLE, "line 4 has no path")
    assert len(found) == 10
    assert found[r"\ud800.jpg"][0] is Status.SKIPPED
    for record in source.records():
        record.id.encode()


def test_faulty_rows_of_csv_lose_only_themselves(root: Path) -> None:
    text = b"label,path\n0,a.jpg\n1\n0," + b"x" * 200_000 + b'\n0,b.jpg\n0,"unclosed\n1,c'
    source = open_source(write(root / "m.csv", text))
    found = outcomes(source)
    assert found["a.jpg"] == found["b.jpg"] == READ
    assert found["m.csv#1"] == (Status.UNREADABLE, "line 3 has no path")
    assert found["m.csv#2"] == (Status.UNREADABLE, "line 4: field larger than field limit (131072)")
    assert len(found) == 5
    everything = rows(source)
    for start in range(6):
        assert rows(source, start) == everything[start:]


def test_endless_line_is_cut(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "MAX_LINE", 32)
    text = b'{"path": "a.jpg"}\n{"path": "' + b"y" * 200 + b'"}\n{"path": "b.jpg"}\n'
    found = outcomes(open_source(write(root / "m.jsonl", text)))
    assert found == {"a.jpg": READ, "m.jsonl#1": (Status.UNREADABLE, "line 2 is not JSON"), "b.jpg": READ}


def test_file_names_that_are_not_utf8(root: Path) -> None:
    write(root / "caf\udce9.jpg", b"x")
    source = open_source(write(root / "m.csv", b"path,label\ncaf\xe9.jpg,\xe9\n"))
    assert outcomes(source) == {r"caf\xe9.jpg": READ}
    assert source.classes == (r"\xe9",)


def test_empty_and_large_files(root: Path) -> None:
    write(root / "empty.jpg")
    source = open_source(write_csv(root / "m.csv", [("empty.jpg", 0)]))
    assert by_path(source)["empty.jpg"].reason == "empty file"


@given(st.lists(st.sampled_from(["..", ".", "", "a", "b c", "C:"]), max_size=8).map("/".join))
def test_what_is_not_called_an_escape_stays_inside(path: str) -> None:
    if not escape(path):
        resolved = os.path.normpath(f"/data/set/{path}")
        assert f"{resolved}/".startswith("/data/set/")


@given(st.binary(max_size=300), st.sampled_from(["m.csv", "m.jsonl"]))
def test_noise_never_raises_anything_else(noise: bytes, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        text = b"path,label\n" + noise if name.endswith("csv") else noise
        location = write(Path(folder) / name, text)
        try:
            source = open_source(location)
        except DataError:
            return
        for record in source.records():
            assert record.status is not Status.READ or record.path == name
            json.dumps(record.path).encode()
