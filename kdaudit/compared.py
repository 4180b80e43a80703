"""What a comparison leaves: columns, one row for each image."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Comparison:
    """Columns of n compared images, all of length n; rows that were not read hold -1 and NaN.

    Attributes:
        ids: sample ids.
        paths: paths inside the source.
        labels: the data set's label indices, -1 for none.
        status: `Status` values.
        reasons: why an image was not read; empty otherwise.
        teacher_top1: the teacher's answer, -1 where it was not finite.
        student_top1: the control's answer.
        teacher_confidence: p_T of its answer.
        student_confidence: p_S of its answer.
        gap: log p_T(k) - log p_S(k), nats; +inf where the teacher's output was not finite.
        js: Jensen-Shannon divergence on the image itself, nats.
        divergence: mean Jensen-Shannon divergence over the interventions, nats; +inf as for `gap`; 0 where the image
            as it is gave no reason for any (`InterventionPlan.above`); of the image as it is in the cheap pass.
        behaviour: what both networks do with the image and its views, float32 [n, F] (`divergence.behaviour`).
    """

    ids: tuple[str, ...]
    paths: tuple[str, ...]
    labels: NDArray[np.int64]
    status: tuple[str, ...]
    reasons: tuple[str, ...]
    teacher_top1: NDArray[np.int64]
    student_top1: NDArray[np.int64]
    teacher_confidence: NDArray[np.float64]
    student_confidence: NDArray[np.float64]
    gap: NDArray[np.float64]
    js: NDArray[np.float64]
    divergence: NDArray[np.float64]
    behaviour: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.ids)


def concatenate(parts: Sequence[Comparison]) -> Comparison:
    """Several comparisons as one."""
    columns: dict[str, Any] = {}
    for name in Comparison.__dataclass_fields__:
        values = [getattr(part, name) for part in parts]
        tuples = isinstance(values[0], tuple)
        columns[name] = tuple(chain.from_iterable(values)) if tuples else np.concatenate(values)
    return Comparison(**columns)
