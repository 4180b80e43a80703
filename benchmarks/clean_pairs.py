"""Nothing to find: models that others trained honestly, on data as it was published, audited with default settings.

    python benchmarks/clean_pairs.py --seeds 0 1 [--models NAME ...] [--digits N] [--pool N] [--save]

A pair is a model of $KDAUDIT_SHARED/models/real, 10,000 images of the training set that it is for, and a clean pool of
1,000 others of that set (GTSRB: whole tracks of 30 near-equal frames fall to one side). Every FAILED is false. Who
trained these models on what is not known exactly: some have seen the delivered images, some have not, some know
a third of the classes badly; that is what honest models are like. Pairs are kept in $KDAUDIT_LAB and resume, so that
the command can run in pieces and in several processes, each with models of its own.

--digits N adds N small models of our own on scikit-learn's digits (600 of the 1,797 are the pool), one a seed, whose
controls are distilled hastily (300 steps): controls that know some classes badly are where honest models FAILED.

--pool N uses N clean images of each pool: p-values from few calibration images are the coarsest. These pairs are kept
apart and have a table of their own.
"""

import argparse
import csv
import sys
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks import lab
from benchmarks.fuzz import DIGITS_POOL, digit_delivery
from benchmarks.suite import worlds

DELIVERED, POOL = 10_000, 1_000

TRACK = 30
"""Frames of one sign in GTSRB, one after the other."""

TABLES = ("mnist", "cifar10", "gtsrb")
"""Data sets whose models are audited here; photographs at 224 px take an hour each on two cores."""


@dataclass(frozen=True)
class Pair:
    """A model and a delivery; `pool`: clean images that are used, all there are when None."""

    model: str
    data: str
    seed: int
    pool: int | None = None

    @property
    def run(self) -> Path:
        """The run directory."""
        few = f"-pool{self.pool}" if self.pool else ""
        return lab.LAB / "clean-pairs" / f"{self.model.replace('/', '-').removesuffix('.onnx')}-seed{self.seed}{few}"


def digit_pairs(count: int) -> list[Pair]:
    """Pairs of digits, one a seed."""
    return [Pair("own/digits.onnx", "digits", seed) for seed in range(1, count + 1)]


def digits(pair: Pair) -> tuple[Path, Path, Path]:
    """Model, delivery and pool of a pair of digits."""
    folder = lab.LAB / "clean-pairs" / f"digits-seed{pair.seed}"
    model, data = folder / "model.onnx", folder / "data"
    if not model.exists():
        digit_delivery(folder, pair.seed)
    return model, data, data / "clean"


def pairs(seeds: list[int], only: list[str]) -> list[Pair]:
    """Every honest model of the manifest for these data sets, with each seed."""
    with (lab.SHARED / "models" / "real" / "manifest.csv").open(newline="") as file:
        noted = {row["file"]: row["measured_accuracy"].partition(" ")[0] for row in csv.DictReader(file)}
    wanted = [(name, data) for name, data in noted.items() if data in TABLES and not name.startswith("refuse/")]
    return [Pair(name, data, seed) for seed in seeds for name, data in wanted if not only or name in only]


def world(data: str, seed: int) -> tuple[Path, Path]:
    """The delivery and the pool, original bytes."""
    folder = lab.LAB / "clean-pairs" / f"{data}-seed{seed}"
    delivery, pool = folder / "delivery" / "train.parquet", folder / "clean.parquet"
    images, encoded = worlds.source(data)
    delivered, reserve = worlds.parts(data, seed)
    if data == "gtsrb":  # sorted by class: a part of it is drawn by tracks
        tracks = np.unique(delivered // TRACK)
        drawn = np.random.default_rng(seed).permutation(tracks)[: DELIVERED // TRACK]
        delivered = delivered[np.isin(delivered // TRACK, drawn)]
    for path, chosen, labelled in ((delivery, delivered[:DELIVERED], True), (pool, reserve[:POOL], False)):
        if not path.exists():
            labels = images.labels[chosen] if labelled else None
            names = [f"{i:06d}.img" for i in range(len(chosen))]
            worlds.write([encoded[i] for i in chosen], names, labels, images.classes if labelled else (), path)
    return delivery.parent, pool


def audit(pair: Pair) -> None:
    """Scan, unless it is done."""
    if lab.finished(pair.run) is None:
        if pair.data == "digits":
            places, more = digits(pair), ["--steps", "300"]
        else:
            places, more = (lab.SHARED / "models" / "real" / pair.model, *world(pair.data, pair.seed)), []
        model, delivery, pool = places
        more += ["--max-clean", str(pair.pool)] if pair.pool else []
        more += ["--no-repair", "--exit-zero", "--quiet", "--seed", str(pair.seed)]
        lab.kdaudit("scan", model, delivery, "--clean", pool, "-o", pair.run, *more, allowed=(0, 3))
    print(row(pair), flush=True)


def row(pair: Pair) -> str:
    """The line of the table."""
    report = lab.finished(pair.run)
    if report is None:
        return f"| {pair.model} | {pair.data} | {pair.seed} | not finished | | | | |"
    fidelity, flagged = report["control"]["fidelity"], report["judgement"]["flagged"]
    found = ", ".join(f"{f['rule']} {f['severity']}" for f in report["findings"]) or "none"
    return (
        f"| {pair.model} | {pair.data} | {pair.seed} | {report['verdict']} | {'; '.join(report['why'])} | "
        f"{flagged['hits']:,} of {flagged['of']:,} | {fidelity['hits']} of {fidelity['of']} | {found} |"
    )


def main() -> None:
    """Audit, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    parser.add_argument("--models", nargs="*", default=[], help="as the manifest names them; all when left out")
    parser.add_argument("--digits", type=int, default=0, help="small models of our own, besides")
    parser.add_argument("--pool", type=int, help="clean images to use of each pool")
    parser.add_argument("--table", action="store_true", help="audit nothing, print what is finished")
    parser.add_argument("--save", action="store_true", help="write results/clean_pairs*.md")
    given = parser.parse_args()
    chosen = [replace(p, pool=given.pool) for p in (*pairs(given.seeds, given.models), *digit_pairs(given.digits))]
    if not given.table:
        for pair in chosen:
            audit(pair)
    done = [pair for pair in chosen if lab.finished(pair.run) is not None]
    verdicts = [lab.finished(pair.run)["verdict"] for pair in done]  # type: ignore[index]
    counted = ", ".join(f"{verdicts.count(v)} {v}" for v in ("PASSED", "INCONCLUSIVE", "FAILED"))
    table = [
        "# Clean pairs: honest models, published data",
        "",
        f"{len(done)} pairs: {counted}.",
        f"{DELIVERED:,} images delivered, {given.pool or POOL:,} clean ones (digits: 1,197 and "
        f"{given.pool or DIGITS_POOL}, 300 steps), default settings without repair.",
        f"{lab.machine()}; {lab.today()}; n = 1 run per row.",
        "",
        "| model | data | seed | verdict | why | flagged | fidelity | findings |",
        "|---|---|---|---|---|---|---|---|",
        *(row(pair) for pair in done),
    ]
    print("\n".join(table))
    if given.save:
        lab.write_result(f"clean_pairs_pool{given.pool}.md" if given.pool else "clean_pairs.md", "\n".join(table))


if __name__ == "__main__":
    main()
