"""Disputed labels of a target class: poison that moved nothing, beside wrong labels and hard images."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_delivered import Delivery, K, told_of

from kdaudit.calibration import Clean
from kdaudit.disputed import Remainder, delivered_as_targets, innocents_at_most, remainder
from kdaudit.flagging import flag
from kdaudit.odds import Columns, SecondLook


def test_poison_that_moved_no_network_is_found_by_its_label():
    shares, hits = [], 0
    for seed in range(60):
        d = Delivery(seed)
        further, asked = delivered_as_targets(d.p, d.told, d.by_answer(), d.by_answer(), np.array([0]), 0.1)
        assert asked[300:400].all()
        assert not (further & ~asked).any()
        assert (d.labels[asked] == 0).all()
        hits += int(further[300:400].sum())
        shares.append((further & ~d.poison).sum() / max(1, further.sum()))
    assert hits > 60 * 40
    assert np.mean(shares) <= 0.1


def test_wrong_labels_beside_a_target_class_are_no_poison():
    """Label noise: images disputed for innocent reasons, as odd at the target's label as at any other."""
    rng = np.random.default_rng(3)
    flagged = 0
    for _ in range(200):
        m = 3000
        teacher = rng.integers(0, K, m)
        labels = np.where(rng.random(m) < 0.2, rng.integers(0, K, m), teacher)
        told = told_of(labels, teacher, teacher)
        p, nobody = rng.uniform(0, 1, m) ** 3, np.zeros(m, bool)  # all of them odd to clean images
        further, asked = delivered_as_targets(p, told, nobody, nobody, np.array([0]), 0.1)
        assert asked.sum() > 30
        flagged += bool(further.any())
    assert flagged <= 200 * 0.1 + 3 * (200 * 0.09) ** 0.5


def test_without_other_disputed_labels_nobody_can_be_asked():
    labels, nobody = np.array([0] * 10 + [1] * 30), np.zeros(40, bool)
    answers = np.ones(40, int)
    further, asked = delivered_as_targets(
        np.full(40, 1e-6), told_of(labels, answers, answers), nobody, nobody, np.array([0]), 0.1
    )
    assert not further.any()
    assert not asked.any()


def half_taken_up(rate: float, seed: int, wrong: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Twenty classes of 100; 300 poison images delivered as 0 moved nothing, `wrong` innocents were labelled 0.

    Every class is disputed at the rate. Returns labels, answers, and who is poison.
    """
    rng = np.random.default_rng(seed)
    truth = np.concatenate([np.repeat(np.arange(20), 100), rng.integers(1, 20, 300 + wrong)])
    labels = np.where(np.arange(len(truth)) < 2000, truth, 0)
    answers = np.where((np.arange(len(truth)) < 2000) & (rng.random(len(truth)) < rate), (truth + 7) % 20, truth)
    return labels, answers, (np.arange(len(truth)) >= 2000) & (np.arange(len(truth)) < 2300)


@pytest.mark.parametrize(("rate", "all_of_them"), [(0.01, True), (0.05, True), (0.4, False)])
def test_where_other_labels_are_rarely_disputed_those_of_a_target_are_poison(rate, all_of_them):
    """Whatever their p-values: a model that took a trigger up by half behaves on the rest as on any image."""
    shares, found = [], []
    for seed in range(40):
        labels, answers, poison = half_taken_up(rate, seed)
        told, nobody = told_of(labels, answers, answers), np.zeros(len(labels), bool)
        p = np.random.default_rng(seed).random(len(labels))
        further, asked = delivered_as_targets(p, told, nobody, nobody, np.array([0]), 0.1)
        assert asked[poison].all()
        shares.append((further & ~poison).sum() / max(1, further.sum()))
        found.append(further[poison].mean())
    assert np.mean(shares) <= 0.1
    assert (np.mean(found) == 1) == all_of_them
    assert np.mean(found) > 0.99 or not all_of_them


def test_how_many_innocents_a_target_has_follows_from_the_label_that_is_disputed_most():
    labels, answers, _ = half_taken_up(0.0, 0)
    answers[300:310] = 9  # ten of the hundred delivered as 3
    told, left = told_of(labels, answers, answers), np.ones(len(labels), bool)
    worst = 11 / 101
    assert innocents_at_most(told, left, 0, np.array([0])) == pytest.approx(100 * worst / (1 - worst))
    assert innocents_at_most(told, left, 0, np.array([0, 3])) < 1.1  # a target's own labels are no yardstick
    assert innocents_at_most(told, left & (labels < 5), 0, np.array([0])) == float("inf")
    left[:50] = False  # flagged already
    assert innocents_at_most(told, left, 0, np.array([0])) == pytest.approx(50 * worst / (1 - worst))


class Faint:
    """6,000 images; 150 poison ones, delivered as 0, moved nothing and carry something faint (two deviations).

    A twentieth of all labels is wrong besides. `look`: how much of the same the class 0 itself shows.
    """

    def __init__(self, seed: int, faint: float = 2.0, look: float = 0.0, hard: float = 0.0) -> None:
        rng, m = np.random.default_rng(seed), 6000
        truth = rng.integers(0, K, m)
        truth[:150] = rng.integers(1, K, 150)
        self.poison = np.arange(m) < 150
        noisy = ~self.poison & (rng.random(m) < 0.05)
        self.labels = np.where(noisy, rng.integers(0, K, m), truth)
        self.labels[:150] = 0
        self.told, self.answers = told_of(self.labels, truth, truth), truth
        self.score = rng.normal(0, 1, m) + faint * self.poison + look * (self.labels == 0) * ~self.poison
        self.score += hard * self.told.disputed * ~self.poison
        self.clean = rng.normal(0, 1, 1000)
        self.p = rng.uniform(0, 1, m)

    def flags(self, alpha: float = 0.1) -> np.ndarray:
        nobody = np.zeros(len(self.p), bool)
        shared = remainder(self.told, 0, self.answers, self.answers, self.score, self.clean, 0.0)
        return delivered_as_targets(self.p, self.told, nobody, nobody, np.array([0]), alpha, [shared])[0]


def test_faint_poison_is_found_by_what_it_shares_and_the_error_rate_is_kept():
    shares, hits, without = [], 0, 0
    for seed in range(60):
        d, nobody = Faint(seed), np.zeros(6000, bool)
        found = d.flags()
        assert (d.labels[found] == 0).all()
        hits += int(found[:150].sum())
        shares.append((found & ~d.poison).sum() / max(1, found.sum()))
        without += int(delivered_as_targets(d.p, d.told, nobody, nobody, np.array([0]), 0.1)[0].sum())
    assert hits > 60 * 75
    assert np.mean(shares) <= 0.1
    assert without < 60


@pytest.mark.parametrize("reason", [{"look": 2.0}, {"hard": 2.0}, {}])
def test_what_the_class_or_hard_images_share_by_themselves_flags_nobody(reason):
    flagged = sum(Faint(seed, faint=0.0, **reason).flags().any() for seed in range(100))
    assert flagged <= 100 * 0.1 + 3 * (100 * 0.09) ** 0.5


@settings(max_examples=50)
@given(st.integers(0, 10_000), st.integers(0, K - 1))
def test_only_disputed_images_of_the_class_are_asked_and_none_is_sure_beyond_its_yardsticks(seed, label):
    d = Faint(seed)
    d.score[::7] = np.nan  # not read
    shared = remainder(d.told, label, d.answers, d.answers, d.score, d.clean, 0.0)
    assert shared.label == label
    assert (shared.p_values > 0).all()
    assert (shared.p_values <= 1).all()
    asked = d.told.disputed & (d.labels == label) & ~np.isnan(d.score)
    assert (shared.p_values[~asked] == 1).all()
    assert (shared.p_values >= 1 / (1 + len(d.clean))).all()


def test_without_a_yardstick_nothing_is_rare():
    """No image of the class is undisputed: what it looks like is not known."""
    d = Faint(0)
    known = d.told.disputed | (d.labels != 0)
    few = remainder(d.told.of(known), 0, d.answers[known], d.answers[known], d.score[known], d.clean, 0.0)
    assert (few.p_values == 1).all()


def test_a_look_hands_on_what_is_shared_to_the_images_that_were_read():
    d = Faint(3, faint=4.0)
    rng = np.random.default_rng(4)
    read = np.ones(6000, bool)
    read[::11] = False
    shared = remainder(d.told, 0, d.answers, d.answers, d.score, d.clean, 0.0)
    carries = np.where(np.arange(6000) < 30, 1e-7, d.p)  # thirty carry a proven trigger as well
    columns = Columns(read, d.answers, np.zeros(6000, bool), rng.exponential(0.02, 6000), d.told)
    clean = Clean(rng.exponential(0.02, 600), np.arange(600) % K)
    for remains, more in (((), False), ((shared,), True)):
        look = SecondLook(carries, rng.uniform(0, 1, 600), "carries", proven=True, targets=(0,), shared=remains)
        flags = flag(columns, clean, "divergence", 0.05, [look])
        assert not flags.flag[~read].any()
        assert (flags.flag[30:150].sum() > 60) == more
        assert isinstance(flags.by_label, np.ndarray) == more


def test_a_remainder_of_another_class_is_not_asked():
    d, nobody = Faint(5), np.zeros(6000, bool)
    other = Remainder(7, np.full(6000, 1e-9))
    assert not delivered_as_targets(d.p, d.told, nobody, nobody, np.array([0]), 0.1, [other])[0].any()
