"""Choosing from long columns: what sorting everything would give."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kdaudit.selection import highest, lowest, spread, taken

COLUMNS = st.lists(st.tuples(st.integers(-4, 4), st.booleans()), max_size=40)
"""Few different values: ties matter."""


@given(COLUMNS, st.integers(1, 45))
def test_the_first_few_of_a_stable_sort(column, count):
    values, among = np.array([v for v, _ in column], float), np.array([a for _, a in column], bool)
    rows = np.flatnonzero(among)
    assert lowest(values, count, among).tolist() == rows[np.argsort(values[rows], kind="stable")][:count].tolist()
    assert highest(values, count, among).tolist() == rows[np.argsort(-values[rows], kind="stable")][:count].tolist()


@given(COLUMNS)
def test_what_was_taken_spreads_back(column):
    values, rows = np.array([v for v, _ in column], float), np.array([a for _, a in column], bool)
    expected = np.where(rows, values, np.nan)
    np.testing.assert_array_equal(spread(taken(values, rows), rows, np.nan), expected)


def test_all_rows_are_no_copy():
    values, every = np.arange(5.0), np.ones(5, bool)
    assert taken(values, every) is values
    assert spread(values, every, 0) is values


def test_keys_of_64_bits_keep_their_order():
    keys = np.array([2**64 - 1, 3, 2**63, 2**63 - 1], np.uint64)
    assert lowest(keys, 3, np.ones(4, bool)).tolist() == [1, 3, 2]


def test_rows_that_may_not_be_chosen_may_be_no_numbers():
    score = np.array([np.nan, 1.0, np.inf, np.nan, 2.0])
    assert highest(score, 2, ~np.isnan(score)).tolist() == [2, 4]
