"""Models that nobody here wrote: does kdaudit load them, find their preprocessing, and refuse what it must?

    python benchmarks/third_party.py [--quick] [--save]

Every model of $KDAUDIT_SHARED/models/real (default: ../shared) is admitted, its preprocessing is found on up to
400 labelled images of the matching data set, and its accuracy is measured on all other images (photographs: on 120
others) under the class order that was found. The accuracy must reach the one in manifest.csv less two points.
Then the search is repeated without labels. Every file in refuse/ must be refused by the command line with exit
code 2. The exit code is 1 if any row fails.
"""

import argparse
import csv
import os
import platform
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdaudit.admission import Teacher, admit
from kdaudit.decoder import open_decoder
from kdaudit.errors import Exit, ModelRefused
from kdaudit.fitting import Fitted, fit
from kdaudit.sample import Record
from kdaudit.session import Session, open_session
from kdaudit.source import open_source

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "third_party.md"
FIT_IMAGES = 400
TOLERANCE = 0.02

# The manifest does not say which ten ImageNet classes its photographs were of. These are the first ten of
# Caltech-101, in alphabetical order, whose name is the first name of an ImageNet-1k class, with its index.
PHOTO_CLASSES = {
    "accordion": 401, "ant": 310, "barrel": 427, "beaver": 337, "cannon": 471, "crayfish": 124, "cup": 968,
    "dalmatian": 251, "dragonfly": 319, "electric_guitar": 546,
}  # fmt: skip
PHOTOS_PER_CLASS = 12


@dataclass(frozen=True)
class Sample:
    """Images to fit on and other images to measure on."""

    name: str
    classes: tuple[str, ...] | None
    fit: list[Record]
    measure: list[Record]


@dataclass(frozen=True)
class Row:
    """One line of the first table."""

    model: str
    sample: str
    n: int
    fitted: Fitted
    blind: Fitted
    accuracy: float
    blind_accuracy: float
    expected: float
    seconds: float
    remark: str

    @property
    def ok(self) -> bool:
        return self.accuracy >= self.expected - TOLERANCE


def shared() -> Path:
    """Where the models and data lie."""
    return Path(os.environ.get("KDAUDIT_SHARED", HERE.parent.parent / "shared"))


@cache
def table_sample(name: str, limit: int) -> Sample:
    """A test set: `FIT_IMAGES` random rows to fit on, up to `limit` others to measure on."""
    source = open_source(shared() / "data" / name / "test.parquet")
    records = list(source.records())
    order = np.random.default_rng(0).permutation(len(records))
    picked = [records[i] for i in order[: FIT_IMAGES + limit]]
    return Sample(name, source.classes, picked[:FIT_IMAGES], picked[FIT_IMAGES:])


@cache
def photo_sample() -> Sample:
    """Photographs of `PHOTO_CLASSES`: 12 of each to measure on, the rest (up to 33 of each) to fit on."""
    source = open_source(shared() / "data" / "caltech101")
    names = tuple(PHOTO_CLASSES)
    assert source.classes is not None
    new_label = {source.classes.index(name): position for position, name in enumerate(names)}
    by_label: dict[int, list[Record]] = {position: [] for position in range(len(names))}
    for record in source.records():
        if record.label in new_label:
            label = new_label[record.label]
            by_label[label].append(Record(record.path, label, record.data, record.status, record.reason))
    measure = [record for records in by_label.values() for record in records[:PHOTOS_PER_CLASS]]
    rest = [record for records in by_label.values() for record in records[PHOTOS_PER_CLASS:]]
    return Sample("caltech101, 10 classes", names, rest, measure)


def measured(session: Session, fitted: Fitted, order: tuple[int, ...], sample: Sample) -> float:
    """Accuracy on the images that were not fitted on, under a class order."""
    decoder, right = open_decoder("auto"), 0
    places: NDArray[np.int64] = np.asarray(order)
    for start in range(0, len(sample.measure), 64):
        part = sample.measure[start : start + 64]
        decoded = decoder.decode([record.data for record in part], fitted.preprocess.geometry)
        answers = session.logits(fitted.preprocess.apply(decoded.pixels)).argmax(axis=1)
        right += int((answers == places[[record.label for record in part]]).sum())
    return right / len(sample.measure)


def sample_for(note: str, limit: int) -> tuple[Sample, float]:
    """The data set and the accuracy that a manifest line names."""
    if "Caltech" in note:
        found = re.search(r"top1 ([0-9.]+)", note)
        sample = photo_sample()
    else:
        found = re.search(r"(\.[0-9]+)", note)
        sample = table_sample(note.split()[0], limit)
    assert found is not None, note
    return sample, float(found.group(1))


def audit_model(path: Path, name: str, note: str, limit: int) -> Row:
    """Admit, fit with and without labels, measure."""
    started = time.perf_counter()
    sample, expected = sample_for(note, limit)
    teacher: Teacher = admit(path)
    session = open_session(teacher.model, teacher.signature)
    images, labels = [record.data for record in sample.fit], [record.label for record in sample.fit]
    decoder = open_decoder("auto")
    fitted = fit(teacher, session, images, labels, sample.classes, decoder)
    seconds = time.perf_counter() - started
    blind = fit(teacher, session, images, None, sample.classes, decoder)
    assert fitted.class_order is not None
    accuracy = measured(session.settled(fitted.signature), fitted, fitted.class_order, sample)
    same = blind.preprocess == fitted.preprocess
    other = (
        accuracy if same else measured(session.settled(blind.signature), blind, fitted.class_order, sample)
    )
    remark = ""
    if sample.name.startswith("caltech"):
        wanted = tuple(PHOTO_CLASSES.values())
        agree = sum(a == b for a, b in zip(fitted.class_order, wanted, strict=True))
        remark = f"{agree} of {len(wanted)} classes found at their ImageNet index"
    return Row(
        name, sample.name, len(sample.measure), fitted, blind, accuracy, other, expected, seconds, remark
    )


def refusal(path: Path) -> tuple[str, int]:
    """The rule and sentence with which a file is refused, and the exit code that the process would end with."""
    try:
        teacher = admit(path)
        open_session(teacher.model, teacher.signature)
    except ModelRefused as refused:
        return str(refused), int(refused.exit_code)
    return "was admitted", int(Exit.PASSED)


def command_line_exit(path: Path) -> int | None:
    """Exit code of `kdaudit inspect`; None while there is no such command."""
    run = subprocess.run(
        [sys.executable, "-m", "kdaudit", "inspect", str(path)], capture_output=True, text=True, check=False
    )
    return None if "No module named" in run.stderr else run.returncode


def first_table(rows: list[Row]) -> str:
    """With labels."""
    lines = [
        "| model | data set | n | found preprocessing | kind | class order | margin | accuracy | manifest | ok |",
        "|---|---|--:|---|---|---|--:|--:|--:|---|",
    ]
    for row in rows:
        f = row.fitted
        lines.append(
            f"| {row.model} | {row.sample} | {row.n} | {f.preprocess.recipe} | {f.signature.output_kind} "
            f"| {f.class_basis} | {f.margin:.3f} ± {f.error:.3f}{'' if f.sure else ' (not sure)'} "
            f"| {row.accuracy:.3f} | {row.expected:.3f} | {'yes' if row.ok else 'NO'} |"
        )
    return "\n".join(lines)


def blind_table(rows: list[Row]) -> str:
    """Without labels."""
    lines = [
        "| model | found without labels | margin (nats) | same? | accuracy there | accuracy with labels | equal |",
        "|---|---|--:|---|--:|--:|---|",
    ]
    for row in rows:
        b = row.blind
        same = "yes" if b.preprocess == row.fitted.preprocess else "no"
        lines.append(
            f"| {row.model} | {b.preprocess.recipe} | {b.margin:.3f} ± {b.error:.3f}{'' if b.sure else ' (not sure)'} "
            f"| {same} | {row.blind_accuracy:.3f} | {row.accuracy:.3f} "
            f"| {'yes' if row.blind_accuracy >= row.accuracy - TOLERANCE else 'NO'} |"
        )
    return "\n".join(lines)


def conditions(quick: bool) -> str:
    """What the figures were measured on."""
    libraries = ", ".join(
        f"{name} {version(name)}" for name in ("onnx", "onnxruntime-gpu", "numpy", "pillow")
    )
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"{libraries}; onnxruntime's CPU provider with 1 thread; decoder {open_decoder('auto').name}; "
        f"{FIT_IMAGES} images fitted on (photographs: the rest of each class), measured on others"
        + (" (quick: at most 2,000)" if quick else "")
    )


def main() -> int:
    """Run everything, print the tables, and save them if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="measure on at most 2,000 images a model")
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.relative_to(HERE.parent)}")
    options = parser.parse_args()
    root = shared() / "models" / "real"
    with (root / "manifest.csv").open(newline="") as file:
        manifest = list(csv.DictReader(file))
    rows, refusals, failed = [], [], False
    for entry in manifest:
        path = root / entry["file"]
        if entry["file"].startswith("refuse/"):
            sentence, code = refusal(path)
            outer = command_line_exit(path)
            ok = code == Exit.ERROR and outer in (None, Exit.ERROR)
            shown = code if outer is None else outer
            refusals.append(f"| {entry['file']} | {shown} | {sentence} | {'yes' if ok else 'NO'} |")
            failed |= not ok
            continue
        row = audit_model(path, entry["file"], entry["measured_accuracy"], 2_000 if options.quick else 12_000)
        failed |= not row.ok
        rows.append(row)
        print(
            f"{row.model}: {row.fitted.preprocess.recipe} {row.accuracy:.3f} (manifest {row.expected:.3f}), "
            f"fitted in {row.seconds:.1f} s; without labels {row.blind.preprocess.recipe} {row.blind_accuracy:.3f}",
            file=sys.stderr,
        )
    notes = [f"- {row.model}: {row.remark}." for row in rows if row.remark]
    notes += [f"- {row.model}: {row.fitted.note}." for row in rows if row.fitted.note]
    text = "\n".join(
        [
            "# Third-party models",
            "",
            conditions(options.quick),
            "",
            "## Preprocessing found with labels",
            "",
            first_table(rows),
            "",
            f"Photographs are of {', '.join(PHOTO_CLASSES)} (the manifest does not record its own ten classes).",
            "",
            *notes,
            "",
            "## Preprocessing found without labels",
            "",
            "The accuracy is measured under the class order found with labels; equal: within two points.",
            "",
            blind_table(rows),
            "",
            "## Refusals",
            "",
            "| file | exit code | sentence | ok |",
            "|---|--:|---|---|",
            *refusals,
            "",
        ]
    )
    print(text)
    if options.save:
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(text, encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
