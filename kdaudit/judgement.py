"""Judging in the audit: stage 7 with its tables on disk."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdaudit.aside import Aside
from kdaudit.calibration import Answers, Clean
from kdaudit.clock import Clock
from kdaudit.compared import Comparison
from kdaudit.comparison import Subjects
from kdaudit.control import Control
from kdaudit.delivered import Delivered, delivered
from kdaudit.flagging import Flags, flag, score_of
from kdaudit.keys import Keys
from kdaudit.labelling import Told, label_doubts
from kdaudit.likeness import Likeness, look
from kdaudit.memory import give_back
from kdaudit.odds import Columns
from kdaudit.pool import Pool
from kdaudit.rows import RowStore
from kdaudit.rundir import RunDirectory
from kdaudit.searched import CleanImages, Found, Suspects
from kdaudit.selection import spread
from kdaudit.settings import Rule, Settings
from kdaudit.suspicion import Behaviour, Own, second_looks, suspicion
from kdaudit.trigger import Pattern, save_patterns
from kdaudit.validity import Assumption, Seen, assumptions
from kdaudit.verdict import Fidelity, Verdict, judge
from kdaudit.workbench import Sets, Workbench

FIRST_LOOK: dict[Rule, str] = {
    "divergence": "model and control part on it when it is mixed with clean images",
    "score": "the control doubts the model's answer",
    "argmax": "the control gives another answer",
}
DELIVERED = "delivered as a class that the model gives to poison, and neither network takes it for that"
UNSEEN = (
    "looks where a trigger sits as if it sat there unseen, and neither network takes it for what it was delivered as"
)
"""Why an image is flagged, besides what `kdaudit.suspicion` says."""

PATTERNS = "patterns.npz"
"""In the run's state: the proven triggers' patterns, for `kdaudit repair`."""


SCORES: dict[Rule, str] = {"divergence": "divergence", "score": "gap", "argmax": "divergence"}
"""The column of the table that a rule judges by; the argmax rule has none and is shown with the divergence."""

NOT_HELD = np.empty(0)
"""In place of a column that stands in the table or is put aside."""


@dataclass(frozen=True, slots=True, eq=False)
class Carried:
    """How much of the proven triggers, or of a trace, each image carries.

    Attributes:
        found: the proven triggers.
        which: the one that an image carries most of, int8 [m]; -1 where not read or none is proven.
        score: standard deviations of calm images, float32 [m], put aside; NaN where not read.
    """

    found: tuple[Found, ...]
    which: NDArray[np.int8]
    score: Aside


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """The suspect images' columns, their flags, and the verdict.

    Attributes:
        columns: what was judged; without the scores, which stand in the table.
        labels: the data set's label indices, [m], -1 for none.
        flags: the image-level result; without the p-values, which are put aside.
        p_values: these; None when read back from a finished run.
        verdict: the model-level result; None when read back from a finished run.
        carried: what each image carries; None where nothing was found, and when read back from a finished run.
        reasons: what each of `Flags.way` means, a few words.
        patterns: the proven triggers' patterns.
        validity: whether what the error rate rests on holds on these images.
    """

    columns: Columns
    labels: Answers
    flags: Flags
    p_values: Aside | None
    verdict: Verdict | None
    carried: Carried | None = None
    reasons: tuple[str, ...] = ()
    patterns: tuple[Pattern, ...] = ()
    validity: tuple[Assumption, ...] = ()


def judge_rows(
    rows: RowStore,
    calibration: Comparison,
    subjects: Subjects,
    control: Control,
    pool: Pool,
    sets: Sets,
    settings: Settings,
    bench: Workbench,
    run: RunDirectory,
    clock: Clock,
) -> Judged:
    """Flags and verdict from the table's columns, after a second look at what the most suspicious images share."""
    give_back()
    rule, order = settings.rule, bench.fitted.class_order if bench.fitted else None
    columns, clean = _columns(rows, rule), _clean(calibration, rule)
    own, behaves, likeness = None, None, None
    if rule != "argmax" and sets.suspect is not None:
        run.mark("look for a trigger")
        with clock.stage("look for a trigger", 2 * len(columns.read)) as advance:
            first = suspicion(rows, columns, clean, calibration, rule, run.state)
            columns = replace(columns, score=NOT_HELD, told=_told_labels(rows, columns.groups, order))
            give_back()
            suspects = Suspects(
                sets.suspect, columns.read, first.keys, first.ranked.column, columns.groups,
                _column(rows, "student_top1"), columns.told, run.state,
            )  # fmt: skip
            clean_images = CleanImages(pool.pixels, Keys.these(pool.ids), control.parts.held_out)
            likeness = look(suspects, clean_images, subjects, bench.decoder, advance)
        own, behaves = first.own, first.behaves
        columns = replace(columns, told=columns.told.searched() if columns.told else None)
        del first, suspects
    with clock.stage("judge"):
        flags, reasons = _flags(columns, clean, settings, own, behaves, likeness)
        give_back()
        labels = label_doubts(lambda: map(_told, _unflagged(rows, columns, flags)), order)
        if labels.bulk is not None:
            flags = replace(flags, doubtful=_doubtful(rows, columns, flags, labels.bulk.label, order))
        columns = replace(columns, score=_column(rows, SCORES[rule]))
        verdict = judge(
            columns,
            flags,
            calibration,
            bench.findings,
            Fidelity(control.fidelity, settings.fidelity_needed(bench.signature.classes)),
            settings,
            bench.signature.class_names,
            likeness.found if likeness else (),
            likeness.trace if likeness else None,
            labels,
            sets.suspect_survey.unopened,
            sets.suspect_survey.aside,
        )
    patterns = tuple(one.pattern for one in likeness.found) if likeness else ()
    save_patterns(patterns, run.state / PATTERNS)
    validity = assumptions(
        (Seen(part["student_confidence"], part["student_top1"]) for part in _unflagged(rows, columns, flags)),
        Seen(calibration.student_confidence, calibration.student_top1),
    )
    columns = replace(columns, score=NOT_HELD, told=None)  # what the labels say stands in the flags now
    carried = Carried(likeness.found, likeness.which, Aside.of(likeness.score, run.state)) if likeness else None
    p_values, flags = Aside.of(flags.p_values, run.state), replace(flags, p_values=NOT_HELD)
    return Judged(columns, _column(rows, "label"), flags, p_values, verdict, carried, reasons, patterns, validity)


def _column(rows: RowStore, name: str) -> NDArray[Any]:
    """One column, read from the table: it is held only as long as it is used."""
    return rows.columns(name)[name]


def _columns(rows: RowStore, rule: Rule) -> Columns:
    """The suspect images' columns, without their labels."""
    score, groups = _column(rows, SCORES[rule]), _column(rows, "teacher_top1")
    return Columns(~np.isnan(score), groups, groups != _column(rows, "student_top1"), score)


def _clean(calibration: Comparison, rule: Rule) -> Clean:
    """The calibration images' columns."""
    disputed = calibration.teacher_top1 != calibration.student_top1
    return Clean(score_of(calibration, rule), calibration.teacher_top1, disputed)


def _told_labels(rows: RowStore, groups: Answers, order: tuple[int, ...] | None) -> Delivered | None:
    """The labels of the images, and what the networks say to them."""
    label, student, confidence = (_column(rows, name) for name in ("label", "student_top1", "student_confidence"))
    return delivered(label, order, groups, student, confidence)


def _flags(
    columns: Columns,
    clean: Clean,
    settings: Settings,
    own: Own | None,
    behaves: Behaviour | None,
    likeness: Likeness | None,
) -> tuple[Flags, tuple[str, ...]]:
    """The flags, and what each of `Flags.way` means."""
    give_back()
    looks = second_looks(behaves, likeness)
    flags = flag(columns, clean, settings.rule, settings.fdr, looks, own.odds() if own else None)
    return flags, (FIRST_LOOK[settings.rule], *(one.reason for one in looks), DELIVERED, UNSEEN)


def _unflagged(rows: RowStore, columns: Columns, flags: Flags) -> Iterator[dict[str, NDArray[Any]]]:
    """What is judged besides the columns, of images that were read and not flagged: part by part, and never held."""
    first = 0
    for part in rows.numbers("label", "teacher_top1", "student_top1", "teacher_confidence", "student_confidence"):
        span = slice(first, first + len(part["label"]))
        plain = columns.read[span] & ~flags.flag[span]
        yield {name: column[plain] for name, column in part.items()}
        first = span.stop


def _doubtful(
    rows: RowStore, columns: Columns, flags: Flags, label: int, order: tuple[int, ...] | None
) -> NDArray[np.bool_]:
    """With the images of a label that was set in bulk for which neither network takes them, [m]."""
    parts = (_told(part).doubts(order) for part in _unflagged(rows, columns, flags))
    mine = np.concatenate([doubts & (outputs == label) for outputs, doubts in parts])
    doubtful: NDArray[np.bool_] = flags.doubtful | spread(mine, columns.read & ~flags.flag, False)
    return doubtful


def _told(part: dict[str, NDArray[Any]]) -> Told:
    sure = np.minimum(part["teacher_confidence"], part["student_confidence"])
    return Told(part["label"], part["teacher_top1"], part["student_top1"], sure)
