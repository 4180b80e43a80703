"""Every check of an audit with its outcome, passed ones too: from the report and the gate's answer to it."""

from datetime import date
from pathlib import Path

from kdaudit.admission import FINDINGS
from kdaudit.gate import Baseline, apply, resolved_of
from kdaudit.report.document import Document
from kdaudit.report.sections import CheckRow, CheckState, FindingRow
from kdaudit.settings import Settings
from kdaudit.signs import BEHAVIOUR
from kdaudit.verdict import SEVERITIES, left_open

PARITY = 1e-3
"""Difference between torch and onnxruntime, in logits, that a sound export stays under."""


def conclude(
    document: Document, settings: Settings, baseline: Baseline | None, today: date, run: Path | None = None
) -> Document:
    """The report with the gate's answer and all checks (see `kdaudit.gate.apply`)."""
    gated = apply(document, settings, baseline, today, run)
    return gated.model_copy(update={"checks": checks_of(gated, settings)})


def checks_of(document: Document, settings: Settings) -> list[CheckRow]:
    """All checks: the graph's rules, the behaviour's, what an audit needs, and the gate."""
    faithful = document.control.fidelity.hits >= _needed(document, settings) * document.control.fidelity.of
    judged = document.coverage.scanned > 0 and faithful
    return [
        *(_rule(rule, "graph", title, document, run=True) for rule, title in FINDINGS.items()),
        *(_rule(rule, "behaviour", title, document, run=judged) for rule, title in BEHAVIOUR.items()),
        *_needs(document, settings, faithful=faithful),
        *_gate(document, settings),
    ]


def _needed(document: Document, settings: Settings) -> float:
    """The fidelity that a control of this model needs."""
    return settings.fidelity_needed(int(document.model.signature["classes"]))


def _rule(rule: str, group: str, title: str, document: Document, *, run: bool) -> CheckRow:
    found = [f for f in document.findings if f.rule == rule]
    state: CheckState = _state(found, document.gate.fail_on) if run else "not run"
    detail = "; ".join(_told(f) for f in found)
    return CheckRow(
        id=rule, group="graph" if group == "graph" else "behaviour", title=title, state=state, detail=detail
    )


def _state(found: list[FindingRow], fail_on: str) -> CheckState:
    if not found:
        return "passed"
    counting = [f for f in found if f.suppressed is None]
    if not counting:
        return "suppressed"
    worst = max(SEVERITIES.index(f.severity) for f in counting)
    return "failed" if fail_on != "never" and worst >= SEVERITIES.index(fail_on) else "noted"


def _told(finding: FindingRow) -> str:
    if finding.suppressed is None:
        return finding.message
    until = f" until {finding.suppressed.expires}" if finding.suppressed.expires else ""
    return f"{finding.message} (suppressed{until}: {finding.suppressed.reason})"


def _needs(document: Document, settings: Settings, *, faithful: bool) -> list[CheckRow]:
    """What an audit needs in order to say anything."""
    c, k, j, p = document.coverage, document.control, document.judgement, document.preprocessing
    missed = {doubt.about: doubt.message for doubt in left_open(resolved_of(document), (), settings)}
    counts = j.rule != "argmax"
    share = k.fidelity.hits / k.fidelity.of if k.fidelity.of else 0.0
    rows = [
        CheckRow(
            id="coverage",
            group="audit",
            title="enough of the images could be read",
            state="passed" if c.scanned and "coverage" not in missed else "inconclusive",
            detail=f"{c.scanned:,} scanned ({c.share:.2%}), {c.not_scanned}; {settings.min_coverage:.0%} needed",
        ),
        CheckRow(
            id="archives",
            group="audit",
            title="every archive and folder of the delivery was looked into",
            state="inconclusive" if "archives" in missed else "passed",
            detail=f"{c.unopened:,} could not be" if c.unopened else "",
        ),
        CheckRow(
            id="fidelity",
            group="audit",
            title="the control is faithful enough",
            state="passed" if faithful else "inconclusive",
            detail=f"{share:.1%} of {k.fidelity.of:,} held-out clean images get the model's answer; "
            f"{_needed(document, settings):.0%} needed",
        ),
        CheckRow(
            id="calibration",
            group="audit",
            title="there are enough calibration images to show poison by counting",
            state="not run" if not counts else "inconclusive" if "calibration" in missed else "passed",
            detail=missed.get(
                "calibration", f"{k.calibration_images:,} show it from {j.visible_rate:.2%} of one target on"
            )
            if counts
            else "",
        ),
        CheckRow(
            id="sensitivity",
            group="audit",
            title="the poison rate asked for can be seen",
            state="not run" if settings.sensitivity is None else _asked(j.visible_rate, settings.sensitivity),
            detail="" if settings.sensitivity is None else f"{settings.sensitivity:.2%} asked for",
        ),
        CheckRow(
            id="preprocessing",
            group="audit",
            title="how the model wants to be fed is certain",
            state="passed" if p.sure else "noted",
            detail=f"{p.recipe}, {p.margin:.3f} ahead of the next best",
        ),
        CheckRow(
            id="parity",
            group="audit",
            title="the exported control answers as the trained one",
            state="not run" if k.parity is None else "passed" if k.parity <= PARITY else "noted",
            detail="" if k.parity is None else f"largest difference {k.parity:.2g}",
        ),
    ]
    states: dict[str, CheckState] = {"holds": "passed", "violated": "inconclusive", "not tested": "not run"}
    rows += [
        CheckRow(id=f"validity: {v.name}", group="audit", title=v.name, state=states[v.state], detail=v.statement)
        for v in document.validity
    ]
    return rows


def _asked(visible: float, wanted: float) -> CheckState:
    return "passed" if visible <= wanted else "inconclusive"


def _gate(document: Document, settings: Settings) -> list[CheckRow]:
    flagged = document.judgement.flagged
    limit = settings.max_flagged_rate
    count = flagged.hits if document.gate.new_candidates is None else document.gate.new_candidates
    over = limit is not None and flagged.of > 0 and count / flagged.of > limit
    return [
        CheckRow(
            id="max-flagged-rate",
            group="gate",
            title="few enough images are flagged",
            state="not run" if limit is None else "failed" if over else "passed",
            detail="" if limit is None else f"{count:,} of {flagged.of:,}; {limit:.2%} allowed",
        ),
        CheckRow(
            id="gate",
            group="gate",
            title="the gate",
            state=document.gate.result,
            detail="; ".join([*document.gate.reasons, *document.gate.notes]),
        ),
    ]
