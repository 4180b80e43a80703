"""What changed between two runs: verdict, findings, candidates, answers; never a guess about why."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kdaudit.errors import RunDirectoryError
from kdaudit.gate import flagged_digests
from kdaudit.report.document import Document
from kdaudit.report.escape import printable
from kdaudit.report.sections import FindingRow, Rate

MAX_LISTED = 20


@dataclass(frozen=True, slots=True)
class Difference:
    """Everything that two reports say differently.

    Attributes:
        changed: name of a fact -> (old, new), as text; only facts that differ.
        findings_new, findings_gone: findings by fingerprint that one report has and the other has not.
        candidates_new, candidates_gone: content digests of flagged images, 32 hexadecimal digits, sorted; None where a
            report lists too many of them to be told apart and its samples.parquet is gone.
        settings: name of a setting -> (old, new); only settings that differ.
    """

    changed: dict[str, tuple[str, str]] = field(default_factory=dict)
    findings_new: list[str] = field(default_factory=list)
    findings_gone: list[str] = field(default_factory=list)
    candidates_new: list[str] | None = None
    candidates_gone: list[str] | None = None
    settings: dict[str, tuple[str, str]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Whether anything differs."""
        parts = (self.changed, self.findings_new, self.findings_gone, self.candidates_new, self.candidates_gone)
        return any(parts) or bool(self.settings)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def _count(number: float) -> str:
    return f"{number:,}"


def _rate(rate: Rate) -> str:
    share = f"{100 * rate.hits / rate.of:.2f} % " if rate.of else ""
    return f"{share}({rate.hits:,} of {rate.of:,})"


FACTS: dict[str, Callable[[Document], str]] = {
    "verdict": lambda d: d.verdict,
    "gate": lambda d: d.gate.result,
    "exit code": lambda d: str(d.exit_code),
    "model": lambda d: d.model.digest,
    "model as it is run": lambda d: d.model.canonical_digest,
    "scanned": lambda d: _count(d.coverage.scanned),
    "unreadable": lambda d: _count(d.coverage.unreadable),
    "skipped": lambda d: _count(d.coverage.skipped),
    "flagged": lambda d: _rate(d.judgement.flagged),
    "kept": lambda d: _count(d.kept),
    "quarantined": lambda d: _count(d.quarantined),
    "preprocessing": lambda d: d.preprocessing.recipe,
    "class order": lambda d: str(d.preprocessing.class_order),
    "fidelity of the control": lambda d: _rate(d.control.fidelity),
    "calibration images": lambda d: _count(d.control.calibration_images),
    "accuracy after the repair": lambda d: _rate(d.repair.accuracy) if d.repair and d.repair.accuracy else "none",
    "kdaudit": lambda d: d.recipe.kdaudit,
}
"""Facts that are compared one by one, each as its text."""


def compare_reports(old: Document, new: Document, runs: tuple[Path | None, Path | None] = (None, None)) -> Difference:
    """Compare two reports; times, paths and machines are not part of it.

    Args:
        old: a report.
        new: a later one.
        runs: their run directories, for the digests of more flagged images than a report lists.
    """
    changed = {name: (fact(old), fact(new)) for name, fact in FACTS.items() if fact(old) != fact(new)}
    changed |= _answers(old, new)
    before, after = ({f.fingerprint: f for f in d.findings} for d in (old, new))
    gone, fresh = _candidates(old, new, runs)
    return Difference(
        changed=changed,
        findings_new=[_told(f) for key, f in after.items() if key not in before],
        findings_gone=[_told(f) for key, f in before.items() if key not in after],
        candidates_new=fresh,
        candidates_gone=gone,
        settings=_settings(old, new),
    )


def _candidates(
    old: Document, new: Document, runs: tuple[Path | None, Path | None]
) -> tuple[list[str] | None, list[str] | None]:
    """Contents flagged in the old report alone and in the new one alone; None where that cannot be told."""
    if old.candidates.digest == new.candidates.digest:
        return [], []
    try:
        a, b = (flagged_digests(d.candidates, run) for d, run in zip((old, new), runs, strict=True))
    except RunDirectoryError:
        return None, None
    return sorted(a - b), sorted(b - a)


def render_difference(difference: Difference, paths: dict[str, str]) -> str:
    """For a terminal.

    Args:
        difference: from `compare_reports`.
        paths: where an image lies, by content digest, as far as it is known.
    """
    if not difference:
        return "nothing changed"
    lines = [f"{name}: {printable(old)} -> {printable(new)}" for name, (old, new) in difference.changed.items()]
    lines += [f"+ finding {printable(text)}" for text in difference.findings_new]
    lines += [f"- finding {printable(text)}" for text in difference.findings_gone]
    for sign, what, digests in (
        ("+", "flagged now", difference.candidates_new),
        ("-", "flagged no more", difference.candidates_gone),
    ):
        if digests is None:
            lines.append(f"{sign} {what}: more images than a report lists one by one, and no samples.parquet beside it")
        elif digests:
            lines.append(f"{sign} {what}: {len(digests):,} contents")
            lines += [f"{sign}   {printable(paths.get(digest, digest))}" for digest in digests[:MAX_LISTED]]
            if len(digests) > MAX_LISTED:
                lines.append(f"{sign}   and {len(digests) - MAX_LISTED:,} more")
    lines += [f"setting {name}: {old} -> {new}" for name, (old, new) in difference.settings.items()]
    return "\n".join(lines)


def _answers(old: Document, new: Document) -> dict[str, tuple[str, str]]:
    """Flags per answer, where their number differs."""
    before, after = ({row.answer: row.flagged.hits for row in d.judgement.by_answer} for d in (old, new))
    return {
        f"flagged with answer {answer}": (_count(before.get(answer, 0)), _count(after.get(answer, 0)))
        for answer in sorted(before.keys() | after.keys())
        if before.get(answer, 0) != after.get(answer, 0)
    }


def _settings(old: Document, new: Document) -> dict[str, tuple[str, str]]:
    before, after = old.recipe.settings, new.recipe.settings
    names = sorted(before.keys() | after.keys())
    return {
        name: (str(before.get(name)), str(after.get(name))) for name in names if before.get(name) != after.get(name)
    }


def _told(finding: FindingRow) -> str:
    return f"{finding.rule} ({finding.severity}): {finding.message}"
