"""Stage 7, by model: the verdict.

`judge` takes columns, never files or models. docs/verdict.md has the table that `_conclude` follows.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from kdaudit.admission import Finding
from kdaudit.compared import Comparison
from kdaudit.flagging import Flags, score_of
from kdaudit.labelling import LabelDoubts
from kdaudit.multiplicity import PRICE
from kdaudit.odds import Columns
from kdaudit.searched import Found
from kdaudit.settings import Settings
from kdaudit.signs import Evidence, behaviour, evidence_of
from kdaudit.trace import Trace

State = Literal["PASSED", "FAILED", "INCONCLUSIVE"]
SEVERITIES = ("low", "medium", "high", "critical")


@dataclass(frozen=True, slots=True)
class Verdict:
    """The model-level result.

    Attributes:
        state: PASSED, FAILED or INCONCLUSIVE.
        why: sentences, the deciding one first.
        findings: static and behavioural, most severe first.
        evidence: the numbers.
    """

    state: State
    why: tuple[str, ...]
    findings: tuple[Finding, ...]
    evidence: Evidence


class Fidelity(NamedTuple):
    """How faithful the control is.

    Attributes:
        share: of held-out clean images on which it gives the teacher's answer, 0..1.
        needed: for a verdict.
    """

    share: float
    needed: float


def judge(
    suspect: Columns,
    flags: Flags,
    calibration: Comparison,
    static: tuple[Finding, ...],
    fidelity: Fidelity,
    settings: Settings,
    names: tuple[str, ...] | None = None,
    triggers: tuple[Found, ...] = (),
    trace: Trace | None = None,
    labels: LabelDoubts = LabelDoubts(),  # noqa: B008  frozen
    unopened: int = 0,
    aside: int = 0,
) -> Verdict:
    """The model-level call.

    Args:
        suspect: columns of the suspect images.
        flags: what `flag` made of them.
        calibration: comparison of the calibration images.
        static: findings of the graph.
        fidelity: of the control.
        settings: thresholds.
        names: the model's class names, for the sentences.
        triggers: patterns that the second look has proven.
        trace: what images share where it has proven none.
        labels: what both networks say to the labels.
        unopened: archives and folders of the delivery that nobody looked into.
        aside: records that are no images.
    """
    clean_score = score_of(calibration, settings.rule)
    evidence = evidence_of(suspect, flags, calibration, clean_score, settings.fdr)
    answers, counts = np.unique(suspect.groups[flags.unjudged], return_counts=True)
    unjudged = tuple((int(answers[i]), int(counts[i])) for i in np.argsort(-counts, kind="stable"))
    evidence = replace(evidence, triggers=triggers, trace=trace, unjudged=unjudged, labels=labels, unopened=unopened)
    findings = sorted(
        (*static, *behaviour(evidence, suspect, settings.rule, names)),
        key=lambda f: -SEVERITIES.index(f.severity),
    )
    state, why = _conclude(tuple(findings), evidence, len(suspect.read) - aside, fidelity, settings)
    return Verdict(state, why, tuple(findings), evidence)


def _conclude(
    findings: tuple[Finding, ...], evidence: Evidence, images: int, fidelity: Fidelity, settings: Settings
) -> tuple[State, tuple[str, ...]]:
    """The table of docs/verdict.md, top to bottom: the first row that holds decides."""
    if evidence.scanned == 0:
        return "INCONCLUSIVE", ("not one image could be read",)
    if fidelity.share < fidelity.needed:
        return "INCONCLUSIVE", (
            f"the control gives the model's answer on only {fidelity.share:.1%} of held-out clean images (needed: "
            f"{fidelity.needed:.0%}): give more clean images of the same kind, a larger --budget, or for photographs a "
            "--backbone",
        )
    failing = tuple(f.message for f in findings if f.severity in ("high", "critical"))
    if failing:
        return "FAILED", failing
    resolved = Resolved(
        evidence.scanned / images, evidence.unopened, settings.rule, settings.fdr, evidence.calibration,
        evidence.visible_rate,
    )  # fmt: skip
    doubts = left_open(resolved, [(f.rule, f.message) for f in findings], settings)
    if doubts:
        return "INCONCLUSIVE", tuple(doubt.message for doubt in doubts)
    return "PASSED", ("no images stand out in a way that a backdoor explains",)


OPEN = ("KDA206", "KDA209", "KDA208", "KDA213")
"""Findings that fail no scan, and let none pass, in the order in which they are told."""


class Resolved(NamedTuple):
    """What a scan looked at, and how finely.

    Attributes:
        coverage: share of the records that could be read, 0..1.
        unopened: archives and folders of the delivery that nobody looked into.
        rule: that images were judged by.
        fdr: innocent share of the flags to stay under.
        calibration: calibration images.
        visible_rate: smallest poison rate that these show by counting, 1 where they show none.
    """

    coverage: float
    unopened: int
    rule: str
    fdr: float
    calibration: int
    visible_rate: float


class Doubt(NamedTuple):
    """Why a scan that found nothing severe has not passed either.

    Attributes:
        about: what it needed: "coverage", "archives", "calibration" or "sensitivity"; or the finding's rule.
        message: one sentence.
    """

    about: str
    message: str


def left_open(seen: Resolved, findings: Iterable[tuple[str, str]], settings: Settings) -> list[Doubt]:
    """What a scan that found nothing severe leaves open; the gate and the list of checks ask too.

    Args:
        seen: what was looked at.
        findings: rule and message of each finding that counts.
        settings: `min_coverage` and `sensitivity`.
    """
    found, doubts = list(findings), []
    if seen.coverage < settings.min_coverage:
        read = f"only {seen.coverage:.2%} of the images could be read (needed: {settings.min_coverage:.0%})"
        doubts.append(Doubt("coverage", read))
    if seen.unopened:
        what = "archive or folder" if seen.unopened == 1 else "archives or folders"
        closed = (
            f"{seen.unopened:,} {what} in the delivery could not be looked into, and nobody knows how many images are "
            "there (see quarantine.csv): unpack, mend or remove"
        )
        doubts.append(Doubt("archives", closed))
    if seen.rule != "argmax" and seen.visible_rate >= 1:
        needed = math.floor(PRICE / seen.fdr + 1e-9)  # the smallest n with PRICE / ((n + 1) fdr) under 1
        few = (
            f"{seen.calibration:,} calibration images show no poison by counting, however much there is "
            f"({needed:,} would begin to): give more clean images"
        )
        doubts.append(Doubt("calibration", few))
    elif settings.sensitivity is not None and seen.visible_rate > settings.sensitivity:
        coarse = (
            f"{seen.calibration:,} calibration images show poison with one target from {seen.visible_rate:.2%} "
            f"on, not the {settings.sensitivity:.2%} asked for"
        )
        doubts.append(Doubt("sensitivity", coarse))
    parts = "model and control part more on these images than on clean ones, and no images stand out as the cause"
    doubts += [Doubt("KDA205", parts)] if any(rule == "KDA205" for rule, _ in found) else []
    return doubts + [Doubt(*one) for wanted in OPEN for one in found if one[0] == wanted]
