"""One look at some images: what both networks say of them as they are, side by side."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdaudit import divergence
from kdaudit.clock import Laps
from kdaudit.preprocess import Preprocess
from kdaudit.session import Session

Pixels = NDArray[np.uint8]


class Both(NamedTuple):
    """What both networks say of B images."""

    teacher: NDArray[np.float32]  # [B, K], noughts in rows where one of the two is not finite
    student: NDArray[np.float32]
    features: NDArray[np.float32]  # [B, D], the teacher's
    finite: NDArray[np.bool_]  # [B], which rows are finite


class Look(NamedTuple):
    """The columns of B images that are looked at as they are."""

    answers: divergence.Answers
    behaviour: NDArray[np.float32]  # [B, F], `divergence.behaviour`
    finite: NDArray[np.bool_]  # [B], as in `Both`


def ask_both(
    teacher: Session, control: Session, preprocess: Preprocess, pixels: Pixels | NDArray[np.float32], laps: Laps
) -> Both:
    """Ask two sessions about one and the same tensor."""
    tensor = preprocess.apply(pixels)
    with laps.of("teacher"):
        known, features = teacher.logits_and_features(tensor)
    with laps.of("control"):
        student = control.logits(tensor)
    finite = np.asarray(np.isfinite(known).all(axis=1) & np.isfinite(student).all(axis=1), bool)
    if not finite.all():
        known, student = (np.where(finite[:, None], z, np.float32(0)) for z in (known, student))
    return Both(known, student, features, finite)


def look_of(both: Both) -> Look:
    """The columns of images about which two sessions were asked."""
    return Look(
        divergence.answers(both.teacher, both.student),
        divergence.behaviour(both.teacher, both.student, features=both.features),
        both.finite,
    )
