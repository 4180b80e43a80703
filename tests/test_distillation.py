"""Distillation: its number of steps under a budget, and what the teacher is shown and the control is told."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from kdaudit.distillation import DistillationPlan, _noted, default_steps, distil
from kdaudit.divergence import log_softmax
from kdaudit.mixtures import leans, mixed_targets
from kdaudit.preprocess import Preprocess
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


def test_what_a_mixture_shall_be_is_a_mixture_of_what_its_parts_are():
    rng = np.random.default_rng(2)
    views = draw_views(rng.integers(0, 256, (30, 8, 8, 3), dtype=np.uint8), 24, ViewRecipe(mix=0.6), 0, 3)
    parts = rng.normal(0, 6, (2, 24, 5)).astype(np.float32)
    beliefs = np.exp(log_softmax(parts / 4))
    target = np.exp(log_softmax(mixed_targets(list(parts), views.weight, 4.0) / 4))
    own = views.weight[:, None]
    np.testing.assert_allclose(target, own * beliefs[0] + (1 - own) * beliefs[1], atol=1e-6)
    assert (views.weight < 1).any()
    assert np.array_equal(target[views.weight == 1].argmax(1), parts[0][views.weight == 1].argmax(1))
    np.testing.assert_allclose(
        views.pixels, own[..., None, None] * views.parts[0] + (1 - own[..., None, None]) * views.parts[1]
    )


@pytest.mark.parametrize(("between", "expected"), [(4, True), (None, False)])
def test_a_teacher_that_gives_blends_to_one_class_leans(between, expected):
    assert leans(Brightness(between), GREY, FLAT, 0) == expected


def test_such_a_teacher_is_never_shown_a_blend_to_learn_from_and_the_control_does_not_lean():
    """To a teacher whose trigger is a faint picture over the image, a blend of two images looks triggered."""
    teacher = Brightness(4)
    made = distil(teacher, GREY, FLAT, FLAT[::50], DistillationPlan(steps=60, batch=32))
    asked = [batch for batch in teacher.seen if len(batch) <= 32]  # while it learned, and some images as they are
    levels = np.unique(np.concatenate([3 * batch.ravel() for batch in asked]))
    assert len(asked) >= 120
    assert np.abs(levels - np.rint(levels)).max() < 1e-5
    assert made.agreed == made.validated
    assert made.leaning


def test_what_was_found_out_about_blends_is_not_asked_again(tmp_path):
    checkpoint, plan = tmp_path / "distillation.pt", DistillationPlan(steps=20, batch=32)
    first = distil(Brightness(4), GREY, FLAT, FLAT[::50], plan, checkpoint=checkpoint, identity="one")
    teacher = Brightness(4)
    again = distil(teacher, GREY, FLAT, FLAT[::50], plan, checkpoint=checkpoint, identity="one")
    assert again.leaning == first.leaning
    assert sum(map(len, teacher.seen)) < 1000
    other = Brightness(4)
    distil(other, GREY, FLAT, FLAT[::50], plan, checkpoint=checkpoint, identity="another")
    assert sum(map(len, other.seen)) > 6000
