"""Divergences against scipy and closed forms, in float64."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import special
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy

from kdaudit.divergence import answers, jensen_shannon, kl, log_softmax

LN2 = np.log(2.0)


def random_pair(n: int = 200, classes: int = 7, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits from nearly equal to far apart."""
    rng = np.random.default_rng(seed)
    teacher = rng.normal(0, 4, (n, classes))
    return teacher, teacher + rng.normal(0, 1, (n, classes)) * np.geomspace(1e-4, 30, n)[:, None]


pairs = hnp.arrays(np.float64, (2, 3, 4), elements=st.floats(-50, 50))


def test_the_log_softmax_is_scipys_and_sums_to_one():
    logits, _ = random_pair()
    assert np.allclose(log_softmax(logits), special.log_softmax(logits, axis=1), rtol=0, atol=1e-12)
    assert np.allclose(np.exp(log_softmax(logits)).sum(1), 1)


def test_the_log_softmax_is_float64_whatever_comes_in():
    logits, _ = random_pair()
    for kind in (np.float16, np.float32, np.float64):
        assert log_softmax(logits.astype(kind)).dtype == np.float64


def test_jensen_shannon_is_scipys_squared_distance():
    teacher, student = random_pair()
    found = jensen_shannon(teacher, student)
    expected = jensenshannon(special.softmax(teacher, 1), special.softmax(student, 1), axis=1) ** 2
    assert np.ptp(found) > 0.5  # the inputs reach from agreement to contradiction
    assert np.allclose(found, expected, rtol=1e-6, atol=1e-10)


def test_kl_is_scipys_relative_entropy():
    teacher, student = random_pair()
    found = kl(teacher, student)
    assert np.ptp(found) > 5
    assert np.allclose(found, entropy(special.softmax(teacher, 1), special.softmax(student, 1), axis=1), atol=1e-9)


def test_two_classes_follow_the_closed_form():
    p, q = 0.9, 0.2
    m = (p + q) / 2

    def h(x: float) -> float:
        return -x * np.log(x) - (1 - x) * np.log(1 - x)

    teacher, student = np.log([[p, 1 - p]]), np.log([[q, 1 - q]])
    assert jensen_shannon(teacher, student)[0] == pytest.approx(h(m) - (h(p) + h(q)) / 2, abs=1e-15)
    assert kl(teacher, student)[0] == pytest.approx(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)), abs=1e-15)


@given(pairs)
def test_jensen_shannon_is_symmetric_and_between_zero_and_ln_2(pair):
    one, other = jensen_shannon(*pair), jensen_shannon(*pair[::-1])
    assert np.allclose(one, other, rtol=0, atol=1e-14)
    assert ((one >= 0) & (one <= LN2)).all()


@given(pairs)
def test_equal_rows_have_no_divergence(pair):
    assert (jensen_shannon(pair[0], pair[0]) < 1e-14).all()  # a rounding error of log 2 is left
    assert (kl(pair[0], pair[0]) == 0).all()


@given(pairs, st.floats(-1e3, 1e3))
def test_a_constant_added_to_a_row_changes_nothing(pair, constant):
    moved = pair + constant
    assert np.allclose(jensen_shannon(*moved), jensen_shannon(*pair), rtol=0, atol=1e-9)
    assert np.allclose(kl(*moved), kl(*pair), rtol=1e-9, atol=1e-9)


def test_log_probabilities_serve_as_logits():
    teacher, student = random_pair()
    assert np.allclose(
        jensen_shannon(log_softmax(teacher), log_softmax(student)), jensen_shannon(teacher, student), atol=1e-13
    )


def test_extreme_logits_give_the_extremes_and_no_warning():
    sure = np.array([[1e4, 0.0, -1e4]])
    assert jensen_shannon(sure, sure)[0] == 0
    assert jensen_shannon(sure, sure[:, ::-1])[0] == pytest.approx(LN2)
    assert kl(sure, sure[:, ::-1])[0] == pytest.approx(2e4)
    assert jensen_shannon(np.full((1, 3), 1e4), np.full((1, 3), -1e4))[0] == 0


def test_answers_are_columns_of_the_rows():
    teacher, student = random_pair()
    found = answers(teacher, student)
    p, q = special.softmax(teacher, 1), special.softmax(student, 1)
    rows, k = np.arange(len(p)), teacher.argmax(1)
    assert (found.teacher_top1 == k).all()
    assert (found.student_top1 == student.argmax(1)).all()
    assert (found.teacher_top1 != found.student_top1).any()
    assert np.allclose(found.teacher_confidence, p.max(1))
    assert np.allclose(found.student_confidence, q.max(1))
    assert np.allclose(found.gap, np.log(p[rows, k]) - np.log(q[rows, k]))
    assert np.array_equal(found.js, jensen_shannon(teacher, student))


def test_no_rows_give_no_answers():
    empty = np.empty((0, 4), np.float32)
    assert all(len(column) == 0 for column in answers(empty, empty))
