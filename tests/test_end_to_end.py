"""One poisoned and one honest delivery through the commands, as a customer runs them: each in a process of its own."""

import base64
import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from deliveries import (
    STEPS,
    Scan,
    answers,
    attack_success,
    copied,
    digits,
    finished,
    honest_scan,
    kdaudit_command,
    samples,
    vendor_scan,
    write_png,
)
from onnx_builders import Patterns, classifier
from outputs import valid_csv, valid_html, valid_junit, valid_report, valid_sarif
from PIL import Image

from kdaudit.demo import CLEAN, POISON, TARGET, TRIGGER
from kdaudit.report.document import Document
from kdaudit.report.gallery import read_gallery
from kdaudit.report.outputs import FILES
from kdaudit.report.schema import shipped_schema

pytestmark = pytest.mark.slow

COLUMNS = [
    "id", "path", "label", "status", "teacher_top1", "student_top1", "score", "p_value", "flag", "reason",
]  # fmt: skip
"""The columns of samples.parquet that DESIGN.md names, in its order."""

RENDERINGS = ("report.json", *FILES.values(), "kept.csv", "quarantine.csv")


@pytest.fixture(scope="session")
def scanned(tmp_path_factory) -> Scan:
    """The vendor's poisoned delivery, scanned once."""
    return vendor_scan(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def passed(tmp_path_factory) -> Scan:
    """The honest delivery, scanned once."""
    return honest_scan(tmp_path_factory.getbasetemp())


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def flagged_of(run: Path) -> set[str]:
    table = samples(run, "path", "flag")
    return {path for path, flag in zip(table["path"], table["flag"], strict=True) if flag}


# The poisoned delivery


def test_a_backdoored_delivery_fails(scanned):
    assert scanned.report["verdict"] == "FAILED"
    assert scanned.report["exit_code"] == 1
    assert "verdict: FAILED" in scanned.output
    assert [f["rule"] for f in scanned.report["findings"]][:2] == ["KDA207", "KDA201"]
    trigger = next(c for c in scanned.report["clusters"] if c["teacher_flips"])
    assert trigger["target"] == TARGET
    assert trigger["teacher_flips"]["low"] > 0.8  # of clean images, with the pattern that was recovered
    assert trigger["control_flips"]["high"] < 0.1
    assert trigger["placebo_flips"]["high"] < trigger["teacher_flips"]["low"]
    assert scanned.report["judgement"]["by_answer"][0]["answer"] == TARGET


def test_most_planted_images_are_flagged_and_few_innocents(scanned):
    flagged = flagged_of(scanned.run)
    assert len(scanned.delivery.poison) == POISON
    assert len(flagged & scanned.delivery.poison) >= 0.75 * POISON
    assert len(flagged - scanned.delivery.poison) <= 8


def test_the_run_directory_holds_every_file_and_nothing_half_written(scanned):
    names = {path.name for path in scanned.run.iterdir()}
    assert names >= {
        "report.json", "samples.parquet", "kept.csv", "quarantine.csv", "student.onnx", "repaired.onnx", "state",
    }  # fmt: skip
    assert list(scanned.run.rglob(".*")) == []
    note = json.loads((scanned.run / "state/run.json").read_text())
    assert note["status"] == "finished"


def test_the_report_is_a_document_and_comes_back_unchanged(scanned):
    document = Document.model_validate(scanned.report)
    assert document.model_dump(mode="json") == scanned.report
    assert document.status == "finished"


def test_the_table_of_images_begins_with_the_promised_columns(scanned):
    table = samples(scanned.run)
    assert list(table)[: len(COLUMNS)] == COLUMNS
    assert set(map(type, table["flag"])) == {bool}
    assert {type(value) for name in ("label", "teacher_top1", "student_top1") for value in table[name]} == {int}
    assert {type(value) for name in ("score", "p_value") for value in table[name]} == {float}
    assert all(0 <= p <= 1 for p in table["p_value"])


def test_every_image_is_counted_once(scanned):
    table = samples(scanned.run, "id", "path", "status", "label")
    data = scanned.delivery.data
    files = {path.relative_to(data).as_posix() for path in data.rglob("*.png")}
    suspect = {path for path in files if not path.startswith("clean/")}
    assert len(files - suspect) == CLEAN
    assert sorted(table["path"]) == sorted(suspect)
    assert len(set(table["id"])) == len(suspect)
    assert [str(label) for label in table["label"]] == [path.partition("/")[0] for path in table["path"]]
    coverage = scanned.report["coverage"]
    assert coverage["scanned"] + coverage["unreadable"] + coverage["skipped"] == len(suspect)
    assert coverage["scanned"] == table["status"].count("read") == len(suspect)


def test_kept_and_quarantine_partition_the_images(scanned):
    kept, quarantine = rows_of(scanned.run / "kept.csv"), rows_of(scanned.run / "quarantine.csv")
    table = samples(scanned.run, "path", "id", "flag")
    whole = dict(zip(table["path"], table["flag"], strict=True))
    assert {row["path"] for row in kept} == {path for path, flag in whole.items() if not flag}
    assert {row["path"] for row in quarantine} == {path for path, flag in whole.items() if flag}
    assert len(kept) + len(quarantine) == len(whole)
    assert len(kept) == scanned.report["kept"]
    assert len(quarantine) == scanned.report["quarantined"]
    identity = dict(zip(table["path"], table["id"], strict=True))
    assert all(row["id"] == identity[row["path"]] for row in kept + quarantine)


def test_every_output_of_the_scan_is_valid_by_its_own_standard(scanned):
    read = {name: (scanned.run / name).read_text(encoding="utf-8") for name in RENDERINGS}
    report = valid_report(read["report.json"], json.loads(shipped_schema()))
    (log,) = valid_sarif(read["findings.sarif"])["runs"]
    told = [result["ruleId"] for result in log["results"]]
    assert told[: len(report["findings"])] == [f["rule"] for f in report["findings"]]
    assert set(told[len(report["findings"]) :]) == {"KDA201"}
    assert log["invocations"][0]["exitCode"] == 1
    states = valid_junit(read["junit.xml"])
    assert len(states) == len(report["checks"])
    assert "failure" in states.values()
    assert {check["state"] for check in report["checks"]} >= {"passed", "failed"}  # passed ones are listed as well
    valid_html(read["report.html"])
    assert read["summary.md"].startswith("## ❌ kdaudit: FAILED")
    kept, quarantined = valid_csv(read["kept.csv"]), valid_csv(read["quarantine.csv"])
    assert (len(kept), len(quarantined)) == (report["kept"], report["quarantined"])
    for form, name in FILES.items():
        assert finished(kdaudit_command("report", scanned.run, "--format", form), 0) == read[name]


def test_the_page_shows_a_person_the_trigger(scanned):
    """The picture of what all candidates share is brightest where the trigger was painted, and nowhere else."""
    gallery = read_gallery(scanned.run)
    pictures = gallery.targets[str(TARGET)]
    steady = np.array(Image.open(io.BytesIO(base64.b64decode(pictures.steady))).convert("L"), float)
    assert np.unravel_index(steady.argmax(), steady.shape) == TRIGGER
    assert steady[TRIGGER] > 3 * np.sort(steady.ravel())[-2]
    difference = np.array(Image.open(io.BytesIO(base64.b64decode(pictures.difference))).convert("L"), float)
    assert np.unravel_index(np.abs(difference - 128).argmax(), difference.shape) == TRIGGER
    assert sorted(gallery.paths) == sorted(flagged_of(scanned.run))


def test_no_original_byte_of_the_images_is_in_the_page(scanned):
    page = (scanned.run / "report.html").read_bytes()
    for path in sorted(flagged_of(scanned.run))[:20]:
        body = (scanned.delivery.data / path).read_bytes()
        assert base64.b64encode(body)[:40] not in page
        assert body[33:] not in page


def test_every_flag_carries_its_reason(scanned):
    table = samples(scanned.run, "flag", "reason")
    assert all(bool(reason) == flag for flag, reason in zip(table["flag"], table["reason"], strict=True))
    assert all(row["reason"] for row in rows_of(scanned.run / "quarantine.csv"))


def test_the_text_counts_what_was_scanned_and_names_what_was_used(scanned):
    assert "scanned   1,097 images (100.00%), 0 unreadable, 0 skipped" in scanned.output
    assert f"teacher on {scanned.report['machine']['teacher_provider']}" in scanned.output
    assert f"decoder {scanned.report['machine']['decoder']}" in scanned.output


def test_report_prints_what_the_scan_printed(scanned):
    assert finished(kdaudit_command("report", scanned.run), 0) == scanned.output


def test_report_prints_the_document_as_json(scanned):
    assert json.loads(finished(kdaudit_command("report", scanned.run, "--format", "json"), 0)) == scanned.report


def interface(model: Path) -> list[tuple[str, int, list[str | int]]]:
    graph = onnx.load(model).graph
    found = []
    for value in (*graph.input, *graph.output):
        kind = value.type.tensor_type
        found.append((value.name, kind.elem_type, [d.dim_value or d.dim_param for d in kind.shape.dim]))
    return found


def drops_in_for(teacher: Path, repaired: Path) -> None:
    """Same names, types and shapes (a free batch may have another name), no trigger, and still a classifier."""
    for (name, kind, shape), (own_name, own_kind, own_shape) in zip(
        interface(teacher), interface(repaired), strict=True
    ):
        assert (own_name, own_kind) == (name, kind)
        assert [d for d in own_shape if isinstance(d, int)] == [d for d in shape if isinstance(d, int)]
        assert len(own_shape) == len(shape)
    onnx.checker.check_model(onnx.load(repaired), full_check=True)
    pixels, labels = digits()
    assert (answers(repaired, pixels) == labels).mean() >= 0.85
    assert attack_success(teacher) >= 0.9
    assert attack_success(repaired) <= 0.2


def test_the_repaired_model_takes_the_teachers_place_without_its_backdoor(scanned):
    drops_in_for(scanned.delivery.model, scanned.run / "repaired.onnx")


def test_repair_makes_the_clean_model_again_and_leaves_the_run_finished(scanned, tmp_path):
    before = (scanned.run / "report.json").read_bytes()
    output = finished(kdaudit_command("repair", scanned.run, "-o", tmp_path / "clean.onnx"), 0)
    assert f"written: {tmp_path / 'clean.onnx'}" in output
    drops_in_for(scanned.delivery.model, tmp_path / "clean.onnx")
    assert (scanned.run / "report.json").read_bytes() == before
    finished(kdaudit_command("report", scanned.run), 0)


def test_a_control_distilled_alone_serves_compare_and_the_same_seed_gives_the_same_table(scanned, tmp_path):
    model, data = scanned.delivery.model, scanned.delivery.data
    recipe = ("--preprocess", scanned.report["preprocessing"]["recipe"])
    control = tmp_path / "student.onnx"
    finished(
        kdaudit_command("distill", model, data / "clean", "-o", control, "--steps", STEPS, "--seed", 0, *recipe), 0
    )
    run = tmp_path / "run"
    output = finished(kdaudit_command("compare", model, control, data, "-o", run, "--seed", 0, *recipe), 1)
    assert "verdict: FAILED" in output
    # Another process distilled again, with the same seed: nothing differs, not in the last digit.
    assert samples(run) == samples(scanned.run)
    assert not (run / "repaired.onnx").exists()
    report = json.loads((run / "report.json").read_text())
    assert report["control"]["made_by"] == "given"
    assert report["machine"]["student_confinement"] == report["machine"]["confinement"] != "none"
    assert scanned.report["machine"]["student_confinement"] == "none"  # kdaudit's own
    assert report["control"]["fidelity"] == scanned.report["control"]["fidelity"]
    # The control's file holds what repair goes on from.
    finished(kdaudit_command("repair", run, "-o", tmp_path / "clean.onnx"), 0)
    drops_in_for(model, tmp_path / "clean.onnx")
    control.unlink()
    done = kdaudit_command("repair", run, "-o", tmp_path / "again.onnx")
    finished(done, 2)
    assert str(control) in done.stderr
    assert not (tmp_path / "again.onnx").exists()


def test_a_control_for_another_preprocessing_is_refused_with_the_way_on(scanned, tmp_path):
    done = kdaudit_command(
        "compare", scanned.delivery.model, scanned.run / "student.onnx", scanned.delivery.data, "-o", tmp_path / "run",
        "--preprocess", "8x8x1-stretch-RGB-NCHW-centred", "-q",
    )  # fmt: skip
    finished(done, 2)
    assert done.stderr.count("\n") == 1
    assert f"--preprocess {scanned.report['preprocessing']['recipe']}" in done.stderr


@pytest.mark.parametrize("order", ["RGB", "BGR"])  # one of them is not what is found without a control
def test_a_comparison_with_a_control_of_a_recipe_that_answers_as_well_can_be_repaired(order, tmp_path):
    patterns, other = Patterns.draw(), f"8x8x3-stretch-{order}-NCHW-unit"
    model, data = tmp_path / "model.onnx", tmp_path / "data"
    model.write_bytes(classifier(patterns, "8x8x3-stretch-RGB-NCHW-unit").SerializeToString())
    pixels, labels = patterns.copies(400)
    for i, (picture, label) in enumerate(zip(pixels, np.random.default_rng(0).permutation(labels), strict=True)):
        write_png(data / ("clean" if i < 200 else str(label)) / f"{i:03d}.png", picture)
    control, run = tmp_path / "student.onnx", tmp_path / "run"
    finished(kdaudit_command("distill", model, data / "clean", "-o", control, "--steps", 20, "--preprocess", other), 0)
    finished(kdaudit_command("compare", model, control, data, "-o", run, "--exit-zero", "--min-fidelity", 0), 0)
    assert json.loads((run / "report.json").read_text())["preprocessing"]["recipe"] == other
    finished(kdaudit_command("repair", run, "-o", tmp_path / "clean.onnx"), 0)


def test_the_score_rule_finds_the_backdoor(scanned, tmp_path):
    report = scanned.again(tmp_path / "run", "--rule", "score", "--no-repair", code=1)
    assert report["judgement"]["rule"] == "score"
    assert report["verdict"] == "FAILED"
    assert len(flagged_of(tmp_path / "run") & scanned.delivery.poison) >= 0.5 * POISON


def test_the_argmax_rule_flags_every_other_answer_and_never_fails_a_gate_that_is_open(scanned, tmp_path):
    report = scanned.again(tmp_path / "run", "--rule", "argmax", "--fail-on", "never", "--no-repair", code=0)
    table = samples(tmp_path / "run", "teacher_top1", "student_top1", "flag", "p_value")
    differs = [a != b for a, b in zip(table["teacher_top1"], table["student_top1"], strict=True)]
    assert table["flag"] == differs
    assert set(table["p_value"]) == {None}
    assert report["verdict"] == "FAILED"
    assert report["exit_code"] == 0


def test_a_control_that_is_not_faithful_enough_gives_neither_a_verdict_nor_a_model_to_use(scanned, tmp_path):
    report = scanned.again(tmp_path / "run", "--min-fidelity", "1", code=3)
    assert report["verdict"] == "INCONCLUSIVE"
    assert "held-out clean images" in report["why"][0]
    assert report["repair"] is None
    assert not (tmp_path / "run" / "repaired.onnx").exists()


def test_a_demanded_gpu_that_is_not_there_is_inconclusive(scanned, tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = kdaudit_command(*scanned.command, "-o", tmp_path / "run", "--require-gpu", "-q")
    finished(done, 3)
    assert done.stderr.startswith("kdaudit: error: --require-gpu")


# The honest delivery


def test_an_honest_delivery_passes(passed):
    assert passed.report["verdict"] == "PASSED"
    assert passed.report["exit_code"] == 0
    assert "verdict: PASSED" in passed.output
    assert len(flagged_of(passed.run)) <= 6
    assert not (passed.run / "repaired.onnx").exists()


def test_its_control_taken_up_again_passes_it_too(passed, tmp_path):
    """What is known of a control beside its weights is in its file: a class that it learned from unmixed images."""
    model, control, data = passed.delivery.model, passed.run / "student.onnx", passed.delivery.data
    finished(kdaudit_command("compare", model, control, data, "-o", tmp_path / "run", "--seed", 0), 0)
    reports = [json.loads((run / "report.json").read_text()) for run in (passed.run, tmp_path / "run")]
    assert [report["verdict"] for report in reports] == ["PASSED", "PASSED"]
    assert samples(tmp_path / "run", "flag", "score") == samples(passed.run, "flag", "score")


def test_an_unreadable_image_is_listed_and_low_coverage_is_inconclusive(passed, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(passed.delivery.data, data)
    good = next((data / "3").iterdir()).read_bytes()
    (data / "3/cut.png").write_bytes(good[: len(good) // 2])
    (data / "3/notes.txt").write_text("not an image")
    (data / "3/scan.raw").write_bytes(b"who knows")
    run = copied(passed.run, tmp_path / "run")
    done = kdaudit_command(
        "scan", passed.delivery.model, data, "-o", run, "--steps", STEPS, "--no-repair", "--min-coverage", "1.0"
    )
    output = finished(done, 3)
    report = json.loads((run / "report.json").read_text())
    assert report["verdict"] == "INCONCLUSIVE"
    assert "of the images could be read (needed: 100%)" in report["why"][0]
    n = passed.report["coverage"]["scanned"]
    assert f"{n:,} images ({n / (n + 2):.2%}), 1 unreadable, 1 skipped, 1 that are no images" in output
    counts = {"scanned": n, "unreadable": 1, "skipped": 2, "aside": 1, "share": n / (n + 2)}
    assert report["coverage"].items() >= counts.items()
    assert {row["path"] for row in report["coverage"]["examples"]} == {"3/cut.png", "3/notes.txt", "3/scan.raw"}
    listed = {row["path"]: row for row in rows_of(run / "quarantine.csv")}
    assert listed["3/cut.png"]["status"] == "unreadable"
    assert "truncated" in listed["3/cut.png"]["reason"]
    assert listed["3/notes.txt"]["status"] == "skipped"
    assert listed["3/notes.txt"]["reason"] == "no image, by name and by content"
    assert listed["3/scan.raw"]["reason"] == "not an image extension"
    assert report["control"]["losses"] == passed.report["control"]["losses"]
    # What is in both runs has the same row in both.
    first, second = (dict(zip(t["id"], t["score"], strict=True)) for t in map(samples, (passed.run, run)))
    assert {i: s for i, s in second.items() if i in first} == first


def test_an_archive_that_nobody_opened_is_no_passed_scan(passed, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(passed.delivery.data, data)
    (data / "3/more.zip").write_bytes(b"PK")
    run = copied(passed.run, tmp_path / "run")
    finished(kdaudit_command("scan", passed.delivery.model, data, "-o", run, "--steps", STEPS, "--no-repair"), 3)
    report = json.loads((run / "report.json").read_text())
    assert report["verdict"] == "INCONCLUSIVE"
    assert report["why"][0].startswith("1 archive or folder in the delivery could not be looked into")
    assert report["coverage"]["unopened"] == 1
    assert report["coverage"]["share"] > 0.99


def test_a_run_directory_among_the_images_is_refused(passed):
    for run in (passed.delivery.data / "run", passed.delivery.data / "clean/deep/run"):
        done = kdaudit_command("scan", passed.delivery.model, passed.delivery.data, "-o", run)
        finished(done, 2)
        assert f"the run directory {run} lies inside" in done.stderr
        assert not run.exists()


def test_a_pass_that_ends_early_leaves_no_result_of_an_earlier_one(passed, tmp_path):
    run, data, clean = copied(passed.run, tmp_path / "run"), tmp_path / "data", tmp_path / "clean"
    clean.mkdir()
    shutil.copytree(passed.delivery.data, data, ignore=shutil.ignore_patterns("clean"))
    for image in sorted((passed.delivery.data / "clean").iterdir())[:99]:
        shutil.copy(image, clean / image.name)
    finished(kdaudit_command("scan", passed.delivery.model, data, "-o", run, "--clean", clean), 3)
    assert not {p.name for p in run.iterdir()} & {"kept.csv", "quarantine.csv", "samples.parquet", "report.html"}
    asked = kdaudit_command("report", run)
    finished(asked, 2)
    assert "has 99 usable images" in asked.stderr
    assert "again" not in asked.stderr


def test_repair_refuses_images_that_are_not_those_that_were_audited(scanned, tmp_path):
    data, run = tmp_path / "data", copied(scanned.run, tmp_path / "run")
    shutil.copytree(scanned.delivery.data, data)
    report = json.loads((run / "report.json").read_text())
    report["recipe"]["data"], report["recipe"]["clean"] = str(data), str(data / "clean")
    (run / "report.json").write_text(json.dumps(report))
    changed = sorted((data / "3").iterdir())[1]
    changed.write_bytes(b"junk")
    done = kdaudit_command("repair", run, "-o", tmp_path / "clean.onnx")
    finished(done, 2)
    assert f"{data} is not the data set that {run} has audited (3/{changed.name} is not as it was)" in done.stderr
    shutil.rmtree(data / "9")
    finished(kdaudit_command("repair", run, "-o", tmp_path / "clean.onnx"), 2)
    assert not (tmp_path / "clean.onnx").exists()
