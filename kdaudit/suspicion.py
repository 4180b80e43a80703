"""Stage 7, the second looks: what the most suspicious images share, in their behaviour and in their pixels.

These columns are as long as the delivery: they are put aside on disk, or read from the table again, while others are
worked on (`benchmarks/scale.py`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdaudit.aside import Aside
from kdaudit.calibration import Clean, Column
from kdaudit.compared import Comparison
from kdaudit.conduct import Behaved, Conduct, conduct
from kdaudit.keys import Keys
from kdaudit.likeness import Likeness
from kdaudit.memory import give_back
from kdaudit.odds import Columns, OwnOdds, SecondLook, own_odds
from kdaudit.rows import RowStore
from kdaudit.selection import spread, taken
from kdaudit.settings import Rule

BEHAVES = "model and control behave on it as on the images on which they part most"
CARRIES = "carries a pattern that moves the model and not the control"
MARKED = (
    "carries a trigger: a pattern that moves the model and not the control, or goes with one label whatever is shown, "
    "or is obeyed by the model and on no clean image"
)
TRACED = "is sharp and soft where the images are on which model and control part most"
"""What a second look flags an image for."""


class Own(NamedTuple):
    """`OwnOdds`, put aside."""

    p_values: Aside
    further: Aside
    usual: Column

    @classmethod
    def of(cls, odds: OwnOdds, room: Path) -> "Own":
        """Put aside in a folder."""
        return cls(Aside.of(odds.p_values, room), Aside.of(odds.further, room), odds.usual)

    def odds(self) -> OwnOdds:
        """Taken up again."""
        return OwnOdds(self.p_values.column(), self.further.column(), self.usual)


class Behaviour(NamedTuple):
    """p-values of the look at behaviour, put aside [m], and of the clean images [n]."""

    p_values: Aside
    clean_p_values: Column


@dataclass(frozen=True, slots=True, eq=False)
class FirstSuspicion:
    """How suspicious each image is before anything is looked for in its pixels.

    Attributes:
        own: by its own score.
        behaves: by what the most suspicious images share in behaviour; None where that was not asked.
        ranked: what the most suspicious ones are chosen by, [m], put aside; NaN where not read.
        keys: from the digests.
    """

    own: Own
    behaves: Behaviour | None
    ranked: Aside
    keys: Keys


def suspicion(
    rows: RowStore, columns: Columns, clean: Clean, calibration: Comparison, rule: Rule, room: Path
) -> FirstSuspicion:
    """Ask the scores, then the behaviours; under `divergence` and `score`.

    Args:
        rows: the table.
        columns: of the suspect images, with their scores.
        clean: scores and answers of the calibration images.
        calibration: all about these.
        rule: the rule in use.
        room: folder for what is put aside.
    """
    own = Own.of(own_odds(columns, clean, rule), room)
    give_back()
    keys = rows.keys()
    one = _behaves(rows, keys, columns, calibration) if rule == "divergence" else None
    if one is None:
        return FirstSuspicion(own, None, Aside.of(columns.score, room), keys)
    aside = Aside.of(spread(one.p_values, columns.read, 1.0), room)
    ranked = Aside.of(spread(one.score, columns.read, np.nan), room)
    return FirstSuspicion(own, Behaviour(aside, one.clean_p_values), ranked, keys)


def second_looks(behaves: Behaviour | None, likeness: Likeness | None) -> list[SecondLook]:
    """What the second looks say, in one form."""
    looks = []
    if behaves is not None:
        looks.append(SecondLook(behaves.p_values.column(), behaves.clean_p_values, BEHAVES))
    if likeness is not None:
        proven = bool(likeness.found)
        carries = CARRIES if all(one.proof.proven for one in likeness.found) else MARKED
        aims = [one.aim for one in likeness.found] + ([likeness.trace.aim] if likeness.trace is not None else [])
        looks.append(
            SecondLook(
                likeness.p_values,
                likeness.clean_p_values,
                carries if proven else TRACED,
                proven,
                tuple(aim for aim in aims if aim is not None),
                likeness.remainders,
                likeness.worn,
            )
        )
    return looks


def _behaves(rows: RowStore, keys: Keys, columns: Columns, calibration: Comparison) -> Conduct | None:
    """The second look at behaviour."""
    read = columns.read

    def suspect_rows() -> Iterator[NDArray[np.float32]]:
        first = 0
        for part in rows.behaviour():
            yield part[read[first : first + len(part)]]
            first += len(part)

    score, usual = (_finite(column) for column in (taken(columns.score, read), calibration.divergence))
    return conduct(
        Behaved(suspect_rows, taken(columns.groups, read), keys.where(read), score),
        Behaved(lambda: [calibration.behaviour], calibration.teacher_top1, Keys.these(calibration.ids), usual),
    )


def _finite(divergence: NDArray[np.float64]) -> NDArray[np.float64]:
    """With the largest there is where the model's answer was no number."""
    endless = np.isposinf(divergence)
    return np.where(endless, float(np.log(2)), divergence) if endless.any() else divergence
