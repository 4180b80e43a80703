"""The report for a terminal: the verdict and its reasons first, then what a reader needs to act."""

import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path

from kdaudit.report.advice import next_steps
from kdaudit.report.document import Document
from kdaudit.report.escape import printable
from kdaudit.report.results import GatheringRow, RepairSection
from kdaudit.report.sections import FindingRow, Rate

WIDEST, NARROWEST = 110, 40
MAX_REASONS, MAX_CLASSES = 3, 5
NUMBERS, INTERVAL = 31, 19
"""Columns that the table of answers needs beside the names: for counts and rate, and for the interval."""


def percent(rate: Rate, digits: int = 2) -> str:
    """A rate in percent with its interval."""
    if rate.of == 0:
        return "-"
    return (
        f"{100 * rate.hits / rate.of:.{digits}f} % [{100 * rate.low:.{digits}f}, {100 * rate.high:.{digits}f}] "
        f"({rate.hits:,} of {rate.of:,})"
    )


def width_of(columns: int | None) -> int:
    """The width to wrap at: `columns`, or the terminal's; 40 at least and 110 at most."""
    return max(NARROWEST, min(columns or shutil.get_terminal_size((WIDEST, 24)).columns, WIDEST))


def render(document: Document, run: Path, columns: int | None = None) -> str:
    """The whole report as text.

    Args:
        document: the report.
        run: its run directory.
        columns: width to wrap sentences at; that of the terminal when left out, and 110 at most.
    """
    width = width_of(columns)
    lines = [f"verdict: {document.verdict}"]
    for why in document.why[:MAX_REASONS]:
        lines += _wrapped(printable(why), width, 2)
    if len(document.why) > MAX_REASONS:
        lines += [f"  and {len(document.why) - MAX_REASONS} more reasons in report.html"]
    lines += ["", *_scanned(document, width), *_model_and_control(document, width), *_flags(document, width)]
    if document.repair:
        lines += repair_lines(document.repair, width)
    minor = [f for f in document.findings if f.message not in document.why or f.suppressed]
    if minor:
        lines += ["findings", *(line for finding in minor for line in _finding(finding, width))]
    lines += _gate(document, width)
    slowest = sorted(document.timings.items(), key=lambda item: -item[1])[:4]
    lines += _wrapped("time      " + ", ".join(f"{name} {seconds:.0f} s" for name, seconds in slowest), width, 10, "")
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


def fitted(lines: Sequence[str], indent: int, columns: int | None = None) -> str:
    """Lines made to fit a window of so many columns (the terminal's when left out), continued after an indent."""
    width = width_of(columns)
    return "\n".join(part for line in lines for part in _wrapped(line, width, indent, ""))


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


def repair_lines(repair: RepairSection, columns: int | None = None) -> list[str]:
    """The repair, before and after, for a window of so many columns; the terminal's when left out."""
    width = width_of(columns)
    made = "" if repair.tuned else "the distilled control (no labels to tune on)"
    if repair.accuracy and repair.accuracy_before:
        made += f"tuned on {repair.images:,} kept images, {repair.steps:,} steps; feed it as above"
    lines = _wrapped(f"repaired  {printable(repair.file)}: {made}", width, 10, "")
    if repair.accuracy and repair.accuracy_before:
        before, after = percent(repair.accuracy_before), percent(repair.accuracy)
        text = f"accuracy on {repair.accuracy.of:,} held-out kept images: {before} before, {after} after"
        lines += _wrapped(text, width)
    if repair.still_suspicious:
        lines += _wrapped(
            f"flagged images that still get the model's answer: {percent(repair.still_suspicious)}", width
        )
    return lines


def _wrapped(text: str, width: int, indent: int = 10, first: str | None = None) -> list[str]:
    """A sentence over as many lines as a terminal needs."""
    begin = " " * indent if first is None else first
    return textwrap.wrap(text, width, initial_indent=begin, subsequent_indent=" " * indent, break_on_hyphens=False)


def _scanned(document: Document, width: int) -> list[str]:
    c, m = document.coverage, document.machine
    rate = document.pace.images_per_s if document.pace else 0.0
    pace = f", {rate:,.0f} images/s" if rate >= 0.5 else ""
    counts = f"{c.scanned:,} images ({c.share:.2%}), {c.not_scanned}{pace}"
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


def _classes(rows: Sequence[GatheringRow], width: int) -> list[str]:
    """The answers with most flags, as a table; intervals where there is room for them."""
    if not rows:
        return []
    names = [
        str(row.answer) + (f" {printable(row.name)}" if row.name and row.name != str(row.answer) else "")
        for row in rows[:MAX_CLASSES]
    ]
    indent = 10 if width >= 60 else 2
    room = max(len("answer"), min(max(map(len, names)), width - indent - NUMBERS))
    wide = width >= indent + room + NUMBERS + INTERVAL
    head = f"{'answer':<{room}} {'flagged':>9} {'of':>9}   rate"
    lines = [" " * indent + head + (", 95 % interval" if wide else "")]
    for name, row in zip(names, rows, strict=False):
        shown = name if len(name) <= room else name[: room - 1] + "…"
        rate = percent(row.flagged).partition(" (")[0]
        rate = rate if wide else rate.partition(" [")[0]
        lines.append(f"{'':{indent}}{shown:<{room}} {row.flagged.hits:>9,} {row.flagged.of:>9,}   {rate}")
    more = len(rows) - MAX_CLASSES
    return lines + ([f"{'':{indent}}and {more:,} more in report.html"] if more > 0 else [])


def _flags(document: Document, width: int) -> list[str]:
    j = document.judgement
    lines = [*_wrapped(f"flagged   {percent(j.flagged)} by {j.rule}", width, 10, ""), *_wrapped(j.statement, width)]
    lines += _classes(j.by_answer, width)
    doubt = f" ({j.doubtful:,} of them doubtful)" if j.doubtful else ""
    kept = f"{document.kept:,} images in kept.csv{doubt}, {document.quarantined:,} in quarantine.csv"
    return lines + _wrapped(f"kept      {kept}", width, 10, "")
