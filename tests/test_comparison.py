"""The comparison: an image's row depends on the image, never on its neighbours, its batch or its thread."""

import io
import threading
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from kdaudit import divergence
from kdaudit.compared import Comparison, concatenate
from kdaudit.comparison import Subjects, compare, compare_pixels
from kdaudit.decoder import open_decoder
from kdaudit.digest import content_digest
from kdaudit.interventions import InterventionPlan, Partners, intervened
from kdaudit.keys import keys_of
from kdaudit.preprocess import Preprocess
from kdaudit.sample import Record, Status

CLASSES, SIDE = 4, 4
PREPROCESS = Preprocess.parse(f"{SIDE}x{SIDE}x3-stretch-RGB-NCHW-unit")
DECODER = open_decoder("pillow")
STEPS = ("cut-0.5", "blend-0.65", "cut-0.25", "blend-0.5")
PLAN = InterventionPlan(STEPS)
NUMBERS = ("teacher_confidence", "student_confidence", "gap", "js", "divergence")
WHOLES = ("teacher_top1", "student_top1", "labels")


class Linear:
    """A session: fixed random weights, one row at a time so that the batch cannot shape the sums."""

    provider = "cpu"

    def __init__(self, seed: int, strange: float | None = None) -> None:
        self.signature = SimpleNamespace(classes=CLASSES)
        self.weight = np.random.default_rng(seed).normal(0, 1, (SIDE * SIDE * 3, CLASSES)).astype(np.float32)
        self.strange = strange
        self.asked: list[int] = []
        self.lock = threading.Lock()

    def logits(self, tensor: np.ndarray) -> np.ndarray:
        with self.lock:
            self.asked.append(len(tensor))
        flat = tensor.reshape(-1, SIDE * SIDE * 3)
        out = np.stack([row @ self.weight for row in flat] or [np.zeros(CLASSES)])[: len(flat)].astype(np.float32)
        if self.strange is not None:  # a model that gives no numbers where the first pixel is white
            out[flat[:, 0] > 0.999] = self.strange
        return out

    def logits_and_features(self, tensor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.logits(tensor), tensor.reshape(-1, SIDE * SIDE * 3)[:, :7]


def pictures(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 250, (n, SIDE, SIDE, 3), dtype=np.uint8)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def subjects(plan: InterventionPlan = PLAN, strange: float | None = None) -> Subjects:
    teacher, student = Linear(1, strange), Linear(2)
    partners = Partners.of(pictures(40, seed=9), teacher, PREPROCESS)
    return Subjects(teacher, student, PREPROCESS, partners, plan)


def records(n: int = 23) -> list[Record]:
    """Images, and in their midst one that does not decode, one that was not read, one that was skipped."""
    found = [Record(f"p{i}", i % 5 - 1 if i % 5 else None, png(p)) for i, p in enumerate(pictures(n))]
    found[5] = Record("p5", 2, b"\x89PNG\r\n\x1a\n")
    found[11] = Record("p11", None, b"", Status.UNREADABLE, "gone")
    found[12] = Record("p12", 1, b"", Status.SKIPPED, "hidden")
    return found


def whole(parts: Sequence[Comparison]) -> Comparison:
    return concatenate(list(parts))


def assert_same(one: Comparison, other: Comparison) -> None:
    for name in ("ids", "paths", "status", "reasons"):
        assert getattr(one, name) == getattr(other, name)
    for name in NUMBERS + WHOLES:
        assert np.array_equal(getattr(one, name), getattr(other, name), equal_nan=name in NUMBERS), name


# -- rows


def test_rows_come_in_the_order_of_the_records_with_their_labels():
    given_records = records()
    found = whole(compare(subjects(), given_records, DECODER, batch=4, workers=3))
    assert found.ids == tuple(r.id for r in given_records)
    assert found.paths == tuple(f"p{i}" for i in range(23))
    assert found.labels.tolist() == [-1 if r.label is None else r.label for r in given_records]


@pytest.mark.parametrize(("batch", "workers"), [(1, 1), (4, 1), (7, 3), (64, 2)])
def test_batch_size_and_workers_do_not_change_a_row(batch, workers):
    expected = whole(compare(subjects(), records(), DECODER, batch=5, workers=1))
    assert np.nanstd(expected.divergence) > 0.01  # rows that could be told apart
    assert_same(whole(compare(subjects(), records(), DECODER, batch=batch, workers=workers)), expected)


def test_the_order_of_the_images_does_not_change_a_row():
    order = np.random.default_rng(3).permutation(23)
    plain = whole(compare(subjects(), records(), DECODER, batch=4))
    mixed = whole(compare(subjects(), [records()[i] for i in order], DECODER, batch=6))
    assert [mixed.ids.index(i) for i in plain.ids] == np.argsort(order).tolist()
    for name in NUMBERS:
        assert np.array_equal(getattr(plain, name)[order], getattr(mixed, name), equal_nan=True)


def test_images_that_were_not_read_keep_their_place_and_hold_nothing():
    found = whole(compare(subjects(), records(), DECODER, batch=4))
    dark = [5, 11, 12]
    assert [i for i, s in enumerate(found.status) if s != "read"] == dark
    assert [found.status[i] for i in dark] == ["unreadable", "unreadable", "skipped"]
    assert found.reasons[5].startswith(("truncated", "corrupt"))
    assert [found.reasons[i] for i in (11, 12)] == ["gone", "hidden"]
    for name in NUMBERS:
        assert np.flatnonzero(np.isnan(getattr(found, name))).tolist() == dark
    for name in ("teacher_top1", "student_top1"):
        assert np.flatnonzero(getattr(found, name) == -1).tolist() == dark


def test_a_chunk_without_one_readable_image_is_a_chunk():
    broken = [Record(f"p{i}", None, b"nothing") for i in range(3)]
    (found,) = compare(subjects(), broken, DECODER)
    assert found.status == ("unreadable",) * 3
    assert np.isnan(found.divergence).all()
    assert list(compare(subjects(), [], DECODER)) == []


def test_the_columns_are_those_of_the_divergences():
    plan = InterventionPlan(("blend-0.7", "blend-0.4", "blend-0.7"))
    both = subjects(plan)
    pixels = pictures(12)
    ids = [f"{content_digest(p.tobytes()).hex()}:x" for p in pixels]
    found = compare_pixels(both, pixels, ids)
    told = divergence.answers(*both.logits(pixels))
    for name in ("teacher_top1", "student_top1", "gap", "js", "teacher_confidence", "student_confidence"):
        assert np.array_equal(getattr(found, name), getattr(told, name))
    total = np.zeros(12)
    for number, a in enumerate(np.float32([0.7, 0.4, 0.7])):
        others = both.partners.choose(keys_of(ids), told.teacher_top1, plan.seed * 1009 + number)
        total += divergence.jensen_shannon(*both.logits(a * pixels + (1 - a) * others.astype(np.float32)))
    assert np.allclose(found.divergence, total / 3, rtol=1e-12)
    assert found.divergence.std() > 0.005


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_a_cut_shows_a_box_of_the_partner_and_the_image_around_it(share):
    pixels = np.random.default_rng(0).integers(0, 250, (200, 16, 16, 3), dtype=np.uint8)
    white = Partners(np.full((3, 16, 16, 3), 255, np.uint8), np.array([0, 1, 2, 3, 3]))
    keys = keys_of([content_digest(p.tobytes()).hex() for p in pixels])
    (cut,) = intervened(pixels, np.zeros(200, np.int64), keys, white, InterventionPlan((f"cut-{share}",)))
    box = (cut == 255).all(axis=-1)
    side = round(16 * share**0.5)
    assert (box.sum((1, 2)) == side * side).all()
    assert (box.any(1).sum(1) == side).all()  # as many columns as a square has
    assert (cut[~box] == pixels[~box]).all()
    counts = box.mean(0)  # every place is covered now and then, corners least, the middle most
    assert counts.min() > 0


def test_where_a_box_lies_follows_from_the_image():
    pixels = pictures(30)
    keys = keys_of([content_digest(p.tobytes()).hex() for p in pixels])
    both, order = subjects(), np.random.default_rng(1).permutation(30)
    answers = np.zeros(30, np.int64)
    plain = list(intervened(pixels, answers, keys, both.partners, PLAN))
    mixed = list(intervened(pixels[order], answers, keys[order], both.partners, PLAN))
    assert all(np.array_equal(a[order], b) for a, b in zip(plain, mixed, strict=True))
    assert not np.array_equal(plain[0], plain[2])


@pytest.mark.parametrize(("batch", "workers"), [(1, 1), (5, 2), (100, 1)])
def test_decoded_images_get_the_rows_of_encoded_ones(batch, workers):
    items = [r for i, r in enumerate(records()) if i not in (5, 11, 12)]
    encoded = whole(compare(subjects(), items, DECODER))
    pixels = DECODER.decode([r.data for r in items], PREPROCESS.geometry).pixels
    decoded = compare_pixels(subjects(), pixels, [r.id for r in items], batch=batch, workers=workers)
    for name in (*NUMBERS, "teacher_top1", "student_top1"):
        assert np.array_equal(getattr(encoded, name), getattr(decoded, name))


def test_another_seed_draws_other_partners():
    one, other = (whole(compare(subjects(InterventionPlan(STEPS, seed=s)), records(), DECODER)) for s in (0, 1))
    assert np.array_equal(one.js, other.js, equal_nan=True)
    assert not np.array_equal(one.divergence, other.divergence, equal_nan=True)


# -- outputs that are no numbers


@pytest.mark.parametrize("strange", [np.nan, np.inf, -np.inf])
def test_outputs_that_are_no_numbers_are_the_strongest_disagreement(strange):
    pixels = pictures(8)
    pixels[3, 0, 0, 0] = 255
    ids = [f"{i:032x}:x" for i in range(8)]
    plan = InterventionPlan(("blend-0.9", "blend-0.5"))
    found = compare_pixels(subjects(plan, strange), pixels, ids)
    healthy = compare_pixels(subjects(plan), pixels, ids)
    bad = np.arange(8) == 3
    assert (found.divergence[bad] == np.inf).all()
    assert (found.gap[bad] == np.inf).all()
    assert (found.js[bad] == np.log(2)).all()
    assert (found.teacher_top1[bad] == -1).all()
    for name in (*NUMBERS, "teacher_top1"):
        assert np.array_equal(getattr(found, name)[~bad], getattr(healthy, name)[~bad])


def test_a_model_that_breaks_on_blends_only_is_seen_too():
    """It gives no numbers where the first pixel is 253.5 or more, which no image reaches by itself."""
    both = subjects(InterventionPlan(("blend-0.5",)))
    white = both.partners.pixels.copy()
    white[:, 0, 0, 0] = 255
    both = replace(both, partners=Partners(white, both.partners.starts))
    pixels = pictures(4)
    pixels[:, 0, 0, 0] = [10, 253, 253, 253]
    plain = both.teacher.logits

    def breaks(tensor: np.ndarray) -> np.ndarray:
        out = plain(tensor)
        out[tensor.reshape(len(tensor), -1)[:, 0] > 253.5 / 255] = np.nan
        return out

    both.teacher.logits = breaks
    assert np.isfinite(breaks(PREPROCESS.apply(pixels))).all()
    found = compare_pixels(both, pixels, [f"{i:032x}:x" for i in range(4)])
    assert np.isfinite(found.divergence).tolist() == [True, False, False, False]
    assert (found.divergence[1:] == np.inf).all()
    assert (found.teacher_top1[1:] == -1).all()


# -- partners


def test_partners_are_sorted_by_the_teachers_answer():
    teacher = Linear(1)
    pool = pictures(40, seed=9)
    partners = Partners.of(pool, teacher, PREPROCESS, batch=7)
    answers = teacher.logits(PREPROCESS.apply(partners.pixels)).argmax(1)
    assert (np.diff(answers) >= 0).all()
    assert partners.starts.tolist() == [int((answers < k).sum()) for k in range(CLASSES + 1)]
    assert sorted(map(bytes, partners.pixels)) == sorted(map(bytes, pool))


@given(st.lists(st.integers(0, 5), min_size=2, max_size=30), st.integers(0, 3), st.integers(0, 1000))
def test_a_partner_never_shares_the_teachers_answer(answers, asked, draw):
    answers = sorted(answers)
    starts = np.concatenate([[0], np.cumsum(np.bincount(answers, minlength=6))])
    pixels = np.array(answers, np.uint8)[:, None, None, None]  # each clean image shows its own answer
    keys = keys_of([content_digest(bytes([i])).hex() for i in range(50)])
    chosen = Partners(pixels, starts).choose(keys, np.full(50, asked), draw)[:, 0, 0, 0]
    if set(answers) == {asked}:
        assert (chosen == asked).all()  # there is no other
    else:
        assert (chosen != asked).all()


def test_every_eligible_image_is_a_partner_about_equally_often():
    pixels = np.arange(20, dtype=np.uint8)[:, None, None, None]
    partners = Partners(pixels, np.array([0, 5, 10, 20]))
    keys = keys_of([content_digest(str(i).encode()).hex() for i in range(3000)])
    for draw in (0, 1):
        counts = np.bincount(partners.choose(keys, np.full(3000, 1), draw)[:, 0, 0, 0], minlength=20)
        assert (counts[5:10] == 0).all()
        others = np.delete(counts, range(5, 10))
        assert others.min() > 140
        assert others.max() < 260
    one, other = (partners.choose(keys, np.full(3000, 1), draw) for draw in (0, 1))
    assert (one == other).mean() < 0.15


def test_a_partner_depends_on_the_content_and_not_on_the_path():
    digest = content_digest(b"image").hex()
    assert keys_of([f"{digest}:a.png"]) == keys_of([f"{digest}:elsewhere/b.png"])
    assert keys_of([f"{digest}:a.png"]) != keys_of([f"{content_digest(b'other').hex()}:a.png"])


# -- the stream


def test_progress_tells_every_record_as_its_chunk_is_done():
    told: list[int] = []
    parts = [len(p) for p in compare(subjects(), records(), DECODER, batch=4, workers=2, on_batch=told.append)]
    assert told == parts == [4, 4, 4, 4, 4, 3]


def test_records_are_taken_as_they_are_needed():
    taken = 0

    def stream():
        nonlocal taken
        for record in records():
            taken += 1
            yield record

    parts = compare(subjects(), stream(), DECODER, batch=2, workers=1)
    next(parts)
    assert taken <= 2 * 4
    parts.close()
    assert taken <= 2 * 4


def test_an_error_in_a_worker_is_raised_and_no_thread_stays():
    both = subjects()

    def fail(tensor: np.ndarray) -> np.ndarray:
        raise RuntimeError("out of memory")

    both.student.logits = fail
    with pytest.raises(RuntimeError, match="out of memory"):
        list(compare(both, records(), DECODER, batch=2, workers=2))
    assert not [t for t in threading.enumerate() if t.name.startswith("kdaudit-compare")]


def test_the_recipe_names_what_shapes_the_score():
    changes = ({"seed": 1}, {"steps": ("cut-0.5",)}, {"steps": STEPS[::-1]})
    recipes = {PLAN.recipe} | {replace(PLAN, **change).recipe for change in changes}
    assert len(recipes) == 4


# -- interventions where they pay


def test_images_that_give_no_reason_are_not_intervened_on():
    pixels = pictures(40)
    ids = [f"{i:032x}:x" for i in range(40)]
    every = compare_pixels(subjects(), pixels, ids)
    above = float(np.median(every.js))
    some_subjects = subjects()
    some_subjects.teacher.asked.clear()
    some = compare_pixels(replace(some_subjects, plan=replace(some_subjects.plan, above=above)), pixels, ids)
    pays = every.js >= above
    assert 0 < pays.sum() < 40
    assert np.allclose(some.divergence[pays], every.divergence[pays], atol=1e-6)
    assert (some.divergence[~pays] == 0).all()
    for name in ("teacher_top1", "student_top1", "gap", "js"):
        assert np.array_equal(getattr(some, name), getattr(every, name))
    asked = sum(some_subjects.teacher.asked)
    assert asked == 40 + pays.sum() * len(some_subjects.plan.steps)  # and no perturbed views
    assert some.behaviour.shape[1] == every.behaviour.shape[1] - 2 - 2 * 3


@pytest.mark.parametrize("above", [0.0, 0.2, np.log(2) + 1])
def test_a_gpu_is_asked_about_all_pictures_of_a_chunk_at_once(above):
    """Its runs are filled up to one size: four with a quarter of the images each would be three quarters copies."""
    pixels, ids = pictures(40), [f"{i:032x}:x" for i in range(40)]
    one, other = (replace(subjects(), plan=replace(PLAN, above=above)) for _ in range(2))
    other.teacher.provider = "cuda"
    for both in (one, other):
        both.teacher.asked.clear()
    found = [compare_pixels(both, pixels, ids) for both in (one, other)]
    assert_same(*found)
    pays = int((found[0].js >= above).sum())
    assert one.teacher.asked == [40] + [pays] * len(STEPS)
    assert other.teacher.asked == [40, pays * len(STEPS)]


def test_a_plan_that_spares_images_has_a_recipe_of_its_own():
    plan = InterventionPlan(("blend-0.8",))
    assert replace(plan, above=0.125).recipe == f"{plan.recipe}-above0.125"
