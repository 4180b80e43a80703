"""Keys of whole deliveries: drawn from as if they were held, whatever parts they come in."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kdaudit.keys import Keys, fold_of, keys_of
from kdaudit.selection import lowest

PARTS = st.lists(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.booleans()), max_size=8), max_size=6)


@given(PARTS, st.integers(1, 20))
def test_keys_in_parts_are_those_of_one_column(parts, count):
    arrays = [np.array([key for key, _ in part], np.uint64) for part in parts]
    whole = np.concatenate([*arrays, np.empty(0, np.uint64)])
    chosen = np.array([yes for part in parts for _, yes in part], bool)
    keys = Keys.of(lambda: arrays)
    assert keys.folds.tolist() == fold_of(whole).tolist()
    assert keys.lowest(count, chosen).tolist() == lowest(whole, count, chosen).tolist()
    some = keys.where(chosen)
    assert some.folds.tolist() == fold_of(whole[chosen]).tolist()
    every = np.ones(int(chosen.sum()), bool)
    assert some.lowest(count, every).tolist() == lowest(whole[chosen], count, every).tolist()


def test_ids_at_hand_and_read_again_give_the_same():
    ids = [f"{number * 2654435761 % 2**32:08x}{number:024x}:{number}.png" for number in range(50)]
    one, other = Keys.these(ids), Keys.of(lambda: [keys_of(ids[:20]), keys_of(ids[20:])])
    assert one.folds.tolist() == other.folds.tolist()
    assert one.lowest(7, np.ones(50, bool)).tolist() == other.lowest(7, np.ones(50, bool)).tolist()
