"""Folders: classes, order, and everything that is not a plain file."""

import os
import socket
from pathlib import Path

import pytest
from source_builders import by_path, outcomes, pictures, png, write, write_folder

from kdaudit.sample import Status
from kdaudit.source import open_source, survey
from kdaudit.source import parts as parts_module
from kdaudit.source.folder import sort_classes

READ = (Status.READ, "")


def test_classes_of_integers_sort_by_number(tmp_path: Path) -> None:
    write_folder(tmp_path, pictures(11, classes=[str(n) for n in range(11)]))
    source = open_source(tmp_path)
    assert source.classes == tuple(str(n) for n in range(11))
    assert by_path(source)["10/0010.png"].label == 10


def test_sort_classes() -> None:
    assert sort_classes(["10", "9", "x"]) == ["10", "9", "x"]
    assert sort_classes(["10", "9", "009"]) == ["009", "9", "10"]
    assert sort_classes(["²", "1"]) == ["1", "²"]  # a digit to Unicode, not to int()


def test_order_is_by_path_components(tmp_path: Path) -> None:
    paths = ["a/b/1.png", "a/b.png", "a/b-c/1.png", "a b/1.png", "a.b/1.png", "z.png", "b/1.PNG"]
    for number, path in enumerate(paths):
        write(tmp_path / path, png(number))
    found = [record.path for record in open_source(tmp_path).records()]
    assert found == sorted(paths, key=lambda path: path.split("/"))


def test_nested_files_belong_to_the_top_folder_and_loose_ones_to_none(tmp_path: Path) -> None:
    write(tmp_path / "cat/deep/er/1.jpg", b"x")
    write(tmp_path / "dog/1.jpg", b"x")
    write(tmp_path / "loose.jpg", b"x")
    source = open_source(tmp_path)
    assert (source.kind, source.classes) == ("folder", ("cat", "dog"))
    labels = {record.path: record.label for record in source.records()}
    assert labels == {"cat/deep/er/1.jpg": 0, "dog/1.jpg": 1, "loose.jpg": None}


def test_flat(tmp_path: Path) -> None:
    for name in ("b.jpg", "a.PGM"):
        write(tmp_path / name, b"x")
    source = open_source(tmp_path)
    assert (source.kind, source.classes) == ("flat", None)
    assert [(r.path, r.label) for r in source.records()] == [("a.PGM", None), ("b.jpg", None)]


def test_empty_folder_keeps_its_class_and_a_folder_of_text_is_none(tmp_path: Path) -> None:
    write(tmp_path / "c/1.jpg", b"x")
    (tmp_path / "b").mkdir()
    (tmp_path / ".git").mkdir()
    write(tmp_path / "a/notes.txt", b"x")
    source = open_source(tmp_path)
    assert source.classes == ("b", "c")
    assert by_path(source)["c/1.jpg"].label == 1
    assert by_path(source)["a/notes.txt"].label is None


def test_other_files_are_counted_and_dotfiles_are_not(tmp_path: Path) -> None:
    write(tmp_path / "cat/1.jpg", b"x")
    write(tmp_path / "README.md", b"x")
    write(tmp_path / ".DS_Store", b"x")
    write(tmp_path / ".git/config", b"x")
    assert outcomes(open_source(tmp_path)) == {
        "README.md": (Status.SKIPPED, "no image, by name and by content"),
        "cat/1.jpg": READ,
    }


def test_hidden_images_are_counted(tmp_path: Path) -> None:
    write(tmp_path / "cat/1.jpg", b"x")
    write(tmp_path / "cat/._1.jpg", b"x")
    write(tmp_path / ".cache/2.jpg", b"x")
    source = open_source(tmp_path)
    hidden = (Status.SKIPPED, "hidden file or folder")
    assert outcomes(source) == {"cat/1.jpg": READ, "cat/._1.jpg": hidden, ".cache/2.jpg": hidden}
    assert source.classes == ("cat",)


def test_links(tmp_path: Path) -> None:
    outside = write(tmp_path / "outside/secret.jpg", b"secret")
    root = tmp_path / "set"
    write(root / "cat/1.jpg", b"x")
    cat = root / "cat"
    (cat / "in.jpg").symlink_to("1.jpg")
    (cat / "out.jpg").symlink_to(outside)
    (cat / "relative.jpg").symlink_to("../../outside/secret.jpg")
    (cat / "gone.jpg").symlink_to("nowhere.jpg")
    (cat / "loop.jpg").symlink_to("loop.jpg")
    (cat / "up").symlink_to("..")
    (cat / "folder.jpg").symlink_to(cat)
    (root / "twin").symlink_to("cat")
    (root / "etc").symlink_to("/etc")
    source = open_source(root)
    out = (Status.SKIPPED, "link out of the data set")
    to_folder = (Status.SKIPPED, "link to a folder, not followed")
    assert outcomes(source) == {
        "cat/1.jpg": READ,
        "cat/in.jpg": READ,
        "cat/out.jpg": out,
        "cat/relative.jpg": out,
        "cat/gone.jpg": (Status.UNREADABLE, "no such file or directory"),
        "cat/loop.jpg": (Status.UNREADABLE, "link that leads back to itself"),
        "cat/up": to_folder,
        "cat/folder.jpg": to_folder,
        "twin": to_folder,
        "etc": (Status.SKIPPED, "link to a folder out of the data set, not followed"),
    }
    assert [record.path for record in source.records() if record.many] == ["etc"]  # the others are walked or one image
    assert survey(source).unopened == 1
    assert source.classes == ("cat",)
    assert b"secret" not in [record.data for record in source.records()]


def test_a_sibling_with_the_same_beginning_is_outside(tmp_path: Path) -> None:
    secret = write(tmp_path / "set-private/1.jpg", b"secret")
    write(tmp_path / "set/1.jpg", b"x")
    (tmp_path / "set/2.jpg").symlink_to(secret)
    assert survey(open_source(tmp_path / "set")).skipped == 1


def test_root_may_be_a_link(tmp_path: Path) -> None:
    write(tmp_path / "real/1.jpg", b"x")
    (tmp_path / "real/2.jpg").symlink_to("1.jpg")
    (tmp_path / "link").symlink_to("real")
    assert survey(open_source(tmp_path / "link")).read == 2


def test_special_files_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "1.jpg", b"x")
    os.mkfifo(tmp_path / "fifo.jpg")
    (tmp_path / "null.jpg").symlink_to("/dev/null")
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s.jpg")
        found = outcomes(open_source(tmp_path))
    assert found["fifo.jpg"] == (Status.SKIPPED, "not a regular file but a FIFO")
    assert found["s.jpg"] == (Status.SKIPPED, "not a regular file but a socket")
    assert found["null.jpg"][0] is Status.SKIPPED


def test_empty_too_large_and_vanished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "1.jpg", b"x")
    write(tmp_path / "2.jpg", b"")
    gone = write(tmp_path / "3.jpg", b"x")
    with write(tmp_path / "4.jpg").open("wb") as file:
        file.truncate(parts_module.MAX_IMAGE_BYTES + 1)  # sparse: takes no disk
    source = open_source(tmp_path)
    gone.unlink()
    assert outcomes(source) == {
        "1.jpg": READ,
        "2.jpg": (Status.UNREADABLE, "empty file"),
        "3.jpg": (Status.UNREADABLE, "no such file or directory"),
        "4.jpg": (Status.SKIPPED, "larger than 256 MiB"),
    }


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_permissions(tmp_path: Path) -> None:
    write(tmp_path / "cat/1.jpg", b"x")
    write(tmp_path / "cat/2.jpg", b"x").chmod(0)
    closed = write(tmp_path / "dog/1.jpg", b"x").parent
    closed.chmod(0)
    try:
        found = outcomes(open_source(tmp_path))
    finally:
        closed.chmod(0o755)
    assert found["cat/2.jpg"] == (Status.UNREADABLE, "permission denied")
    assert found["dog"][0] is Status.UNREADABLE


def test_unlistable_folder_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "cat/1.jpg", b"x")
    write(tmp_path / "dog/1.jpg", b"x")
    scandir = os.scandir

    def refusing(path: str) -> object:
        if str(path).endswith("/dog"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert outcomes(open_source(tmp_path)) == {
        "cat/1.jpg": READ,
        "dog": (Status.UNREADABLE, "a folder, not a file"),
    }


def test_denied_file_is_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "1.jpg", b"x")
    source = open_source(tmp_path)

    def refusing(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refusing)
    assert outcomes(source) == {"1.jpg": (Status.UNREADABLE, "permission denied")}


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    write(tmp_path / "caf\udce9/\udcff.jpg", b"x")
    source = open_source(tmp_path)
    assert source.classes == (r"caf\xe9",)
    assert outcomes(source) == {r"caf\xe9/\xff.jpg": READ}
    next(iter(source.records())).id.encode()


def test_deep_nesting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "cat/1.jpg", b"x")
    monkeypatch.chdir(tmp_path)
    depth = 1200  # deeper than the interpreter's recursion limit, and than a path may be long
    for _ in range(depth):
        Path("deep").mkdir()
        os.chdir("deep")
    assert survey(open_source(tmp_path)).read == 1
    for _ in range(depth):  # pytest could not remove it
        os.chdir("..")
        Path("deep").rmdir()


@pytest.mark.parametrize(
    ("name", "aside"),
    [
        ("1.xml", True),
        ("1.TXT", True),
        ("Thumbs.db", True),
        ("LICENSE", True),
        ("1.npy", False),
        ("1", False),
        (".txt", False),
    ],
)
def test_a_label_beside_each_image_counts_in_no_share(tmp_path: Path, name: str, aside: bool) -> None:
    for number in range(3):
        write(tmp_path / f"cat/{number}.jpg", b"x")
    write(tmp_path / "cat" / name, b"<annotation/>")
    found = survey(open_source(tmp_path))
    assert (found.read, found.aside) == (3, aside)
    assert found.images == found.count - aside


@pytest.mark.parametrize("head", [b"\xff\xd8\xff\xe0", b"\x89PNG\r\n", b"P6 1 1", b"II*\0", b"\0\0\0\x1cftypavif"])
def test_an_image_under_the_name_of_a_text_is_one(tmp_path: Path, head: bytes) -> None:
    write(tmp_path / "cat/1.jpg", b"x")
    write(tmp_path / "cat/2.txt", head)
    found = survey(open_source(tmp_path))
    assert (found.skipped, found.aside, found.images) == (1, 0, 2)
