"""Judging in the audit: the stages 7 and 8 with their tables on disk."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdaudit.calibration import Answers, Clean
from kdaudit.clock import Clock
from kdaudit.compared import Comparison
from kdaudit.comparison import Subjects
from kdaudit.conduct import Behaved, Conduct, conduct
from kdaudit.control import Control
from kdaudit.delivered import delivered
from kdaudit.errors import UsageError
from kdaudit.flagging import Columns, Flags, SecondLook, flag, score_of
from kdaudit.interventions import keys_of
from kdaudit.labelling import Told, label_doubts
from kdaudit.likeness import Likeness, look
from kdaudit.pool import Pool
from kdaudit.quarantine import COLUMNS, Manifests, write_manifests
from kdaudit.rows import RowStore
from kdaudit.rundir import RunDirectory
from kdaudit.searched import CleanImages, Suspects
from kdaudit.selection import spread, taken
from kdaudit.settings import Rule, Settings
from kdaudit.trigger import Pattern, load_patterns, save_patterns
from kdaudit.validity import Assumption, Seen, assumptions
from kdaudit.verdict import Fidelity, Verdict, judge
from kdaudit.workbench import Sets, Workbench

if TYPE_CHECKING:
    import pyarrow as pa


FIRST_LOOK: dict[Rule, str] = {
    "divergence": "model and control part on it when it is mixed with clean images",
    "score": "the control doubts the model's answer",
    "argmax": "the control gives another answer",
}
BEHAVES = "model and control behave on it as on the images on which they part most"
CARRIES = "carries a pattern that moves the model and not the control"
MARKED = (
    "carries a trigger: a pattern that moves the model and not the control, or goes with one label whatever is shown, "
    "or is obeyed by the model and on no clean image"
)
TRACED = "is sharp and soft where the images are on which model and control part most"
DELIVERED = "delivered as a class that the model gives to poison, and neither network takes it for that"
UNSEEN = (
    "looks where a trigger sits as if it sat there unseen, and neither network takes it for what it was delivered as"
)
"""Why an image is flagged."""

PATTERNS = "patterns.npz"
"""In the run's state: the proven triggers' patterns, for `kdaudit repair`."""


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """The suspect images' columns, their flags, and the verdict.

    Attributes:
        columns: what was judged.
        labels: the data set's label indices, [m], -1 for none.
        flags: the image-level result.
        verdict: the model-level result; None when read back from a finished run.
        likeness: the proven triggers, or a trace, and how much of it each image carries; None where there is neither,
            and when read back from a finished run.
        reasons: what each of `Flags.way` means, a few words.
        patterns: the proven triggers' patterns.
        validity: whether what the error rate rests on holds on these images.
    """

    columns: Columns
    labels: Answers
    flags: Flags
    verdict: Verdict | None
    likeness: Likeness | None = None
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
    column = {"divergence": "divergence", "score": "gap", "argmax": "divergence"}[settings.rule]
    confidence = () if settings.rule == "argmax" else ("student_confidence",)  # that rule asks no labels
    found = rows.columns(column, "teacher_top1", "student_top1", "label", *confidence)
    score, groups, other = found[column], found["teacher_top1"], found["student_top1"]
    order = bench.fitted.class_order if bench.fitted else None
    told = delivered(found["label"], order, groups, other, found.pop(confidence[0])) if confidence else None
    columns = Columns(read=~np.isnan(score), groups=groups, disagrees=groups != other, score=score, told=told)
    behaves, likeness = None, None
    if settings.rule != "argmax" and sets.suspect is not None:
        run.mark("look for a trigger")
        with clock.stage("look for a trigger", 2 * len(score)) as advance:
            keys = rows.keys()
            behaves = _behaves(rows, keys, columns, calibration) if settings.rule == "divergence" else None
            suspects = Suspects(sets.suspect, columns.read, keys, _ranked(columns, behaves), groups, other, told)
            clean_images = CleanImages(pool.pixels, keys_of(pool.ids), control.parts.held_out)
            likeness = look(suspects, clean_images, subjects, bench.decoder, advance)
        del keys, suspects, other  # columns as long as the delivery
    with clock.stage("judge"):
        clean = Clean(score_of(calibration, settings.rule), calibration.teacher_top1)
        looks = _looks(columns.read, behaves, likeness)
        del behaves
        flags = flag(columns, clean, settings.rule, settings.fdr, looks)
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
            label_doubts(map(_told, _unflagged(rows, columns, flags)), order),
            sets.suspect_survey.unopened,
            sets.suspect_survey.aside,
        )
    patterns = tuple(one.pattern for one in likeness.found) if likeness else ()
    save_patterns(patterns, run.state / PATTERNS)
    reasons = (FIRST_LOOK[settings.rule], *(one.reason for one in looks), DELIVERED, UNSEEN)
    validity = assumptions(
        (Seen(part["student_confidence"], part["student_top1"]) for part in _unflagged(rows, columns, flags)),
        Seen(calibration.student_confidence, calibration.student_top1),
    )
    columns = replace(columns, told=None)  # what the labels say stands in the flags now
    return Judged(columns, found["label"], flags, verdict, likeness, reasons, patterns, validity)


def _ranked(columns: Columns, behaves: Conduct | None) -> NDArray[np.floating[Any]]:
    """Who is the most suspicious, [m]: by what these share where there is enough to learn from."""
    if behaves is None:
        return columns.score
    return spread(behaves.score, columns.read, np.nan)


def _unflagged(rows: RowStore, columns: Columns, flags: Flags) -> Iterator[dict[str, NDArray[Any]]]:
    """What is judged besides the columns, of images that were read and not flagged: part by part, and never held."""
    first = 0
    for part in rows.numbers("label", "teacher_top1", "student_top1", "teacher_confidence", "student_confidence"):
        span = slice(first, first + len(part["label"]))
        plain = columns.read[span] & ~flags.flag[span]
        yield {name: column[plain] for name, column in part.items()}
        first = span.stop


def _told(part: dict[str, NDArray[Any]]) -> Told:
    sure = np.minimum(part["teacher_confidence"], part["student_confidence"])
    return Told(part["label"], part["teacher_top1"], part["student_top1"], sure)


def _looks(read: NDArray[np.bool_], behaves: Conduct | None, likeness: Likeness | None) -> list[SecondLook]:
    """What the second looks say, in one form."""
    looks = []
    if behaves is not None:
        looks.append(SecondLook(spread(behaves.p_values, read, 1.0), behaves.clean_p_values, BEHAVES))
    if likeness is not None:
        proven = bool(likeness.found)
        carries = CARRIES if all(one.proof.proven for one in likeness.found) else MARKED
        aims = [one.aim for one in likeness.found] + ([likeness.trace.aim] if likeness.trace is not None else [])
        targets = tuple(aim for aim in aims if aim is not None)
        reason = carries if proven else TRACED
        looks.append(
            SecondLook(
                likeness.p_values,
                likeness.clean_p_values,
                reason,
                proven,
                targets,
                likeness.remainders,
                likeness.worn,
            )
        )
    return looks


def _behaves(rows: RowStore, keys: NDArray[np.uint64], columns: Columns, calibration: Comparison) -> Conduct | None:
    """The second look at behaviour."""
    read = columns.read

    def suspect_rows() -> Iterator[NDArray[np.float32]]:
        first = 0
        for part in rows.behaviour():
            yield part[read[first : first + len(part)]]
            first += len(part)

    score, usual = (_finite(column) for column in (taken(columns.score, read), calibration.divergence))
    return conduct(
        Behaved(suspect_rows, taken(columns.groups, read), taken(keys, read), score),
        Behaved(lambda: [calibration.behaviour], calibration.teacher_top1, keys_of(calibration.ids), usual),
    )


def _finite(divergence: NDArray[np.float64]) -> NDArray[np.float64]:
    """With the largest there is where the model's answer was no number."""
    endless = np.isposinf(divergence)
    return np.where(endless, float(np.log(2)), divergence) if endless.any() else divergence


def write_samples(rows: RowStore, judged: Judged, sets: Sets, run: RunDirectory) -> Manifests:
    """samples.parquet, kept.csv and quarantine.csv."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    run.mark("write the manifests")
    flags, columns = judged.flags, judged.columns

    def more(first: int, part: "pa.Table") -> dict[str, Any]:
        span = slice(first, first + len(part))
        read, flagged = columns.read[span], flags.flag[span]
        unread = part["why_not_read"].to_pylist()
        why = [
            _reason(judged, row) if r else w for row, (r, w) in enumerate(zip(read, unread, strict=True), start=first)
        ]
        no_p = ~read | np.isnan(flags.p_values[span])
        carried = {}
        if judged.likeness is not None:
            carriers = flagged & _carriers(judged, span)
            carried = {
                "trigger": pa.array(judged.likeness.which[span], pa.int32(), mask=~carriers),
                "likeness": pa.array(judged.likeness.score[span], pa.float64(), mask=~read),
            }
        return carried | {
            "score": pa.array(columns.score[span], pa.float64(), mask=~read),
            "p_value": pa.array(flags.p_values[span], pa.float64(), mask=no_p),
            "extrapolated": pa.array(flags.extrapolated[span], pa.bool_(), mask=~read),
            "flag": pa.array(flagged, pa.bool_()),
            "doubtful": pa.array(flags.doubtful[span], pa.bool_()),
            "reason": pa.array(why, pa.string()),
        }

    rows.finish(run.file("samples.parquet"), more, leave_out=("why_not_read", "behaviour"))
    with pq.ParquetFile(run.file("samples.parquet")) as file:
        tables = (file.read_row_group(i, columns=list(COLUMNS)) for i in range(file.num_row_groups))
        classes = sets.suspect.classes if sets.suspect else None
        return write_manifests(tables, classes, run.file("kept.csv"), run.file("quarantine.csv"))


def demand_audited(run: RunDirectory, sets: Sets) -> None:
    """Refuse images that are not those of the run's samples.parquet, one by one and in the same order.

    Raises:
        UsageError: they are not.
    """
    import pyarrow.parquet as pq

    assert sets.suspect is not None
    with pq.ParquetFile(run.file("samples.parquet")) as file:
        known = (name for part in file.iter_batches(columns=["id"]) for name in part["id"].to_pylist())
        for audited, record in zip_longest(known, sets.suspect.records()):
            if record is None or audited != record.id:
                where = "" if record is None else f" ({record.path} is not as it was)"
                raise UsageError(
                    f"{sets.suspect.root} is not the data set that {run.path} has audited{where}: scan it again first"
                )


def read_judged(run: RunDirectory) -> Judged:
    """The image-level result of a finished run, from its samples.parquet."""
    import pyarrow.parquet as pq

    table = pq.read_table(run.file("samples.parquet"), columns=["status", "label", "teacher_top1", "flag", "doubtful"])
    read = np.array([status == "read" for status in table["status"].to_pylist()], bool)
    nothing = np.full(len(read), np.nan)
    columns = Columns(read, _whole(table["teacher_top1"].to_numpy()), np.zeros(len(read), bool), nothing)
    flag, doubtful = (table[name].to_numpy().astype(bool) for name in ("flag", "doubtful"))
    never = np.zeros(len(read), bool)
    flags = Flags(flag, nothing, never, np.full(len(read), -1, np.int8), never, doubtful)
    patterns = load_patterns(run.state / PATTERNS)
    return Judged(columns, _whole(table["label"].to_numpy()), flags, None, patterns=patterns)


def _carriers(judged: Judged, span: slice) -> NDArray[np.bool_]:
    """Whether an image's p-value is that of carrying a proven trigger."""
    proven = [number for number, reason in enumerate(judged.reasons) if reason in (CARRIES, MARKED)]
    return np.isin(judged.flags.way[span], proven)


def _reason(judged: Judged, row: int) -> str:
    if not judged.flags.flag[row]:
        return ""
    what = judged.reasons[max(0, int(judged.flags.way[row]))]
    own_score = judged.flags.way[row] == 0
    return f"{what}; p-value extrapolated" if own_score and judged.flags.extrapolated[row] else what


def _whole(column: NDArray[Any]) -> NDArray[np.int64]:
    """A column of whole numbers, -1 where it holds nulls (which arrive as NaN)."""
    return np.nan_to_num(column.astype(np.float64), nan=-1).astype(np.int64)
