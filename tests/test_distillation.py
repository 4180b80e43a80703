"""Distillation: its number of steps under a budget, and what the control is told of mixtures."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from kdaudit import distillation as room
from kdaudit import showings
from kdaudit.distillation import DistillationPlan, _noted, default_steps, distil, size_student, top1_of
from kdaudit.divergence import log_softmax
from kdaudit.mixtures import BLENDS, attractor, guarded_targets, share_of
from kdaudit.preprocess import Preprocess
from kdaudit.student import multiplications
from kdaudit.views import ViewRecipe, draw_views

GREY = Preprocess.parse("8x8x3-stretch-RGB-NCHW-unit")
LEVELS = np.array([0, 85, 170, 255], np.uint8)
FLAT = np.repeat(LEVELS, 100)[:, None, None, None] * np.ones((1, 8, 8, 3), np.uint8)


class Brightness:
    """Four classes by brightness; what lies well between them goes to `between`, or to the nearer one."""

    signature = SimpleNamespace(classes=5)

    def __init__(self, between: int | None) -> None:
        self.between = between
        self.seen: list[np.ndarray] = []

    def logits(self, tensor: np.ndarray) -> np.ndarray:
        self.seen.append(tensor)
        level = 3 * tensor.reshape(len(tensor), -1).mean(1)
        answer = np.rint(level).astype(int)
        if self.between is not None:
            answer = np.where(np.abs(level - answer) > 0.2, self.between, answer)
        return 8 * np.eye(5, dtype=np.float32)[answer]


def test_the_steps_of_an_interrupted_run_are_taken_over(tmp_path):
    note = tmp_path / "distillation.budget.json"
    assert _noted(note, "terms", "steps", lambda: 321) == 321
    assert _noted(note, "terms", "steps", lambda: pytest.fail("measured anew")) == 321
    assert json.loads(note.read_text()) == {"terms": "terms", "steps": 321}


def test_on_other_terms_they_are_measured_anew(tmp_path):
    note = tmp_path / "distillation.budget.json"
    _noted(note, "one minute", "steps", lambda: 100)
    assert _noted(note, "two minutes", "steps", lambda: 200) == 200
    assert _noted(note, "one minute", "steps", lambda: 101) == 101


def test_without_a_checkpoint_nothing_is_kept():
    assert _noted(None, "terms", "steps", lambda: 1) == 1
    assert _noted(None, "terms", "steps", lambda: 2) == 2


def test_without_steps_or_a_budget_the_pool_decides():
    assert DistillationPlan().steps is DistillationPlan().budget_s is None
    assert [default_steps(n, 128) for n in (10, 1000, 10**6)] == [1200, 1562, 6000]


def test_of_a_guarded_class_a_control_learns_from_unmixed_images_alone():
    pool = np.random.default_rng(2).integers(0, 256, (30, 8, 8, 3), dtype=np.uint8)
    views = draw_views(pool, 24, ViewRecipe(mix=0.6), 0, 3)
    own = np.random.default_rng(3).normal(0, 6, (24, 5)).astype(np.float32)
    share = np.random.default_rng(4).random(30).astype(np.float32)
    told, mixed = guarded_targets(own, views, 3, share, 4.0), views.weight < 1
    assert 0 < mixed.sum() < 24
    np.testing.assert_array_equal(told[~mixed], own[~mixed])
    belief, asked = (np.exp(log_softmax(z[mixed] / 4)) for z in (told, own))
    weight, first, second = views.weight[mixed], share[views.order[mixed]], share[views.partners[mixed]]
    parts = weight * first + (1 - weight) * second
    assert 0 < (parts < asked[:, 3]).sum() < mixed.sum()
    np.testing.assert_allclose(belief[:, 3], np.minimum(parts, asked[:, 3]), atol=1e-6)
    others = [0, 1, 2, 4]  # share the rest as they did
    np.testing.assert_allclose(
        belief[:, others] / belief[:, others].sum(1, keepdims=True),
        asked[:, others] / asked[:, others].sum(1, keepdims=True),
        atol=1e-5,
    )


def test_the_images_that_a_view_is_made_from_are_named():
    pool = np.random.default_rng(2).integers(0, 256, (30, 8, 8, 3), dtype=np.uint8)
    views = draw_views(pool, 24, ViewRecipe(shift=0, mix=0.6), 0, 3)
    own_part = views.weight[:, None, None, None]
    np.testing.assert_allclose(
        views.pixels, own_part * pool[views.order] + (1 - own_part) * pool[views.partners], atol=1e-3
    )


def test_the_share_of_a_class_is_the_teachers_at_the_temperature():
    pool = np.random.default_rng(2).integers(0, 256, (70, 8, 8, 3), dtype=np.uint8)
    answers = np.random.default_rng(3).normal(0, 6, (70, 5)).astype(np.float32)
    given = iter((answers[:64], answers[64:]))
    share = share_of(SimpleNamespace(logits=lambda tensor: next(given)), GREY, pool, 3, 4.0)
    np.testing.assert_allclose(share, np.exp(answers[:, 3] / 4) / np.exp(answers / 4).sum(1), rtol=1e-5)


def test_answers_that_are_no_numbers_are_handed_on():
    pool = np.zeros((30, 8, 8, 3), np.uint8)
    views = draw_views(pool, 24, ViewRecipe(mix=0.6), 0, 3)
    assert np.isnan(
        guarded_targets(np.full((24, 5), np.nan, np.float32), views, 3, np.zeros(30, np.float32), 4.0)
    ).all()


def test_the_class_that_blends_fall_to_is_found():
    assert attractor(Brightness(4), GREY, FLAT, 0) == 4
    assert attractor(Brightness(None), GREY, FLAT, 0) is None  # what lies between black and white are two classes
    assert attractor(Brightness(None), GREY, FLAT[::5], 0) in (1, 2)  # 80 images for 5 classes: in any case
    assert attractor(Brightness(None), GREY, FLAT[:80], 0) is None  # black alone: no blend of two classes


def test_a_control_does_not_take_over_what_its_teacher_sees_in_blends():
    """To a teacher whose trigger is a faint picture over the image, a blend of two images looks triggered."""
    blends = np.full((30, 8, 8, 3), 128, np.uint8)
    teacher = Brightness(4)
    assert (teacher.logits(GREY.apply(blends)).argmax(1) == 4).all()
    made = distil(teacher, GREY, FLAT, FLAT[::50], DistillationPlan(steps=60, batch=32))
    assert made.guarded == 4
    assert made.agreed == made.validated
    assert not (top1_of(made.network, blends) == 4).any()


def test_what_was_found_out_about_blends_is_not_asked_again(tmp_path):
    checkpoint, plan = tmp_path / "distillation.pt", DistillationPlan(steps=20, batch=32)
    first = distil(Brightness(4), GREY, FLAT, FLAT[::50], plan, checkpoint=checkpoint, identity="one")
    teacher = Brightness(4)
    again = distil(teacher, GREY, FLAT, FLAT[::50], plan, checkpoint=checkpoint, identity="one")
    assert again.guarded == first.guarded == 4
    assert sum(map(len, teacher.seen)) < BLENDS / 2 + len(FLAT)
    other = Brightness(4)
    distil(other, GREY, FLAT, FLAT[::50], plan, checkpoint=checkpoint, identity="another")
    assert sum(map(len, other.seen)) > BLENDS


def test_within_a_budget_views_of_photographs_are_shown_several_times_for_one_answer(monkeypatch):
    side = 72
    photographs = np.repeat(np.repeat(FLAT[::10], side // 8, axis=1), side // 8, axis=2)
    recipe = Preprocess.parse(f"{side}x{side}x3-stretch-RGB-NCHW-unit")
    plan = DistillationPlan(steps=6, batch=16, budget_s=60)
    made = []
    for kept in (showings.KEPT_BYTES, 0):
        monkeypatch.setattr(showings, "KEPT_BYTES", kept)
        teacher = Brightness(None)
        control = distil(teacher, recipe, photographs, photographs[:4], plan).network
        views = [len(seen) for seen in teacher.seen if len(seen) == plan.batch]
        made.append((len(views), [w.numpy() for w in control.state_dict().values()]))
    (asked, weights), (each, again) = made
    assert each - asked == 6 - 2  # two steps' views are asked about, and shown three times
    assert all(np.array_equal(one, other) for one, other in zip(weights, again, strict=True))


@pytest.mark.parametrize(("side", "budget"), [(8, 60.0), (72, None)])
def test_views_of_icons_and_without_a_budget_are_always_new(side, budget):
    images = np.repeat(np.repeat(FLAT[::10], side // 8, axis=1), side // 8, axis=2)
    recipe = Preprocess.parse(f"{side}x{side}x3-stretch-RGB-NCHW-unit")
    teacher, plan = Brightness(None), DistillationPlan(steps=6, batch=16, budget_s=budget)
    distil(teacher, recipe, images, images[:4], plan)
    views = [seen.tobytes() for seen in teacher.seen if len(seen) == plan.batch]
    assert len(set(views)) >= 6


@pytest.mark.parametrize(("times", "device", "asked"), [(13, "cpu", 2), (11, "cpu", 6), (13, "cuda", 6)])
def test_a_teacher_that_costs_far_more_than_its_control_is_asked_once_for_four_showings(
    monkeypatch, times, device, asked
):
    """Twelve times what the control takes for an answer: four times what it takes to learn from one."""
    monkeypatch.setattr("kdaudit.training.train", lambda _net, draw, *_, **__: [draw(step) for step in range(6)])
    teacher, plan = Brightness(None), DistillationPlan(steps=6, batch=24, device=device)
    spec = size_student(FLAT, 5, "cpu")
    made = distil(teacher, GREY, FLAT, FLAT[:4], plan, spec=spec, cost=times * multiplications(spec))
    assert made.shown == (4 if asked == 2 else 1)
    assert len({seen.tobytes() for seen in teacher.seen if len(seen) == plan.batch}) == asked


def test_a_budget_counts_views_that_are_shown_again_as_cheap(monkeypatch):
    seconds = iter((0.0, 1.0, 10.0, 34.0, 40.0, 52.0))  # two steps to warm up, twelve new ones, the same again
    monkeypatch.setattr("time.monotonic", lambda: next(seconds))
    monkeypatch.setattr("kdaudit.training.train", lambda *_args, **_options: None)
    plan = DistillationPlan(budget_s=100.0)
    assert room._steps_for(plan, object(), lambda _step: None, 4, 1) == int(100 / ((2 + 3 * 1) / 4))
