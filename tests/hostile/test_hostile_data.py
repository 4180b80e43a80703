"""Data sets that were built to hurt: every member is counted, none leads anywhere, none hangs the audit."""

import io
import os
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from kdaudit.decoder import open_decoder
from kdaudit.errors import DataError
from kdaudit.sample import Geometry, Record, Status
from kdaudit.source import files as source_files
from kdaudit.source import open_source, survey


def picture(seed: int = 0, form: str = "PNG") -> bytes:
    """A small image."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG of 100 kB that claims, and holds, 10 gigapixels of one colour."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1 << 24)) * 4) + chunk(
        b"IEND", b"")  # fmt: skip


def tar_of(path: Path, *members: tuple[tarfile.TarInfo | str, bytes]) -> Path:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for info, data in members:
            head = tarfile.TarInfo(info) if isinstance(info, str) else info
            head.size = len(data) if head.type in tarfile.REGULAR_TYPES else 0
            archive.addfile(head, io.BytesIO(data))
    return path


def special(name: str, kind: bytes, link: str = "") -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info, b""


ODD_NAMES = [
    "new\nline.png",
    "bell\a.png",
    "\x1b[31mred\x1b[0m.png",
    "\x1b]0;title\a.png",
    "<img src=x onerror=alert(1)>.png",
    "=cmd|'calc'!A0.png",
    "@SUM(1+1).png",
    "right\u202egnp.png",
    "space .png",
    "-o.png",
    "%s%n.png",
    "a" * 240 + ".png",
]
"""Names that try a terminal, a page, a spreadsheet, a shell, a format string; all are legal names of files."""


def folder_of_tricks(root: Path) -> None:
    """Links out, links in circles, FIFOs, empty and unreadable files, an archive in the midst."""
    (root / "outside.png").write_bytes(picture(1))
    inside = root / "set"
    inside.mkdir()
    (inside / "good.png").write_bytes(picture(2))
    (inside / "out.png").symlink_to(root / "outside.png")
    (inside / "absolute.png").symlink_to("/etc/passwd")
    (inside / "self.png").symlink_to("self.png")
    (inside / "loop").symlink_to(inside, target_is_directory=True)
    (inside / "dangling.png").symlink_to("nowhere.png")
    os.mkfifo(inside / "pipe.png")
    (inside / "empty.png").touch()
    (inside / "text.png").write_text("hello")
    (inside / "deep").mkdir()
    (inside / "deep" / "nested.tar").write_bytes(b"\0" * 10240)
    (inside / "page.html").write_text("<b>")


def statuses(records: Iterator[Record]) -> dict[str, tuple[str, str]]:
    return {record.path: (str(record.status), record.reason) for record in records}


def test_a_folder_of_tricks_is_counted_to_the_last_file(tmp_path):
    folder_of_tricks(tmp_path)
    source = open_source(tmp_path / "set")
    found = statuses(source.records())
    assert found == {
        "absolute.png": ("skipped", "link out of the data set"),
        "dangling.png": ("unreadable", "no such file or directory"),
        "empty.png": ("unreadable", "empty file"),
        "good.png": ("read", ""),
        "loop": ("skipped", "link to a folder, not followed"),
        "deep/nested.tar": ("skipped", "an archive, not opened"),
        "out.png": ("skipped", "link out of the data set"),
        "page.html": ("skipped", "no image, by name and by content"),
        "pipe.png": ("skipped", "not a regular file but a FIFO"),
        "self.png": ("unreadable", "link that leads back to itself"),
        "text.png": ("read", ""),  # its bytes are; the decoder will say what they are not
    }
    counted = survey(source)
    assert (counted.count, counted.read, counted.unreadable, counted.skipped) == (11, 2, 3, 6)


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_are_names(name, tmp_path):
    (tmp_path / name).write_bytes(picture())
    (record,) = open_source(tmp_path).records()
    assert (record.path, record.status) == (name, Status.READ)
    (record,) = open_source(tar_of(tmp_path / "x.tar", (name, picture()))).records()
    assert (record.path, record.status) == (name, Status.READ)


def test_a_name_without_end_is_cut_and_stays_itself(tmp_path):
    names = ["n" * 100_000 + ending for ending in ("a.png", "b.png")]
    source = open_source(tar_of(tmp_path / "x.tar", *((name, picture(i)) for i, name in enumerate(names))))
    paths = [record.path for record in source.records()]
    assert len(set(paths)) == 2
    assert all(len(path) < 400 and "100,005 characters" in path for path in paths)


def test_a_tar_of_tricks(tmp_path):
    path = tar_of(
        tmp_path / "x.tar",
        ("good.png", picture(1)),
        ("../up.png", picture(2)),
        ("/abs.png", picture(3)),
        special("link.png", tarfile.SYMTYPE, "/etc/passwd"),
        special("hard.png", tarfile.LNKTYPE, "good.png"),
        special("dev.png", tarfile.CHRTYPE),
        special("pipe.png", tarfile.FIFOTYPE),
        ("good.png", picture(4)),
        ("inner.tar", b"\0" * 10240),
        ("empty.png", b""),
    )
    found = statuses(open_source(path).records())
    # A name inside an archive is only a name: nothing is ever extracted to it.
    assert found["../up.png"] == ("skipped", "hidden file or folder")
    assert found["/abs.png"] == ("read", "")
    for name, what in (("link.png", "link"), ("hard.png", "link"), ("dev.png", "device"), ("pipe.png", "FIFO")):
        assert found[name] == ("skipped", f"a {what}, not a file")
    assert found["inner.tar"] == ("skipped", "an archive, not opened")
    assert found["empty.png"] == ("unreadable", "empty file")
    assert sum("second member of this name" in reason for _, reason in found.values()) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.tar"]


def test_a_parquet_of_tricks(tmp_path):
    rows = [
        {"bytes": picture(1), "path": "a.png"},
        {"bytes": None, "path": "/etc/passwd"},
        {"bytes": None, "path": None},
        {"bytes": b"", "path": "empty.png"},
        {"bytes": bomb(), "path": "../../bomb.png"},
    ]
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": rows}), path)
    records = list(open_source(path).records())
    assert [str(record.status) for record in records] == ["read", "unreadable", "unreadable", "unreadable", "read"]
    assert records[1].reason == "names a file instead of holding its bytes"
    assert all(not record.data for record in records[1:4])


def test_a_bomb_is_not_decoded():
    data = bomb()
    assert len(data) < 100_000
    for name in ("pillow", "simplejpeg"):
        found = open_decoder(name).decode([picture(1), data, picture(2)], Geometry(8, 8))
        assert found.reasons == ("", "more than 100 megapixels", "")


@pytest.mark.parametrize("change", ["grows", "shrinks", "is written again"])
def test_a_file_that_changes_while_it_is_read_is_unreadable(change, tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(picture() * 50)
    (tmp_path / "b.png").write_bytes(picture())
    changes: dict[str, Callable[[], object]] = {
        "grows": lambda: path.write_bytes(picture() * 60),
        "shrinks": lambda: os.truncate(path, 10),
        "is written again": lambda: os.utime(path, ns=(1, 1)),
    }
    plain, calls = os.fstat, []

    def fstat(descriptor: int) -> os.stat_result:
        calls.append(descriptor)
        if len(calls) == 2:
            changes[change]()
        return plain(descriptor)

    source = open_source(tmp_path)
    monkeypatch.setattr(source_files.os, "fstat", fstat)
    first, second = source.records()
    assert (first.status, first.reason) == (Status.UNREADABLE, "changed while it was read")
    assert second.status is Status.READ


def test_a_file_that_becomes_a_pipe_hangs_nothing(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(picture())
    source = open_source(tmp_path)
    plain = os.open

    def swapped(name, flags, *rest, **more):
        if str(name).endswith("a.png"):
            path.unlink()
            os.mkfifo(path)
        return plain(name, flags, *rest, **more)

    monkeypatch.setattr(source_files.os, "open", swapped)
    (record,) = source.records()
    assert (record.status, record.reason) == (Status.UNREADABLE, "changed while it was read")


def test_a_folder_of_nothing_but_tricks_is_no_data_set(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(DataError, match="holds no images"):
        open_source(tmp_path)
