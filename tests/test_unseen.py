"""A patch on what has its colour already: the pixels under it are right, and the label is one that no network gives."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_delivered import K, told_of

from kdaudit.calibration import Clean
from kdaudit.flagging import flag
from kdaudit.odds import Columns, SecondLook
from kdaudit.unseen import Worn, wearing

M, SEEN, UNSEEN = 8000, 400, 60


class Corners:
    """8,000 images; 400 poison ones are flagged already, 60 have the corner's colour by nature and moved nothing.

    The target is 0, or any class. Of the innocents 3 % have such a corner, or `own` of class 0 and `odd` of those whose
    label the control doubts (a tenth); half of these have a wrong label.
    """

    def __init__(self, seed: int, unseen: int = UNSEEN, own: float = 0.03, odd: float = 0.03, label: int | None = 0):
        rng = np.random.default_rng(seed)
        truth, self.label = rng.integers(0, K, M), label
        first, self.flags = np.arange(M) < SEEN + unseen, np.arange(M) < SEEN
        self.poison = first
        truth[first] = rng.integers(1, K, first.sum())
        other = (truth + rng.integers(1, K, M)) % K
        hard = ~first & (rng.random(M) < 0.1)
        wrong = hard & (rng.random(M) < 0.5)
        self.student = np.where(hard & ~wrong, other, truth)
        self.labels = np.where(wrong, other, truth)
        self.labels[first] = 0 if label == 0 else other[first]
        self.teacher = np.where(self.flags, self.labels, truth)
        self.told = told_of(self.labels, self.teacher, self.student)
        white = rng.random(M) < np.where(hard, odd, np.where(truth == 0, own, 0.03))
        self.departure = np.where(white, rng.gamma(4, 1, M), rng.uniform(20, 120, M))
        self.departure[first] = rng.gamma(4, 0.3, first.sum())
        self.p = np.where(self.flags, 1e-9, rng.random(M))
        clean = np.where(rng.random(1000) < 0.03, rng.gamma(4, 1, 1000), rng.uniform(20, 120, 1000))
        self.worn = Worn(label, self.departure.astype(np.float32), clean)

    def found(self, share: float = 0.005) -> np.ndarray:
        return wearing([self.worn], self.told, self.teacher, self.p, self.flags, share)


@pytest.mark.parametrize("label", [0, None])
def test_a_patch_that_cannot_be_seen_is_found_by_its_pixels_and_a_label_that_no_network_gives(label):
    hits, wrong, flagged = 0, 0, 0
    for seed in range(40):
        d = Corners(seed, label=label)
        found = d.found()
        assert not (found & (d.flags | ~d.told.disputed)).any()
        assert label is None or (d.labels[found] == label).all()
        hits, wrong = hits + int((found & d.poison).sum()), wrong + int((found & ~d.poison).sum())
        flagged += int((found | d.flags).sum())
    assert hits > 40 * UNSEEN * (0.9 if label == 0 else 0.4)
    assert wrong <= 0.005 * flagged


@pytest.mark.parametrize("reason", [{"own": 0.3}, {"odd": 0.3}, {"odd": 0.3, "label": None}])
def test_corners_that_the_class_or_odd_pictures_have_by_nature_flag_no_more_than_allowed(reason):
    wrong = flagged = 0
    for seed in range(60):
        d = Corners(seed, unseen=0, **reason)
        found = d.found()
        wrong, flagged = wrong + int(found.sum()), flagged + int((found | d.flags).sum())
    assert wrong <= 0.005 * flagged + 3 * (0.005 * flagged) ** 0.5


def test_innocents_of_another_target_are_not_asked():
    d = Corners(3)
    other = Worn(7, np.zeros(M, np.float32), d.worn.clean)  # all wear it
    found = wearing([d.worn, other], d.told, d.teacher, d.p, d.flags, 0.005)
    assert found[SEEN : SEEN + UNSEEN].sum() > 0.9 * UNSEEN
    assert not (found & (d.labels == 7)).any()  # as do the undisputed ones: no sign of anything
    assert not wearing([], d.told, d.teacher, d.p, d.flags, 0.005).any()


def test_without_one_of_the_three_kinds_nothing_is_rare():
    d = Corners(4)
    for rows in (d.told.doubt > 0, (d.told.doubt == 0) | d.told.disputed & (d.labels == 0)):
        some = wearing([d.worn.of(rows)], d.told.of(rows), d.teacher[rows], d.p[rows], d.flags[rows], 0.005)
        assert not some.any()
    assert not wearing([Worn(0, d.departure, np.empty(0))], d.told, d.teacher, d.p, d.flags, 0.005).any()


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.floats(0.0, 0.02))
def test_a_larger_share_flags_no_fewer(seed, share):
    d = Corners(seed)
    assert not (d.found(share) & ~d.found(share * 1.5)).any()


def test_flags_of_a_second_look_include_them_and_leave_unread_images_alone():
    d, rng = Corners(6), np.random.default_rng(7)
    read = np.arange(M) % 13 > 0
    columns = Columns(read, d.teacher, d.teacher != d.student, rng.exponential(0.02, M), d.told)
    clean = Clean(rng.exponential(0.02, 600), np.arange(600) % K)
    unseen = read & d.poison & ~d.flags
    for worn, more in (((), False), ((d.worn,), True)):
        look = SecondLook(d.p, rng.uniform(0, 1, 600), "carries", proven=True, targets=(0,), worn=worn)
        flags = flag(columns, clean, "divergence", 0.05, [look])
        assert not flags.flag[~read].any()
        assert flags.flag[read & d.flags].mean() > 0.99
        assert (flags.flag[unseen].mean() > 0.9) == more
        assert (
            (flags.way[unseen & flags.flag] == 3).mean() > 0.9
        ) == more  # neither the score, the look nor the label alone
