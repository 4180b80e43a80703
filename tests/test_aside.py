"""Columns put aside: they come back as they were, and leave nothing behind."""

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdaudit.aside import Aside


@given(st.lists(st.lists(st.floats(width=32), max_size=7), max_size=5))
def test_parts_come_back_as_one_column(parts):
    aside = Aside(np.float32)
    for part in parts:
        aside.append(np.array(part, np.float32))
    expected = np.array([value for part in parts for value in part], np.float32)
    np.testing.assert_array_equal(aside.column(), expected)
    aside.append(np.ones(2, np.float32))  # it can be read, go on and be read again
    np.testing.assert_array_equal(aside.column(), np.append(expected, np.ones(2, np.float32)))


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.int16, np.int8, np.bool_])
def test_a_whole_column_keeps_its_type(kind, tmp_path):
    column = (np.arange(10) % 2).astype(kind)
    back = Aside.of(column[::2], tmp_path).column()
    assert back.dtype == column.dtype
    assert back.tolist() == column[::2].tolist()


def test_some_rows(tmp_path):
    aside = Aside.of(np.arange(10, dtype=np.int16), tmp_path)
    assert aside.part(slice(3, 5)).tolist() == [3, 4]
    assert aside.part(slice(8, 10)).tolist() == [8, 9]


def test_no_name_is_left_in_the_folder(tmp_path):
    aside = Aside.of(np.arange(1000.0), tmp_path)
    assert os.listdir(tmp_path) == []  # noqa: PTH208
    assert aside.column().sum() == 499_500
