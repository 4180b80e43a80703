"""SARIF 2.1.0 for code scanning: one result per finding and per group of candidates, never per image."""

import hashlib
import json
from typing import Any

from kdaudit.gate import expiry_of
from kdaudit.report.document import Document
from kdaudit.report.escape import printable, relative_uri
from kdaudit.report.results import ClusterSection
from kdaudit.report.rules import SECURITY_SEVERITY, Rule, rules
from kdaudit.report.sections import FindingRow
from kdaudit.verdict import SEVERITIES
from kdaudit.version import __version__

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
LEVELS = {"low": "note", "medium": "warning", "high": "error", "critical": "error"}
MAX_CLUSTERS = 200
"""GitHub keeps 5,000 results of a run; far fewer are readable."""

ROOT = "%SRCROOT%"


def render_sarif(document: Document) -> str:
    """The report as a SARIF log."""
    known = [rule for rule in rules().values() if rule.kind != "refusal"]
    index = {rule.id: i for i, rule in enumerate(known)}
    results = [_finding(finding, document, index) for finding in document.findings]
    results += _clusters(document, index)
    run = {
        "tool": {
            "driver": {
                "name": "kdaudit",
                "version": __version__,
                "semanticVersion": _semantic(__version__),
                "rules": [_rule(rule, document) for rule in known],
            }
        },
        "automationDetails": {"id": f"kdaudit/{document.model.digest[:12]}/"},
        "originalUriBaseIds": {ROOT: {"description": {"text": "Where kdaudit was started."}}},
        "invocations": [_invocation(document)],
        "results": results,
        "columnKind": "utf16CodeUnits",
        "properties": {
            "verdict": document.verdict,
            "gate": document.gate.result,
            "scanned": document.coverage.scanned,
            "unreadable": document.coverage.unreadable,
            "skipped": document.coverage.skipped,
            "flagged": document.judgement.flagged.hits,
            "modelDigest": document.model.digest,
            "checksPassed": sum(check.state == "passed" for check in document.checks),
        },
    }
    return json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2, ensure_ascii=True) + "\n"


def _rule(rule: Rule, document: Document) -> dict[str, Any]:
    given = [f.severity for f in document.findings if f.rule == rule.id]
    severity = max(given, key=SEVERITIES.index) if given else rule.severity
    title = f"{rule.title[0].upper()}{rule.title[1:]}"
    return {
        "id": rule.id,
        "name": "".join(word.capitalize() for word in rule.title.replace("-", " ").split()),
        "shortDescription": {"text": f"{title}."},
        "fullDescription": {"text": rule.meaning},
        "help": {
            "text": f"{rule.meaning}\n\nWhat to do: {rule.action}",
            "markdown": f"{rule.meaning}\n\n**What to do:** {rule.action}",
        },
        "defaultConfiguration": {"level": LEVELS[severity]},
        "properties": {
            "security-severity": SECURITY_SEVERITY[severity],
            "precision": rule.precision,
            "problem.severity": {"note": "recommendation"}.get(LEVELS[severity], LEVELS[severity]),
            "tags": list(rule.tags),
        },
    }


def _finding(finding: FindingRow, document: Document, index: dict[str, int]) -> dict[str, Any]:
    result: dict[str, Any] = {
        "ruleId": finding.rule,
        "level": LEVELS[finding.severity],
        "message": {"text": printable(_message(finding))},
        "locations": [_location(relative_uri(document.model.path))],
        "partialFingerprints": {
            "primaryLocationLineHash": f"{finding.fingerprint[:16]}:1",
            "kdauditFinding/v1": finding.fingerprint,
        },
    }
    if finding.rule in index:
        result["ruleIndex"] = index[finding.rule]
    if finding.suppressed:
        result["suppressions"] = [{"kind": "external", "justification": printable(finding.suppressed.reason)}]
    if document.gate.baseline is not None:
        by_baseline = finding.suppressed is not None and finding.suppressed.by == "baseline"
        result["baselineState"] = "unchanged" if by_baseline else "new"
    return result


def _message(finding: FindingRow) -> str:
    """The sentence, and an ignore that ran out: of a suppression, even a rejected one, viewers may hide the result."""
    if finding.expired is None:
        return finding.message
    return f"{finding.message} (the ignore of this finding, {finding.expired.reason}, {expiry_of(finding.expired)})"


def _clusters(document: Document, index: dict[str, int]) -> list[dict[str, Any]]:
    results = []
    for cluster in document.clusters[:MAX_CLUSTERS]:
        cause = _cause(cluster, document)
        if cause is None:
            continue
        # Which answers part is the same in the next run; how many images there are is not.
        about = f"{cause.rule}|{document.model.canonical_digest}|{cluster.target}|{cluster.pattern}|"
        about += ",".join(str(count.answer) for count in cluster.sees[:1])
        name = hashlib.sha256(about.encode()).hexdigest()
        places = [relative_uri(document.suspect.location, path) for path in cluster.examples]
        result: dict[str, Any] = {
            "ruleId": cause.rule,
            "level": LEVELS[cause.severity],
            "message": {
                "text": printable(f"{cluster.statement}. All of them are in quarantine.csv and samples.parquet.")
            },
            "locations": [_location(places[0] if places else relative_uri(document.model.path))],
            "relatedLocations": [
                {**_location(place), "id": i, "message": {"text": "a candidate of this group"}}
                for i, place in enumerate(places)
            ],
            "partialFingerprints": {
                "primaryLocationLineHash": f"{name[:16]}:1",
                "kdauditGroup/v1": name,
                "kdauditMembers/v1": cluster.fingerprint,
            },
            "properties": {"cluster": cluster.id, "size": cluster.size, "kind": cluster.kind},
        }
        if cause.rule in index:
            result["ruleIndex"] = index[cause.rule]
        if cause.suppressed:
            result["suppressions"] = [{"kind": "external", "justification": printable(cause.suppressed.reason)}]
        results.append(result)
    return results


def _cause(cluster: ClusterSection, document: Document) -> FindingRow | None:
    """The finding that a group of candidates belongs to: its target's own, or the most severe one about images."""
    about_images = [f for f in document.findings if f.rule.startswith("KDA2")]
    own = [f for f in about_images if f.subject == f"answer {cluster.target}"]
    return (own or about_images or [None])[0]  # type: ignore[list-item]


def _invocation(document: Document) -> dict[str, Any]:
    """How the run went: every image that was not scanned is told, up to what the report lists one by one."""
    told = [
        {
            "level": "warning",
            "descriptor": {"id": row.status},
            "message": {"text": printable(f"{row.status}: {row.reason or 'no reason given'}")},
            "locations": [_location(relative_uri(document.suspect.location, row.path))],
        }
        for row in document.coverage.examples
    ]
    more = document.coverage.unreadable + document.coverage.skipped - len(told)
    if more > 0:
        told.append(
            {"level": "warning", "message": {"text": f"{more:,} more images were not scanned: see quarantine.csv"}}
        )
    # Reasons that are findings as well: the level of a result does not say whether the gate failed because of it.
    gate = document.gate
    state = "inconclusive" if gate.result == "inconclusive" else f"gate {gate.result}"
    told += [{"level": "error", "message": {"text": printable(f"{state}: {why}")}} for why in gate.reasons]
    return {
        "executionSuccessful": True,
        "exitCode": document.exit_code,
        "exitCodeDescription": f"verdict {document.verdict}, gate {document.gate.result}",
        "toolExecutionNotifications": told,
    }


def _location(uri: str) -> dict[str, Any]:
    """A whole binary file: code scanning wants a region, and the first character serves."""
    return {
        "physicalLocation": {
            "artifactLocation": {"uri": uri, "uriBaseId": ROOT},
            "region": {"startLine": 1, "startColumn": 1, "endLine": 1, "endColumn": 1},
        }
    }


def _semantic(version: str) -> str:
    """A version of three numbers, with what follows them as a pre-release."""
    import re

    match = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?(.*)", version)
    assert match is not None
    rest = re.sub(r"[^0-9A-Za-z-]+", "-", match[4]).strip("-")
    return f"{match[1]}.{match[2]}.{match[3] or 0}" + (f"-{rest}" if rest else "")
