"""Surveys: counts, duplicates, digests."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from source_builders import pictures, png, write, write_folder, write_tar

from kdaudit.digest import content_digest
from kdaudit.sample import Record, Status
from kdaudit.source import Survey, census, digests_of, open_source, shared_digests, survey, unpack_digests
from kdaudit.source.census import pack_digests, unique_digests

_digests = st.lists(st.binary(min_size=16, max_size=16) | st.sampled_from([bytes(16), b"\xff" * 16]), max_size=30)
_close = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 2)).map(lambda p: p[0].to_bytes(8, "big") + p[1].to_bytes(8, "big")),
    max_size=30,
)  # digests that differ only in their last bytes, many ending in zeros


def of(digests: list[bytes]) -> Survey:
    unique = unique_digests(pack_digests(b"".join(digests)))
    n = len(digests)
    return Survey(n, n, 0, 0, None, n, unique, n - len(unique), digests_of(unique))


@given(_digests | _close)
def test_digests_are_the_sorted_set(digests: list[bytes]) -> None:
    made = of(digests)
    assert made.digests.dtype == np.uint64
    assert made.digests.shape == (len(set(digests)), 2)
    assert unpack_digests(made.digests) == sorted(set(digests))
    for digest in digests:
        assert made.holds(digest)


@given(_digests | _close)
def test_a_pile_sorts_as_the_whole(digests: list[bytes]) -> None:
    pile = census._Pile()
    for digest in digests:
        pile.add(digest)
    assert (pile.sorted() == unique_digests(pack_digests(b"".join(digests)))).all()


@given(_digests | _close, _digests | _close)
def test_shared_digests_are_the_intersection(a: list[bytes], b: list[bytes]) -> None:
    shared = shared_digests(of(a), of(b))
    assert unpack_digests(shared) == sorted(set(a) & set(b))
    for digest in a:
        assert of(b).holds(digest) == (digest in b)


def test_digests_with_trailing_zeros_stay_apart() -> None:
    stem = b"\x01" * 14
    made = of([stem + b"\0\0", stem + b"\x01\0"])
    assert len(made.digests) == 2
    assert made.holds(stem + b"\0\0")
    assert not made.holds(stem + b"\0\x01")
    assert not len(shared_digests(made, of([stem + b"\0\x01"])))


def test_counts(tmp_path: Path) -> None:
    write(tmp_path / "cat/1.png", png(1))
    write(tmp_path / "cat/2.png", png(2))
    write(tmp_path / "dog/1.png", png(1))
    write(tmp_path / "dog/empty.png")
    write(tmp_path / "loose.png", png(3))
    write(tmp_path / "README", b"x")
    (tmp_path / "fish").mkdir()
    found = survey(open_source(tmp_path))
    assert (found.count, found.read, found.unreadable, found.skipped) == (6, 4, 1, 1)
    assert found.label_counts is not None
    assert found.label_counts.dtype == np.int64
    assert found.label_counts.tolist() == [2, 1, 0]
    assert found.unlabelled == 1
    assert (len(found.digests), found.duplicates) == (3, 1)
    assert found.holds(content_digest(png(3)))
    assert not found.holds(content_digest(b""))


def test_flat_has_no_label_counts(tmp_path: Path) -> None:
    write(tmp_path / "1.png", png(1))
    found = survey(open_source(tmp_path))
    assert found.label_counts is None
    assert found.unlabelled == 1


def test_overlap_is_found_across_formats(tmp_path: Path) -> None:
    images = pictures(12)
    clean = survey(open_source(write_folder(tmp_path / "clean", images[:7])))
    suspect = survey(open_source(write_tar(tmp_path / "s.tar", images[5:])))
    expected = sorted(content_digest(image.data) for image in images[5:7])
    assert unpack_digests(shared_digests(clean, suspect)) == expected


def test_nothing_read() -> None:
    class Nothing:
        kind, root, classes = "flat", Path(), None

        def records(self, start: int = 0) -> Iterator[Record]:
            yield Record("a.jpg", None, b"", Status.UNREADABLE, "empty file")

    found = survey(Nothing())
    assert found.digests.shape == (0, 2)
    assert not found.holds(bytes(16))
    assert not len(shared_digests(found, found))


def test_a_survey_is_frozen() -> None:
    with pytest.raises(AttributeError):
        of([]).count = 1  # type: ignore[misc]
    assert census.Survey is Survey
