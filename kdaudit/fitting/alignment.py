"""Which model output stands for which class of the data set, found from answers and labels.

Arrays in, arrays out. Folder names need not sort into the model's order, and a data set may hold only some of
the model's classes; so a few orders that people produce are tried, and an optimal assignment beside them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Basis = Literal["names", "identity", "sorted", "assignment"]

SIGNIFICANCE = 3.0
"""Standard errors by which a later order must beat an earlier one: it then holds for all images."""


@dataclass(frozen=True, slots=True)
class Alignment:
    """An order of classes and how well the answers agree with the labels under it.

    Attributes:
        order: output index for each label index.
        basis: where the order comes from.
        hits: [n] 1.0 where the answer is the label's output. For an assignment they are cross-fitted: each
            half of the images is scored with the order found on the other, so chance finds no agreement.
        unsupported: label indices whose place rests on fewer than two agreeing images (assignment only).
    """

    order: tuple[int, ...]
    basis: Basis
    hits: NDArray[np.float64]
    unsupported: tuple[int, ...] = ()

    @property
    def accuracy(self) -> float:
        """Share of agreeing answers."""
        return float(self.hits.mean()) if len(self.hits) else 0.0


def align(
    answers: NDArray[np.int64],
    labels: NDArray[np.int64],
    outputs: int,
    classes: Sequence[str] | None,
    model_names: Sequence[str] | None,
) -> Alignment:
    """Find the class order that the answers speak for.

    Args:
        answers: top-1 output index per image [n]; -1 for no answer.
        labels: label index per image [n].
        outputs: K, the number of model outputs.
        classes: names in label order; None when the labels are bare numbers.
        model_names: names in output order, where the model carries them.

    Returns:
        The order by names, else identity, else a sorted order, else an assignment: each is taken only if it
        beats all before it by `SIGNIFICANCE` standard errors.
    """
    count = len(classes) if classes is not None else int(labels.max(initial=-1)) + 1
    tries = [
        Alignment(order, basis, (answers == np.asarray(order)[labels]).astype(np.float64))
        for basis, order in _structured(count, outputs, classes, model_names)
    ]
    found = _assigned(answers, labels, count, outputs)
    if not tries:
        return found
    best = tries[0]
    for other in (*tries[1:], found):
        if _beats(other.hits, best.hits):
            best = other
    return best


def paired(a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[float, float]:
    """Mean of a - b and its standard error, over the same images."""
    difference = a - b
    n = max(len(difference), 1)
    # One more disagreeing pair than was seen keeps the error off zero when two agree everywhere.
    return float(difference.mean()), float(np.sqrt((difference.var() + 1 / n) / n))


def named_order(classes: Sequence[str], model_names: Sequence[str]) -> tuple[int, ...] | None:
    """The model output that carries each class's name; None unless every class has exactly one."""
    outputs: dict[str, set[int]] = {}
    for index, name in enumerate(model_names):
        for synonym in {_plain(name), *(_plain(part) for part in name.split(","))}:
            outputs.setdefault(synonym, set()).add(index)
    order = []
    for name in classes:
        places = outputs.get(_plain(name), set())
        if len(places) != 1 or not _plain(name):
            return None
        order.append(next(iter(places)))
    return tuple(order) if len(set(order)) == len(order) else None


def _plain(name: str) -> str:
    """A name without case, blanks and signs."""
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def _structured(
    count: int, outputs: int, classes: Sequence[str] | None, model_names: Sequence[str] | None
) -> list[tuple[Basis, tuple[int, ...]]]:
    """Orders that people produce, the likeliest first."""
    orders: list[tuple[Basis, tuple[int, ...]]] = []
    if classes is not None and model_names is not None:
        by_name = named_order(classes, model_names)
        if by_name is not None:
            orders.append(("names", by_name))
    if count > outputs:
        return orders
    orders.append(("identity", tuple(range(count))))
    if count == outputs:
        names = [str(index) for index in range(count)] if classes is None else list(classes)
        keys: list[Callable[[int], str | int]] = [
            lambda i: names[i],  # as folders are listed: 0, 1, 10, 11, 2
            lambda i: names[i].casefold(),
        ]
        if all(name.isdecimal() for name in names):
            keys.append(lambda i: int(names[i]))
        else:
            keys.append(str)
        for key in keys:
            ranked = sorted(range(count), key=key)
            orders.append(("sorted", tuple(np.argsort(ranked).tolist())))
            orders.append(("sorted", tuple(ranked)))
    unique = {order: basis for basis, order in reversed(orders)}
    return [(basis, order) for basis, order in orders if unique.pop(order, None) is not None]


def _assign(
    answers: NDArray[np.int64], labels: NDArray[np.int64], count: int, outputs: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The one-to-one order with the most agreement, and how many images speak for each place."""
    from scipy.optimize import linear_sum_assignment

    width = max(outputs, count)
    table = np.zeros((count, width))
    valid = answers >= 0
    np.add.at(table, (labels[valid], answers[valid]), 1)
    # Where nothing speaks, a label keeps its own number if that is free.
    table[np.arange(count), np.arange(count)] += 1e-3
    _, order = linear_sum_assignment(table, maximize=True)
    return order.astype(np.int64), np.floor(table[np.arange(count), order]).astype(np.int64)


def _assigned(answers: NDArray[np.int64], labels: NDArray[np.int64], count: int, outputs: int) -> Alignment:
    """The optimal assignment, with cross-fitted hits; the halves split every class."""
    order, support = _assign(answers, labels, count, outputs)
    half = np.zeros(len(labels), np.int64)
    by_class = np.argsort(labels, kind="stable")
    half[by_class] = np.arange(len(labels)) % 2
    hits = np.zeros(len(labels))
    for side in (0, 1):
        fitted, _ = _assign(answers[half != side], labels[half != side], count, outputs)
        hits[half == side] = answers[half == side] == fitted[labels[half == side]]
    weak = tuple(int(label) for label in np.flatnonzero(support < 2))
    return Alignment(tuple(order.tolist()), "assignment", hits, weak)


def _beats(later: NDArray[np.float64], earlier: NDArray[np.float64]) -> bool:
    """Whether one order agrees with the labels more than another, beyond `SIGNIFICANCE` standard errors."""
    gain, error = paired(later, earlier)
    return gain > SIGNIFICANCE * error
