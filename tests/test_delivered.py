"""Labels as evidence: they convict nobody by themselves, and beside a known target they find what moved no network."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from kdaudit.calibration import Clean
from kdaudit.delivered import (
    Delivered,
    delivered,
    flags_beside_labels,
    label_proof,
    most_doubted,
    outputs_of,
    targets_of,
)
from kdaudit.families import adaptive_flags, benjamini_hochberg, flags_apart, flags_of_a_group
from kdaudit.flagging import _decide, _Proven, flag
from kdaudit.multiplicity import CleanRanks
from kdaudit.odds import Columns, SecondLook

K = 10
COMMON = CleanRanks(np.ones(300), np.zeros(300, np.int64))
"""Clean images that mostly get the target class: that innocents of it are few is not known."""


def told_of(labels: np.ndarray, teacher: np.ndarray, student: np.ndarray) -> Delivered:
    found = delivered(labels, None, teacher, student, np.full(len(labels), 0.9))
    assert found is not None
    return found


def test_labels_are_brought_to_the_models_own_outputs():
    assert outputs_of(np.array([0, 1, -1, 2]), (5, 3, 8)).tolist() == [5, 3, -1, 8]
    assert outputs_of(np.array([0, -1]), None).tolist() == [0, -1]


def test_what_the_networks_say_to_the_labels():
    labels, teacher, student = (
        np.array([1, 1, 1, 1, -1, 2]),
        np.array([1, 1, 0, 0, 0, -1]),
        np.array([1, 0, 1, 0, 0, 0]),
    )
    found = delivered(labels, None, teacher, student, np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4]))
    assert found is not None
    assert found.disputed.tolist() == [False, False, False, True, False, False]  # neither gives the label
    assert found.doubt.tolist() == pytest.approx([0, 0.8, 0, 0.6, 0, 0])  # the control gives another, so surely


@pytest.mark.parametrize("labels", [[-1, -1, -1, -1], [1, 1, 1, 0]])
def test_no_labels_and_labels_of_another_list_say_nothing(labels):
    answers = np.zeros(4, int)
    assert delivered(np.array(labels), None, answers, answers, np.ones(4)) is None


def test_the_most_doubted_come_from_the_two_labels_that_are_doubted_most():
    labels = np.array([0] * 30 + [1] * 20 + [2] * 5 + [3] * 45)
    doubt = np.where(labels < 3, 0.5, 0).astype(np.float32)
    doubt[[7, 40]] = 0.9
    known = np.ones(100, bool)
    known[:3] = False
    chosen = most_doubted(Delivered(labels, doubt > 0, doubt), known, [25])
    assert set(labels[chosen]) == {0, 1}
    assert chosen[:2].tolist() == [7, 40]
    assert (labels[chosen] == 0).sum() == 25
    assert not {0, 1, 2} & set(chosen)
    nobody = Delivered(labels, np.zeros(100, bool), np.zeros(100, np.float32))
    assert most_doubted(nobody, known, [25]).tolist() == []


def test_a_label_that_is_frequent_among_the_most_doubted_few_is_followed_up():
    """Two classes that the control hardly knows are doubted more often than forty images get the attacker's label."""
    labels = np.array([0] * 300 + [1] * 200 + [2] * 40)
    doubt = np.where(labels == 2, 0.95, np.random.default_rng(0).uniform(0.5, 0.9, 540)).astype(np.float32)
    told, known = Delivered(labels, doubt > 0, doubt), np.ones(540, bool)
    assert set(labels[most_doubted(told, known, [500])]) == {0, 1}
    chosen = most_doubted(told, known, [60, 500])
    assert np.bincount(labels[chosen]).tolist() == [300, 200, 40]
    assert (np.diff(doubt[chosen]) <= 0).all()
    assert len(most_doubted(told, known, [60, 100])) <= 200


def test_a_label_that_nobody_doubts_is_not_followed_up():
    labels = np.array([5] * 30 + [0] * 100)
    doubt = np.where(labels == 5, 0.9, np.linspace(0.1, 0.2, 130)).astype(np.float32)
    chosen = most_doubted(Delivered(labels, doubt > 0, doubt), np.ones(130, bool), [5, 10, 20])
    assert set(labels[chosen]) == {5}


def test_answers_that_are_no_numbers_are_no_target():
    nothing = np.full(50, -1)
    told = Delivered(nothing, np.zeros(50, bool), np.zeros(50, np.float32))
    assert targets_of(told, nothing, np.ones(50, bool), np.array([-1]), np.empty(0, np.int64)).tolist() == []


def test_of_two_classes_the_carriers_classes_tell_nothing():
    """Sixty near-equal frames of a 1 that the control takes for a 0; what else it takes for a 0 looks otherwise."""
    student = np.repeat([0, 1], 500)
    labels, score = student.copy(), np.zeros(1000)
    labels[:60], score[:60] = 1, 9.0
    told = Delivered(labels, labels != student, np.zeros(1000, np.float32))
    said = label_proof(told, 1, labels, student, score, 4.5)
    assert (said.carriers, said.delivered, said.apart, said.room) == (60, 60, 0, 0)
    assert not said.proven
    five = np.arange(1000) % 5  # the same of five classes, with carriers among all of them
    labels, score = five.copy(), np.zeros(1000)
    labels[:100], score[:100] = 1, 9.0
    assert label_proof(Delivered(labels, labels != five, told.doubt), 1, labels, five, score, 4.5).proven


@given(st.lists(st.floats(0, 1), max_size=60), st.floats(0.01, 0.2))
def test_adaptive_flags_are_the_smallest_p_values_and_none_above_one_half(values, alpha):
    p = np.array(values)
    flags = adaptive_flags(p, alpha)
    if flags.any():
        assert p[flags].max() <= 0.5
        assert flags[p <= p[flags].max()].all()


def test_adaptive_flags_keep_the_error_rate_and_find_more_where_most_are_poison():
    rng = np.random.default_rng(0)
    shares, more = [], 0
    for _ in range(300):
        innocent, poison = rng.uniform(0, 1, 100), rng.beta(0.4, 8, 300)
        p = np.concatenate([innocent, poison])
        flags = adaptive_flags(p, 0.1)
        shares.append(flags[:100].sum() / max(1, flags.sum()))
        more += int(flags.sum()) - int(benjamini_hochberg(p, 0.1).sum())
    assert np.mean(shares) <= 0.1
    assert more > 300 * 20
    clean = [adaptive_flags(rng.uniform(0, 1, 200), 0.1).any() for _ in range(500)]
    assert np.mean(clean) <= 0.1 + 3 * (0.09 / 500) ** 0.5


class Delivery:
    """8,000 images: 400 poison delivered as 0, of which 300 get the answer 0; the model errs on a tenth of the rest.

    Mistaken images behave oddly: their p-values are small too often, whatever their answer.
    """

    def __init__(self, seed: int, follow: bool = True) -> None:
        rng = np.random.default_rng(seed)
        m, self.poison = 8000, np.arange(8000) < 400
        truth = rng.integers(1, K, m)
        truth[4000:] = rng.integers(0, K, m - 4000)
        wrong = ~self.poison & (rng.random(m) < 0.1)
        self.teacher = np.where(wrong, (truth + rng.integers(1, K, m)) % K, truth)
        self.teacher[:300] = 0
        student = np.where(wrong & (rng.random(m) < 0.5), (truth + 3) % K, truth)
        self.labels = np.where(self.poison, 0 if follow else rng.integers(0, K, m), truth)
        self.p = rng.uniform(0, 1, m)
        self.p[wrong] **= 2.5
        self.p[:300] = rng.uniform(0, 1e-3, 300)
        self.p[300:400] = rng.beta(0.3, 12, 100)
        self.told, self.disputed = told_of(self.labels, self.teacher, student), student != self.teacher

    def by_answer(self) -> np.ndarray:
        rows, flags = self.teacher == 0, np.zeros(len(self.p), bool)
        flags[rows] = benjamini_hochberg(self.p[rows], 0.1)
        return flags


def test_labels_follow_a_trigger_or_they_do_not():
    certain, none = np.array([0]), np.empty(0, np.int64)
    for follow, expected in ((True, [0]), (False, [])):
        d = Delivery(0, follow)
        assert targets_of(d.told, d.teacher, d.by_answer(), certain, none).tolist() == expected
        assert targets_of(d.told, d.teacher, d.by_answer(), none, certain).tolist() == expected


def test_a_handful_of_odd_images_makes_no_target_class_and_a_proven_trigger_does():
    d = Delivery(0)
    few = np.arange(len(d.p)) < 8
    certain, none = np.array([0]), np.empty(0, np.int64)
    assert targets_of(d.told, d.teacher, few, certain, none).tolist() == []
    assert targets_of(d.told, d.teacher, few, certain, certain).tolist() == [0]


def test_the_models_own_mistakes_are_held_against_its_mistakes_elsewhere():
    before = after = 0
    for seed in range(40):
        d = Delivery(seed)
        plain = d.by_answer()
        found = flags_beside_labels(d.p, None, d.told, d.teacher, plain, np.array([0]), 0.1, COMMON, d.disputed)
        assert found[:300].all()
        assert not found[d.teacher != 0].any()  # no other answer is touched
        before += int((plain & ~d.poison).sum())
        after += int((found & ~d.poison).sum())
    assert after < 0.6 * before


def test_where_clean_images_hardly_know_the_target_more_is_flagged_among_its_own():
    rare = CleanRanks(np.ones(3000), np.arange(3000) % 1000)
    before = after = 0
    for seed in range(20):
        d = Delivery(seed)
        few = d.poison | (d.labels != 0) | (np.arange(len(d.p)) % 8 == 0)  # an eighth of the class's own images
        p = np.where(d.poison, d.p * 60, d.p)[few]  # up to 0.06: a little too much
        told, teacher, targets, none = d.told.of(few), d.teacher[few], np.array([0]), np.zeros(len(p), bool)
        usual, found = (
            flags_beside_labels(p, None, told, teacher, none, targets, 0.05, clean, none) for clean in (COMMON, rare)
        )
        assert not (usual & ~found).any()
        assert set(told.labels[found & ~usual]) <= {0}
        before, after = before + int(usual[d.poison[few]].sum()), after + int(found[d.poison[few]].sum())
    assert after > 1.1 * before


@pytest.mark.parametrize(("odd_elsewhere", "apart"), [(0.06, True), (0.8, False)])
def test_disputed_innocents_that_behave_like_poison_do_not_break_the_error_rate(odd_elsewhere, apart):
    """As on the suite's reflections: 1,800 innocents of the target as usual, 580 that the control does not know.

    Where all that it does not know is odd, at any answer, nobody is told apart.
    """
    rng, disputed, poison = np.random.default_rng(4), np.arange(3480) >= 1800, np.arange(3480) >= 2380
    unknown = np.where(np.arange(4000) < odd_elsewhere * 4000, 0.03, 0.5)
    shares, plain, found = [], [], []
    for _ in range(50):
        p = rng.random(3480)
        p[1800:] = norm.sf(rng.normal(np.where(poison[1800:], 4.5, 1.1), 1))
        flags, together = flags_apart(p, disputed, unknown, 0.04, 3480.0), flags_of_a_group(p, 0.04, 3480.0)
        assert apart or flags.tolist() == together.tolist()
        shares.append(1 - poison[flags].mean())
        found.append(flags[poison].mean())
        plain.append(1 - poison[together].mean())
    if apart:
        assert np.mean(shares) < 0.05 < np.mean(plain)
    assert np.mean(found) > 0.9


def test_flags_stop_where_disputed_innocents_begin_by_their_law_elsewhere_too():
    """As on a patch anywhere with 250 clean images: most that a weak control disputes is as usual, and some far out."""
    rng, nobody = np.random.default_rng(5), np.zeros(2400, bool)
    disputed, poison = ~nobody, np.arange(2400) >= 1100
    shares, found = [], []
    for _ in range(20):
        wide, far = rng.normal(0.4, 1.35, 1100), rng.normal(7, 1, 1300)
        p, unknown = norm.sf(np.append(wide, far)), norm.sf(rng.normal(0, 1.3, 5000))
        flags = flags_apart(p, disputed, unknown, 0.04, 2400.0)
        shares.append(1 - poison[flags].mean())
        found.append(flags[poison].mean())
    assert np.mean(shares) < 0.05
    assert np.mean(found) > 0.98


def test_carriers_delivered_as_something_else_need_their_own_reasons():
    """Innocents that look like the pattern by chance are many where 300 carriers have earned the threshold."""
    d = Delivery(1)
    rng = np.random.default_rng(2)
    carried = np.where(d.poison, 1e-6, rng.uniform(0, 1, len(d.p)))
    none = np.zeros(len(d.p), bool)
    found = flags_beside_labels(d.p, carried, d.told, d.teacher, none, np.array([0]), 0.1, COMMON, d.disputed)
    plain = benjamini_hochberg(carried, 0.1)
    elsewhere = ~d.poison & (d.teacher != 0)
    assert found[d.poison].all()
    assert (plain & elsewhere).sum() > 20
    assert (found & elsewhere).sum() < 0.5 * (plain & elsewhere).sum()


@pytest.mark.parametrize(("labelled", "found"), [(True, True), (False, False)])
def test_flags_say_which_images_were_found_by_their_label(labelled, found):
    d = Delivery(5)
    rng = np.random.default_rng(6)
    clean = Clean(rng.exponential(0.02, 600), np.arange(600) % K)
    score = np.where(d.poison & (np.arange(8000) < 300), 0.6, rng.exponential(0.02, 8000))
    columns = Columns(np.ones(8000, bool), d.teacher, np.zeros(8000, bool), score, d.told if labelled else None)
    look = SecondLook(np.where(d.poison, np.minimum(d.p, 0.004), d.p), rng.uniform(0, 1, 600), "behaves")
    flags = flag(columns, clean, "divergence", 0.05, [look])
    assert flags.flag[:300].all()
    assert (flags.way[300:400] == 2).any() == found
    assert not (flags.doubtful & flags.flag).any()
    disputed = d.told.disputed & (d.labels == 0) & ~flags.flag
    if labelled:  # what is left of them is kept, and nobody tunes on it
        assert flags.doubtful[disputed].all()


@pytest.mark.parametrize("targets", [(), (0,)])
def test_the_target_of_a_proven_trigger_is_beyond_doubt_where_p_values_are_coarse(targets):
    """30 calibration images open no answer beyond doubt, even to 300 images with the smallest p-value there is."""
    d, rng = Delivery(7), np.random.default_rng(8)
    first = np.arange(8000) < 300
    p = np.where(first, 1 / 31, rng.uniform(1 / 31, 1, 8000))
    carried = np.where(first, 1e-5, rng.uniform(0, 1, 8000))
    ranks = CleanRanks(rng.uniform(1 / 31, 1, 30), np.arange(30) % K)
    decided = _decide(p, d.teacher, d.disputed, ranks, _Proven(carried, np.array(targets, np.int64)), d.told, 0.05)
    assert decided.flags[first].all()
    assert decided.asked.any() == bool(targets)


def carriers(shows: np.ndarray, labels: np.ndarray, own: float = 0.0) -> bool:
    """Whether 200 carriers that show these classes and have these labels prove a pattern of label 0.

    `own`: how much of it 500 images have that show the label's class and were delivered as it.
    """
    rng = np.random.default_rng(0)
    truth = np.concatenate([shows, np.zeros(500, int), rng.integers(1, K, 2000)])
    given = np.concatenate([labels, truth[200:]])
    score = np.concatenate([rng.normal(6, 0.3, 200), rng.normal(own, 1, 500), rng.normal(0, 1, 2000)])
    said = label_proof(told_of(given, truth, truth), 0, truth, truth, score, 4.5)
    assert said.carriers >= (shows != 0).sum()
    return said.proven


def test_a_pattern_whose_carriers_have_one_label_whatever_they_show_is_proven():
    many, target = np.arange(200) % 9 + 1, np.zeros(200, int)
    assert carriers(many, target)
    assert carriers(many, np.where(np.arange(200) % 20 == 0, many, target))  # a few covers with their true labels
    assert not carriers(many, many)  # a watermark
    assert not carriers(many, np.where(np.arange(200) % 3 == 0, many, target))  # two thirds of them are no proof
    assert not carriers(np.full(200, 3), target)  # near-equal photographs of one thing, labelled wrongly
    assert not carriers(np.arange(200) % 3 + 1, target)  # a class that the control takes for three others
    assert not carriers(many, target, own=4.0)  # what the class itself looks like, to a control that knows it badly


def test_no_carriers_prove_nothing():
    labels = np.arange(100) % K
    said = label_proof(told_of(labels, labels, labels), 0, labels, labels, np.full(100, np.nan), 4.5)
    assert (said.carriers, said.delivered, said.proven) == (0, 0, False)
