"""Stage 7, patches that nobody sees: a white one on a corner that is white already.

Such an image moves no network and stands out along no discriminant, but the pixels that the patch covers are what the
patch would make them. So are those of innocents with such a corner; yet few of these were delivered with a label that
neither network gives. Columns in, columns out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdaudit.calibration import Answers, Column, conformal_p_values
from kdaudit.delivered import Delivered
from kdaudit.families import LOW, adaptive_flags
from kdaudit.selection import taken


@dataclass(frozen=True, slots=True, eq=False)
class Worn:
    """How far images are from wearing the pasted part of a proven trigger.

    Attributes:
        label: the class that its carriers are made to be; None: any.
        departure: from what the patch puts where it covers, grey levels (root of the mean square), of the suspect
            images, [m]; NaN where not read.
        clean: the same of the clean pool, [n].
    """

    label: int | None
    departure: NDArray[np.floating[Any]]
    clean: NDArray[np.floating[Any]]

    def of(self, rows: NDArray[np.bool_]) -> "Worn":
        """The same of some of the suspect images; `rows`: bool [m]."""
        return Worn(self.label, taken(self.departure, rows), self.clean)


def wearing(
    worn: Sequence[Worn],
    told: Delivered,
    groups: Answers,
    p_values: Column,
    flags: NDArray[np.bool_],
    share: float,
) -> NDArray[np.bool_]:
    """Who of the images with a disputed label of a trigger's target wears it unseen, [m]; any label where it has none.

    Args:
        worn: of the proven triggers.
        told: the labels, [m].
        groups: the teacher's answers, [m].
        p_values: of all images, [m].
        flags: who is flagged already, [m].
        share: of innocents, among these flags and the further ones together, that the further ones may bring.
    """
    further, labels = np.zeros(len(flags), bool), {one.label for one in worn}
    doubted, undisputed = (told.doubt > 0) & ~flags & (p_values > LOW), (told.labels == groups) & (told.doubt == 0)
    # One family, or several that share no image: each is measured against flags of its own.
    for label in {None} if None in labels else labels:
        own = [one for one in worn if label in (None, one.label)]
        meant = told.labels >= 0 if label is None else told.labels == label
        rows = np.flatnonzero(told.disputed & meant & ~flags)
        if len(rows):
            odd = doubted & (~told.disputed if label is None else ~meant)
            p = np.min([_p_values(one, rows, meant & undisputed, odd) for one in own], axis=0)
            earned = share * int((flags & meant).sum())
            further[rows] |= adaptive_flags(np.minimum(1.0, len(own) * p), share, earned=earned)
    return further


def _p_values(one: Worn, rows: NDArray[np.int64], undisputed: NDArray[np.bool_], odd: NDArray[np.bool_]) -> Column:
    """How rare is it to come so near to a patch among three kinds of images? The largest p-value counts.

    Clean ones; undisputed ones of the class, which may have such a corner by nature (aeroplanes have white sky); and
    those whose label the control doubts for other reasons, since odd pictures may have it too. Of the last kind only
    unsuspicious ones: where any label may be the target's, poison that the teacher knows by heart is among them.

    Returns:
        [len(rows)]; 1 where one of the three is missing.
    """
    asked, *kinds = (
        -apart.astype(np.float64)
        for apart in (one.departure[rows], one.clean, one.departure[undisputed], one.departure[odd])
    )
    return np.asarray(np.max([conformal_p_values(asked, kind) for kind in kinds], axis=0), np.float64)
