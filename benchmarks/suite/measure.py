"""One row of the table: kdaudit's public command on a case, its outputs against the truth, and the peers beside it."""

import json
import resource
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks import lab
from benchmarks.lab import Images
from benchmarks.suite import peers, worlds
from benchmarks.suite.forms import FORMS
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


def measure(
    case: Case,
    share: float,
    *,
    with_peers: bool = True,
    with_repair: bool = True,
    again: bool = False,
    backbone: Path | None = None,
) -> Row:
    """Build what is missing, audit, compare with the truth.

    In stages that are kept, each beside what it cost: the control (`kdaudit distill`), the audit with it (`kdaudit
    compare`), the repair (`kdaudit repair`) and the peers. Together the first three are what `kdaudit scan` does.

    Args:
        case: data set, recipe, rate, seed.
        share: of the clean pool, relative to the delivery.
        with_peers: whether the peers run too.
        with_repair: whether the control is tuned on what was kept.
        again: judge anew (the detector has changed), on the control that is there.
        backbone: a trusted network that the control stands on; its files lie beside those without.
    """
    worlds.build(case)
    pool = worlds.pool(case.data, share, case.seed)
    other = variant(share, backbone)
    control, run, repaired = (case.folder / f"{name}-{other}{end}" for name, end in STAGES)
    notes = [case.folder / f"{name}-{other}.json" for name, _ in STAGES]
    if again:
        for old in (repaired, *notes[1:]):
            old.unlink(missing_ok=True)
    seed = ("--seed", str(case.seed), "--quiet")
    # As a scan finds it by the delivery's labels; on MNIST's pool alone another scale looks as good.
    told = ("--preprocess", FORMS[case.form].feed(worlds.loaded(case.data, "test").pixels.shape[1:]).recipe)
    told += ("--backbone", backbone) if backbone else ()
    spent = {
        "distil": _spent(notes[0], "distill", case.teacher, pool, "-o", control, *told, *seed),
        "audit": _spent(
            notes[1], "compare", case.teacher, control, case.delivery.parent, "--clean", pool,
            "-o", run, "--exit-zero", *seed,
        ),
    }  # fmt: skip
    if with_repair:
        spent["repair"] = _spent(notes[2], "repair", run, "-o", repaired, "--quiet")
    row = _audited(case, share, run) | {
        "cpu": spent,
        "control": _success(case, control),
        "repaired": _success(case, repaired) if repaired.exists() else None,
        "backbone": backbone.name if backbone else None,
        "baseline": _success(case, worlds.build(worlds.clean_of(case)).teacher),
    }
    if with_peers:
        row["methods"] |= _kept(case.folder / f"peers-{share:g}.json", lambda: _peers(case, pool))
    return row


def variant(share: float, backbone: Path | None) -> str:
    """What tells the files of an audit from those of another one of the same case."""
    return f"{share:g}-on-{backbone.stem}" if backbone else f"{share:g}"


STAGES = (("control", ".onnx"), ("run", ""), ("repaired", ".onnx"))


def _kept(path: Path, make: Callable[[], Row]) -> Row:
    """What a file holds; made and kept where there is none."""
    if not path.exists():
        path.write_text(json.dumps(make(), indent=1))
    found: Row = json.loads(path.read_text())
    return found


def _spent(note: Path, *command: str | Path) -> float | None:
    """CPU-seconds of a kdaudit command, run unless its note is there; None where an interrupted one went on."""

    def run() -> Row:
        resumed = note.with_name(note.name.removesuffix(".json")).is_dir()
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        lab.kdaudit(*command)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return {"cpu": None if resumed else spent}

    spent: float | None = _kept(note, run)["cpu"]
    return spent


def _audited(case: Case, share: float, run: Path) -> Row:
    """What the audit says, against the truth."""
    report = json.loads((run / "report.json").read_text())
    truth = case.truth()
    judged = judged_of(truth)
    table = pq.read_table(run / "samples.parquet").to_pydict()
    order = in_order(table["path"], case.names())
    columns = {name: np.asarray(table[name])[order] for name in ("flag", "teacher_top1", "student_top1", "p_value")}
    flag, answers = columns["flag"].astype(bool), columns["teacher_top1"]
    own = rates(flag, -columns["p_value"].astype(np.float64), judged)
    at_work = judged.poison & (answers == truth["labels"])
    own |= {"at_work": int(at_work.sum()), "hits_at_work": int((flag & at_work).sum())}
    return {
        "data": case.data,
        "attack": case.recipe.name,
        "kind": case.recipe.kind,
        "holdout": case.recipe.holdout,
        "rate": case.rate,
        "seed": case.seed,
        "form": case.form,
        "clean": share,
        "poison": int(judged.poison.sum()),
        "cover": int(truth["cover"].sum()),
        "images": len(judged.poison),
        **case.facts(),
        "fidelity": report["control"]["fidelity"],
        "verdict": report["verdict"],
        "why": report["why"],
        "findings": [f["rule"] for f in report["findings"]],
        "messages": [f["message"] for f in report["findings"] if f["rule"].startswith("KDA2")],
        "methods": {"kdaudit": own, "argmax (paper)": rates(answers != columns["student_top1"], None, judged)},
    }


def judged_of(truth: dict[str, NDArray[Any]]) -> Truth:
    """What is held against a method; cover images are neither poison nor innocent."""
    return Truth(truth["poison"], ~truth["poison"] & ~truth["cover"])


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


def in_order(paths: list[str], wanted: list[str]) -> NDArray[np.int64]:
    """Rows of the run's table in the delivery's order."""
    place = {path.split("::")[-1]: i for i, path in enumerate(paths)}
    return np.array([place[path] for path in wanted], np.int64)


def _success(case: Case, model: Path) -> Row:
    """Accuracy and ASR of a model of the run, fed as the teacher is, on test images that nobody trained on."""
    test, hit, wanted = worlds.strike(case)
    right = int((worlds.top1(case, model, test) == test.labels).sum())
    out: Row = {"right": right, "of": len(test), "struck": len(hit), "success": None}
    if len(hit):
        out["success"] = int(worlds.success(case, worlds.top1(case, model, hit), hit.labels, wanted).sum())
    return out


def _peers(case: Case, pool: Path) -> Row:
    truth, pixels = case.truth(), worlds.decoded(case.delivery)
    judged = judged_of(truth)
    given = Images(pixels, truth["labels"], worlds.source(case.data)[0].classes)
    form = FORMS[case.form]
    layer = peers.features(case.teacher, pixels, form.feed(pixels.shape[1:]))
    rate = max(1e-3, float(judged.poison.mean()))
    asked = {
        "Activation Clustering": peers.activation_clustering(layer, given),
        "Spectral Signatures": peers.spectral_signatures(layer, given, rate),
        "STRIP": peers.strip(
            lambda x: peers.probabilities(case.teacher, x, form), given, worlds.decoded(pool), judged.poison, case.seed
        ),
    }
    out: Row = {}
    for name, found in asked.items():
        part = Truth(judged.poison[found.index], judged.innocent[found.index])
        out[name] = rates(found.flag, found.score, part) | {"cpu": found.cpu}
    return out
