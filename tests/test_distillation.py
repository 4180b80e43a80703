"""Distillation under a budget: the number of steps is measured once, and belongs to the run from then on."""

import json

import pytest

from kdaudit.distillation import DistillationPlan, _noted_steps, default_steps


def test_the_steps_of_an_interrupted_run_are_taken_over(tmp_path):
    note = tmp_path / "distillation.budget.json"
    assert _noted_steps(note, "terms", lambda: 321) == 321
    assert _noted_steps(note, "terms", lambda: pytest.fail("measured anew")) == 321
    assert json.loads(note.read_text()) == {"terms": "terms", "steps": 321}


def test_on_other_terms_they_are_measured_anew(tmp_path):
    note = tmp_path / "distillation.budget.json"
    _noted_steps(note, "one minute", lambda: 100)
    assert _noted_steps(note, "two minutes", lambda: 200) == 200
    assert _noted_steps(note, "one minute", lambda: 101) == 101


def test_without_a_checkpoint_nothing_is_kept():
    assert _noted_steps(None, "terms", lambda: 1) == 1
    assert _noted_steps(None, "terms", lambda: 2) == 2


def test_without_steps_or_a_budget_the_pool_decides():
    assert DistillationPlan().steps is DistillationPlan().budget_s is None
    assert [default_steps(n, 128) for n in (10, 1000, 10**6)] == [1200, 1562, 6000]
