"""TensorRT's engines on disk: whose they are, and which are read."""

import json
import os
from pathlib import Path

import pytest

from kdaudit import enginecache
from kdaudit.enginecache import cache_root, key_of, open_folder, seal
from kdaudit.errors import UsageError

KEY = key_of(b"model", ("1.31", "101600"), "sm_90", fp16=False, profile="x:64x3x32x32")


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "cache" / "engines"


def built(root: Path, **files: bytes) -> Path:
    """A folder with engines as a run leaves it."""
    folder = open_folder(root, KEY)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    seal(root, KEY)
    return folder


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@pytest.mark.parametrize(
    "other",
    [
        {"model": b"Model"}, {"versions": ("1.32", "101600")}, {"versions": ("1.31", "101700")},
        {"architecture": "sm_80"}, {"fp16": True}, {"profile": "x:32x3x32x32"}, {"profile": ""},
    ],
)  # fmt: skip
def test_whatever_shapes_an_engine_is_in_its_key(other):
    same = {
        "model": b"model", "versions": ("1.31", "101600"), "architecture": "sm_90", "fp16": False,
        "profile": "x:64x3x32x32",
    }  # fmt: skip
    assert key_of(**same) == KEY
    assert key_of(**same | other) != KEY
    assert len(KEY) == 64


def test_folders_are_for_this_user_alone(root):
    previous = os.umask(0)
    try:
        folder = open_folder(root, KEY)
    finally:
        os.umask(previous)
    assert folder == root / KEY
    assert [path.stat().st_mode & 0o777 for path in (root, folder)] == [0o700, 0o700]


def test_what_was_vouched_for_is_read_again(root):
    folder = built(root, one=b"engine", two=b"timing")
    assert open_folder(root, KEY) == folder
    assert names(folder) == ["one", "two"]
    assert (folder / "one").read_bytes() == b"engine"


def test_what_was_not_vouched_for_is_removed(root):
    folder = built(root, one=b"engine", two=b"timing")
    (folder / "one").write_bytes(b"Engine")
    (folder / "three").write_bytes(b"somebody else's")
    (folder / "more").mkdir()
    (folder / "more" / "four").write_bytes(b"x")
    (folder / "five").symlink_to(folder / "two")
    os.mkfifo(folder / "six")
    os.link(folder / "two", root / "two")  # a second name, under which it could be changed
    open_folder(root, KEY)
    assert names(folder) == []


def test_what_the_folder_holds_before_anything_is_vouched_for_is_removed(root):
    folder = open_folder(root, KEY)
    (folder / "one").write_bytes(b"left by a killed run")
    open_folder(root, KEY)
    assert names(folder) == []


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"one": 3}', b"\xff", b'{"one": "%s"}' % (b"0" * 64)])
def test_a_list_that_is_not_ours_vouches_for_nothing(root, content):
    folder = built(root, one=b"engine")
    (root / f"{KEY}.json").write_bytes(content)
    open_folder(root, KEY)
    assert names(folder) == []


def test_a_link_in_the_lists_place_is_not_followed(root, tmp_path):
    folder = built(root, one=b"engine")
    listing = root / f"{KEY}.json"
    (tmp_path / "list").write_bytes(listing.read_bytes())
    listing.unlink()
    listing.symlink_to(tmp_path / "list")
    open_folder(root, KEY)
    assert names(folder) == []


def test_links_and_folders_are_never_vouched_for(root, tmp_path):
    folder = open_folder(root, KEY)
    (tmp_path / "elsewhere").write_bytes(b"x")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "folder").mkdir()
    (folder / "file").write_bytes(b"y")
    seal(root, KEY)
    assert list(json.loads((root / f"{KEY}.json").read_text())) == ["file"]


@pytest.mark.parametrize("which", ["root", "folder"])
@pytest.mark.parametrize("mode", [0o755, 0o750, 0o701, 0o720])
def test_a_folder_that_others_may_enter_is_refused(root, which, mode):
    folder = built(root, one=b"engine")
    (root if which == "root" else folder).chmod(mode)
    for use in (open_folder, seal):
        with pytest.raises(UsageError, match=f"permissions {mode:o}"):
            use(root, KEY)
    assert names(folder) == ["one"]  # refused, and left as it is


def test_a_link_is_refused(root, tmp_path):
    (tmp_path / "other").mkdir(mode=0o700)
    root.parent.mkdir(parents=True)
    root.symlink_to(tmp_path / "other")
    with pytest.raises(UsageError, match="is a link or no folder"):
        open_folder(root, KEY)
    root.unlink()
    open_folder(root, "another")
    (root / KEY).symlink_to(tmp_path / "other")
    with pytest.raises(UsageError, match="is a link or no folder"):
        open_folder(root, KEY)


def test_somebody_elses_folder_is_refused(root, monkeypatch):
    built(root, one=b"engine")
    mine = os.geteuid()
    monkeypatch.setattr(enginecache.os, "geteuid", lambda: mine + 1)
    with pytest.raises(UsageError, match="belongs to another user"):
        open_folder(root, KEY)


def test_a_file_in_the_folders_place_is_refused(root):
    root.parent.mkdir(parents=True)
    root.write_bytes(b"")
    with pytest.raises(UsageError, match="no folder"):
        open_folder(root, KEY)


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root() == tmp_path / "kdaudit" / "engines"
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    assert cache_root() == Path.home() / ".cache" / "kdaudit" / "engines"
