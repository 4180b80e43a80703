"""p-values, flags and tails: against brute force, against scipy, and by simulation with fixed seeds."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import binomtest, genpareto, norm

from kdaudit import tails as room
from kdaudit.calibration import (
    Clean,
    as_few_p_value,
    beyond,
    bounded,
    calibration_needed,
    conformal_p_values,
    interval,
    smallest_visible_rate,
    tail_p_values,
    unbounded,
)
from kdaudit.families import (
    LOCAL,
    adaptive_flags,
    among_their_kind,
    benjamini_hochberg,
    flags_of_a_family,
    flags_of_a_group,
    local_share,
)
from kdaudit.multiplicity import (
    CleanRanks,
    entrance_weights,
    grouped_flags,
    holm,
    most_innocent,
    simes,
)
from kdaudit.tails import fit_tail, foretold_tail

few_values = st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0, np.inf])  # ties are what a count gets wrong
scores = hnp.arrays(np.float64, st.integers(0, 12), elements=few_values)
p_columns = hnp.arrays(
    np.float64, st.integers(1, 15), elements=st.sampled_from([0.0, 0.001, 0.01, 0.02, 0.03, 0.2, 1.0])
)
levels = st.sampled_from([0.01, 0.05, 0.2, 0.5])


def naive_step_up(p: np.ndarray, alpha: float) -> np.ndarray:
    """Benjamini-Hochberg, word by word."""
    m = len(p)
    by_size = sorted(range(m), key=lambda i: p[i])
    last = max((rank for rank in range(1, m + 1) if p[by_size[rank - 1]] <= alpha * rank / m), default=0)
    flags = np.zeros(m, bool)
    flags[by_size[:last]] = True
    return flags


# -- conformal p-values


@given(scores, scores)
def test_conformal_p_values_are_the_brute_force_count(suspect, clean):
    expected = [(1 + sum(c >= s for c in clean)) / (len(clean) + 1) for s in suspect]
    assert conformal_p_values(suspect, clean).tolist() == pytest.approx(expected)


@given(scores, scores)
def test_conformal_p_values_lie_in_their_range_and_fall_as_scores_rise(suspect, clean):
    p = conformal_p_values(np.sort(suspect), clean)
    assert ((p >= 1 / (len(clean) + 1)) & (p <= 1)).all()
    assert (p[1:] <= p[:-1]).all()


def test_an_image_that_was_not_read_gets_p_one():
    clean = np.arange(9.0)
    assert conformal_p_values(np.array([np.nan, 100.0, np.inf]), clean).tolist() == [1.0, 0.1, 0.1]


def test_conformal_p_values_of_exchangeable_scores_are_super_uniform():
    rng = np.random.default_rng(1)
    drawn = np.concatenate([conformal_p_values(rng.gamma(2, size=50), rng.gamma(2, size=99)) for _ in range(400)])
    assert np.ptp(drawn) > 0.9
    for t in (0.01, 0.05, 0.1, 0.3, 0.5, 0.9):
        # 400 calibration sets of 99: the share has a standard error of at most 0.003, which is given four times.
        assert abs((drawn <= t).mean() - t) < 0.012


# -- Benjamini-Hochberg, Simes, the two layers


@given(p_columns, levels)
def test_benjamini_hochberg_is_the_naive_step_up(p, alpha):
    found, expected = benjamini_hochberg(p, alpha), naive_step_up(p, alpha)
    assert found.tolist() == expected.tolist()


def test_what_other_flags_have_earned_counts_as_p_values_of_zero():
    """Twenty flags elsewhere, at a tenth: as if they stood here, and the number of images were what it is."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        p, alpha, before = rng.beta(0.5, 2, 40), 0.1, 20
        found = benjamini_hochberg(p, alpha, alpha * before)
        most = max((k for k in range(41) if k == 0 or np.sort(p)[k - 1] <= alpha * (before + k) / 40), default=0)
        assert found.sum() == most
        assert not (benjamini_hochberg(p, alpha) & ~found).any()


def test_further_flags_keep_their_share_of_all():
    rng, further, total = np.random.default_rng(1), 0, 0
    for _ in range(400):
        p = rng.uniform(0, 1, 300)
        found = adaptive_flags(p, 0.01, earned=0.01 * 500)
        further, total = further + int(found.sum()), total + 500 + int(found.sum())
        assert (p[found] <= 0.05).all()
    assert 0.5 * 0.01 <= further / total <= 1.1 * 0.01


@given(p_columns, levels)
def test_benjamini_hochberg_ignores_the_order(p, alpha):
    assert benjamini_hochberg(p[::-1], alpha).tolist() == benjamini_hochberg(p, alpha)[::-1].tolist()


def test_no_p_values_give_no_flags():
    assert benjamini_hochberg(np.empty(0), 0.05).tolist() == []
    assert grouped_flags(np.empty(0), np.empty(0, np.int64), 0.05).flags.tolist() == []


def test_the_realised_innocent_share_stays_under_the_nominal_one():
    rng = np.random.default_rng(2)
    shares, found = [], []
    for _ in range(300):
        clean, innocent, poison = rng.normal(size=1000), rng.normal(size=450), rng.normal(3.5, 1, 50)
        flags = benjamini_hochberg(conformal_p_values(np.concatenate([innocent, poison]), clean), 0.1)
        shares.append(flags[:450].sum() / max(1, flags.sum()))
        found.append(flags[450:].mean())
    assert np.mean(found) > 0.5  # there was something to be wrong about
    assert np.mean(shares) < 0.1 + 4 * np.std(shares) / np.sqrt(len(shares))
    assert np.mean(shares) > 0.03


@given(p_columns)
def test_simes_is_the_smallest_scaled_order_statistic(p):
    n = len(p)
    smallest = min(n * value / rank for rank, value in enumerate(sorted(p), 1))
    assert simes(p) == pytest.approx(min(1.0, smallest))


def test_simes_of_independent_uniform_p_values_is_uniform():
    rng = np.random.default_rng(3)
    found = np.array([simes(rng.random(20)) for _ in range(2000)])
    for t in (0.05, 0.2, 0.5):
        assert abs((found <= t).mean() - t) < 0.04


@given(p_columns, st.data(), levels)
def test_grouped_flags_lie_in_selected_groups_only(p, data, alpha):
    groups = data.draw(hnp.arrays(np.int64, len(p), elements=st.integers(-1, 3)))
    flags = grouped_flags(p, groups, alpha).flags
    names, images = np.unique(groups, return_counts=True)
    weight = (1 / len(names) + images / len(p)) / 2
    entrance = np.array([simes(p[groups == g]) for g in names])
    chosen = naive_step_up(entrance / (weight * len(names)), alpha)
    certain = set(names[holm(entrance, 0.2 * alpha, weight)])
    assert set(groups[flags]) <= set(names[chosen])
    for group in names[chosen]:
        level, own = 0.8 * alpha * (1 if group in certain else weight[chosen].sum()), p[groups == group]
        assert flags[groups == group].tolist() == (naive_step_up(own, level) & (local_share(own) <= LOCAL)).tolist()


@given(p_columns)
def test_among_their_kind_no_p_value_falls_and_their_order_stays(p):
    found = among_their_kind(p)
    assert (found >= p).all()
    assert (np.diff(found[np.argsort(p, kind="stable")]) >= 0).all()


@pytest.mark.parametrize("shift", [0.0, 0.6, 1.1])
def test_p_values_of_a_kind_that_are_too_small_are_as_they_should_be_afterwards(shift):
    rng, low = np.random.default_rng(4), []
    for _ in range(100):
        innocent = norm.sf(rng.normal(shift, 1, 580))
        low.append((among_their_kind(np.append(innocent, np.full(1000, 1e-5)))[:580] <= 0.05).mean())
    assert np.mean(low) == pytest.approx(0.05, abs=0.02)


def naive_local_share(p: np.ndarray) -> np.ndarray:
    """The slope of the least concave line above the counts of p-values up to each place (Grenander, 1956)."""
    places = np.append(0, np.unique(np.maximum(p[p <= 0.5], 1e-12)))
    heights = np.array([(np.maximum(p, 1e-12) <= x).mean() if x else 0 for x in places])
    innocent, share = min(1, 2 * (1 + (p > 0.5).sum()) / len(p)), np.ones(len(p))
    for i in np.flatnonzero(p <= 0.5):
        x = max(p[i], 1e-12)
        left, right = places < x, places >= x
        slopes = (heights[right] - heights[left][:, None]) / (places[right] - places[left][:, None])
        share[i] = min(1, innocent / slopes.max(1).min())
    return share


@given(p_columns)
def test_the_local_share_is_storeys_over_grenanders_density(p):
    assert local_share(p).tolist() == pytest.approx(naive_local_share(p).tolist())


@pytest.mark.parametrize("too_small", [1.0, 2.0, 3.0])
def test_flags_stop_where_innocents_begin_also_when_their_p_values_are_too_small(too_small):
    """Below 0.02 so many times as often as they should; the poison lies far out."""
    rng = np.random.default_rng(3)
    poison, shares, plain = np.arange(3000) < 1000, [], []
    for _ in range(100):
        p = rng.random(3000)
        edge = 0.02 * too_small
        p = np.where(p < edge, p / too_small, 0.02 + (p - edge) * 0.98 / (1 - edge))
        p[poison] = 1e-4 * rng.random(1000)
        flags = flags_of_a_family(p, 0.05)
        assert flags[poison].all()
        shares.append(1 - poison[flags].mean())
        plain.append(1 - poison[benjamini_hochberg(p, 0.05)].mean())
    assert np.mean(shares) < 0.02 < np.mean(plain)
    assert (np.mean(plain) > 0.05) == (too_small > 1.5)


@given(p_columns, levels)
def test_holm_rejects_while_each_next_smallest_passes_its_own_bar(p, alpha):
    rejected = holm(p, alpha)
    order = np.argsort(p, kind="stable")
    expected = np.zeros(len(p), bool)
    for rank, index in enumerate(order):
        if p[index] > alpha / (len(p) - rank):
            break
        expected[index] = True
    assert rejected.tolist() == expected.tolist()


@given(p_columns, st.data(), levels)
def test_weighted_holm_rejects_while_each_next_one_passes_its_share_of_what_is_left(p, data, alpha):
    weights = data.draw(hnp.arrays(np.float64, len(p), elements=st.sampled_from([0.1, 1.0, 2.0, 7.0])))
    order = np.argsort(p / weights, kind="stable")
    expected = np.zeros(len(p), bool)
    for rank, index in enumerate(order):
        left = weights[order[rank:]].sum()
        assume(abs(p[index] * left - alpha * weights[index]) > 1e-9)
        if p[index] * left > alpha * weights[index]:
            break
        expected[index] = True
    assert holm(p, alpha, weights).tolist() == expected.tolist()


@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=40))
def test_what_entrances_may_spend_is_all_there_is_and_no_group_gets_less_than_half_its_share(images):
    weights = entrance_weights(np.array(images))
    assert weights.sum() == pytest.approx(1)
    assert (weights >= 0.5 / len(images)).all()


def test_of_a_thousand_classes_one_that_holds_the_poison_is_let_in():
    rng = np.random.default_rng(2)
    groups = np.concatenate([np.zeros(1250, np.int64), np.arange(24_000) % 1000])
    p = np.concatenate([rng.uniform(5e-5, 2e-4, 1250), rng.random(24_000)])  # finer no calibration of a thousand gets
    flags = grouped_flags(p, groups, 0.05).flags
    assert flags[:1250].all()
    assert flags[1250:].sum() <= 5
    innocent = [grouped_flags(rng.random(25_250), groups, 0.05).flags.any() for _ in range(60)]
    assert np.mean(innocent) < 0.15  # nominal 0.05, Monte-Carlo error 0.03


@pytest.mark.parametrize("poisoned", [1, 3, 10])
def test_the_innocent_share_holds_however_many_groups_are_poisoned(poisoned):
    rng = np.random.default_rng(8)
    groups = np.repeat(np.arange(10), 300)
    poison = (groups < poisoned) & (np.tile(np.arange(300), 10) < 40)
    shares = []
    for _ in range(200):
        p = rng.random(3000)
        p[poison] = rng.random(poison.sum()) ** 20
        flags = grouped_flags(p, groups, 0.1).flags
        shares.append(flags[~poison].sum() / max(1, flags.sum()))
    assert np.mean(shares) < 0.1


def test_innocents_alone_seldom_get_a_flag_through_either_door():
    rng = np.random.default_rng(9)
    groups = np.repeat(np.arange(20), 100)
    runs = [grouped_flags(rng.random(2000), groups, 0.1).flags.any() for _ in range(400)]
    assert np.mean(runs) < 0.14  # nominal 0.1, Monte-Carlo error 0.015


def test_one_group_is_plain_benjamini_hochberg():
    p = np.array([0.001, 0.02, 0.03, 0.5, 0.9])
    assert grouped_flags(p, np.full(5, 7), 0.1).flags.tolist() == benjamini_hochberg(p, 0.08).tolist()


def test_grouped_flags_keep_the_innocent_share_and_spare_other_groups():
    rng = np.random.default_rng(4)
    groups = np.repeat(np.arange(10), 100)
    poison = np.zeros(1000, bool)
    poison[:60] = True  # all in group 0
    shares, found, elsewhere = [], [], 0
    for _ in range(300):
        p = rng.random(1000)
        p[poison] = rng.random(60) ** 12
        flags = grouped_flags(p, groups, 0.1).flags
        shares.append(flags[~poison].sum() / max(1, flags.sum()))
        found.append(flags[poison].mean())
        elsewhere += flags[groups > 0].sum()
    assert np.mean(found) > 0.3
    assert np.mean(shares) < 0.1
    assert elsewhere < 300 * 0.5


@pytest.mark.parametrize(
    ("innocents", "most"), [(60, 150), (60, 20), (400, 20), (600, 20), (400, 700), (850, 200), (600, 2000)]
)
def test_a_group_is_tested_at_the_level_that_its_share_of_innocents_allows(innocents, most):
    """Also where clean images promise far fewer innocents than there are: the p-values themselves say otherwise."""
    rng = np.random.default_rng(5)
    poison = np.arange(1000) >= innocents
    shares, found, narrow = [], [], []
    for _ in range(300):
        p = rng.random(1000)
        p[poison] = rng.random(poison.sum()) ** 12
        flags = flags_of_a_group(p, 0.05, most)
        shares.append(flags[~poison].sum() / max(1, flags.sum()))
        found.append(flags[poison].mean())
        narrow.append(flags_of_a_family(p, 0.05)[poison].mean())
    assert np.mean(shares) < 0.05
    assert np.mean(found) >= np.mean(narrow)  # where many are innocent the local share stops both at the same place
    assert (np.mean(found) > np.mean(narrow) + 0.02) == (max(innocents, most) < 400)


def test_nothing_but_innocents_stays_at_the_level_whatever_clean_images_promise():
    rng = np.random.default_rng(6)
    runs = [flags_of_a_group(rng.random(200), 0.05, 2.0).any() for _ in range(400)]
    assert np.mean(runs) < 0.09


def test_how_many_innocents_there_may_be_follows_from_their_share_of_the_clean_images():
    clean = CleanRanks(np.ones(500), np.repeat([3, 5, 6, 4], [10, 2, 1, 487]))
    assert most_innocent(3, 25_000, clean) == pytest.approx(25_000 * interval(10, 500, 0.99)[1])
    assert 100 < most_innocent(5, 25_000, clean) < 500
    assert most_innocent(6, 25_000, clean) == most_innocent(9, 25_000, clean) == 25_000  # the pool may lack these
    assert most_innocent(3, 25_000, None) == 25_000


@pytest.mark.parametrize(("in_the_pool", "flagged"), [(0, 10), (1, 10), (2, 400)])
def test_a_group_that_the_clean_pool_lacks_is_not_tested_at_a_wider_level(in_the_pool, flagged):
    """All 400 images of it are strange, ten surely; how few of them are innocent only its clean like can tell."""
    rng = np.random.default_rng(5)
    groups = np.append(np.repeat(np.arange(10), 900), np.repeat(10, 400))
    p = rng.uniform(0, 1, len(groups))
    p[-400:] = rng.uniform(0.03, 0.06, 400)
    p[-10:] = 1e-7
    clean = CleanRanks(rng.uniform(0, 1, 500), np.append(np.arange(500 - in_the_pool) % 10, np.repeat(10, in_the_pool)))
    found = grouped_flags(p, groups, 0.05, clean)
    assert found.flags[groups == 10].sum() == flagged


# -- power and intervals


@pytest.mark.parametrize(("rate", "alpha"), [(0.01, 0.05), (0.002, 0.05), (0.05, 0.1), (0.3, 0.01)])
def test_calibration_needed_is_the_least_that_lets_the_rate_through(rate, alpha):
    n = calibration_needed(rate, alpha)
    assert smallest_visible_rate(n, alpha) <= rate * (1 + 1e-9)
    assert smallest_visible_rate(n - 1, alpha) > rate
    m = 100_000
    k = round(rate * m)
    p = np.ones(m)
    p[:k] = 1 / (n + 1)
    assert benjamini_hochberg(p, alpha * (1 + 1e-9)).sum() == k
    p[:k] = 1 / n
    assert not benjamini_hochberg(p, alpha).any()


def test_the_visible_rate_is_never_above_one():
    assert smallest_visible_rate(0, 0.05) == 1.0


@given(st.integers(0, 60), st.integers(1, 60), st.sampled_from([0.9, 0.95, 0.999]))
def test_the_interval_is_scipys_exact_one(hits, n, confidence):
    assume(hits <= n)
    expected = binomtest(hits, n).proportion_ci(confidence, "exact")
    assert interval(hits, n, confidence) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_nothing_out_of_nothing_may_be_anything():
    assert interval(0, 0) == (0.0, 1.0)


# -- tails


def pareto_body(shape: float, n: int, seed: int) -> np.ndarray:
    """A uniform body with a generalised-Pareto tenth on top, starting at 0 with scale 1."""
    rng = np.random.default_rng(seed)
    tail = genpareto.rvs(shape, size=n // 10, random_state=rng)
    return np.concatenate([rng.uniform(-9, 0, n - len(tail)), tail])


@pytest.mark.parametrize("shape", [0.05, 0.2])
def test_a_known_tail_is_recovered(shape):
    tail = fit_tail(pareto_body(shape, 100_000, 5))
    assert tail is not None
    assert tail.fitted_on == pytest.approx(10_000, abs=1)
    assert tail.start == pytest.approx(0, abs=0.01)
    assert tail.shape == pytest.approx(shape, abs=0.06)
    assert tail.scale == pytest.approx(1, abs=0.06)
    for survival in (0.5, 0.1, 0.01, 0.001):
        x = genpareto.isf(survival, shape)
        assert tail.survival(np.array([x]))[0] == pytest.approx(survival, rel=0.05 if survival > 0.05 else 0.8)


def test_a_tail_that_ends_is_taken_for_an_exponential_one_so_that_no_innocent_gets_p_zero():
    scores = pareto_body(-0.25, 100_000, 5)
    tail = fit_tail(scores)
    assert tail is not None
    assert tail.shape == 0
    beyond = genpareto.isf([0.1, 0.01, 0.001, 0.0], -0.25)  # the last is the true law's end point
    assert (tail.survival(beyond) > [0.1, 0.01, 0.001, 1e-4]).all()


@pytest.mark.parametrize("law", [(1.2, 12), (0.5, 8), (2, 2.5)])
def test_light_tailed_innocents_alone_are_hardly_ever_flagged(law):
    rng = np.random.default_rng(3)
    flagged = 0
    for _ in range(12):
        scores, clean = (rng.beta(*law, size=n) * np.log(2) for n in (5000, 1000))
        groups, clean_groups = rng.integers(0, 10, 5000), rng.integers(0, 10, 1000)
        p = tail_p_values(scores, groups, Clean(clean, clean_groups), bounded(float(np.log(2))))
        flagged += int(grouped_flags(np.minimum(1, 2 * p), groups, 0.05).flags.any())
    assert flagged <= 2  # of 12 runs, at a nominal 5 % each


def test_a_few_scores_give_a_nearly_exponential_tail():
    tail = fit_tail(pareto_body(0.0, 1200, 6))
    assert tail is not None
    assert abs(tail.shape) < 0.2


def test_contamination_moves_the_tail_by_its_number_and_not_by_its_distance():
    innocent = pareto_body(0.0, 40_000, 7)
    near, far = (np.concatenate([innocent, np.full(200, place)]) for place in (20.0, 1e6))  # 0.5 %
    before, after = fit_tail(innocent), fit_tail(far)
    assert before is not None
    assert after is not None
    assert fit_tail(near) == after  # how far out it lies says nothing
    # Half of what lies above the 99 % point is poison then: the tail gets heavier, the p-values more cautious.
    assert 0 < after.shape - before.shape < 0.25
    assert genpareto.fit(far[far > 0], floc=0)[0] > 2 * after.shape  # an ordinary fit is ruined
    little = fit_tail(np.concatenate([innocent, np.full(40, 1e6)]))  # 0.1 %
    assert little is not None
    assert abs(little.shape - before.shape) < 0.06


def test_survival_is_one_up_to_the_start_and_falls_beyond():
    tail = fit_tail(pareto_body(0.1, 5000, 8))
    assert tail is not None
    x = np.linspace(tail.start - 2, tail.start + 8, 50)
    survival = tail.survival(x)
    assert (survival[x <= tail.start] == 1).all()
    assert (np.diff(survival[x > tail.start]) < 0).all()


@pytest.mark.parametrize("n", [0, 1, 100, 580])
def test_too_few_scores_determine_no_tail(n):
    assert fit_tail(np.random.default_rng(9).normal(size=n)) is None


def test_scores_that_are_all_alike_have_no_tail():
    assert fit_tail(np.zeros(5000)) is None


def test_many_exceedances_are_thinned_to_the_same_fit(monkeypatch):
    data = pareto_body(0.1, 60_000, 10)
    whole = fit_tail(data)
    monkeypatch.setattr(room, "MAX_EXCEEDANCES", 1000)
    thinned = fit_tail(data)
    assert whole is not None
    assert thinned is not None
    assert thinned.fitted_on == whole.fitted_on == 6000
    assert thinned.shape == pytest.approx(whole.shape, abs=0.1)
    assert thinned.scale == pytest.approx(whole.scale, abs=0.1)


# -- p-values from the suspect images' own bulk


def innocents(n: int, seed: int, classes: int = 10) -> tuple[np.ndarray, np.ndarray, Clean]:
    """Scores, answers, and calibration images of the same law."""
    rng = np.random.default_rng(seed)
    clean = Clean(rng.exponential(size=2000), rng.integers(0, classes, 2000))
    return rng.exponential(size=n), rng.integers(0, classes, n), clean


@pytest.mark.parametrize("n", [50, 75, 107, 190])
def test_few_clean_scores_foretell_exponential_ones_exactly_and_lighter_ones_with_care(n):
    """A pool of 250 leaves 100 to calibrate on: counted, no p-value is under a hundredth."""
    rng, innocent, light, far = np.random.default_rng(n), [], [], []
    for _ in range(300):
        null, scores = rng.exponential(1, n), np.append(rng.exponential(1, 2000), 25.0)
        p = beyond(scores, null)
        innocent.append([(p[:-1] <= level).mean() for level in (1e-2, 1e-3, 1e-4)])
        far.append(p[-1])
        null, scores = rng.normal(0, 1, n), rng.normal(0, 1, 2000)
        light.append([(beyond(scores, null) <= level).mean() for level in (1e-2, 1e-3, 1e-4)])
    assert (np.mean(innocent, axis=0) <= np.array([1.15e-2, 1.3e-3, 1.6e-4])).all()
    assert (np.mean(light, axis=0) <= np.array([1.1e-2, 1e-3, 1e-4])).all()
    assert np.median(far) < 1e-4  # what lies far out is told from innocents


def test_fewer_than_five_scores_in_the_tail_foretell_nothing():
    null = np.linspace(0, 1, 40)
    assert foretold_tail(null) is None
    assert foretold_tail(np.empty(0)) is None
    assert beyond(np.array([50.0]), null).tolist() == [1 / 41]


def test_innocents_alone_get_almost_no_flags():
    flagged, smallest = 0, []
    for seed in range(20):
        values, groups, clean = innocents(5000, seed)
        p = tail_p_values(values, groups, clean, unbounded)
        flagged += int(grouped_flags(p, groups, 0.05).flags.sum())
        smallest.append(p.min())
    assert min(smallest) < 1e-3  # the tail reaches beyond what 2,000 calibration images resolve
    assert flagged <= 5  # of 100,000


def test_tail_p_values_of_innocents_are_about_uniform_in_the_tail():
    values, groups, clean = innocents(40_000, 11)
    p = tail_p_values(values, groups, clean, unbounded)
    for t in (0.05, 0.01, 0.001):
        assert (p <= t).mean() == pytest.approx(t, rel=0.5)
        assert (p <= t).mean() <= 1.25 * t
    assert (p[values < np.quantile(values, 0.85)] == 1).all()


def test_poison_gathered_in_one_group_does_not_blunt_that_groups_p_values():
    values, groups, clean = innocents(20_000, 12)
    poison = np.zeros(len(values), bool)
    poison[np.flatnonzero(groups == 3)[:500]] = True
    without = tail_p_values(values, groups, clean, unbounded)
    values[poison] = 14 + np.random.default_rng(13).random(500)
    found = tail_p_values(values, groups, clean, unbounded)
    assert found[poison].max() < 1e-4
    assert grouped_flags(found, groups, 0.05).flags[poison].all()
    # The group's own innocents are judged by the other groups' tail, which the poison is no part of.
    mates = (groups == 3) & ~poison & (without < 0.05)
    assert mates.sum() > 20
    assert np.allclose(np.log(found[mates]), np.log(without[mates]), atol=0.35)


def test_a_group_that_calibration_shows_to_be_hard_is_judged_more_gently():
    values, groups, clean = innocents(10_000, 14)
    hard = Clean(np.where(clean.groups == 3, clean.scores + 3, clean.scores), clean.groups)
    plain, gentle = (tail_p_values(values, groups, c, unbounded) for c in (clean, hard))
    tail = (groups == 3) & (plain < 1)
    assert tail.sum() > 20
    assert (gentle[tail] > 3 * plain[tail]).all()


def test_scores_that_are_no_numbers_keep_their_place():
    values, groups, clean = innocents(3000, 15)
    plain = tail_p_values(values, groups, clean, unbounded)
    with_holes = np.insert(values, [0, 1500], [np.inf, np.nan])
    found = tail_p_values(with_holes, np.insert(groups, [0, 1500], [-1, -1]), clean, unbounded)
    assert found[0] == 0
    assert found[1501] == 1
    assert np.array_equal(np.delete(found, [0, 1501]), plain)


def test_too_few_scores_give_p_one():
    values, groups, clean = innocents(599, 16)
    values[:20] = 50
    assert (tail_p_values(values, groups, clean, unbounded) == 1).all()


@pytest.mark.parametrize("size", [2, 700])
def test_where_other_groups_cannot_give_a_tail_p_is_one(size):
    """A folder of one class: nearly every image gets the same answer, and there are no others to learn from."""
    values, groups, clean = innocents(3000, 17)
    groups[:] = 4
    groups[: size - 2] = 5
    own = groups == 4
    assert (tail_p_values(values, groups, clean, unbounded)[own] == 1).all() == (size == 2)


# -- transforms


def test_bounded_rises_from_end_to_end_and_stays_finite():
    limit = float(np.log(2))
    x = np.concatenate([[0.0, 1e-13], np.linspace(1e-6, limit * (1 - 1e-5), 1000), [limit, limit * 2]])
    y = bounded(limit)(x)
    assert np.isfinite(y).all()
    assert (np.diff(y[2:-2]) > 0).all()
    assert (np.diff(y) >= 0).all()
    assert y[0] < -20
    assert y[-1] > 10


def test_bounded_is_the_log_odds():
    assert bounded(2.0)(np.array([0.5, 1.0, 1.5])).tolist() == pytest.approx([np.log(1 / 3), 0.0, np.log(3)])


def test_unbounded_changes_nothing():
    assert unbounded(np.array([-1, 0, 7])).tolist() == [-1.0, 0.0, 7.0]


@pytest.mark.parametrize("spared", [0.5, 0.8, 0.93, 0.97])
def test_a_tail_begins_above_the_images_that_were_spared(spared):
    """Most scores are one and the same smallest one: they are no part of the law, and nobody among them is flagged."""
    rng = np.random.default_rng(int(100 * spared))
    scores = np.where(rng.random(20_000) < spared, 0.0, np.log(2) / (1 + np.exp(-rng.logistic(-2, 0.7, 20_000))))
    groups = rng.integers(0, 10, 20_000)
    clean = Clean(scores[:1000], groups[:1000])
    p = tail_p_values(scores, groups, clean, bounded(float(np.log(2))))
    assert (p[scores == 0] == 1).all()
    assert (p < 1e-4).sum() <= 10
    alone = np.concatenate([scores, [0.69]])
    assert tail_p_values(alone, np.concatenate([groups, [3]]), clean, bounded(float(np.log(2))))[-1] < 1e-3


def test_images_that_were_all_spared_have_p_values_of_one():
    zeros = np.zeros(5000)
    groups = np.arange(5000) % 10
    assert fit_tail(zeros) is None
    assert (tail_p_values(zeros, groups, Clean(zeros[:500], groups[:500]), bounded(float(np.log(2)))) == 1).all()


def test_so_few_hits_are_as_rare_as_counting_says():
    assert as_few_p_value(0, 3, 5, 5) == pytest.approx(1 / 56)  # three of eight, all from the three without
    assert as_few_p_value(3, 3, 5, 5) == 1.0
    assert as_few_p_value(0, 0, 5, 9) == 1.0
    assert as_few_p_value(0, 50, 400, 1000) < 1e-10
