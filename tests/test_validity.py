"""What the error rate rests on: said to hold where it does, and to be violated where it is."""

import numpy as np
import pytest

from kdaudit.validity import Seen, assumptions


def seen(n: int, seed: int, power: float = 3.0, shares: tuple[float, ...] = (0.25,) * 4) -> Seen:
    rng = np.random.default_rng(seed)
    return Seen(rng.power(power, n), rng.choice(4, n, p=shares))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("m", "n"), [(25_000, 500), (1000, 40), (60, 1000)])
def test_images_of_one_kind_are_of_one_kind(seed, m, n):
    found = assumptions(seen(m, seed), seen(n, 100 + seed))
    assert [one.holds for one in found] == [True, True]


def test_a_harder_delivery_is_seen():
    kind, mix = assumptions(seen(25_000, 0, power=1.5), seen(500, 1))
    assert not kind.holds
    assert kind.p_value < 1e-6
    assert "500 clean images, 25,000 suspect ones" in kind.statement
    assert mix.holds


def test_other_classes_are_seen_and_a_small_difference_is_none():
    kind, mix = assumptions(seen(25_000, 0, shares=(0.7, 0.1, 0.1, 0.1)), seen(500, 1))
    assert kind.holds
    assert not mix.holds
    sure, mix = assumptions(seen(200_000, 0, power=3.1, shares=(0.27, 0.25, 0.24, 0.24)), seen(200_000, 1))
    assert sure.p_value < 1e-3  # certain, and of no weight
    assert sure.holds
    assert mix.p_value < 1e-3
    assert mix.holds


def test_answers_that_are_none_and_sets_that_are_empty_do_no_harm():
    one = seen(50, 0)
    assert assumptions(one, Seen(np.empty(0), np.empty(0, np.int64))) == ()
    assert assumptions(Seen(np.empty(0), np.empty(0, np.int64)), one) == ()
    strange = Seen(np.full(5, 0.5), np.array([-1, -1, -1, 0, 0]))
    assert len(assumptions(strange, strange)) == 2
