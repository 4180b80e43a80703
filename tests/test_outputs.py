"""Every rendering of a report: valid by its own standard, the same facts in each, driven by no name from outside."""

import json
import re
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from outputs import CONTROLS, valid_csv, valid_html, valid_junit, valid_report, valid_sarif
from reports import document, rate, whole
from test_verdict import by_label, by_pool, trigger

from kdaudit.admission import FINDINGS, REFUSALS
from kdaudit.report import escape, outputs
from kdaudit.report.candidates import Candidates, cluster_sections, group_of
from kdaudit.report.checks import conclude
from kdaudit.report.document import Document
from kdaudit.report.gallery import Gallery, empty_gallery
from kdaudit.report.markdown import render_github, render_markdown
from kdaudit.report.page import embedded, render_html
from kdaudit.report.rules import _TEXTS, PAGE, SECURITY_SEVERITY, rules
from kdaudit.report.schema import document_schema, settings_schema, shipped_schema
from kdaudit.settings import Settings
from kdaudit.signs import BEHAVIOUR

TODAY = date(2026, 1, 1)

HOSTILE = (
    "</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>.png", "=HYPERLINK(\"http://evil\")",
    "@SUM(1+1).png", "\x1b]0;owned\x07.png", "a\r\nverdict: PASSED.png", "\u202egnp.exe", "`|![x](http://evil)|`.png",
    "]]>&amp;\ufffe.png", "::error::forged", "%0A::set-output name=verdict::PASSED", "'\"><svg onload=alert(1)>",
    "-2+3+cmd|' /C calc'!A0", "..\\..\\x", "@everyone #1 http://evil.example", "\ud800lone.png", "\u2028line.png",
    "{{ 7*7 }}{% raw %}", "<!--<script>", "C:/x.png",
)  # fmt: skip


def concluded(**changes: Any) -> Document:
    """The report of `reports`, after the gate."""
    return conclude(document(**changes), Settings(), None, TODAY)


def hostile(name: str) -> tuple[Document, Gallery]:
    """A report in which everything that comes from outside is `name`."""
    sections = whole()
    changes: dict[str, Any] = {
        "why": [f"40 of 41 flagged images get the answer 1 ({name})"],
        "findings": [f | {"message": f"of {name}"} for f in sections["findings"]],
        "model": sections["model"] | {"path": name, "producer": name},
        "suspect": sections["suspect"] | {"location": name, "classes": [name, "b"]},
        "clean": sections["clean"] | {"location": name},
        "preprocessing": sections["preprocessing"] | {"note": name, "class_basis": name},
        "judgement": sections["judgement"]
        | {
            "by_answer": [sections["judgement"]["by_answer"][0] | {"name": name}],
            "by_label": [sections["judgement"]["by_label"][0] | {"name": name}],
        },
        "clusters": [
            c | {"target_name": name, "statement": f"called {name}", "examples": [name, f"cat/{name}"]}
            for c in sections["clusters"]
        ],
        "coverage": sections["coverage"]
        | {
            "reasons": [{"status": "unreadable", "reason": name, "images": 768}],
            "examples": [{"path": name, "status": "unreadable", "reason": name}],
        },
        "repair": sections["repair"] | {"file": name},
        "recipe": sections["recipe"]
        | {"command": f"kdaudit scan '{name}'", "data": name, "settings": {"preprocess": name}},
    }
    made = conclude(document(**changes), Settings(), None, TODAY)
    gallery = Gallery(
        tile=(8, 8), per_row=20, per_sheet=400, sheets=["UklGRg=="], paths=[name], digests=["00" * 16], labels=[0],
        teacher=[1], control=[0], scores=[0.5], p_values=[None], clusters=["C1"], missing=[], pictures={}, targets={},
        names={"0": name, "1": name}, classes=[name], total=1,
    )  # fmt: skip
    return made, gallery


# -- each is valid


def test_the_shipped_schema_is_the_documents_own():
    """Made anew with `python -m kdaudit.report.schema`."""
    assert json.loads(shipped_schema()) == json.loads(json.dumps(document_schema()))


def test_a_report_fits_the_schema_and_a_broken_one_does_not():
    from jsonschema import ValidationError

    schema = json.loads(shipped_schema())
    report = valid_report(outputs.render_as("json", concluded(), Path()), schema)
    with pytest.raises(ValidationError):
        valid_report(json.dumps(report | {"verdict": "CLEAN"}), schema)
    with pytest.raises(ValidationError):
        valid_report(json.dumps({k: v for k, v in report.items() if k != "coverage"}), schema)


def test_the_settings_have_a_schema_too():
    from jsonschema import Draft202012Validator

    schema = settings_schema()
    Draft202012Validator.check_schema(schema)
    Draft202012Validator(schema).validate(
        {"fdr": 0.1, "ignores": [{"rule": "KDA103", "reason": "x", "expires": "2030-01-01"}]}
    )
    assert schema["properties"].keys() == Settings.model_fields.keys()


@pytest.mark.parametrize("verdict", ["PASSED", "FAILED", "INCONCLUSIVE"])
def test_every_rendering_is_valid_by_its_own_standard(verdict):
    empty = {"findings": [], "clusters": [], "plots": None, "validity": []} if verdict == "PASSED" else {}
    made = concluded(verdict=verdict, **empty)
    log = valid_sarif(outputs.render_as("sarif", made, Path()))
    assert log["runs"][0]["invocations"][0]["exitCode"] == made.exit_code
    states = valid_junit(outputs.render_as("junit", made, Path()))
    assert len(states) == len(made.checks)
    valid_html(render_html(made, empty_gallery()))
    assert verdict in render_markdown(made)


def test_sarif_speaks_of_findings_and_groups_and_of_what_was_not_scanned():
    (run,) = valid_sarif(outputs.render_as("sarif", concluded(), Path()))["runs"]
    assert [result["ruleId"] for result in run["results"]] == ["KDA201", "KDA103", "KDA201", "KDA201"]
    assert [result["level"] for result in run["results"]] == ["error", "note", "error", "error"]
    assert run["results"][2]["properties"] == {"cluster": "C1", "size": 40, "kind": "poison"}
    assert len(run["results"][2]["relatedLocations"]) == 2
    told = run["invocations"][0]["toolExecutionNotifications"]
    assert told[0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "delivery/cat/cut.jpg"
    assert "766 more images were not scanned" in told[2]["message"]["text"]
    assert run["properties"]["unreadable"] == 678
    assert outputs.render_as("sarif", concluded(), Path()) == outputs.render_as("sarif", concluded(), Path("elsewhere"))


def test_ten_thousand_groups_stay_few_results():
    cluster = whole()["clusters"][0]
    made = concluded(clusters=[cluster | {"id": f"C{i}", "examples": ["x" * 200] * 20} for i in range(10_000)])
    valid_sarif(outputs.render_as("sarif", made, Path()))


def test_junit_has_a_case_per_check():
    states = valid_junit(outputs.render_as("junit", concluded(), Path()))
    assert states["KDA201 flagged images gather at one answer of the model"] == "failure"
    assert states["KDA103 weights that nothing reads"] == "passed"
    assert states["KDA101 random operators"] == "passed"
    assert states["coverage enough of the images could be read"] == "error"
    assert states["gate the gate"] == "failure"


def test_a_control_that_is_not_faithful_leaves_the_behaviour_unchecked():
    control = whole()["control"] | {"fidelity": rate(10, 100)}
    made = concluded(verdict="INCONCLUSIVE", why=["not faithful"], control=control, findings=[])
    states = valid_junit(outputs.render_as("junit", made, Path()))
    assert states["fidelity the control is faithful enough"] == "error"
    assert states["KDA201 flagged images gather at one answer of the model"] == "skipped"
    assert states["gate the gate"] == "error"


def test_annotations_are_at_most_ten_and_say_the_counts():
    findings = [whole()["findings"][0] | {"fingerprint": f"{i:064x}"} for i in range(50)]
    lines = render_github(concluded(findings=findings)).splitlines()
    assert len(lines) == 10
    assert all(line.startswith("::error file=vendor.onnx,title=KDA201") for line in lines[:9])
    assert lines[9].startswith("::notice title=kdaudit FAILED::12,345 images scanned, 678 unreadable, 90 skipped")


HELD = tuple({"rule": rule, "reason": "known", "expires": "2027-01-01"} for rule in ("KDA201", "KDA103"))


@pytest.mark.parametrize(
    ("settings", "verdict", "reason"),
    [
        ({"max_flagged_rate": 0.001, "ignores": HELD}, "FAILED", "--max-flagged-rate allows 0.10%"),
        ({"max_flagged_rate": 0.001, "fail_on": "never"}, "PASSED", "--max-flagged-rate allows 0.10%"),
        ({"fail_on": "low"}, "PASSED", "KDA103 (low): 2 weights that nothing reads"),
        (
            {"ignores": HELD, "sensitivity": 0.01},
            "FAILED",
            "calibration images show poison with one target from 13.30% on, not the 1.00% asked for",
        ),
        ({"ignores": HELD, "min_coverage": 0.99}, "FAILED", "only 94.14% of the images could be read"),
    ],
)
def test_github_markdown_and_sarif_say_why_the_gate_did_not_pass(settings, verdict, reason):
    made = conclude(document(verdict=verdict), Settings(**({"min_coverage": 0.9} | settings)), None, TODAY)
    assert any(reason in why for why in made.gate.reasons)
    errors = [line for line in render_github(made).splitlines() if line.startswith("::error ")]
    assert any(reason.replace("%", "%25").rpartition("): ")[2] in line for line in errors)
    if settings.get("fail_on") != "never":
        assert len(errors) == len(made.gate.reasons)
    lines = [line for line in render_markdown(made).splitlines() if line.startswith(f"- gate {made.gate.result}: ")]
    assert any(escape.markdown_text(reason) in line for line in lines)
    (run,) = valid_sarif(outputs.render_as("sarif", made, Path()))["runs"]
    told = [one["message"]["text"] for one in run["invocations"][0]["toolExecutionNotifications"]]
    state = {"failed": "gate failed", "inconclusive": "inconclusive"}[made.gate.result]
    assert [text for text in told if text.startswith(state)] == [f"{state}: {why}" for why in made.gate.reasons]


def test_many_findings_do_not_push_the_gates_limit_out_of_the_annotations():
    findings = [whole()["findings"][0] | {"fingerprint": f"{i:064x}"} for i in range(50)]
    settings = Settings(min_coverage=0.9, max_flagged_rate=0.001)
    made = conclude(document(findings=findings), settings, None, TODAY)
    lines = render_github(made).splitlines()
    assert lines[0].startswith("::error title=kdaudit gate failed::0.33%25 of the images are flagged")
    assert len(lines) == 10
    assert lines[9].endswith("; 42 more annotations are in report.html")


def test_the_summary_does_not_say_twice_why_the_verdict_failed():
    text = render_markdown(concluded())
    assert "- gate" not in text
    assert text.count("- 40 of 41 flagged images") == 1


def test_the_summary_stays_small_with_many_groups():
    cluster = whole()["clusters"][0]
    text = render_markdown(concluded(clusters=[cluster | {"id": f"C{i}"} for i in range(200)]))
    assert len(text.encode()) < 20_000
    assert "190 more are in report.html" in text


@pytest.mark.parametrize("form", ["text", "json", "html", "sarif", "junit", "markdown", "github"])
@pytest.mark.parametrize("verdict", ["PASSED", "FAILED", "INCONCLUSIVE"])
def test_what_was_not_scanned_is_counted_in_every_rendering_and_never_called_clean(form, verdict, tmp_path):
    made = concluded(verdict=verdict)
    empty_gallery().write(tmp_path)
    text = outputs.render_as(form, made, tmp_path)
    assert verdict in text
    assert "678" in text
    assert "90" in text
    assert not re.search(r"\b(is|are|looks?|found) clean\b", text)


# -- names from outside


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_from_outside_drives_an_output(name):
    made, gallery = hostile(name)
    for form in ("text", "sarif", "junit", "markdown", "github"):
        text = outputs.render_as(form, made, Path(name.replace("/", "_").replace("\0", "")))
        assert not CONTROLS.search(text), form
        assert text.encode("utf-8")
    valid_sarif(outputs.render_as("sarif", made, Path()))
    valid_junit(outputs.render_as("junit", made, Path()))
    page = render_html(made, gallery)
    assert not CONTROLS.search(page)
    tree = valid_html(page)
    assert len(list(tree.iter("script"))) == 2
    assert not [e.tag for e in tree.iter() if e.tag in ("iframe", "object", "embed", "form", "base")]
    assert len(list(tree.iter("{http://www.w3.org/2000/svg}svg"))) == 2  # the two charts
    (data,) = [e for e in tree.iter("script") if e.attrib.get("type") == "application/json"]
    assert json.loads(data.text)["paths"] == [escape.printable(name)]


@pytest.mark.parametrize("name", HOSTILE)
def test_markdown_shows_a_name_and_runs_nothing(name):
    made, _ = hostile(name)
    text = render_markdown(made)
    outside_code = re.sub(r"(`+).*?\1", "", text)
    assert not re.search(r"(?<!\\)<[a-zA-Z/!]", outside_code)
    assert not re.search(r"(?<!\\)\]\(", outside_code)
    assert "://" not in outside_code
    assert not re.search(r"@\w", outside_code)
    for table_row in (line for line in text.splitlines() if line.startswith("| C1 ")):
        assert len(re.split(r"(?<!\\)\|", table_row)) == 6


@pytest.mark.parametrize("name", HOSTILE)
def test_a_workflow_command_stays_one_command(name):
    made, _ = hostile(name)
    lines = render_github(made).split("\n")
    assert [line for line in lines if line and not re.match(r"::(error|warning|notice) [^\n]*::", line)] == []
    assert len(lines) == len(made.findings) + 1  # one of three is low and not told; the notice, and the end
    assert not any("%0A" in line or "%0D" in line for line in lines)


@given(st.text())
def test_no_text_leaves_the_data_block(text):
    made = embedded({"paths": [text]})
    assert not re.search(r"[<>&\u2028\u2029]", made)
    assert json.loads(made) == {"paths": [text]}


@given(st.text(max_size=40), st.text(max_size=40))
def test_every_path_becomes_a_relative_uri(location, inside):
    uri = escape.relative_uri(location, inside)
    assert re.fullmatch(r"[\w.~%/-]+", uri, re.ASCII)
    assert not uri.startswith("/")


@pytest.mark.parametrize(
    ("location", "inside", "uri"),
    [
        ("delivery", "cat/1.png", "delivery/cat/1.png"),
        ("./delivery/", "cat/1.png", "delivery/cat/1.png"),
        ("../delivery", "a b.png", "delivery/a%20b.png"),
        ("/somewhere/17/delivery", "c:x.png", "delivery/c%3Ax.png"),
        ("m.onnx", "", "m.onnx"),
        (".", "", "."),
    ],
)
def test_a_uri_says_the_same_on_every_machine(location, inside, uri):
    assert escape.relative_uri(location, inside) == uri


@given(st.text())
def test_a_code_span_cannot_be_left(text):
    made = escape.markdown_code(text)
    fence = re.match("`+", made)
    assert fence is not None
    assert made.endswith(fence[0])
    inner = made[len(fence[0]) : -len(fence[0])]
    assert fence[0] not in re.findall("`+", inner)
    assert "\n" not in made


def test_csv_cells_are_harmless_and_paths_stay_paths(tmp_path):
    from test_quarantine import written

    names = ["=cmd|' /C calc'!A0.png", "+1.png", "-1.png", "@x.png", "\tx.png", "\uff1dx.png", " =x.png", "ok.png"]
    from test_quarantine import table

    _, kept, quarantine = written(
        tmp_path,
        table(path=names, label=[0] * 8, reason=["=1+1"] * 8),
        table(path=names, label=[0] * 8, flag=[True] * 8, reason=["=1+1"] * 8),
        classes=("=class",),
    )
    for name in ("kept.csv", "quarantine.csv"):
        valid_csv((tmp_path / name).read_text(encoding="utf-8"))
    for rows in (kept[1:], quarantine[1:]):
        assert [row[0].removeprefix("./") for row in rows] == names
        assert {row[1] for row in rows} == {"'=class"}


# -- rules


def test_every_rule_says_what_it_means_and_what_to_do():
    assert rules().keys() == _TEXTS.keys() == REFUSALS.keys() | FINDINGS.keys() | BEHAVIOUR.keys()
    for rule in rules().values():
        assert rule.meaning.endswith("."), rule.id
        assert rule.action.endswith("."), rule.id
        assert PAGE not in rule.action, rule.id  # a text of its own
        assert rule.severity in SECURITY_SEVERITY, rule.id
        assert rule.precision in ("very-high", "high", "medium", "low")
    texts = [text for rule in rules().values() for text in (rule.meaning, rule.title)]
    assert len(set(texts)) == len(texts)


def test_every_finding_has_its_techniques_of_atlas():
    """Refusals have none: nothing is said of such a model. No numbers (KDA204) and wrong labels (KDA210) fit none."""
    without = {rule.id for rule in rules().values() if not any(re.fullmatch(r"AML\.T[\d.]+", tag) for tag in rule.tags)}
    assert without == REFUSALS.keys() | {"KDA204", "KDA210"}


def test_the_page_counts_the_images_that_get_the_answer_and_not_the_whole_group():
    """61 of 66 images that carry one pattern get the answer 1; a second group of 4 gets it whole."""
    carriers = whole()["clusters"][0] | {
        "size": 66,
        "says": [{"answer": 1, "name": "dog", "images": 61}, {"answer": 0, "name": "cat", "images": 5}],
    }
    others = carriers | {"id": "C2", "size": 4, "says": [{"answer": 1, "name": "dog", "images": 4}]}
    names = {"names": {"1": "dog"}}
    page = render_html(document(clusters=[carriers, others]), replace(empty_gallery(), **names))
    assert "<h3>65 of 70 images get the answer 1 (dog) from the model</h3>" in page
    page = render_html(document(clusters=[others]), replace(empty_gallery(), **names))
    assert "<h3>4 images get the answer 1 (dog) from the model</h3>" in page


def test_a_cluster_counts_what_the_model_says():
    found = group_of(np.array([7, 7, 2]), np.array([1, 2, 3]), np.array([0, 0, 0]))
    whole_numbers = np.arange(3)
    made = Candidates(
        rows=whole_numbers, digests=("a", "b", "c"), paths=("1", "2", "3"), labels=whole_numbers,
        teacher=np.array([7, 7, 2]), control=np.array([1, 2, 3]), scores=np.ones(3), p_values=np.ones(3),
        triggers=np.full(3, -1), clusters=found, kept=whole_numbers, kept_control=whole_numbers, unread=(), reasons=(),
    )  # fmt: skip
    (cluster,) = cluster_sections(made, {7: "seven"})
    assert [(one.answer, one.name, one.images) for one in cluster.says] == [(7, "seven", 2), (2, None, 1)]
    assert (cluster.target, cluster.size) == (7, 3)


@pytest.mark.parametrize(
    ("proven", "said"),
    [
        (
            trigger(3),
            "3 images with one patch: put onto 400 clean images, it moves 390 to 3 (ship) in the model and 3 in the",
        ),
        (
            by_label(),
            "3 images with one patch: of 100 that show other classes than 3 (ship), 95 were delivered as that",
        ),
        (
            by_pool(),
            "3 images with one patch, which 0 of 1,000 clean images have: put onto 400 of these, it moves 100 to",
        ),
    ],
)
def test_a_cluster_tells_what_proves_its_trigger(proven, said):
    numbers = np.arange(3)
    made = Candidates(
        rows=numbers, digests=("a", "b", "c"), paths=("1", "2", "3"), labels=numbers, teacher=np.array([3, 3, 2]),
        control=np.array([1, 2, 3]), scores=np.ones(3), p_values=np.ones(3), triggers=np.zeros(3, int),
        clusters=np.zeros(3, int), kept=numbers, kept_control=numbers, unread=(), reasons=(),
    )  # fmt: skip
    (cluster,) = cluster_sections(made, {3: "ship"}, [proven])
    assert cluster.statement.startswith(said)


def test_the_severity_of_a_rule_is_the_one_its_findings_have():
    code = "".join(
        path.read_text(encoding="utf-8")
        for path in Path(outputs.__file__).parents[1].rglob("*.py")
        if path.name != "rules.py"
    )
    given = dict(re.findall(r'Finding\(\s*"(KDA\d{3})",\s*"(\w+)"', code))
    told = {rule: severity for rule, severity in given.items() if rule in _TEXTS}
    assert told.keys() == BEHAVIOUR.keys()  # the graph's severities are in admission's catalogue
    assert {rule: rules()[rule].severity for rule in told} == told
