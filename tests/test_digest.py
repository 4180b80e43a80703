"""Digests, and files that are never half written."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdaudit.digest import DIGEST_BYTES, content_digest, file_digest, replacing, write_bytes


@given(st.binary(max_size=200))
def test_a_content_digest_is_the_head_of_sha256(data):
    assert content_digest(data) == hashlib.sha256(data).digest()[:DIGEST_BYTES]
    assert len(content_digest(data)) == 16


def test_a_file_digest_is_sha256_in_hexadecimal(tmp_path):
    data = bytes(range(256)) * 9000
    (tmp_path / "file").write_bytes(data)
    assert file_digest(tmp_path / "file") == hashlib.sha256(data).hexdigest()


def test_a_file_that_is_not_there_raises(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        file_digest(tmp_path / "file")


def test_a_reader_sees_the_old_content_until_the_block_ends(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with replacing(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_block_that_raises_leaves_the_old_content_and_nothing_else(tmp_path, error):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail() -> None:
        with replacing(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_new_file_can_be_read_by_others(tmp_path):
    write_bytes(tmp_path / "file", b"x")
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


def test_a_link_is_replaced_and_its_target_left_alone(tmp_path):
    (tmp_path / "target").write_bytes(b"target")
    (tmp_path / "link").symlink_to("target")
    write_bytes(tmp_path / "link", b"new")
    assert (tmp_path / "target").read_bytes() == b"target"
    assert (tmp_path / "link").read_bytes() == b"new"
