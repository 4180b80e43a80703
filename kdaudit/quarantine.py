"""Stage 8: the detoxified manifest and the quarantine manifest. Manifests only: no image is moved or deleted."""

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kdaudit.digest import replacing

if TYPE_CHECKING:
    import pyarrow as pa


COLUMNS = ("id", "path", "label", "status", "flag", "doubtful", "reason", "score", "p_value")

RISKY = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""First characters from which a spreadsheet may read a formula; the wide ones count as well."""


@dataclass(frozen=True, slots=True)
class Manifests:
    """What was written.

    Attributes:
        kept: images in kept.csv: read and not flagged.
        quarantined: images in quarantine.csv: flagged, unreadable or skipped, each with its reason.
    """

    kept: int
    quarantined: int


def write_manifests(
    tables: "Iterator[pa.Table]", classes: tuple[str, ...] | None, kept: Path, quarantine: Path
) -> Manifests:
    """Write both manifests, each in one step.

    kept.csv has `path,label,id,doubtful` and can be given to `kdaudit scan` or to a training job as a data set
    beside the images; quarantine.csv has `path,label,id,status,reason,score,p_value`. No cell of theirs is a formula.

    Args:
        tables: the parts of samples.parquet, in order; their `COLUMNS`.
        classes: names of the labels; labels are written as names, or as numbers where there are none.
        kept: path of the detoxified manifest.
        quarantine: path of the quarantine manifest.
    """
    counts = {True: 0, False: 0}
    with replacing(kept) as kept_file, replacing(quarantine) as quarantine_file:
        good = io.TextIOWrapper(kept_file, encoding="utf-8", newline="", write_through=True)
        bad = io.TextIOWrapper(quarantine_file, encoding="utf-8", newline="", write_through=True)
        good_rows, bad_rows = csv.writer(good), csv.writer(bad)
        good_rows.writerow(["path", "label", "id", "doubtful"])
        bad_rows.writerow(["path", "label", "id", "status", "reason", "score", "p_value"])
        for table in tables:
            columns = (table[name].to_pylist() for name in COLUMNS)  # millions of rows: no dictionary for each
            for image, path, index, status, flag, doubtful, reason, score, p_value in zip(*columns, strict=True):
                path, label = harmless_path(path), _name(index, classes)  # noqa: PLW2901
                keep = status == "read" and not flag
                counts[keep] += 1
                if keep:
                    good_rows.writerow((path, label, image, int(doubtful)))
                else:
                    bad_rows.writerow((path, label, image, status, harmless(reason), score, p_value))
        good.detach()
        bad.detach()
    return Manifests(counts[True], counts[False])


def harmless(text: str) -> str:
    """Text that a spreadsheet does not run: an apostrophe before what looks like a formula."""
    return f"'{text}" if text.lstrip(" ").startswith(RISKY) else text


def harmless_path(path: str) -> str:
    """The same file in a spelling that a spreadsheet does not run: `./` before what looks like a formula.

    An apostrophe would make it another path; every reader of manifests takes `./` for nothing.
    """
    return f"./{path}" if path.lstrip(" ").startswith(RISKY) else path


def _name(label: int | None, classes: tuple[str, ...] | None) -> str | int:
    if label is None:
        return ""
    return harmless(classes[label]) if classes else label
