"""Tar shards: samples, labels, names, damage."""

import io
import json
import os
import tarfile
from pathlib import Path

import pytest
from source_builders import by_path, outcomes, pictures, rows, samples, tar_bytes, write, write_tar

from kdaudit.errors import DataError
from kdaudit.sample import Status
from kdaudit.source import open_source, survey, webdataset

READ = (Status.READ, "")


def labels(location: Path) -> dict[str, int | None]:
    return {record.path: record.label for record in open_source(location).records()}


def test_labels_from_every_kind_of_member(tmp_path: Path) -> None:
    tar = write(
        tmp_path / "a.tar",
        tar_bytes(
            [
                ("0.jpg", b"x"), ("0.cls", b"3\n"),
                ("1.json", b'{"label": 4, "more": []}'), ("1.jpg", b"x"),
                ("2.txt", b"5"), ("2.jpg", b"x"),
                ("3.txt", b"a photo of 5"), ("3.jpg", b"x"),
                ("4.json", b'{"label": true}'), ("4.jpg", b"x"),
                ("5.json", b"[" * 100_000), ("5.jpg", b"x"),
                ("6.cls", b"-1"), ("6.jpg", b"x"),
                ("7.cls", b"9" * 5000), ("7.jpg", b"x"),
                ("8.cls", "\uff15".encode()), ("8.jpg", b"x"),
                ("9.cls", b"1000000"), ("9.jpg", b"x"),
                ("10.cls", b"1"), ("10.json", b'{"label": 2}'), ("10.jpg", b"x"),
                ("11.json", b'{"label": "2"}'), ("11.jpg", b"x"),
                ("d/12.in.JPG", b"x"), ("d/12.mask.png", b"y"), ("d/12.cls", b"0"),
            ]
        ),
    )  # fmt: skip
    nothing = {f"{number}.jpg": None for number in range(3, 10)}
    assert labels(tar) == {
        "0.jpg": 3,
        "1.jpg": 4,
        "2.jpg": 5,
        **nothing,
        "10.jpg": 1,
        "11.jpg": 2,
        "d/12.in.JPG": 0,
        "d/12.mask.png": 0,
    }
    assert open_source(tar).classes == tuple("012345")


def test_no_labels_no_classes(tmp_path: Path) -> None:
    tar = write(tmp_path / "a.tar", tar_bytes([("0.jpg", b"x")]))
    write(tmp_path / "classes.json", b'["a"]')
    assert open_source(tar).classes is None


def test_what_is_neither_image_nor_label_is_skipped(tmp_path: Path) -> None:
    tar = write(
        tmp_path / "a.tar",
        tar_bytes(
            [
                ("README.txt", b"words"), ("0.jpg", b"x"), ("0.npy", b"x"), ("0.cls", b"0"),
                ("orphan.cls", b"1"), ("._0.jpg", b"x"), ("1.jpg", b""), ("../up.jpg", b"x"),
            ]
        ),
    )  # fmt: skip
    other, companion = (Status.SKIPPED, "not an image extension"), (Status.SKIPPED, "no image, by name and by content")
    hidden = (Status.SKIPPED, "hidden file or folder")
    assert outcomes(open_source(tar)) == {
        "README.txt": companion,
        "0.jpg": READ,
        "0.npy": other,
        "orphan.cls": companion,
        "._0.jpg": hidden,
        "1.jpg": (Status.UNREADABLE, "empty file"),
        "../up.jpg": hidden,
    }


def test_links_and_devices_are_skipped(tmp_path: Path) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, kind in [
            ("0.jpg", tarfile.SYMTYPE),
            ("1.jpg", tarfile.LNKTYPE),
            ("2.jpg", tarfile.CHRTYPE),
        ]:
            information = tarfile.TarInfo(name)
            information.type = kind
            information.linkname = "/etc/passwd"
            archive.addfile(information)
        information = tarfile.TarInfo("3.jpg")
        information.size = 1
        archive.addfile(information, io.BytesIO(b"x"))
    found = outcomes(open_source(write(tmp_path / "a.tar", file.getvalue())))
    assert [status for status, _ in found.values()] == [Status.SKIPPED] * 3 + [Status.READ]


def test_second_of_a_name_in_one_shard_is_skipped(tmp_path: Path) -> None:
    content = [("0.jpg", b"x"), ("0.cls", b"0"), ("1.jpg", b"y"), ("0.jpg", b"poison"), ("0.cls", b"1")]
    source = open_source(write(tmp_path / "a.tar", tar_bytes(content)))
    records = list(source.records())
    assert [record.status for record in records] == [Status.READ, Status.READ, Status.SKIPPED]
    assert records[2].reason == "second member of this name"
    assert rows(source, 2) == rows(source)[2:], "resuming behind the first still skips the second"


def test_ambiguous_names_carry_their_shard(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", tar_bytes([("0.jpg", b"x"), ("1.jpg", b"x")]))
    write(tmp_path / "sub/b.tar", tar_bytes([("0.jpg", b"y"), ("2.jpg", b"x")]))
    found = outcomes(open_source(tmp_path))
    assert found == {"a.tar/0.jpg": READ, "1.jpg": READ, "sub/b.tar/0.jpg": READ, "2.jpg": READ}


def test_class_names(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", pictures(6))
    write(tmp_path / "classes.json", json.dumps(["cat", "dog"]).encode())
    source = open_source(tmp_path)
    assert source.classes == ("cat", "dog")
    assert {record.label for record in source.records()} == {0, 1, None}, "no label past the last name"
    assert "classes.json" not in outcomes(source)
    assert open_source(tar).classes == ("cat", "dog"), "names count for a single tar too"


@pytest.mark.parametrize("content", [b"{}", b"[]", b"[1]", b"not json", b"\xff", b"", b"[" * 10_000])
def test_class_names_that_are_none(content: bytes, tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", pictures(3))
    write(tmp_path / "classes.json", content)
    with pytest.raises(DataError, match=r"classes\.json is not a JSON list of class names"):
        open_source(tmp_path)


def test_cut_shard_gives_its_readable_part(tmp_path: Path) -> None:
    images = pictures(8)
    whole = tar_bytes(samples(images[:4]), tarfile.GNU_FORMAT)
    write(tmp_path / "a.tar", whole[: 7 * 1024 + 512])  # before the last label's body
    write_tar(tmp_path / "b.tar", images[4:])
    write(tmp_path / "c.tar", b"noise" * 300)
    write(tmp_path / "d.tar")
    os.mkfifo(tmp_path / "e.tar")
    (tmp_path / "f.tar").symlink_to("/etc/passwd")
    source = open_source(tmp_path)
    found = outcomes(source)
    bad = {path: outcome for path, outcome in found.items() if outcome != READ}
    assert bad == {
        "a.tar": (Status.UNREADABLE, "archive cut short in member '1/0001.cls' at byte 7168"),
        "c.tar": (Status.UNREADABLE, "header with a field that is no number at byte 0"),
        "d.tar": (Status.UNREADABLE, "empty file"),
        "e.tar": (Status.SKIPPED, "not a regular file but a FIFO"),
        "f.tar": (Status.SKIPPED, "link out of the data set"),
    }
    counted = survey(source)
    assert (counted.unreadable, counted.skipped) == (3, 2)
    assert counted.read + 5 == counted.count
    assert by_path(source)[images[0].path].data == images[0].data
    everything = rows(source)
    for start in range(len(everything)):
        assert rows(source, start) == everything[start:]


def test_too_large_member_is_not_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webdataset, "MAX_IMAGE_BYTES", 10)
    tar = write(tmp_path / "a.tar", tar_bytes([("0.jpg", b"x" * 11), ("1.jpg", b"x" * 10)]))
    assert [record.status for record in open_source(tar).records()] == [Status.SKIPPED, Status.READ]


def test_shard_that_vanishes_while_reading(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", pictures(3))
    source = open_source(tar)
    tar.unlink()
    with pytest.raises(DataError, match=r"a\.tar changed while it was read"):
        list(source.records())
