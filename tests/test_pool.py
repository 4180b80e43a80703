"""The clean pool: nothing in it that the suspect set holds, nothing twice, and parts that never mix."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdaudit.decoder import open_decoder
from kdaudit.digest import content_digest
from kdaudit.pool import CALIBRATION_SHARE, VALIDATION_SHARE, Pool, read_pool, split
from kdaudit.sample import Geometry, Record, Status
from kdaudit.source import Survey, survey

GEOMETRY = Geometry(4, 4, 1)
DECODER = open_decoder("pillow")


@dataclass
class Listed:
    """A source of the records given."""

    items: Sequence[Record]
    kind: str = "flat"
    root: Path = Path("listed")
    classes: tuple[str, ...] | None = None

    def records(self, start: int = 0) -> Iterator[Record]:
        yield from self.items[start:]


def grey(level: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (4, 4), level).save(file, "PNG")
    return file.getvalue()


def record(level: int, path: str = "") -> Record:
    return Record(path or f"{level}.png", None, grey(level))


def records(levels: Sequence[int]) -> list[Record]:
    return [record(level) for level in levels]


def held(items: Sequence[Record]) -> Survey:
    return survey(Listed(items))


def read(items: Sequence[Record], suspect: Sequence[Record] = (), limit: int = 1000, seed: int = 0, **more) -> Pool:
    return read_pool(Listed(items), held(suspect), DECODER, GEOMETRY, limit=limit, seed=seed, **more)


def levels(pool: Pool) -> list[int]:
    """Which images are in the pool; they are of one grey each."""
    return [int(level) for level in pool.pixels[:, 0, 0, 0]]


def fake_pool(digests: Sequence[str]) -> Pool:
    ids = tuple(f"{digest}:{number}.png" for number, digest in enumerate(digests))
    return Pool(ids, np.zeros((len(ids), 1, 1, 1), np.uint8), 0, 0, 0, 0)


def some_digests(n: int, first: int = 0) -> list[str]:
    return [content_digest(str(first + number).encode()).hex() for number in range(n)]


def test_the_pool_holds_every_image_with_its_id():
    items = records(range(100))
    pool = read(items)
    assert sorted(levels(pool)) == list(range(100))
    of = {item.id: level for level, item in enumerate(items)}
    assert [of[i] for i in pool.ids] == levels(pool)  # pixels and ids stand in the same order
    assert (pool.shared, pool.repeated, pool.unreadable, pool.unused) == (0, 0, 0, 0)


def test_images_of_the_suspect_set_are_left_out_and_counted():
    suspect = [record(level, f"elsewhere/{level}") for level in range(5, 15)]
    pool = read(records(range(20)), suspect)
    assert sorted(levels(pool)) == [*range(5), *range(15, 20)]
    assert pool.shared == 10


def test_repeated_images_are_kept_once_and_counted():
    again = [record(level, f"again/{level}") for level in range(7)]
    pool = read([*records(range(20)), *again, *again])
    assert sorted(levels(pool)) == list(range(20))
    assert pool.repeated == 14


def test_images_that_cannot_be_read_or_decoded_are_counted_and_the_rest_keep_their_ids():
    broken = [Record(f"broken{n}", None, b"\x89PNG\r\n\x1a\n" + bytes([n])) for n in range(3)]
    missing = [
        Record("missing", None, b"", Status.UNREADABLE, "gone"),
        Record("text", None, b"", Status.SKIPPED, "text"),
    ]
    items = [*broken[:2], *records(range(100)), *missing, broken[2]]
    pool = read(items)
    assert pool.unreadable == 5
    assert sorted(levels(pool)) == list(range(100))
    of = {item.id: level for level, item in enumerate(items[2:102])}
    assert [of[i] for i in pool.ids] == levels(pool)


def test_limit_and_order_do_not_depend_on_the_sources_order():
    items = records(range(200))
    shuffled = [items[i] for i in np.random.default_rng(0).permutation(200)]
    one, other = read(items, limit=50), read(shuffled, limit=50)
    assert one.ids == other.ids
    assert np.array_equal(one.pixels, other.pixels)
    assert len(one) == 50
    assert one.unused == 150
    assert levels(one) != sorted(levels(one))


def test_another_seed_chooses_other_images():
    items = records(range(200))
    assert set(read(items, limit=50, seed=0).ids) != set(read(items, limit=50, seed=1).ids)


def test_a_smaller_limit_keeps_a_part_of_the_larger_ones_choice():
    items = records(range(100))
    assert read(items, limit=30).ids == read(items, limit=60).ids[:30]


def test_labels_are_not_looked_at():
    items = records(range(30))
    labelled = [Record(item.path, 3, item.data) for item in items]
    assert read(items).ids == read(labelled).ids


def test_a_cache_gives_the_same_pixels_from_a_file(tmp_path):
    items = records(range(80))
    pool = read(items, cache=tmp_path / "clean.npy")
    assert isinstance(pool.pixels, np.memmap)
    assert np.array_equal(pool.pixels, read(items).pixels)
    assert np.array_equal(np.load(tmp_path / "clean.npy"), pool.pixels)


def test_one_broken_image_does_not_pull_a_cached_pool_into_memory(tmp_path):
    items = [*records(range(80)), Record("broken", None, b"\x89PNG\r\n\x1a\n")]
    pool = read(items, cache=tmp_path / "clean.npy")
    assert isinstance(pool.pixels, np.memmap)
    assert sorted(levels(pool)) == list(range(80))
    assert np.array_equal(pool.pixels, read(items).pixels)


@pytest.mark.parametrize("cached", [False, True])
def test_a_pool_of_nothing_is_an_empty_pool(tmp_path, cached):
    items = records(range(10))
    pool = read(items, items, cache=tmp_path / "clean.npy" if cached else None)
    assert len(pool) == 0
    assert pool.pixels.shape == (0, 4, 4, 1)
    assert pool.shared == 10


def test_progress_tells_every_image_that_was_decoded():
    told: list[int] = []
    read(records(range(150)), on_image=told.append)
    assert sum(told) == 150


# -- the split


def test_the_parts_are_disjoint_and_whole_and_of_about_their_shares():
    parts = split(fake_pool(some_digests(3000)), 0)
    together = np.concatenate([parts.distillation, parts.validation, parts.calibration])
    assert sorted(together) == list(range(3000))
    assert len(parts.calibration) / 3000 == pytest.approx(CALIBRATION_SHARE, abs=0.035)
    assert len(parts.validation) / 3000 == pytest.approx(VALIDATION_SHARE, abs=0.025)


def test_the_split_depends_on_digest_and_seed_only():
    digests = some_digests(300)
    whole = split(fake_pool(digests), 7)
    again = split(fake_pool(digests), 7)
    assert all(
        np.array_equal(getattr(whole, n), getattr(again, n)) for n in ("distillation", "validation", "calibration")
    )
    other = split(fake_pool(digests), 8)
    assert not np.array_equal(whole.calibration, other.calibration)


def test_an_images_part_does_not_depend_on_the_pools_other_members():
    digests = some_digests(400)
    smaller = [*some_digests(50, first=9000), *digests[::-3]]
    for name in ("distillation", "validation", "calibration"):
        big = {digests[i] for i in getattr(split(fake_pool(digests), 1), name)}
        small = {smaller[i] for i in getattr(split(fake_pool(smaller), 1), name)}
        assert small & set(digests) == big & set(smaller)


def test_the_split_is_no_echo_of_the_choice_under_a_limit():
    """Were the ranks of `read_pool` reused, a small limit would leave one part empty."""
    pool = read(records(range(256)), limit=80)
    parts = split(pool, 0)
    assert min(len(parts.distillation), len(parts.calibration)) > 10
