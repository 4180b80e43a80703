"""The report for a terminal: the verdict and its reasons first, then what a reader needs to act."""

import textwrap
from pathlib import Path

from kdaudit.report.document import Document, Rate, RepairSection


def printable(text: str) -> str:
    """Text from outside without control characters: a file name must not drive the reader's terminal."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def percent(rate: Rate, digits: int = 2) -> str:
    """A rate in percent with its interval."""
    if rate.of == 0:
        return "-"
    return (
        f"{100 * rate.hits / rate.of:.{digits}f} % [{100 * rate.low:.{digits}f}, {100 * rate.high:.{digits}f}] "
        f"({rate.hits:,} of {rate.of:,})"
    )


def render(document: Document, run: Path) -> str:
    """The whole report as text."""
    lines = [
        f"verdict: {document.verdict}",
        *(line for why in document.why for line in _wrapped(printable(why), 2)),
        "",
    ]
    lines += _scanned(document)
    lines += _model_and_control(document)
    lines += _flags(document)
    if document.repair:
        lines += repair_lines(document.repair)
    minor = [f for f in document.findings if f.message not in document.why]
    if minor:
        lines += ["findings", *(f"  {f.severity:<9}{f.rule}  {printable(f.message)}" for f in minor)]
    slowest = sorted(document.timings.items(), key=lambda item: -item[1])[:4]
    lines += ["time      " + ", ".join(f"{name} {seconds:.0f} s" for name, seconds in slowest)]
    lines += [f"run       {printable(str(run))}: report.json, samples.parquet, kept.csv, quarantine.csv, student.onnx"]
    return "\n".join(lines)


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


def _wrapped(text: str, indent: int = 10) -> list[str]:
    """A sentence over as many lines as a terminal needs."""
    return textwrap.wrap(text, 110, initial_indent=" " * indent, subsequent_indent=" " * indent)


def _scanned(document: Document) -> list[str]:
    c, m = document.coverage, document.machine
    seconds = document.timings.get("compare teacher and control", 0.0)
    pace = f", {c.scanned / seconds:,.0f} images/s" if seconds > 0.05 else ""
    return [
        f"scanned   {c.scanned:,} images ({c.share:.2%}), {c.unreadable:,} unreadable, {c.skipped:,} skipped{pace}",
        f"machine   teacher on {m.teacher_provider}, control on {m.student_provider}, decoder {m.decoder}, "
        f"{m.workers} workers; teacher confined by {m.confinement}",
    ]


def _model_and_control(document: Document) -> list[str]:
    p, k = document.preprocessing, document.control
    sure = "" if p.sure else " (not sure: see --preprocess)"
    margin = f"; next best {p.runner_up}, {p.margin:.3f} behind" if p.runner_up else ""
    lines = [f"fed as    {p.recipe}{sure}{margin}"]
    if p.accuracy is not None:
        lines += [f"          agrees with {p.accuracy:.1%} of the labels tried; class order: {p.class_basis}"]
    if p.note:
        lines += _wrapped(printable(p.note))
    lines += [
        f"control   fidelity {percent(k.fidelity, 1)}; distilled on {k.distillation_images:,}, "
        f"calibrated on {k.calibration_images:,} clean images"
    ]
    if k.clean_shared:
        lines += [f"          {k.clean_shared:,} clean images were left out: the suspect set holds them too"]
    return lines


def _flags(document: Document) -> list[str]:
    j = document.judgement
    lines = [f"flagged   {percent(j.flagged)} by {j.rule}", *_wrapped(j.statement)]
    for row in j.by_answer[:5]:
        name = f" ({printable(row.name)})" if row.name and row.name != str(row.answer) else ""
        lines += [f"          answer {row.answer}{name}: {row.flagged.hits:,} flagged of {row.flagged.of:,}"]
    doubt = f" ({j.doubtful:,} of them doubtful: unusual for an answer with flags)" if j.doubtful else ""
    lines += [f"kept      {document.kept:,} images in kept.csv{doubt}, {document.quarantined:,} in quarantine.csv"]
    return lines
