"""A delivery whose file and class names attack whoever reads the report, audited for real."""

import json
import shutil
from pathlib import Path

import pytest
from deliveries import Scan, finished, kdaudit_command, vendor_scan
from outputs import CONTROLS, valid_csv, valid_html, valid_junit, valid_report, valid_sarif

from kdaudit.report.schema import shipped_schema
from kdaudit.source import open_source, survey

pytestmark = pytest.mark.slow

NAMES = (
    "<script>alert(1)<", "<img src=x onerror=alert(1)>", '=HYPERLINK("http:evil")', "@SUM(1+1)",
    "-2+3+cmd|' C calc'!A0",
    "\x1b]0;owned\x07\x1b[2J", "a\r\nverdict: PASSED", "\u202egnp.exe", "`|![x](evil)|`", "::error::forged", "%0A::x",
    "'\"><svg onload=alert(1)>", "\udcff\udcfe", "\u2028", "{{ 7*7 }}", "<!--<script>", " =lead", "]]>&amp;",
)  # fmt: skip
"""Beginnings of file names; lone surrogates stand for bytes that are not UTF-8."""


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> tuple[Path, Path, str]:
    """Data set, run directory and output of an audit of the vendor's delivery under hostile names."""
    scanned: Scan = vendor_scan(tmp_path_factory.getbasetemp())
    folder = tmp_path_factory.mktemp("hostile")
    data = folder / "data"
    flagged = {row["path"] for row in valid_csv((scanned.run / "quarantine.csv").read_text())}
    for number, file in enumerate(sorted(scanned.delivery.data.rglob("*.png"))):
        inside = file.relative_to(scanned.delivery.data)
        if inside.parts[0] != "clean":
            attacked = inside.as_posix() in flagged or number % 50 == 0
            name = f"{NAMES[number % len(NAMES)]}{inside.name}" if attacked else inside.name
            inside = inside.with_name(name)
        (data / inside).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, data / inside)
    (data / "3" / "=cut<b>.png").write_bytes(b"\x89PNG\r\n\x1a\n cut")
    run = folder / "run"
    command = ("compare", scanned.delivery.model, scanned.run / "student.onnx", data, "-o", run, "--seed", 0)
    recipe = ("--preprocess", scanned.report["preprocessing"]["recipe"])
    return data, run, finished(kdaudit_command(*command, *recipe), 1)


def test_every_file_of_the_run_is_valid_and_harmless(hostile):
    _, run, output = hostile
    report = valid_report((run / "report.json").read_text(), json.loads(shipped_schema()))
    assert report["judgement"]["flagged"]["hits"] > 30
    assert not CONTROLS.search(output)
    for name, check in {"findings.sarif": valid_sarif, "junit.xml": valid_junit, "report.html": valid_html}.items():
        with (run / name).open(encoding="utf-8", newline="") as file:
            text = file.read()
        assert not CONTROLS.search(text), name
        check(text)
    assert not CONTROLS.search((run / "summary.md").read_text(encoding="utf-8"))
    for name in ("kept.csv", "quarantine.csv"):
        with (run / name).open(encoding="utf-8", newline="") as file:
            valid_csv(file.read())


def test_the_page_holds_the_names_as_text_and_only_its_own_elements(hostile):
    _, run, _ = hostile
    tree = valid_html((run / "report.html").read_text(encoding="utf-8"))
    assert len(list(tree.iter("script"))) == 2
    assert not [e.tag for e in tree.iter() if e.tag in ("iframe", "object", "embed", "form", "base")]
    assert all(e.get("src", "data:").startswith("data:") for e in tree.iter("img"))
    (data,) = [e for e in tree.iter("script") if e.get("type") == "application/json"]
    paths = json.loads(data.text)["paths"]
    assert any("<script>alert(1)<" in path for path in paths)
    assert any("\\x1b]0;owned\\x07" in path for path in paths)


def test_the_manifests_name_the_same_files_again(hostile):
    """Round trip: what kept.csv names is a data set again, hostile names and all."""
    data, run, _ = hostile
    shutil.copyfile(run / "kept.csv", data / "kept.csv")
    found = survey(open_source(data / "kept.csv"))
    report = json.loads((run / "report.json").read_text())
    # A name that is not UTF-8 is written as \\xff and cannot be opened by what stands in a CSV.
    unwritable = sum("\udcff" in path.name for path in data.rglob("*.png"))
    assert unwritable
    assert report["kept"] - unwritable <= found.read <= report["kept"]
