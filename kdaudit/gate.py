"""The gate: from a report to an exit code, with what a baseline and the ignores take out of it.

The verdict speaks of the model and the images and is never changed here. Works on the report document alone, so that
`kdaudit gate RUN` can ask again with other settings without running anything.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from kdaudit.errors import Exit, RunDirectoryError, UsageError
from kdaudit.report.document import (
    CandidatesSection,
    Document,
    FindingRow,
    GateResult,
    GateSection,
    Suppression,
    parse_document,
)
from kdaudit.settings import Ignore, Settings
from kdaudit.verdict import SEVERITIES

MAX_DIGESTS = 10_000
"""Flagged images whose digests a report carries; with more, a baseline needs its samples.parquet beside it."""

OF_IMAGES = ("KDA201", "KDA202", "KDA203", "KDA206")
"""Findings about images: a baseline covers them only as long as no other image is flagged."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """An earlier report, as far as the gate needs it.

    Attributes:
        name: where it came from, for people.
        findings: fingerprints of its findings.
        candidates: what it flagged.
        known: content digests of what it flagged; None where the report is too large to carry them.
    """

    name: str
    findings: frozenset[str]
    candidates: CandidatesSection
    known: frozenset[str] | None


def fingerprint(rule: str, model: str, subject: str) -> str:
    """What a finding is called across runs: SHA-256 of rule, model digest and subject."""
    return hashlib.sha256(f"{rule}|{model}|{subject}".encode()).hexdigest()


def candidates_section(digests: Iterable[str]) -> CandidatesSection:
    """The flagged images by content.

    Args:
        digests: content digests, 32 hexadecimal digits each, repeated where an image stands at several places.
    """
    every = list(digests)
    unique = sorted(set(every))
    digest = hashlib.sha256("\n".join(unique).encode()).hexdigest()
    return CandidatesSection(count=len(every), digest=digest, digests=unique if len(unique) <= MAX_DIGESTS else [])


def read_baseline(path: Path | None) -> Baseline | None:
    """An earlier run directory or report.json.

    Raises:
        UsageError: it is not the report of a finished run of this version.
    """
    if path is None:
        return None
    file = path / "report.json" if path.is_dir() else path
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        document = parse_document(content)
    except OSError as error:
        raise UsageError(
            f"the baseline {file} cannot be read ({error.strerror}): give a run or its report.json"
        ) from error
    except RunDirectoryError as error:
        raise UsageError(f"the baseline {file} is {error}: give a finished run or its report.json") from error
    except ValueError as error:
        raise UsageError(f"the baseline {file} is not JSON: give a run or its report.json") from error
    found = document.candidates
    known = frozenset(found.digests) if found.digests or not found.count else None
    return Baseline(str(path), frozenset(f.fingerprint for f in document.findings), found, known)


def apply(document: Document, settings: Settings, baseline: Baseline | None, today: date) -> Document:
    """The report with the gate's answer: suppressions, reasons and exit code.

    Args:
        document: a report, whatever its gate said before.
        settings: the gate's settings.
        baseline: from `read_baseline`.
        today: the day on which ignores are held against their expiry.

    Raises:
        UsageError: the baseline is too large to compare with.
    """
    fresh = _new_candidates(document, baseline)
    notes: list[str] = []
    findings = [
        finding.model_copy(
            update={"suppressed": _suppression(finding, document, settings, baseline, fresh, today, notes)}
        )
        for finding in document.findings
    ]
    result, reasons = _answer(document, findings, settings, fresh)
    if settings.exit_zero and result != "passed":
        notes.append(
            f"--exit-zero: the gate {'failed' if result == 'failed' else 'is inconclusive'}, the exit code is 0"
        )
    gate = GateSection(
        result=result,
        reasons=reasons,
        notes=list(dict.fromkeys(notes)),
        fail_on=settings.fail_on,
        max_flagged_rate=settings.max_flagged_rate,
        exit_zero=settings.exit_zero,
        baseline=baseline.name if baseline else None,
        new_candidates=fresh,
    )
    codes = {"passed": Exit.PASSED, "failed": Exit.FAILED, "inconclusive": Exit.INCONCLUSIVE}
    code = Exit.PASSED if settings.exit_zero else codes[result]
    return document.model_copy(update={"findings": findings, "gate": gate, "exit_code": int(code)})


def _answer(
    document: Document, findings: list[FindingRow], settings: Settings, fresh: int | None
) -> tuple[GateResult, list[str]]:
    if document.verdict == "INCONCLUSIVE":
        return "inconclusive", list(document.why)
    reasons = []
    if settings.fail_on != "never":
        bar = SEVERITIES.index(settings.fail_on)
        reasons = [
            f"{f.rule} ({f.severity}): {f.message}"
            for f in findings
            if f.suppressed is None and SEVERITIES.index(f.severity) >= bar
        ]
    flagged = document.judgement.flagged
    count = flagged.hits if fresh is None else fresh
    if settings.max_flagged_rate is not None and flagged.of and count / flagged.of > settings.max_flagged_rate:
        new = "" if fresh is None else " that the baseline does not hold"
        reasons.append(
            f"{count / flagged.of:.2%} of the images are flagged{new} ({count:,} of {flagged.of:,}); "
            f"--max-flagged-rate allows {settings.max_flagged_rate:.2%}"
        )
    if reasons:
        return "failed", reasons
    # A verdict may rest on a finding that is suppressed; what it left open must not pass because of that.
    doubts = []
    if document.coverage.share < settings.min_coverage:
        doubts.append(
            f"only {document.coverage.share:.2%} of the images could be read (needed: {settings.min_coverage:.0%})"
        )
    if settings.sensitivity is not None and document.judgement.visible_rate > settings.sensitivity:
        doubts.append(
            f"poison rates show from {document.judgement.visible_rate:.2%} on, not the "
            f"{settings.sensitivity:.2%} asked for"
        )
    return ("inconclusive", doubts) if doubts else ("passed", [])


def _suppression(
    finding: FindingRow,
    document: Document,
    settings: Settings,
    baseline: Baseline | None,
    fresh: int | None,
    today: date,
    notes: list[str],
) -> Suppression | None:
    for ignore in settings.ignores:
        if not _matches(ignore, finding, document):
            continue
        if today > ignore.expires:
            notes.append(f"the ignore of {ignore.rule} ({ignore.reason}) expired on {ignore.expires}: it counts again")
            continue
        return Suppression(by="ignore", reason=ignore.reason, expires=ignore.expires.isoformat())
    if baseline is None or finding.fingerprint not in baseline.findings:
        return None
    if finding.rule in OF_IMAGES and fresh:
        notes.append(f"{finding.rule} is in the baseline, but {fresh:,} flagged images are not: it counts again")
        return None
    return Suppression(by="baseline", reason=f"in the baseline {baseline.name}")


def _matches(ignore: Ignore, finding: FindingRow, document: Document) -> bool:
    return (
        ignore.rule == finding.rule
        and ignore.subject in ("", finding.subject)
        and document.model.digest.startswith(ignore.model)
    )


def _new_candidates(document: Document, baseline: Baseline | None) -> int | None:
    """How many flagged contents the baseline does not hold; None without a baseline."""
    if baseline is None:
        return None
    now = document.candidates
    if now.digest == baseline.candidates.digest or not now.count:
        return 0
    if baseline.known is None or (now.count and not now.digests):
        raise UsageError(
            f"{max(now.count, baseline.candidates.count):,} images are flagged, more than the {MAX_DIGESTS:,} that a "
            "report lists one by one: a baseline cannot tell which are new. Take the quarantined images out first"
        )
    return len(set(now.digests) - baseline.known)


def fingerprinted(rows: Iterable[FindingRow], model: str) -> list[FindingRow]:
    """Findings with their fingerprints; of two with one subject the second is told apart by its number.

    Args:
        rows: findings without fingerprints.
        model: the model's canonical digest.
    """
    seen: Counter[tuple[str, str]] = Counter()
    named = []
    for row in rows:
        key = (row.rule, row.subject)
        subject = row.subject if not seen[key] else f"{row.subject}#{seen[key]}"
        seen[key] += 1
        named.append(row.model_copy(update={"fingerprint": fingerprint(row.rule, model, subject)}))
    return named
