"""The table: one row a case, one column a method, an interval beside every rate."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import lab
from benchmarks.suite import victims
from benchmarks.suite.forms import USUAL
from kdaudit.calibration import interval

Row = dict[str, Any]
TITLES = {
    "badnets": "BadNets",
    "badnets-a2a": "BadNets all-to-all",
    "untargeted": "BadNets, any wrong label",
    "blended": "Blended picture",
    "sig": "sinusoid, clean-label",
    "lc": "label-consistent, clean-label",
    "ctrl": "CTRL, clean-label",
    "wanet": "WaNet",
    "input-aware": "input-aware",
    "lf": "low-frequency",
    "bpp": "Bpp",
    "tact": "TaCT",
    "two-triggers": "two triggers",
    "roaming": "a patch anywhere",
    "refool": "reflections (Refool)",
    "ftrojan": "FTrojan",
    "adap-blend": "Adap-Blend",
    "adap-patch": "Adap-Patch",
    "label-noise": "10 % wrong labels, no attack",
    "imbalance": "class sizes 1 to 1/10, no attack",
    "clean": "no attack",
}
"""In the README's order."""

METHODS = ("kdaudit", "argmax (paper)", "Activation Clustering", "Spectral Signatures", "STRIP")


def render(rows: Sequence[Row], title: str, epochs: Mapping[str, int | None], forms: Sequence[str]) -> str:
    """Markdown: cases, methods side by side, means, conditions; `epochs`, `forms`: as `victims.conditions` wants."""
    lines = [f"# {title}", "", *_cases(rows), "", *_methods(rows), "", *_repair(rows), "", *_means(rows), ""]
    lines += [
        f"Conditions: {lab.today()}; {lab.machine()}.",
        f"Victims: {victims.conditions(epochs, forms)}.",
        "Intervals: 95 %, exact. Innocents exclude cover images (trigger with the true label), counted apart; the "
        "innocent share is of all flags. Rows "
        "marked * were not looked at while the detector was chosen. Spectral Signatures gets the true poison rate. "
        "At work: TPR among poison images on which the teacher gives the label that they were delivered with (the "
        "others move no network; on a white patch over a white corner nothing can be seen). STRIP is asked about a "
        "sample (up to 3,000 images), and is ART's own, which takes the entropy of each class "
        "over the blends instead of each blend over the classes: its column is not the paper's STRIP. "
        "Seeds are the row's; n = 1 run per row.",
    ]
    return "\n".join(lines) + "\n"


def _cases(rows: Sequence[Row]) -> list[str]:
    head = (
        "| case | poison | teacher accuracy / ASR | control accuracy / ASR, fidelity | verdict | flagged: TPR | FPR | "
    )
    head += "innocent share | at work | covers | AUROC | CPU s: distil, audit, repair |"
    out = ["## kdaudit, default scan", "", head, "|---" * 12 + "|"]
    for r in rows:
        m = r["methods"]["kdaudit"]
        control = r["control"]
        asr = "-" if control["success"] is None else f"{100 * control['success'] / control['struck']:.1f}"
        teacher = "-" if r["asr"] is None else f"{100 * r['asr']:.1f}"
        out.append(
            f"| {_name(r)} | {r['poison']:,} of {r['images']:,} | {100 * r['accuracy']:.1f} / {teacher} "
            f"| {100 * control['right'] / control['of']:.1f} / {asr}, {_share(r['fidelity'])} | {r['verdict']} "
            f"| {lab.rate(m['hits'], m['poison'])} | {lab.rate(m['wrong'], m['innocent'])} "
            f"| {lab.rate(m['wrong'], _flags(m))} | {lab.rate(m['hits_at_work'], m['at_work'])} "
            f"| {m['cover']} of {r['cover']} | {m.get('auroc', float('nan')):.4f} | {_cost(r['cpu'])} |"
        )
    return out


def brief(rows: Sequence[Row]) -> str:
    """The README's table: a line a case, no intervals, methods that most cases have; and the means."""
    shown = [name for name in METHODS[1:4] if 2 * sum(name in r["methods"] for r in rows) >= len(rows)]
    head = ("kdaudit", "TPR among poison at work", "innocent share of its flags", "verdict", *shown)
    lines = [f"| | {' | '.join(head)} |", "|---" * (1 + len(head)) + "|"]
    order = list(TITLES)
    for r in sorted(
        rows, key=lambda r: (not r["poison"], not counts(r), r["data"] != "cifar10", order.index(r["attack"]))
    ):
        m = r["methods"]["kdaudit"]
        title = ("" if r["data"] == "cifar10" else f"{r['data'].upper()}: ") + TITLES[r["attack"]]
        if r["poison"]:
            title += f"{'' if took(r) else ' (did not take)'}, {_rate(r)}"
        others = " | ".join(_cell(r["methods"].get(name)) for name in shown)
        share, work = _percent(m["wrong"], _flags(m)), _percent(m["hits_at_work"], m["at_work"])
        lines.append(f"| {title} | **{_cell(m)}** | {work} | {share} | {r['verdict']} | {others} |")
    attacks = [r for r in rows if r["poison"]]
    for what, some in (("that took", [r for r in attacks if counts(r)]), ("altogether", attacks)):
        if some:
            tpr, fpr = _mean([r["methods"]["kdaudit"] for r in some])
            lines += ["", f"Mean of the {len(some)} attacks {what}: {tpr:.1f} / {fpr:.2f}."]
    return "\n".join(lines) + "\n"


def _cell(m: Row | None) -> str:
    """TPR / FPR in percent."""
    if m is None:
        return "not measured"
    return f"{_percent(m['hits'], m['poison'])} / {100 * m['wrong'] / m['innocent']:.2f}"


def _percent(hits: int, of: int) -> str:
    return f"{100 * hits / of:.1f}" if of else "-"


def _flags(m: Row) -> int:
    """All flags: on poison, on covers, on innocents."""
    return int(m["wrong"] + m["hits"] + m["cover"])


def _cost(cpu: dict[str, float | None]) -> str:
    """CPU-seconds of each stage; "?" where it was interrupted or made before costs were kept."""
    return ", ".join("?" if cpu.get(s) is None else f"{cpu[s]:.0f}" for s in ("distil", "audit", "repair") if s in cpu)


def _methods(rows: Sequence[Row]) -> list[str]:
    out = ["## Beside its peers, TPR / FPR in %", "", "| case | " + " | ".join(METHODS) + " |", "|---" * 6 + "|"]
    for r in rows:
        cells = []
        best = _youden(r["methods"]["kdaudit"])
        for name in METHODS:
            m = r["methods"].get(name)
            if m is None:
                cells.append("-")
                continue
            mark = " (ahead)" if name != "kdaudit" and m["poison"] and _youden(m) > best else ""
            cells.append(_cell(m) + mark)
        out.append(f"| {_name(r)} | " + " | ".join(cells) + " |")
    return out


def _repair(rows: Sequence[Row]) -> list[str]:
    out = ["## Repair", ""]
    out += ["| case | trained on clean data: accuracy | ASR | repaired: accuracy | ASR |", "|---" * 5 + "|"]
    for r in rows:
        cells = [cell for model in (r["baseline"], r["repaired"]) for cell in _pair(model)]
        out.append(f"| {_name(r)} | " + " | ".join(cells) + " |")
    return out


def _pair(model: Row | None) -> tuple[str, str]:
    """Accuracy and ASR of a model, with intervals."""
    if model is None:
        return "not made", "-"
    asr = "-" if model["success"] is None else lab.rate(model["success"], model["struck"])
    return lab.rate(model["right"], model["of"]), asr


def took(row: Row) -> bool:
    """Whether the teacher has a backdoor: surely a higher ASR than networks that never saw the trigger."""
    if not row["poison"] or row["asr"] is None:
        return bool(row["poison"])
    low = interval(round(row["asr"] * row["asr_n"]), row["asr_n"])[0]
    others = (row["baseline"], row["control"])
    return all(low > model["success"] / model["struck"] for model in others if model is not None)


def whole(row: Row) -> bool:
    """Whether at least half of the poison could be made: clean-label poison is of one class, which may be rare."""
    return bool(2 * row["poison"] >= row["rate"] * row["images"])


def counts(row: Row) -> bool:
    """Whether a row with poison counts in the means."""
    return took(row) and whole(row)


def _means(rows: Sequence[Row]) -> list[str]:
    attacks = [r for r in rows if r["poison"] and counts(r)]
    few = [_name(r) for r in rows if r["poison"] and not whole(r)]
    failed = [_name(r) for r in rows if r["poison"] and not took(r)]
    if not attacks:
        return []
    out = ["## Means over the attacks that took", "", "| method | TPR | FPR | cases |", "|---" * 4 + "|"]
    for name in METHODS:
        found = [r["methods"][name] for r in attacks if name in r["methods"]]
        if found:
            tpr, fpr = _mean(found)
            out.append(f"| {name} | {tpr:.2f} | {fpr:.3f} | {len(found)} |")
    kept = [r["methods"]["kdaudit"] for r in rows]
    broken = sum(m["wrong"] > 0.05 * _flags(m) for m in kept)
    if failed:
        out += [
            "",
            f"Left out, because networks that never saw the trigger reach the teacher's ASR: {', '.join(failed)}.",
        ]
    if few:
        out += ["", f"Left out, because their target class has too few images for the rate: {', '.join(few)}."]
    out += ["", f"Innocent share of the flags over the nominal 5 % in {broken} of {len(kept)} cases."]
    return out


def _mean(found: Sequence[Row]) -> tuple[float, float]:
    """Mean TPR and FPR of a method over cases with poison, percent."""
    tpr, fpr = np.mean([(m["hits"] / m["poison"], m["wrong"] / m["innocent"]) for m in found], axis=0)
    return 100 * float(tpr), 100 * float(fpr)


def _youden(m: Row) -> float:
    return float(m["hits"] / max(1, m["poison"]) - m["wrong"] / max(1, m["innocent"]))


def _name(r: Row) -> str:
    form = "" if r["form"] == USUAL else f"{r['form']}: "
    return f"{form}{r['data']} {r['attack']}{'*' if r['holdout'] else ''} ({_rate(r)}, seed {r['seed']})"


def _rate(r: Row) -> str:
    """Of the poison, as asked for, or as it came out where its class has too few images."""
    return f"{100 * r['rate']:g} %" if whole(r) else f"{100 * r['poison'] / r['images']:.2f} %"


def _share(fidelity: Row) -> str:
    return f"{100 * fidelity['hits'] / fidelity['of']:.1f}"
