"""Reading archives in windows, and archives that change under the reader."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from source_builders import pictures, samples, tar_bytes, write, write_tar

from kdaudit.errors import DataError
from kdaudit.sample import Status
from kdaudit.source import open_source
from kdaudit.source.archive import LARGE, SMALL, Archive, Held, Stamp, opened
from kdaudit.source.parts import Unreadable
from kdaudit.source.tar import members

NOISE = bytes(i * i % 251 for i in range(3 * LARGE // 2))

_starts = st.integers(0, len(NOISE) + 10) | st.integers(0, 3 * SMALL)
_sizes = st.integers(0, 600) | st.integers(0, 2 * LARGE)


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("archive") / "noise", NOISE)


@given(pieces=st.lists(st.tuples(_starts, _sizes), max_size=30))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_reads_as_bytes_in_memory_do(pieces: Sequence[tuple[int, int]], noise: Path) -> None:
    held = Held(NOISE)
    with opened(str(noise)) as archive:
        assert archive.size == held.size
        for start, size in pieces:
            assert archive.read(start, size) == held.read(start, size)


@pytest.mark.parametrize("step", [100, SMALL - 1, SMALL, 3 * SMALL, LARGE])
def test_a_file_from_front_to_back(step: int, noise: Path) -> None:
    with opened(str(noise)) as archive:
        assert b"".join(archive.read(start, step) for start in range(0, len(NOISE), step)) == NOISE


def test_small_pieces_take_few_calls(noise: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, sizes = os.pread, []

    def counted(descriptor: int, size: int, start: int) -> bytes:
        sizes.append(size)
        return plain(descriptor, size, start)

    monkeypatch.setattr(os, "pread", counted)
    with opened(str(noise)) as archive:
        for start in range(0, len(NOISE), 512):
            archive.read(start, 512)
        assert len(sizes) < 10
        sizes.clear()
        for start in range(0, len(NOISE) - 40_000, 40_000):  # headers of large members, far from one another
            archive.read(start, 512)
        assert max(sizes) == SMALL


def test_a_read_that_comes_in_pieces(noise: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = os.pread
    monkeypatch.setattr(os, "pread", lambda descriptor, size, start: plain(descriptor, min(size, 1000), start))
    with opened(str(noise)) as archive:
        assert archive.read(7, 100_000) == NOISE[7:100_007]


@given(
    changes=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=6),
    cut=st.none() | st.integers(1, 1 << 16),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_mutated_shard_gives_records_or_a_clear_error(
    changes: Sequence[tuple[int, int]], cut: int | None, tmp_path: Path
) -> None:
    data = bytearray(tar_bytes(samples(pictures(5))))
    for place, value in changes:
        data[place % len(data)] = value
    shard = write(tmp_path / "a.tar", bytes(data[: cut and 1 + cut % len(data)]))
    try:
        source = open_source(shard)
    except DataError:
        return
    everything = [(record.path, record.status, record.data) for record in source.records()]
    again = [(record.path, record.status, record.data) for record in source.records(1)]
    assert everything[1:] == again
    with opened(str(shard)) as archive:
        assert list(members(archive)) == list(members(Held(shard.read_bytes())))


@pytest.mark.parametrize("keep", [0, 100, 512, 1024, 3000, 9 * 1024])
def test_a_shard_cut_short_while_it_is_read_ends_in_a_clear_error(keep: int, tmp_path: Path) -> None:
    shard = write(tmp_path / "a.tar", tar_bytes([(f"{i:03}.png", bytes([i]) * 5000) for i in range(1, 200)]))
    source = open_source(shard)
    records = source.records()
    next(records)
    os.truncate(shard, keep)  # a mapped file would now kill the process
    with pytest.raises(DataError, match=r"a\.tar changed while it was read"):
        list(records)
    with pytest.raises(DataError, match=r"a\.tar changed while it was read"):
        list(source.records())


@pytest.mark.parametrize("change", ["grows", "is written again", "is another"])
def test_a_shard_that_changes_between_two_passes_ends_in_a_clear_error(change: str, tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", pictures(5))
    source, before = open_source(shard), shard.read_bytes()
    records = source.records()
    next(records)
    if change == "grows":
        write(shard, before + bytes(512))
    elif change == "is written again":
        os.utime(shard, ns=(1, 1))
    else:
        write_tar(tmp_path / "b.tar", pictures(6)).replace(shard)
        assert len(list(records)) == 4, "what is open is still the old file"
    if change != "is another":
        with pytest.raises(DataError, match=r"a\.tar changed while it was read"):
            list(records)
    with pytest.raises(DataError, match=r"a\.tar changed while it was read"):
        list(source.records())


def test_a_shard_that_becomes_a_pipe_hangs_nothing(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", pictures(5))
    source = open_source(shard)
    shard.unlink()
    os.mkfifo(shard)
    with pytest.raises(DataError, match=r"a\.tar changed while it was read"):
        list(source.records())


def test_a_shard_that_changes_while_it_is_opened_is_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.tar", "b.tar"):
        write_tar(tmp_path / name, pictures(5))
    monkeypatch.setattr(Archive, "demand_unchanged", _once(Archive.demand_unchanged))
    source = open_source(tmp_path)
    first = next(source.records())
    assert (first.path, first.status, first.reason) == ("a.tar", Status.UNREADABLE, "written to while it was read")


def _once(plain: Callable[[Archive, Stamp], None]) -> Callable[[Archive, Stamp], None]:
    """The method `plain`, which raises the first time."""
    asked: list[Stamp] = []

    def method(self: Archive, stamp: Stamp) -> None:
        asked.append(stamp)
        if len(asked) == 1:
            raise Unreadable(Status.UNREADABLE, "written to while it was read")
        plain(self, stamp)

    return method


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    source = open_source(write_tar(tmp_path / "a.tar", pictures(5)))
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        next(source.records())
    assert len(list(Path("/proc/self/fd").iterdir())) <= before
