"""Shared behaviour: found where images share one, honest where they do not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdaudit.calibration import beyond, rank_p_values
from kdaudit.conduct import Behaved, conduct
from kdaudit.keys import Keys
from kdaudit.multiplicity import CleanRanks, crowd, grouped_flags

K, F = 4, 12


def images(n: int, seed: int, poison: int = 0, shift: float = 4.0) -> Behaved:
    """Rows that depend on the answer; the first `poison` get answer 0, share a behaviour, and have higher scores."""
    rng = np.random.default_rng(seed)
    answers = rng.integers(0, K, n)
    answers[:poison] = 0
    mixing = np.random.default_rng(99).normal(0, 1, (F, F))
    rows = rng.normal(0, 1, (n, F)) @ mixing + 3 * answers[:, None]
    rows[:poison, 3] += shift * 3
    rows[:poison, 7] -= shift * 2
    score = rng.exponential(0.05, n)
    score[:poison] += rng.exponential(0.1, poison)
    keys = rng.integers(0, 2**63, n, dtype=np.uint64)
    matrix = rows.astype(np.float32)
    return Behaved(lambda: [matrix[: n // 3], matrix[n // 3 :]], answers, Keys.of(lambda: [keys]), score)


def test_images_with_a_behaviour_of_their_own_are_found_whatever_their_own_score():
    found = conduct(images(4000, 0, poison=200), images(500, 1))
    assert found is not None
    assert np.median(found.p_values[:200]) < 1e-3
    assert (found.p_values[:200] < 0.01).mean() > 0.9
    assert (found.p_values[200:] < 0.01).mean() < 0.03


@pytest.mark.parametrize("seed", range(6))
def test_without_anything_to_find_p_values_are_those_of_innocents(seed):
    found = conduct(images(4000, 10 + seed), images(500, 50 + seed))
    assert found is not None
    assert (found.p_values < 0.1).mean() < 0.16
    assert (found.p_values < 0.01).mean() < 0.03
    assert (found.p_values < 1e-4).sum() <= 2


def test_a_rare_answer_is_no_behaviour():
    """All images of answer 3 are unlike the rest, in the suspect set as among the clean: nothing follows."""
    suspect, clean = images(4000, 0), images(500, 1)
    odd = suspect.answers == 3
    for one in (suspect, clean):
        rows = np.concatenate(list(one.rows())) + 40 * (one.answers == 3)[:, None]
        object.__setattr__(one, "rows", lambda rows=rows: [rows])
    suspect.score[odd] += 0.05
    found = conduct(suspect, clean)
    assert found is not None
    assert (found.p_values[odd] < 0.01).mean() < 0.05


def test_too_few_images_give_none():
    assert conduct(images(150, 0), images(500, 1)) is None
    assert conduct(images(4000, 0), images(10, 1)) is None


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=60), st.lists(st.floats(-9, 9), min_size=1, max_size=20))
@settings(max_examples=60, deadline=None)
def test_beyond_counts_where_it_can_and_never_says_zero(null, scores):
    p = beyond(np.array(scores), np.array(null))
    counted = np.array([(1 + sum(n >= s for n in null)) / (len(null) + 1) for s in scores])
    inside = np.array(scores) <= max(null)
    assert np.allclose(p[inside], counted[inside])
    assert (p > 0).all()
    assert (p <= 1).all()


def test_beyond_reaches_past_the_null_with_a_tail():
    null = np.random.default_rng(0).normal(0, 1, 1000)
    p = beyond(np.array([3.5, 5.0, 8.0]), null)
    assert 1e-3 > p[0] > p[1] > p[2] > 0
    assert p[1] > 2.9e-7  # heavier than the normal law: an exponential at least
    assert p[2] < 1e-5


def test_what_lies_farthest_out_has_a_p_value_that_float32_holds():
    null = np.random.default_rng(0).normal(0, 1, 100_000)
    p = beyond(np.array([1e4, 1e8], np.float32), null.astype(np.float32))
    assert (p.astype(np.float32) > 0).all()


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30))
def test_ranks_are_the_shares_at_least_as_high(scores):
    p = rank_p_values(np.array(scores, float))
    assert np.allclose(p, [sum(o >= s for o in scores) / len(scores) for s in scores])


def test_a_crowd_is_more_of_the_low_than_the_clean_have():
    low, high = np.full(40, 0.01), np.full(60, 0.5)
    clean = np.concatenate([np.full(3, 0.04), np.full(47, 0.6)])
    assert crowd(np.concatenate([low, high]), clean) < 1e-4
    assert crowd(np.concatenate([low[:6], high]), clean) > 0.2
    assert crowd(low, clean[:0]) == 1.0
    assert crowd(high, clean) == 1.0


def test_a_crowd_of_moderately_unusual_images_opens_the_door_that_simes_keeps_shut():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(10), 1000)
    p = rng.uniform(0, 1, 10_000)
    p[:400] = rng.uniform(4e-4, 8e-3, 400)
    clean = CleanRanks(rng.uniform(0, 1, 500), np.arange(500) % 10)
    assert not grouped_flags(p, groups, 0.05).flags.any()
    flags = grouped_flags(p, groups, 0.05, clean).flags
    assert flags[:400].mean() > 0.9
    assert flags[400:].sum() < 30


def test_clean_images_open_no_door_by_chance():
    opened = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        clean = CleanRanks(rng.uniform(0, 1, 500), np.arange(500) % 10)
        opened += grouped_flags(rng.uniform(0, 1, 5000), np.arange(5000) % 10, 0.05, clean).flags.any()
    assert opened <= 8


def test_a_second_trigger_is_found_behind_a_stronger_one():
    suspect, clean = images(6000, 0, poison=200), images(500, 1)
    rows = np.concatenate(list(suspect.rows()))
    other = np.arange(200, 320)  # another behaviour, at another answer, on which the networks part less
    rows[other, 5] += 14
    rows[other, 9] -= 11
    object.__setattr__(suspect, "rows", lambda: [rows])
    suspect.score[:200] += 5
    suspect.score[other] = 2
    found = conduct(suspect, clean)
    assert found is not None
    assert (found.p_values[:200] < 0.01).mean() > 0.9
    assert (found.p_values[other] < 0.01).mean() > 0.9
    assert (found.p_values[320:] < 0.01).mean() < 0.03
