"""Deliveries of some hundred images: drawn from those of the suite, audited with the suite's own models and controls.

    python benchmarks/small_deliveries.py [--attacks badnets blended tact] [--sizes 500 1000 3000] [--table] [--save]

Each is audited with its labels and without. The cases of `benchmarks/suite` must be there; runs are kept in
$KDAUDIT_LAB and resume.
"""

import argparse
import sys
from dataclasses import dataclass
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import lab
from benchmarks.suite import measure, worlds
from benchmarks.suite.__main__ import PROFILES
from benchmarks.suite.recipes import RECIPES

DRAWN = 5
"""Seed of the draw."""


@dataclass(frozen=True)
class Small:
    """A part of a case's delivery."""

    case: worlds.Case
    size: int
    labelled: bool

    @property
    def folder(self) -> Path:
        """Where delivery and run lie."""
        kind = "labelled" if self.labelled else "unlabelled"
        return lab.LAB / "small" / f"{self.case.folder.name}-{self.size}-{kind}"

    def rows(self) -> np.ndarray:
        """Which images of the case's delivery are drawn, ascending."""
        count = len(self.case.names())
        return np.sort(np.random.default_rng(DRAWN).choice(count, self.size, replace=False))


def audit(small: Small, clean: float) -> None:
    """Compare teacher and control on it, unless that is done."""
    run, delivery = small.folder / "run", small.folder / "delivery" / "train.parquet"
    if lab.finished(run) is not None:
        return
    drawn = pq.read_table(small.case.delivery).take(pa.array(small.rows()))
    delivery.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(drawn if small.labelled else drawn.select(["image"]), delivery, row_group_size=500)
    control = small.case.folder / f"control-{clean:g}.onnx"
    pool = worlds.pool(small.case.data, clean, small.case.seed)
    more = ("--exit-zero", "--quiet", "--seed", str(small.case.seed))
    lab.kdaudit("compare", small.case.teacher, control, delivery.parent, "--clean", pool, "-o", run, *more)


def row(small: Small) -> str:
    """The line of the table; empty where it was not audited."""
    run, rows = small.folder / "run", small.rows()
    report = lab.finished(run)
    if report is None:
        return ""
    table = pq.read_table(run / "samples.parquet", columns=["path", "flag"]).to_pydict()
    names = small.case.names()
    flags = np.asarray(table["flag"], bool)[measure.in_order(table["path"], [names[i] for i in rows])]
    truth = {name: column[rows] for name, column in small.case.truth().items()}
    found = measure.rates(flags, None, measure.judged_of(truth))
    rules = ", ".join(f["rule"] for f in report["findings"])
    return (
        f"| {small.case.recipe.name} | {small.size:,} | {'yes' if small.labelled else 'no'} | {report['verdict']} | "
        f"{found['hits']} of {found['poison']} | {found['wrong']} | {rules} |"
    )


def main() -> None:
    """Audit, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attacks", nargs="+", choices=tuple(RECIPES), default=["badnets", "blended", "tact"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[500, 1000, 3000])
    parser.add_argument("--table", action="store_true", help="audit nothing, print what is finished")
    parser.add_argument("--save", action="store_true", help="write results/small_deliveries.md")
    given = parser.parse_args()
    profile = PROFILES["cpu"]
    found = []
    for attack, size, labelled in product(given.attacks, given.sizes, (True, False)):
        case = worlds.case("cifar10", attack, profile.rate, 0, profile.epochs["cifar10"])
        small = Small(case, size, labelled)
        if not given.table:
            audit(small, profile.clean)
        found.append(row(small))
    lines = [line for line in found if line]
    table = [
        "# Small deliveries",
        "",
        f"Drawn from the deliveries of the suite (CIFAR-10, victims of 20 epochs, {profile.rate:.0%} poison or the "
        f"recipe's own rate, seed 0; the draw's seed is {DRAWN}), with that case's control and clean pool.",
        f"{lab.machine()}; {lab.today()}; n = 1 run per row.",
        "",
        "| attack | images | labels | verdict | poison found | innocents flagged | findings |",
        "|---|---|---|---|---|---|---|",
        *lines,
    ]
    print("\n".join(table))
    if given.save:
        lab.write_result("small_deliveries.md", "\n".join(table))


if __name__ == "__main__":
    main()
