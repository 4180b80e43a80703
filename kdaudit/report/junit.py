"""JUnit XML: a case per check, a failed one as failure, an inconclusive one as error, a suppressed one as skipped."""

from xml.etree import ElementTree as ET

from kdaudit.report.document import Document
from kdaudit.report.escape import printable
from kdaudit.report.sections import CheckRow


def render_junit(document: Document) -> str:
    """The report as a JUnit document."""
    states = [check.state for check in document.checks]
    counts = {
        "tests": len(states),
        "failures": states.count("failed"),
        "errors": states.count("inconclusive"),
        "skipped": states.count("suppressed") + states.count("not run"),
    }
    root = ET.Element("testsuites")
    suite = ET.SubElement(
        root,
        "testsuite",
        {
            "name": f"kdaudit {printable(document.model.path)}",
            **{name: str(n) for name, n in counts.items()},
            "time": f"{sum(document.timings.values()):.3f}",
            "timestamp": document.created[:19],
        },
    )
    properties = ET.SubElement(suite, "properties")
    for name, value in _properties(document).items():
        ET.SubElement(properties, "property", {"name": name, "value": printable(value)})
    for check in document.checks:
        _case(suite, check)
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _case(suite: ET.Element, check: CheckRow) -> None:
    name = printable(f"{check.id} {check.title}" if check.id != check.title else check.title)
    case = ET.SubElement(suite, "testcase", {"classname": f"kdaudit.{check.group}", "name": name, "time": "0"})
    detail = printable(check.detail)
    kind = check.id if check.id.startswith("KDA") else check.group
    if check.state == "failed":
        ET.SubElement(case, "failure", {"type": kind, "message": detail or check.title}).text = detail
    elif check.state == "inconclusive":
        ET.SubElement(case, "error", {"type": "inconclusive", "message": detail or check.title}).text = detail
    elif check.state in ("suppressed", "not run"):
        ET.SubElement(case, "skipped").text = f"{check.state}: {detail}" if detail else check.state
    elif detail:
        ET.SubElement(case, "system-out").text = detail


def _properties(document: Document) -> dict[str, str]:
    c, flagged = document.coverage, document.judgement.flagged
    return {
        "verdict": document.verdict,
        "gate": document.gate.result,
        "exit code": str(document.exit_code),
        "scanned": str(c.scanned),
        "unreadable": str(c.unreadable),
        "skipped": str(c.skipped),
        "flagged": str(flagged.hits),
        "model sha256": document.model.digest,
        "kdaudit": document.recipe.kdaudit,
    }
