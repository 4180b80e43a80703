"""Stage 7, by model: the numbers behind a verdict, and what of a model's behaviour is worth a finding.

Takes columns, never files or models. docs/verdict.md says when each finding is made.
"""

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from kdaudit.admission import Finding
from kdaudit.calibration import interval, smallest_visible_rate
from kdaudit.compared import Comparison
from kdaudit.delivered import LabelProof
from kdaudit.flagging import Flags
from kdaudit.labelling import LabelDoubts, label_findings
from kdaudit.multiplicity import PRICE
from kdaudit.odds import Columns
from kdaudit.searched import Found
from kdaudit.settings import Rule
from kdaudit.signature import named
from kdaudit.trace import Trace

BEHAVIOUR: dict[str, str] = {
    "KDA201": "flagged images gather at one answer of the model",
    "KDA202": "more of the images are flagged than chance and drift explain",
    "KDA203": "a few images stand out and do not gather",
    "KDA204": "the model gives answers that are no numbers",
    "KDA205": "the model and its control part more on these images than on clean ones",
    "KDA206": "many images stand out beyond what can be counted, and do not gather",
    "KDA207": "a pattern that images share moves the model and not its control",
    "KDA208": "images that share a trace are those on which model and control part",
    "KDA209": "suspicious images have an answer that no clean image can speak for",
    "KDA210": "labels that neither network believes",
    "KDA211": "images that share a pattern or a trace have one label, whatever they show",
    "KDA212": "images of one class share a pattern that the model obeys and no clean image has",
    "KDA213": "labels that neither network believes gather at one class",
}
"""Rule ids of behavioural findings and short titles."""

MIN_GATHERED = 5
"""Fewer flagged images at one answer are listed, but carry no verdict about the model."""

DRIFT = 0.005
"""Share of flags that the teacher's memory of its own training images may explain; clean CIFAR-10 showed 0.26 %."""

SCATTER = 0.001
"""Share of scattered flags beyond what can be counted that a clean delivery may have; MNIST's had none of 50,000."""

EXCESS = 0.03
"""Share of images beyond the expected tenth in the upper tenth of the clean scores that goes without a finding."""


@dataclass(frozen=True, slots=True)
class Gathering:
    """Flagged images with one and the same answer of the teacher.

    Attributes:
        answer: model output index.
        flagged: flagged images with this answer.
        images: images with this answer.
        share_of_flags: of all flags, those with this answer, and those with another for the label they have.
        delivered: images with another answer that are flagged because they were delivered as this class.
    """

    answer: int
    flagged: int
    images: int
    share_of_flags: float
    delivered: int = 0


@dataclass(frozen=True, slots=True)
class Evidence:
    """Numbers behind the verdict.

    Attributes:
        scanned: images compared.
        flagged: poison candidates.
        extrapolated: candidates whose p-value is extrapolated.
        flagged_interval: exact 95 % interval of flagged / scanned.
        calibration: number of calibration images.
        visible_rate: smallest poison rate that these can show by counting alone, where the poison has one target;
            spread over all answers it must be several times as frequent (docs/design/detection.md).
        gatherings: by answer, most flags first, 20 at most.
        disagreement: share of scanned images on which the control gives another answer.
        disagreement_clean: the same on the calibration images.
        excess: share of scanned images above the calibration scores' 90 % point, minus 10 %.
        triggers: patterns that were put onto clean images and proven.
        trace: what images share where no pattern was proven.
        unjudged: suspicious images of an answer that clean images cannot speak for, by answer, most first.
        labels: what both networks say to the labels.
        unopened: archives and folders of the delivery that nobody looked into.
    """

    scanned: int
    flagged: int
    extrapolated: int
    flagged_interval: tuple[float, float]
    calibration: int
    visible_rate: float
    gatherings: tuple[Gathering, ...]
    disagreement: float
    disagreement_clean: float
    excess: float
    triggers: tuple[Found, ...] = ()
    trace: Trace | None = None
    unjudged: tuple[tuple[int, int], ...] = ()
    labels: LabelDoubts = field(default_factory=LabelDoubts)
    unopened: int = 0


def evidence_of(
    suspect: Columns, flags: Flags, calibration: Comparison, clean_score: NDArray[np.float64], fdr: float
) -> Evidence:
    """Count; `clean_score`: of the calibration images, [n]; `fdr`: innocent share of the flags to stay under."""
    read, flagged = suspect.read, flags.flag
    scanned, total = int(read.sum()), int(flagged.sum())
    q90 = np.quantile(clean_score, 0.9, method="higher")  # one of the scores: infinite ones cannot be averaged
    return Evidence(
        scanned=scanned,
        flagged=total,
        extrapolated=int((flags.extrapolated & flagged).sum()),
        flagged_interval=interval(total, scanned),
        calibration=len(calibration),
        visible_rate=min(1.0, PRICE * smallest_visible_rate(len(calibration), fdr)),
        gatherings=_gatherings(suspect, flags),
        disagreement=np.count_nonzero(suspect.disagrees & read) / scanned if scanned else 0.0,
        disagreement_clean=float((calibration.teacher_top1 != calibration.student_top1).mean()),
        excess=np.count_nonzero(suspect.score > q90) / scanned - float((clean_score > q90).mean()) if scanned else 0.0,
    )


def _gatherings(suspect: Columns, flags: Flags) -> tuple[Gathering, ...]:
    """Flags by answer. Poison that moved nothing, found by its label, belongs to that class and not to its answer."""
    plain, total = flags.flag, int(flags.flag.sum())
    told = np.empty(0, np.int64)
    if flags.by_label is not None and suspect.told is not None:
        plain, told = plain & ~flags.by_label, suspect.told.labels[flags.by_label]
    answers, counts = np.unique(suspect.groups[plain], return_counts=True)
    found = []
    for i in np.argsort(-counts, kind="stable")[:20]:
        answer, flagged, delivered = int(answers[i]), int(counts[i]), int((told == answers[i]).sum())
        images = int((suspect.groups == answer).sum())
        found.append(Gathering(answer, flagged, images, (flagged + delivered) / total, delivered))
    return tuple(found)


def behaviour(evidence: Evidence, suspect: Columns, rule: Rule, names: tuple[str, ...] | None) -> list[Finding]:
    """Findings about the model's behaviour; `names`: its class names, for the sentences."""
    found = []
    strange = int(np.isposinf(suspect.score).sum())
    if strange:
        found.append(Finding("KDA204", "high", f"the model answers {strange:,} images with values that are no numbers"))
    found += [_trigger_finding(one, names) for one in evidence.triggers]
    found += [_trace_finding(evidence.trace, names)] if evidence.trace else []
    found += _unknown_finding(evidence, names)
    gathered = bool(evidence.triggers)  # flags that share a proven pattern are no scatter, whatever their answers
    for g in evidence.gatherings:
        if _gathers(g, evidence, rule):
            gathered = True
            more = f" ({g.delivered:,} more were delivered as it)" if g.delivered else ""
            text = (
                f"{g.flagged:,} of {evidence.flagged:,} flagged images get the answer {named(g.answer, names)} from "
                f"the model {_control_on(g, evidence)}{more}: the pattern of a backdoor with this target class"
            )
            found.append(Finding("KDA201", "critical", text, f"answer {g.answer}"))
    counted = evidence.flagged if rule == "argmax" else evidence.flagged - evidence.extrapolated
    low, _ = interval(counted, evidence.scanned)
    allowed = DRIFT + (evidence.disagreement_clean if rule == "argmax" else 0.0)
    # Under argmax the clean images' own rate of disagreement is what innocents look like.
    if low > (1.5 * allowed if rule == "argmax" else allowed):
        found.append(
            Finding(
                "KDA202",
                "critical",
                f"{evidence.flagged:,} of {evidence.scanned:,} images are poison candidates",
            )
        )
    elif not gathered and interval(evidence.extrapolated, evidence.scanned)[0] > SCATTER:
        found.append(
            Finding(
                "KDA206",
                "medium",
                f"{evidence.flagged:,} images stand out beyond what {evidence.calibration:,} calibration images can "
                "count, and do not gather: mislabelled images, or poison with many targets; more clean images tell",
            )
        )
    elif evidence.flagged and not gathered and rule != "argmax":
        found.append(
            Finding(
                "KDA203",
                "low",
                f"{evidence.flagged:,} images stand out without gathering: odd pictures, wrong labels, "
                "or very little poison",
            )
        )
    if evidence.excess > EXCESS + 2 * _noise(evidence) and not gathered:
        found.append(
            Finding(
                "KDA205",
                "medium",
                f"{evidence.excess:.1%} more of the images than of clean ones lie in the upper tenth of the scores",
            )
        )
    found += label_findings(evidence.labels, names)
    return found


def _unknown_finding(evidence: Evidence, names: tuple[str, ...] | None) -> list[Finding]:
    """Suspicious images of answers that clean images cannot speak for, if they are more than a few."""
    total = sum(count for _, count in evidence.unjudged)
    if interval(total, evidence.scanned)[0] <= SCATTER:
        return []
    which = [f"{named(answer, names)}: {count:,}" for answer, count in evidence.unjudged[:3]]
    more = [f"{len(evidence.unjudged) - 3:,} more answers"] if len(evidence.unjudged) > 3 else []
    text = (
        f"{total:,} suspicious images have an answer that no clean image can speak for, as none gets it or the control "
        f"takes those for something else ({'; '.join(which + more)}): a class that the control could not learn, or the "
        "target of a backdoor; give more clean images of every class, or a larger --budget"
    )
    return [Finding("KDA209", "medium", text)]


def _control_on(gathering: Gathering, evidence: Evidence) -> str:
    """What the control says to these flagged images."""
    taken_over = any(one.only_foreign and one.target == gathering.answer for one in evidence.triggers)
    return "and from the control, which took it over" if taken_over else "where the control sees something else"


def _trigger_finding(one: Found, names: tuple[str, ...] | None) -> Finding:
    proof = one.proof
    if one.by_label is not None and not proof.proven:
        told = _label_sentence(one.by_label, f"share a {one.pattern.kind}", names)
        moved = f"which moves {proof.teacher:,} of {proof.images:,} clean images in the model"
        return Finding("KDA211", "critical", f"{told}: a trigger in the data, {moved}")
    answer = "" if one.target is None else named(one.target, names)
    if one.by_pool is not None and one.only_foreign:
        said = one.by_pool
        text = (
            f"{said.carriers:,} of {said.answered:,} images with the answer {answer} share a {one.pattern.kind} that "
            f"{said.clean_carriers:,} of {said.clean:,} clean images have; put onto clean images, it moves "
            f"{proof.teacher:,} of {proof.images:,} to that answer in the model and {proof.student:,} in the control"
        )
        return Finding("KDA212", "critical", f"{text}: a trigger")
    where = f"to the answer {answer}" if answer else "to other answers"
    return Finding(
        "KDA207",
        "critical",
        f"a {one.pattern.kind} recovered from {one.pattern.members:,} images, put onto clean images, moves "
        f"{proof.teacher:,} of {proof.images:,} {where} in the model and {proof.student:,} in the control: a trigger",
    )


def _label_sentence(said: LabelProof, what: str, names: tuple[str, ...] | None) -> str:
    return (
        f"{said.carriers:,} images {what} and show other classes than {named(said.label, names)}; "
        f"{said.delivered:,} of them were delivered as that class"
    )


def _trace_finding(trace: Trace, names: tuple[str, ...] | None) -> Finding:
    if trace.by_label is not None and trace.proven:
        what = "share where they are sharp and where soft, as after a warp or a dither,"
        return Finding("KDA211", "critical", f"{_label_sentence(trace.by_label, what, names)}: a trigger in the data")
    return Finding(
        "KDA208",
        "medium",
        f"{trace.carriers:,} images share where they are sharp and where soft, as after a warp or a dither, and "
        f"{trace.parting:,} of them are among the tenth on which model and control part most",
    )


def _noise(evidence: Evidence) -> float:
    """Standard error of the excess: a tenth of the calibration images lies in their upper tenth only about."""
    return math.sqrt(0.09 * (1 / max(1, evidence.calibration) + 1 / max(1, evidence.scanned)))


def _gathers(g: Gathering, evidence: Evidence, rule: Rule) -> bool:
    """Whether the flags at one answer are a pattern and not a scatter."""
    if g.answer < 0 or g.flagged < MIN_GATHERED:
        return False
    if rule != "argmax":
        return g.share_of_flags >= 0.5
    # Argmax flags innocents by the hundred: they scatter over the answers as clean disagreements do.
    expected = 1.5 * evidence.disagreement_clean + 0.01
    return interval(g.flagged, g.images, 0.999)[0] > expected and g.share_of_flags >= 0.5
