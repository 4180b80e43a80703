"""Markdown for a job summary, and GitHub's annotations."""

from kdaudit.gate import limits_of, reason_of
from kdaudit.report.advice import next_steps
from kdaudit.report.document import Document
from kdaudit.report.escape import markdown_code, markdown_text, relative_uri, workflow_property, workflow_text
from kdaudit.report.rules import rules
from kdaudit.report.sections import FindingRow, Rate, Suppression

MAX_ROWS = 10
MAX_ANNOTATIONS = 10
"""GitHub shows ten of each kind for a step."""

MARKS = {"PASSED": "✅", "FAILED": "❌", "INCONCLUSIVE": "⚠️"}


def render_markdown(document: Document) -> str:
    """The report as a page of Markdown."""
    c, k, j = document.coverage, document.control, document.judgement
    lines = [
        f"## {MARKS[document.verdict]} kdaudit: {document.verdict}",
        "",
        f"Model {markdown_code(document.model.path)}, images {markdown_code(document.suspect.location)}; "
        f"gate {document.gate.result}, exit code {document.exit_code}.",
        "",
        *(f"- {markdown_text(why)}" for why in document.why),
        *_gate(document),
        "",
        "| | |",
        "|---|---|",
        f"| scanned | {c.scanned:,} images ({c.share:.2%}), {c.not_scanned} |",
        f"| flagged | {_rate(j.flagged)} |",
        f"| control | fidelity {_rate(k.fidelity)}, calibrated on {k.calibration_images:,} clean images |",
        f"| shows by counting | poison with one target from {j.visible_rate:.2%} on |",
        f"| kept / quarantined | {document.kept:,} / {document.quarantined:,} images |",
    ]
    if document.repair and document.repair.accuracy:
        lines.append(f"| repaired model | accuracy {_rate(document.repair.accuracy)} on held-out kept images |")
    lines += _findings(document) + _clusters(document) + _answers(document)
    lines += ["", "### What to do next", "", *(f"- {markdown_text(step)}" for step in next_steps(document)), ""]
    passed = sum(check.state == "passed" for check in document.checks)
    lines += [f"{passed} of {len(document.checks)} checks passed. Made by kdaudit {document.recipe.kdaudit}.", ""]
    return "\n".join(lines)


def render_github(document: Document) -> str:
    """The report as workflow commands: GitHub shows them beside the job."""
    state = "is inconclusive" if document.gate.result == "inconclusive" else "gate failed"
    # What no finding stands for goes first: GitHub shows so many of each kind, and this must be among them.
    told = [("error", f"title=kdaudit {state}", why) for why in limits_of(document)]
    told += [("warning", "title=kdaudit gate", note) for note in document.gate.notes]
    told += [annotation for finding in document.findings for annotation in _annotation(finding, document)]
    lines = []
    for kind in ("error", "warning", "notice"):
        these = [f"::{kind} {title}::{workflow_text(text)}" for level, title, text in told if level == kind]
        lines += these[: MAX_ANNOTATIONS - 1]
    c = document.coverage
    summary = f"{c.scanned:,} images scanned, {c.not_scanned}"
    summary += f", {document.judgement.flagged.hits:,} flagged; gate {document.gate.result}"
    if len(told) > len(lines):
        summary += f"; {len(told) - len(lines):,} more annotations are in report.html"
    return "\n".join([*lines, f"::notice title=kdaudit {document.verdict}::{summary}"]) + "\n"


def _annotation(finding: FindingRow, document: Document) -> list[tuple[str, str, str]]:
    """Kind, properties and text of a finding's annotation; none where it is low, and nobody asked about it."""
    text, held = finding.message, finding.suppressed
    if held:
        kind, text = "notice", f"{text} ({_suppressed(held)})"
    elif reason_of(finding) in document.gate.reasons:
        kind = "error"
    elif finding.severity == "low":
        return []
    else:
        kind = "warning" if finding.severity == "medium" else "error"
    place = workflow_property(relative_uri(document.model.path))
    title = workflow_property(f"{finding.rule} {rules()[finding.rule].title}" if finding.rule in rules() else "")
    return [(kind, f"file={place},title={title}", text)]


def _suppressed(held: Suppression) -> str:
    return f"suppressed: {held.reason}" + (f", until {held.expires}" if held.expires else "")


def _gate(document: Document) -> list[str]:
    """Why the gate did not pass, as far as the verdict's sentences do not say it, and its notes."""
    gate = document.gate
    said = {*document.why, *(reason_of(finding) for finding in document.findings if finding.message in document.why)}
    reasons = [why for why in gate.reasons if why not in said]
    lines = [f"- gate {gate.result}: {markdown_text(why)}" for why in reasons[:MAX_ROWS]]
    lines += [f"- note: {markdown_text(note)}" for note in gate.notes]
    return lines + _more(len(reasons))


def _rate(rate: Rate) -> str:
    if not rate.of:
        return "-"
    share, low, high = (100 * x for x in (rate.hits / rate.of, rate.low, rate.high))
    return f"{share:.2f} % ({low:.2f} to {high:.2f}; {rate.hits:,} of {rate.of:,})"


def _findings(document: Document) -> list[str]:
    if not document.findings:
        return ["", "No findings."]
    lines = ["", "### Findings", "", "| rule | severity | finding | |", "|---|---|---|---|"]
    for finding in document.findings[:MAX_ROWS]:
        note = markdown_text(_suppressed(finding.suppressed)) if finding.suppressed else ""
        lines.append(f"| {finding.rule} | {finding.severity} | {markdown_text(finding.message)} | {note} |")
    return lines + _more(len(document.findings))


def _clusters(document: Document) -> list[str]:
    if not document.clusters:
        return []
    lines = [
        "",
        "### Groups of candidates",
        "",
        "| group | images | what they are | first of them |",
        "|---|---|---|---|",
    ]
    for cluster in document.clusters[:MAX_ROWS]:
        first = markdown_code(cluster.examples[0]) if cluster.examples else ""
        lines.append(f"| {cluster.id} | {cluster.size:,} | {markdown_text(cluster.statement)} | {first} |")
    return lines + _more(len(document.clusters))


def _answers(document: Document) -> list[str]:
    rows = document.judgement.by_answer
    if not rows:
        return []
    lines = ["", "### Flags by the model's answer", "", "| answer | flagged, 95 % interval |", "|---|---|"]
    for row in rows[:MAX_ROWS]:
        name = f" {markdown_code(row.name)}" if row.name and row.name != str(row.answer) else ""
        lines.append(f"| {row.answer}{name} | {_rate(row.flagged)} |")
    return lines + _more(len(rows))


def _more(count: int) -> list[str]:
    return ["", f"{count - MAX_ROWS:,} more are in report.html."] if count > MAX_ROWS else []
