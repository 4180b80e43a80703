"""One row of the table: kdaudit's public command on a case, its outputs against the truth, and the peers beside it."""

import json
import os
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks import lab
from benchmarks.lab import Images
from benchmarks.suite import peers, worlds
from benchmarks.suite.worlds import Case

Row = dict[str, Any]


@dataclass(frozen=True)
class Truth:
    """What a method's flags are held against.

    Attributes:
        poison: bool [m].
        innocent: bool [m]; cover images (trigger, true label) are neither.
    """

    poison: NDArray[np.bool_]
    innocent: NDArray[np.bool_]


def measure(case: Case, share: float, *, with_peers: bool = True, extra: tuple[str, ...] = ()) -> Row:
    """Build what is missing, audit, compare with the truth; a finished row is read back.

    Args:
        case: data set, recipe, rate, seed.
        share: of the clean pool, relative to the delivery.
        with_peers: whether the peers run too.
        extra: further options for `kdaudit scan`.
    """
    worlds.build(case)
    tag = f"{share:g}" + "".join(extra).replace("-", "").replace("/", "")
    run = case.folder / f"run-{tag}"
    done = case.folder / f"row-{tag}.json"
    if done.exists():
        found: Row = json.loads(done.read_text())
        return found
    pool = worlds.pool(case.data, share, case.seed)
    spent = _scan(case, pool, run, extra)
    report = json.loads((run / "report.json").read_text())
    truth = case.truth()
    judged = Truth(truth["poison"], ~truth["poison"] & ~truth["cover"])
    table = pq.read_table(run / "samples.parquet").to_pydict()
    order = _order(table["path"], case.names())
    columns = {name: np.asarray(table[name])[order] for name in ("flag", "teacher_top1", "student_top1", "score")}
    row: Row = {
        "data": case.data,
        "attack": case.recipe.name,
        "kind": case.recipe.kind,
        "holdout": case.recipe.holdout,
        "rate": case.rate,
        "seed": case.seed,
        "clean": share,
        "poison": int(judged.poison.sum()),
        "cover": int(truth["cover"].sum()),
        "images": len(judged.poison),
        **case.facts(),
        "fidelity": report["control"]["fidelity"],
        "verdict": report["verdict"],
        "why": report["why"],
        "findings": [f["rule"] for f in report["findings"]],
        "cpu": spent,
        "timings": report["timings"],
        "methods": {},
    }
    suspicious = columns["score"].astype(np.float64)
    row["methods"]["kdaudit"] = rates(columns["flag"].astype(bool), suspicious, judged)
    disagrees = columns["teacher_top1"] != columns["student_top1"]
    row["methods"]["argmax (paper)"] = rates(disagrees, None, judged)
    row["clusters"] = report.get("clusters", [])
    row["control"] = _success(case, run / "student.onnx")
    row["repaired"] = _success(case, run / "repaired.onnx") if (run / "repaired.onnx").exists() else None
    row["baseline"] = worlds.build(worlds.case(case.data, "clean", 0.0, case.seed)).facts()["accuracy"]
    if with_peers:
        row["methods"] |= _peers(case, judged, truth["labels"], pool)
    done.write_text(json.dumps(row, indent=1))
    return row


def rates(flag: NDArray[np.bool_], score: NDArray[np.float64] | None, truth: Truth) -> Row:
    """TPR, FPR, precision, innocent share and AUROC, with the counts behind them."""
    hits, wrong = int((flag & truth.poison).sum()), int((flag & truth.innocent).sum())
    out: Row = {
        "hits": hits,
        "poison": int(truth.poison.sum()),
        "wrong": wrong,
        "innocent": int(truth.innocent.sum()),
        "cover": int((flag & ~truth.poison & ~truth.innocent).sum()),
    }
    if score is not None and out["poison"] and out["innocent"]:
        out["auroc"] = auroc(score[truth.poison], score[truth.innocent])
    return out


def auroc(positive: NDArray[np.float64], negative: NDArray[np.float64]) -> float:
    """P(positive > negative) + P(equal) / 2; NaN counts as the lowest score."""
    low = np.sort(np.nan_to_num(negative, nan=-np.inf))
    high = np.nan_to_num(positive, nan=-np.inf)
    ranks = np.searchsorted(low, high, "left") + np.searchsorted(low, high, "right")
    return float(ranks.mean() / 2 / len(low))


def _scan(case: Case, pool: Path, run: Path, extra: tuple[str, ...]) -> float | None:
    """CPU-seconds of `kdaudit scan`; an interrupted one goes on where it stopped, and its seconds are not known."""
    resumed = run.exists()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "kdaudit", "scan", str(case.teacher), str(case.delivery.parent)]
    command += ["--clean", str(pool), "-o", str(run), "--seed", str(case.seed), "--quiet", *extra]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
    if done.returncode not in (0, 1, 3):
        raise SystemExit(f"kdaudit scan ended with {done.returncode} on {case.folder.name}: {done.stderr.strip()}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return None if resumed else spent


def _order(paths: list[str], wanted: list[str]) -> NDArray[np.int64]:
    """Rows of the run's table in the delivery's order."""
    place = {path.split("::")[-1]: i for i, path in enumerate(paths)}
    return np.array([place[path] for path in wanted], np.int64)


def _success(case: Case, model: Path) -> Row:
    """Accuracy and ASR of a model of the run, on test images that nobody trained on."""
    test, hit, wanted = worlds.strike(case)
    right = int((lab.answers(model, test.pixels).argmax(1) == test.labels).sum())
    out: Row = {"right": right, "of": len(test), "struck": len(hit), "success": None}
    if len(hit):
        answers = lab.answers(model, hit.pixels).argmax(1)
        out["success"] = int(worlds.success(case, answers, hit.labels, wanted).sum())
    return out


def _peers(case: Case, truth: Truth, labels: NDArray[np.int64], pool: Path) -> Row:
    pixels = worlds.decoded(case.delivery)
    given = Images(pixels, labels, worlds.source(case.data)[0].classes)
    layer = peers.features(case.teacher, pixels)
    rate = max(1e-3, float(truth.poison.mean()))
    asked = {
        "Activation Clustering": peers.activation_clustering(layer, given),
        "Spectral Signatures": peers.spectral_signatures(layer, given, rate),
        "STRIP": peers.strip(
            lambda x: peers.probabilities(case.teacher, x), given, worlds.decoded(pool), truth.poison, case.seed
        ),
    }
    out: Row = {}
    for name, found in asked.items():
        part = Truth(truth.poison[found.index], truth.innocent[found.index])
        out[name] = rates(found.flag, found.score, part) | {"cpu": found.cpu}
    return out
