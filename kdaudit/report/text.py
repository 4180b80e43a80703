"""The report for a terminal: the verdict and its reasons first, then what a reader needs to act."""

import shutil
import textwrap
from pathlib import Path

from kdaudit.report.advice import next_steps
from kdaudit.report.document import Document, FindingRow, Rate, RepairSection
from kdaudit.report.escape import printable

WIDEST, NARROWEST = 110, 40
MAX_REASONS, MAX_CLASSES = 3, 5


def percent(rate: Rate, digits: int = 2) -> str:
    """A rate in percent with its interval."""
    if rate.of == 0:
        return "-"
    return (
        f"{100 * rate.hits / rate.of:.{digits}f} % [{100 * rate.low:.{digits}f}, {100 * rate.high:.{digits}f}] "
        f"({rate.hits:,} of {rate.of:,})"
    )


def render(document: Document, run: Path, columns: int | None = None) -> str:
    """The whole report as text.

    Args:
        document: the report.
        run: its run directory.
        columns: width to wrap sentences at; that of the terminal when left out, and 110 at most.
    """
    width = max(NARROWEST, min(columns or shutil.get_terminal_size((WIDEST, 24)).columns, WIDEST))
    lines = [f"verdict: {document.verdict}"]
    for why in document.why[:MAX_REASONS]:
        lines += _wrapped(printable(why), width, 2)
    if len(document.why) > MAX_REASONS:
        lines += [f"  and {len(document.why) - MAX_REASONS} more reasons in report.html"]
    lines += ["", *_scanned(document, width), *_model_and_control(document, width), *_flags(document, width)]
    if document.repair:
        lines += repair_lines(document.repair)
    minor = [f for f in document.findings if f.message not in document.why or f.suppressed]
    if minor:
        lines += ["findings", *(line for finding in minor for line in _finding(finding, width))]
    lines += _gate(document, width)
    slowest = sorted(document.timings.items(), key=lambda item: -item[1])[:4]
    lines += ["time      " + ", ".join(f"{name} {seconds:.0f} s" for name, seconds in slowest)]
    lines += _pace(document, width)
    lines += [
        "",
        "what to do next",
        *(line for step in next_steps(document) for line in _wrapped(printable(step), width, 4, "  - ")),
    ]
    names = "report.html, report.json, findings.sarif, junit.xml, summary.md, samples.parquet, kept.csv, quarantine.csv"
    models = ", student.onnx" + (", repaired.onnx" if document.repair else "")
    lines += ["", *_wrapped(f"run       {printable(str(run))}: {names}{models}", width, 10, "")]
    return "\n".join(lines)


def _pace(document: Document, width: int) -> list[str]:
    """What the time of the comparison went on, and what holds it up."""
    pace = document.pace
    if pace is None or not pace.shares:
        return []
    shares = ", ".join(f"{part} {share:.0%}" for part, share in pace.shares.items() if share >= 0.005)
    text = f"comparing: {shares}; the wall is: {pace.wall}"
    return _wrapped(text, width)


def _finding(finding: FindingRow, width: int) -> list[str]:
    held = finding.suppressed
    text = f"{finding.severity:<9}{finding.rule}  {printable(finding.message)}"
    if held:
        text += f" [suppressed: {printable(held.reason)}" + (f", until {held.expires}]" if held.expires else "]")
    return _wrapped(text, width, 4, "  ")


def _gate(document: Document, width: int) -> list[str]:
    """The gate, where it says something else than the verdict does."""
    gate = document.gate
    said = [why for why in gate.reasons if document.verdict != "INCONCLUSIVE" and not why.startswith("KDA")]
    if gate.result == document.verdict.lower() and not said and not gate.notes:
        return []
    lines = _wrapped(f"gate      {gate.result}, exit code {document.exit_code}", width, 10, "")
    return lines + [line for text in (*said, *gate.notes) for line in _wrapped(printable(text), width)]


def repair_lines(repair: RepairSection) -> list[str]:
    """The repair, before and after."""
    lines = [
        f"repaired  {printable(repair.file)}: "
        + ("" if repair.tuned else "the distilled control (no labels to tune on)")
    ]
    if repair.accuracy and repair.accuracy_before:
        lines[0] += f"tuned on {repair.images:,} kept images, {repair.steps:,} steps"
        lines += [
            f"          accuracy on {repair.accuracy.of:,} held-out kept images: "
            f"{percent(repair.accuracy_before)} before, {percent(repair.accuracy)} after"
        ]
    if repair.still_suspicious:
        lines += [f"          flagged images that still get the model's answer: {percent(repair.still_suspicious)}"]
    return lines


def _wrapped(text: str, width: int, indent: int = 10, first: str | None = None) -> list[str]:
    """A sentence over as many lines as a terminal needs."""
    begin = " " * indent if first is None else first
    return textwrap.wrap(text, width, initial_indent=begin, subsequent_indent=" " * indent, break_on_hyphens=False)


def _scanned(document: Document, width: int) -> list[str]:
    c, m = document.coverage, document.machine
    rate = document.pace.images_per_s if document.pace else 0.0
    pace = f", {rate:,.0f} images/s" if rate >= 0.5 else ""
    counts = f"{c.scanned:,} images ({c.share:.2%}), {c.unreadable:,} unreadable, {c.skipped:,} skipped{pace}"
    used = f"teacher on {m.teacher_provider}, control on {m.student_provider}, decoder {m.decoder}, {m.workers} workers"
    used += f"; teacher confined by {m.confinement}"
    return [*_wrapped(f"scanned   {counts}", width, 10, ""), *_wrapped(f"machine   {used}", width, 10, "")]


def _model_and_control(document: Document, width: int) -> list[str]:
    p, k = document.preprocessing, document.control
    sure = "" if p.sure else " (not sure: see --preprocess)"
    margin = f"; next best {p.runner_up}, {p.margin:.3f} behind" if p.runner_up else ""
    lines = _wrapped(f"fed as    {p.recipe}{sure}{margin}", width, 10, "")
    if p.accuracy is not None:
        lines += _wrapped(
            f"agrees with {p.accuracy:.1%} of the labels tried; class order: {printable(p.class_basis)}", width
        )
    if p.note:
        lines += _wrapped(printable(p.note), width)
    made = f"distilled on {k.distillation_images:,}, calibrated on {k.calibration_images:,} clean images"
    lines += _wrapped(f"control   fidelity {percent(k.fidelity, 1)}; {made}", width, 10, "")
    if k.clean_shared:
        lines += _wrapped(f"{k.clean_shared:,} clean images were left out: the suspect set holds them too", width)
    return lines


def _flags(document: Document, width: int) -> list[str]:
    j = document.judgement
    lines = [*_wrapped(f"flagged   {percent(j.flagged)} by {j.rule}", width, 10, ""), *_wrapped(j.statement, width)]
    for row in j.by_answer[:MAX_CLASSES]:
        name = f" ({printable(row.name)})" if row.name and row.name != str(row.answer) else ""
        lines += [f"          answer {row.answer}{name}: {row.flagged.hits:,} flagged of {row.flagged.of:,}"]
    doubt = f" ({j.doubtful:,} of them doubtful: unusual for an answer with flags)" if j.doubtful else ""
    kept = f"{document.kept:,} images in kept.csv{doubt}, {document.quarantined:,} in quarantine.csv"
    return lines + _wrapped(f"kept      {kept}", width, 10, "")
