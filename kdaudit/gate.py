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

from kdaudit.admission import FINDINGS
from kdaudit.errors import Exit, RunDirectoryError, UsageError
from kdaudit.report.document import Document, parse_document
from kdaudit.report.results import CandidatesSection
from kdaudit.report.sections import FindingRow, GateResult, GateSection, Suppression
from kdaudit.settings import Ignore, Settings
from kdaudit.signs import BEHAVIOUR
from kdaudit.verdict import SEVERITIES, Resolved, left_open

MAX_DIGESTS = 10_000
"""Flagged images whose digests a report carries; of more, they are read from the samples.parquet beside it."""

OF_IMAGES = ("KDA201", "KDA202", "KDA203", "KDA206")
"""Findings about images: a baseline covers them only as long as no other image is flagged."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """An earlier report, as far as the gate needs it.

    Attributes:
        name: where it came from, for people.
        findings: fingerprints of its findings.
        candidates: what it flagged.
        run: the directory that the report lies in.
    """

    name: str
    findings: frozenset[str]
    candidates: CandidatesSection
    run: Path


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


def flagged_digests(found: CandidatesSection, run: Path | None) -> frozenset[str]:
    """The content digests of all flagged images: from the report, or from the samples.parquet of its run.

    Args:
        found: the report's section.
        run: the directory that the report lies in; None: nowhere.

    Raises:
        RunDirectoryError: the report does not hold them, and the table is not there or is another run's.
    """
    if found.digests or not found.count:
        return frozenset(found.digests)
    table = run / "samples.parquet" if run is not None else None
    if table is None or not table.is_file():
        raise RunDirectoryError(
            f"{found.count:,} images are flagged, and a report lists up to {MAX_DIGESTS:,} of them: keep "
            f"{table or 'its samples.parquet'} beside the report, so that images can be told apart"
        )
    from kdaudit.rows import flagged_contents

    digests = flagged_contents(table)
    if candidates_section(digests).digest != found.digest:
        raise RunDirectoryError(f"{table} is not that of the report beside it: keep both files of one run together")
    return digests


def check_ignores(ignores: Iterable[Ignore]) -> None:
    """Refuse an ignore of a rule that finds nothing: it would never hold, and nobody would notice.

    Raises:
        UsageError: no finding has such a rule; a refusal (KDA0..) is none, since no model passes with it.
    """
    known = FINDINGS.keys() | BEHAVIOUR.keys()
    for number, ignore in enumerate(ignores):
        if ignore.rule not in known:
            raise UsageError(
                f"setting 'ignores.{number}.rule': no finding has the rule {ignore.rule!r}; findings of the graph are "
                "KDA1.., those of behaviour KDA2..: `kdaudit explain` lists them"
            )


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
    return Baseline(str(path), frozenset(f.fingerprint for f in document.findings), document.candidates, file.parent)


def apply(
    document: Document, settings: Settings, baseline: Baseline | None, today: date, run: Path | None = None
) -> Document:
    """The report with the gate's answer: suppressions, reasons and exit code.

    Args:
        document: a report, whatever its gate said before.
        settings: the gate's settings.
        baseline: from `read_baseline`.
        today: the day on which ignores are held against their expiry.
        run: the report's run directory, for the digests of more flagged images than a report lists.

    Raises:
        UsageError: the baseline cannot be compared with, because the list of its flagged images is gone.
    """
    fresh = _new_candidates(document, baseline, run)
    notes: list[str] = []
    findings = [_held(finding, document, settings, baseline, fresh, today, notes) for finding in document.findings]
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


def reason_of(finding: FindingRow) -> str:
    """How a finding stands among the gate's reasons."""
    return f"{finding.rule} ({finding.severity}): {finding.message}"


def limits_of(document: Document) -> list[str]:
    """The gate's reasons that no finding stands for: a limit that was passed, or a doubt."""
    findings = {reason_of(finding) for finding in document.findings}
    return [why for why in document.gate.reasons if why not in findings]


def _answer(
    document: Document, findings: list[FindingRow], settings: Settings, fresh: int | None
) -> tuple[GateResult, list[str]]:
    if document.verdict == "INCONCLUSIVE":
        return "inconclusive", list(document.why)
    reasons = []
    if settings.fail_on != "never":
        bar = SEVERITIES.index(settings.fail_on)
        reasons = [reason_of(f) for f in findings if f.suppressed is None and SEVERITIES.index(f.severity) >= bar]
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
    counted = [(f.rule, f.message) for f in findings if f.suppressed is None]
    doubts = [doubt.message for doubt in left_open(resolved_of(document), counted, settings)]
    return ("inconclusive", doubts) if doubts else ("passed", [])


def resolved_of(document: Document) -> Resolved:
    """What the scan of a report looked at, and how finely."""
    covered, judged = document.coverage, document.judgement
    return Resolved(
        covered.share, covered.unopened, judged.rule, judged.fdr, document.control.calibration_images,
        judged.visible_rate,
    )  # fmt: skip


def _held(
    finding: FindingRow,
    document: Document,
    settings: Settings,
    baseline: Baseline | None,
    fresh: int | None,
    today: date,
    notes: list[str],
) -> FindingRow:
    """The finding with what takes it out of the gate, or with the ignore that no longer does."""
    ignores = [
        (ignore, Suppression(by="ignore", reason=ignore.reason, expires=ignore.expires.isoformat()))
        for ignore in settings.ignores
        if _matches(ignore, finding, document)
    ]
    held = next((as_row for ignore, as_row in ignores if today <= ignore.expires), None)
    if held is None and baseline is not None and finding.fingerprint in baseline.findings:
        if finding.rule in OF_IMAGES and fresh:
            notes.append(f"{finding.rule} is in the baseline, but {fresh:,} flagged images are not: it counts again")
        else:
            held = Suppression(by="baseline", reason=f"in the baseline {baseline.name}")
    lapsed = [as_row for ignore, as_row in ignores if today > ignore.expires] if held is None else []
    notes += [f"the ignore of {finding.rule} ({one.reason}) {expiry_of(one)}" for one in lapsed]
    last = max(lapsed, key=lambda one: one.expires or "", default=None)
    return finding.model_copy(update={"suppressed": held, "expired": last})


def expiry_of(expired: Suppression) -> str:
    """What is said of an ignore that no longer holds, wherever it is said."""
    return f"expired on {expired.expires}: it counts again"


def _matches(ignore: Ignore, finding: FindingRow, document: Document) -> bool:
    return (
        ignore.rule == finding.rule
        and ignore.subject in ("", finding.subject)
        and document.model.digest.startswith(ignore.model)
    )


def _new_candidates(document: Document, baseline: Baseline | None, run: Path | None) -> int | None:
    """How many flagged contents the baseline does not hold; None without a baseline."""
    if baseline is None:
        return None
    now = document.candidates
    if now.digest == baseline.candidates.digest or not now.count:
        return 0
    try:
        return len(flagged_digests(now, run) - flagged_digests(baseline.candidates, baseline.run))
    except RunDirectoryError as error:
        raise UsageError(f"the baseline cannot tell which images are new: {error}") from error


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
