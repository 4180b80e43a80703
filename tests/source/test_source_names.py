"""Names of files, millions of them."""

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdaudit.source.names import Names, Repeated

_part = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=5)
_odd = st.sampled_from(["caf\udce9", "\udcff.jpg", "é", "a"])
_paths = st.lists(st.lists(_part | _odd, min_size=1, max_size=3).map("/".join), max_size=30)


@given(_paths)
def test_names_come_back_as_they_were_given(paths: list[str]) -> None:
    names = Names(paths)
    assert list(names) == paths
    assert len(names) == len(paths)
    assert names[1:-1] == paths[1:-1]
    assert [names[-i] for i in range(1, len(paths) + 1)] == paths[::-1]
    with pytest.raises(IndexError):
        names[len(paths)]
    with pytest.raises(IndexError):
        names[-len(paths) - 1]


def test_many_names_take_little_memory() -> None:
    names = Names(f"class-{i // 1000:03d}/image-{i:06d}.jpg" for i in range(10_000))
    assert len(names._folders) == 10
    assert len(names._lasts) + names._ends.itemsize * len(names._ends) == 10_000 * (len("image-000000.jpg") + 8)


@given(_paths)
def test_repeated_names_are_found(paths: list[str]) -> None:
    repeated = Repeated()
    for path in paths:
        repeated.add(path)
    repeated.close()
    assert repeated._hashes == array("Q")
    assert all((path in repeated) == (paths.count(path) > 1) for path in [*paths, "nowhere"])
