"""How two runs over the same images agree, row by row: a GPU's and a CPU's, one graph's and two sessions'.

    python benchmarks/agreement.py RUN RUN

Printed as Markdown: on how many images both give the same answers and the same flag, how far apart their numbers lie,
and both verdicts.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import pyarrow.parquet as pq

from benchmarks import lab

SAME = ("teacher_top1", "student_top1", "flag", "doubtful", "trigger")
NUMBERS = ("teacher_confidence", "student_confidence", "gap", "js", "divergence", "score", "p_value")


def main() -> None:
    """Compare and print."""
    one, other = (Path(given) for given in sys.argv[1:3])
    print("\n".join(table(one, other)))


def table(one: Path, other: Path) -> list[str]:
    """Lines of Markdown."""
    left, right = (pq.read_table(run / "samples.parquet").sort_by("path") for run in (one, other))
    if left["id"].to_pylist() != right["id"].to_pylist():
        raise SystemExit(f"{one} and {other} are not runs over the same images")
    n = left.num_rows
    lines = [
        f"n = {n:,} images",
        "",
        "| column | the same on | largest difference | 99th percentile |",
        "|---|---|---|---|",
    ]
    for name in SAME:
        same = sum(a == b for a, b in zip(left[name].to_pylist(), right[name].to_pylist(), strict=True))
        lines.append(f"| {name} | {lab.rate(same, n)} | | |")
    for name in NUMBERS:
        a, b = (run[name].to_numpy().astype(float) for run in (left, right))
        apart = np.abs(a - b)
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        known = apart[np.isfinite(apart)]
        lines.append(
            f"| {name} | {lab.rate(int(same.sum()), n)} | {known.max():.2e} | {np.quantile(known, 0.99):.2e} |"
        )
    for run, rows in ((one, left), (other, right)):
        report = lab.finished(run)
        assert report is not None
        flagged = sum(rows["flag"].to_pylist())
        lines += ["", f"{run.name}: {report['verdict']}, {flagged:,} flagged"]
    return lines


if __name__ == "__main__":
    main()
