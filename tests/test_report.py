"""The report: one document, that JSON carries without loss, and a text that no file name can drive."""

import json
import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from reports import document, rate, repair, whole

from kdaudit.calibration import interval
from kdaudit.cli.main import cli
from kdaudit.report.build import NOT_OF_COMPARE, command_line
from kdaudit.report.document import Document
from kdaudit.report.text import percent, printable, render, repair_lines
from kdaudit.settings import Settings, load_settings

HOSTILE = "cat\x1b]0;owned\x07\r\nverdict: PASSED\u202e\x9b2J.png"


def text_of(made: Document) -> str:
    return render(made, Path("run"))


# -- the command that does it again


def another(name: str) -> Any:
    """A value of a setting that is not its default."""
    chosen = {
        "interventions": ("cut-0.5", "blend-0.7"), "preprocess": "8x8x1-stretch-L-NCHW-unit", "batch_size": 8,
        "workers": 3, "budget": 2.5, "steps": 40, "sensitivity": 0.1, "max_flagged_rate": 0.02, "gpus": 2,
        "baseline": Path("accepted run/report.json"), "backbone": Path("our own.onnx"), "fdr": 0.1,
        "min_fidelity": 0.7, "min_coverage": 0.5,
        "repair_epochs": 7.5, "ignores": ({"rule": "KDA103", "reason": "it's known", "expires": "2030-12-31"},),
    }  # fmt: skip
    field = Settings.model_fields[name]
    if name in chosen:
        return chosen[name]
    if get_origin(field.annotation) is Literal:
        return get_args(field.annotation)[-1]
    return not field.default if isinstance(field.default, bool) else field.default + 1


def understood(line: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings that a command line ends in, options and variables."""
    words = shlex.split(line)
    if words[0] == "env":
        words = words[1:]
    while "=" in words[0]:
        monkeypatch.setenv(*words.pop(0).split("=", 1))
    assert words[0] == "kdaudit"
    context = cli.commands[words[1]].make_context(words[1], words[2:])
    given = {name: value for name, value in context.params.items() if name in Settings.model_fields}
    assert (context.params["data"], context.params["clean"]) == (Path("my data"), Path("my data/clean"))
    return load_settings(**given | ({"repair": False} if words[1] == "compare" else {}))


@pytest.mark.parametrize("name", list(Settings.model_fields))
def test_the_command_that_does_it_again_gives_every_setting(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    used = Settings(**{name: another(name)})
    assert used != Settings()
    line = command_line(Path("m.onnx"), None, Path("my data"), Path("my data/clean"), used)
    assert understood(line, monkeypatch) == used


@pytest.mark.parametrize("name", [name for name in Settings.model_fields if name not in NOT_OF_COMPARE])
def test_a_compare_is_done_again_with_its_settings_and_takes_no_option_of_a_scan(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    used = Settings(**{name: another(name)}, repair=False)
    made = used.model_copy(update={"steps": 40})  # from a file: nothing was distilled
    line = command_line(Path("m.onnx"), Path("s.onnx"), Path("my data"), Path("my data/clean"), made)
    assert understood(line, monkeypatch) == used


def test_a_run_with_defaults_is_a_short_command():
    line = command_line(Path("m.onnx"), None, Path("d"), Path("d/clean"), Settings())
    assert line == "kdaudit scan m.onnx d --clean d/clean --seed 0"
    line = command_line(Path("m.onnx"), None, Path("d"), Path("d/clean"), Settings(repair=False))
    assert line == "kdaudit scan m.onnx d --clean d/clean --seed 0 --no-repair"


# -- the document


@pytest.mark.parametrize(
    "changes", [{}, {"repair": None}, {"verdict": "PASSED", "why": [], "findings": [], "exit_code": 0}]
)
def test_a_document_goes_through_json_without_loss(changes):
    made = document(**changes)
    as_run_directory_writes_it = json.dumps(made.model_dump(mode="json"), allow_nan=False)
    assert Document.model_validate(json.loads(as_run_directory_writes_it)) == made
    assert Document.model_validate_json(made.model_dump_json()) == made


def test_values_from_numpy_become_plain_ones():
    made = document(kept=np.int64(3), exit_code=np.int64(1), timings={"judge": np.float64(0.5)})
    assert json.loads(json.dumps(made.model_dump(mode="json")))["timings"] == {"judge": 0.5}


def test_a_document_says_what_it_is():
    dumped = document().model_dump(mode="json")
    assert "kdaudit-report" in dumped.values()
    assert (dumped["version"], dumped["status"]) == (1, "finished")
    assert dumped["created"].endswith("+00:00")


@pytest.mark.parametrize(
    "changes",
    [{"verdict": "CLEAN"}, {"surprise": 1}, {"status": "unfinished"}, {"coverage": {"scanned": 1}}, {"kept": "x"}],
)
def test_what_is_no_report_is_refused(changes):
    with pytest.raises(ValidationError):
        Document.model_validate(document().model_dump(mode="json") | changes)


def test_a_document_is_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        document().verdict = "PASSED"


@given(st.integers(0, 50), st.integers(0, 50))
def test_a_rate_carries_its_exact_interval(hits, more):
    made = rate(hits, hits + more)
    assert (made.hits, made.of) == (hits, hits + more)
    assert (made.low, made.high) == interval(hits, hits + more)


# -- the text


def test_the_verdict_and_its_reasons_come_first():
    lines = text_of(document()).splitlines()
    assert lines[0] == "verdict: FAILED"
    assert lines[1].strip() == "40 of 41 flagged images get the answer 1 (dog)"


@pytest.mark.parametrize("verdict", ["PASSED", "FAILED", "INCONCLUSIVE"])
def test_scanned_unreadable_and_skipped_are_counted_whatever_the_verdict(verdict):
    text = text_of(document(verdict=verdict, why=[]))
    assert "12,345 images (94.14%), 678 unreadable, 90 skipped" in text
    assert "clean" not in text.splitlines()[0].lower()


def test_what_a_reader_needs_is_there():
    text = re.sub(r"\s+", " ", text_of(document()))
    for words in (
        "1,000 images/s", "comparing: teacher 62%, control 30%, decode 8%; the wall is: teacher",
        "decoder simplejpeg", "32x32x3-stretch-RGB-NCHW-unit",
        "next best 32x32x3-stretch-BGR-NCHW-unit", "95.0 %", "distilled on 600", "calibrated on 300",
        "7 clean images were left out", "1 dog 40 6,000 0.67 % [0.48, 0.91]",
        "12,304 images in kept.csv", "809 in quarantine.csv", "at most 5% are expected to be innocent",
        "run/repaired.onnx", "900 kept images", "KDA103", "distil the control 62 s", "run: report.html",
    ):  # fmt: skip
        assert words in text, words


def test_a_finding_is_told_once():
    text = text_of(document())
    assert text.count("40 of 41 flagged images") == 1
    assert text.count("2 weights that nothing reads") == 1


def test_the_slowest_stages_are_named():
    (line,) = [line for line in text_of(document()).splitlines() if line.startswith("time ")]
    assert "distil the control" in line
    assert "x 0 s" not in line


def test_an_unsure_preprocessing_is_said_to_be_unsure():
    preprocessing = whole()["preprocessing"]
    assert "not sure" not in text_of(document())
    assert "not sure" in text_of(document(preprocessing=preprocessing | {"sure": False}))


def test_control_characters_are_made_visible():
    assert printable("a\x1b[2Jb") == "a\\x1b[2Jb"
    assert printable("a\nb\rc\td") == "a\\x0ab\\x0dc\\x09d"
    assert printable("Größe 猫") == "Größe 猫"


@given(st.text())
def test_printable_text_is_printable_whatever_it_was(text):
    assert printable(text).isprintable()


def test_no_text_from_outside_drives_the_terminal():
    sections = whole()
    judgement = sections["judgement"]
    made = document(
        why=[HOSTILE],
        findings=[{"rule": "KDA101", "severity": "low", "message": "of " + HOSTILE}],
        preprocessing=sections["preprocessing"] | {"note": HOSTILE},
        judgement=judgement | {"by_answer": [judgement["by_answer"][0] | {"name": HOSTILE}]},
        repair=repair() | {"file": HOSTILE},
    )
    text = render(made, Path("run" + HOSTILE.replace("/", "")))
    assert text.count("\\x1b]0;owned\\x07") == 6
    assert all(line.isprintable() for line in text.split("\n"))
    assert not [line for line in text.split("\n") if line.startswith("verdict:")][1:]


def test_percent_shows_the_interval_and_the_counts():
    assert percent(rate(1, 200)) == "0.50 % [0.01, 2.75] (1 of 200)"
    assert percent(rate(0, 0)) == "-"


def test_a_repair_without_labels_says_so():
    from kdaudit.report.results import RepairSection

    empty = {
        "tuned": False,
        "images": 0,
        "steps": 0,
        "accuracy_before": None,
        "accuracy": None,
        "still_suspicious": None,
    }
    lines = repair_lines(RepairSection(**(repair() | empty)))
    assert lines == ["repaired  run/repaired.onnx: the distilled control (no labels to tune on)"]
    tuned = repair_lines(RepairSection(**repair()))
    assert len(tuned) == 4
    assert "80.00 %" in tuned[1]
    assert "90.00 %" in tuned[1]
    assert "5.00 %" in tuned[-1]


def test_the_versions_in_a_report_are_those_of_this_machine():
    from kdaudit.machine import cores, versions

    found = versions()
    assert found["numpy"] == np.__version__
    assert {"python", "system", "torch", "onnx"} <= found.keys()
    assert cores() >= 1


# -- the device a report may name


@pytest.mark.parametrize("there", [True, False])
def test_a_demanded_device_is_used_or_missed_and_never_replaced(monkeypatch, there):
    import torch

    from kdaudit.errors import DeviceMissing, Exit
    from kdaudit.machine import choose_device

    monkeypatch.setattr(torch, "cuda", SimpleNamespace(is_available=lambda: there))
    assert choose_device("cpu") == "cpu"
    assert choose_device("auto") == ("cuda" if there else "cpu")
    if there:
        assert choose_device("cuda") == "cuda"
    else:
        with pytest.raises(DeviceMissing, match="--device cuda") as caught:
            choose_device("cuda")
        assert caught.value.exit_code == Exit.INCONCLUSIVE
