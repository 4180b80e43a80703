"""What the error rate rests on: said to hold where it does, and to be violated where it is."""

import numpy as np
import pytest
from scipy.stats import ks_2samp

from kdaudit.validity import Seen, assumptions


def seen(n: int, seed: int, power: float = 3.0, shares: tuple[float, ...] = (0.25,) * 4) -> Seen:
    rng = np.random.default_rng(seed)
    return Seen(rng.power(power, n), rng.choice(4, n, p=shares))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("m", "n"), [(25_000, 500), (1000, 40), (60, 1000)])
def test_images_of_one_kind_are_of_one_kind(seed, m, n):
    found = assumptions([seen(m, seed)], seen(n, 100 + seed))
    assert [one.holds for one in found] == [True, True]


def test_a_harder_delivery_is_seen():
    kind, mix = assumptions([seen(25_000, 0, power=1.5)], seen(500, 1))
    assert not kind.holds
    assert kind.p_value < 1e-6
    assert "500 clean images, 25,000 suspect ones" in kind.statement
    assert mix.holds


def test_confidences_next_to_one_are_compared_in_one_precision():
    """The table holds float32, in which 1 - 1e-9 is 1; the calibration images' confidences are computed in float64."""
    clean, suspect = (1 - 10.0 ** -np.random.default_rng(i).uniform(1, 15, n) for i, n in ((0, 400), (1, 20_000)))
    answers = np.arange(20_000) % 4
    kind, _ = assumptions([Seen(suspect.astype(np.float32), answers)], Seen(clean, answers[:400]))
    assert kind.holds


def test_other_classes_are_seen_and_a_small_difference_is_none():
    kind, mix = assumptions([seen(25_000, 0, shares=(0.7, 0.1, 0.1, 0.1))], seen(500, 1))
    assert kind.holds
    assert not mix.holds
    sure, mix = assumptions([seen(200_000, 0, power=3.1, shares=(0.27, 0.25, 0.24, 0.24))], seen(200_000, 1))
    assert sure.p_value < 1e-3  # certain, and of no weight
    assert sure.holds
    assert mix.p_value < 1e-3
    assert mix.holds


def test_answers_that_are_none_and_sets_that_are_empty_do_no_harm():
    one = seen(50, 0)
    assert assumptions([one], Seen(np.empty(0), np.empty(0, np.int64))) == ()
    assert assumptions([Seen(np.empty(0), np.empty(0, np.int64))], one) == assumptions([], one) == ()
    strange = Seen(np.full(5, 0.5), np.array([-1, -1, -1, 0, 0]))
    assert len(assumptions([strange], strange)) == 2


@pytest.mark.parametrize(("m", "n", "step"), [(400, 300, 0.0), (30_000, 500, 0.05), (2000, 15_000, 0.01)])
def test_parts_and_scipy_agree_on_how_far_apart_the_confidences_are(m, n, step):
    suspect, clean = (seen(k, k, power) for k, power in ((m, 2.8), (n, 3.0)))
    if step:  # ties
        suspect, clean = (Seen(np.round(one.confidence / step) * step, one.answers) for one in (suspect, clean))
    parts = [Seen(suspect.confidence[i : i + 999], suspect.answers[i : i + 999]) for i in range(0, m, 999)]
    kind, mix = assumptions(parts, clean)
    expected = ks_2samp(suspect.confidence, clean.confidence, method="asymp")
    assert f"alike up to {expected.statistic:.1%}" in kind.statement
    assert kind.p_value == pytest.approx(expected.pvalue, rel=1e-6)
    assert mix == assumptions([suspect], clean)[1]
