"""Labels that neither network believes: counted, and whether they gather at one class."""

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kdaudit.labelling import LabelDoubts, Told, label_doubts, label_findings

K = 10
NAMES = ("plane", "car", "bird", "ship", "deer", "dog", "frog", "horse", "cat", "truck")


def test_labels_are_doubted_only_where_both_networks_are_sure_of_one_other_answer():
    labels = np.array([0, 1, 2, 0, 1, 2, -1, 0])
    teacher = np.array([0, 1, 2, 1, 1, 0, 1, 2])
    student = np.array([0, 1, 2, 1, 1, 1, 1, 2])
    sure = np.array([0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.7])
    parts = [Told(labels[s], teacher[s], student[s], sure[s]) for s in (slice(3), slice(3, None))]
    assert label_doubts(lambda: parts, None) == LabelDoubts(1, 7)
    order = (2, 0, 1)  # output of each label
    moved = [Told(p.labels, np.array(order)[p.teacher], np.array(order)[p.student], p.confidence) for p in parts]
    assert label_doubts(lambda: moved, order) == LabelDoubts(1, 7)
    assert label_doubts(lambda: parts, order) == LabelDoubts()  # labels of another list of classes
    unlabelled = Told(np.full(3, -1), teacher[:3], student[:3], sure[:3])
    assert label_doubts(lambda: [unlabelled], None) == label_doubts(list, None) == LabelDoubts()


def told(wrong: dict[int, int], shows: Callable[[np.random.Generator, int], NDArray[Any]], m: int = 6000) -> list[Told]:
    """Images of ten classes; of each label given so many show what `shows` draws. In three parts."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, K, m)
    answers = labels.copy()
    for label, count in wrong.items():
        some = np.flatnonzero(labels == label)[:count]
        answers[some] = shows(rng, count)
    sure = np.full(m, 0.9)
    return [Told(labels[s::3], answers[s::3], answers[s::3], sure[s::3]) for s in range(3)]


def any_class(rng: np.random.Generator, n: int) -> NDArray[Any]:
    return rng.integers(1, K, n)


def test_labels_set_in_bulk_are_told_from_classes_that_look_alike():
    """Poison that its model did not take up, 150 of 630 images of label 0; other labels are wrong in a few."""
    found = label_doubts(lambda: told({0: 150, 3: 12}, any_class), None)
    assert found.bulk is not None
    assert (found.bulk.label, found.bulk.doubted) == (0, 150)
    assert found.bulk.apart < 0.15
    assert [f.rule for f in label_findings(found, NAMES)] == ["KDA213", "KDA210"]
    assert "150 of 630 images delivered as 0 (plane) show the other classes" in label_findings(found, NAMES)[0].message
    alike = label_doubts(lambda: told({0: 150}, lambda _, n: np.full(n, 4)), None)
    assert (alike.doubted, alike.bulk) == (150, None)
    assert label_doubts(lambda: told({0: 150, 3: 80}, any_class), None).bulk is None  # wrong everywhere
    assert label_doubts(lambda: told({0: 19}, any_class), None).bulk is None
    order = (*range(1, K), 0)  # output of each label
    moved = [Told(p.labels, (p.teacher + 1) % K, (p.student + 1) % K, p.confidence) for p in told({0: 150}, any_class)]
    shifted = label_doubts(lambda: moved, order).bulk
    assert shifted is not None
    assert shifted.label == 1


@given(st.lists(st.integers(0, 40), min_size=K, max_size=K), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_wrong_labels_of_all_classes_alike_are_none_that_were_set_in_bulk(some, seed):
    """Random noise of 10 % and a little more here and there."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(K), 600)
    answers = labels.copy()
    for label, more in enumerate(some):
        answers[600 * label : 600 * label + 60 + more] = (label + rng.integers(1, K, 60 + more)) % K
    parts = [Told(labels, answers, answers, np.full(len(labels), 0.95))]
    assert label_doubts(lambda: parts, None).bulk is None
