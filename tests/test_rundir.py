"""The run directory: whose it is, how far it came, and that it never passes for more than it is."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kdaudit.errors import Exit, RunDirectoryError
from kdaudit.rundir import RunDirectory, as_typed, read_note, read_report


def opened(path: Path, digest: str = "aa", **more) -> RunDirectory:
    return RunDirectory(path, digest, "vendor.onnx", "scan", **more)


def finished(path: Path, digest: str = "aa") -> Path:
    run = opened(path, digest)
    run.finish({"verdict": "PASSED"})
    run.close()
    return path


def refusal(path: Path, digest: str = "aa") -> str:
    with pytest.raises(RunDirectoryError) as caught:
        opened(path, digest)
    assert caught.value.exit_code == Exit.ERROR
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_new_run_says_that_it_is_unfinished_from_the_start(tmp_path):
    run = opened(tmp_path / "deep" / "run")
    report = json.loads(run.file("report.json").read_text())
    assert (report["status"], report["verdict"], report["stage"]) == ("unfinished", None, "begun")
    assert run.state.is_dir()
    run.mark("compare")
    note = read_note(run.path)
    assert note is not None
    assert (note["status"], note["stage"], note["command"], note["model"]) == (
        "unfinished",
        "compare",
        "scan",
        "vendor.onnx",
    )
    run.close()


def test_a_finished_run_gives_its_report(tmp_path):
    assert read_report(finished(tmp_path / "run")) == {"verdict": "PASSED"}


def test_the_same_model_takes_its_directory_up_again(tmp_path):
    path = finished(tmp_path / "run")
    (path / "state" / "rows").mkdir()
    run = opened(path)
    run.close()
    assert (path / "state" / "rows").is_dir()
    with pytest.raises(RunDirectoryError, match="unfinished"):  # the old report is not the new run's
        read_report(path)


def test_another_models_run_is_refused_and_left_alone(tmp_path):
    path = finished(tmp_path / "run")
    text = refusal(path, "bb")
    assert "the run of another model (vendor.onnx)" in text
    assert "-o" in text
    assert read_report(path) == {"verdict": "PASSED"}


def test_a_directory_with_foreign_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    assert "is not empty and not a run of kdaudit" in refusal(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_empty_directory_serves(tmp_path):
    opened(tmp_path).close()
    assert read_note(tmp_path) is not None


def test_a_file_in_the_way_is_said_in_one_sentence(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        text = refusal(path)
        assert text.startswith(f"the run directory {path} cannot be written (")
        assert "choose another one with -o" in text


def test_a_directory_in_use_is_refused_within_the_process(tmp_path):
    run = opened(tmp_path)
    assert "is in use by another kdaudit" in refusal(tmp_path)
    run.close()
    opened(tmp_path).close()


HOLDING = """
import sys
from pathlib import Path
from kdaudit.rundir import RunDirectory
run = RunDirectory(Path(sys.argv[1]), "aa", "vendor.onnx", "scan")
run.mark("distil the control")
print("open", flush=True)
sys.stdin.read()
"""


def test_a_directory_in_use_by_another_process_is_refused_until_that_ends(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        assert "is in use by another kdaudit" in refusal(tmp_path)
        note = read_note(tmp_path)
        assert note is not None
        assert note["stage"] == "distil the control"  # the refused one has not touched it
        process.kill()
        process.wait()
    opened(tmp_path).close()  # a killed process holds no lock


def test_keeping_the_report_leaves_a_finished_run_finished(tmp_path):
    path = finished(tmp_path / "run")
    run = opened(path, keep_report=True)
    run.mark("repair")
    run.close()
    assert read_report(path) == {"verdict": "PASSED"}


def test_a_report_that_json_cannot_hold_leaves_the_run_unfinished(tmp_path):
    run = opened(tmp_path)
    with pytest.raises(ValueError, match="JSON"):
        run.finish({"verdict": "PASSED", "share": float("nan")})
    run.close()
    with pytest.raises(RunDirectoryError, match="unfinished"):
        read_report(tmp_path)


def test_the_report_of_no_run_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(
            RunDirectoryError, match="is not a run of kdaudit: give the directory that `kdaudit scan -o`"
        ):
            read_report(path)
        assert read_note(path) is None


def test_the_report_of_an_unfinished_run_is_refused_with_the_way_on(tmp_path):
    run = opened(tmp_path)
    run.mark("compare")
    run.close()
    with pytest.raises(RunDirectoryError) as caught:
        read_report(tmp_path)
    text = str(caught.value)
    assert "is unfinished (stopped at: compare)" in text
    assert f"run the same `kdaudit scan` again with -o {tmp_path} to go on" in text


def test_a_run_that_ended_by_itself_says_why_and_not_that_it_could_go_on(tmp_path):
    run = opened(tmp_path)
    run.mark("read the clean images")
    run.stop("the pool has 99 images; at least 100 are needed")
    run.close()
    with pytest.raises(RunDirectoryError) as caught:
        read_report(tmp_path)
    assert str(caught.value) == (
        f'{tmp_path} ended at "read the clean images" without a report: the pool has 99 images; at least 100 are needed'
    )
    again = opened(tmp_path)
    again.close()
    with pytest.raises(RunDirectoryError, match="is unfinished"):
        read_report(tmp_path)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", "7", '{"format": 1}', '"text"', b"\xff\xfe", '{"format": "1"}']
)
def test_a_damaged_note_is_said_to_be_damaged(tmp_path, content):
    path = finished(tmp_path / "run")
    (path / "state" / "run.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    for use in (read_note, read_report, opened):
        with pytest.raises(RunDirectoryError, match=r"run\.json (cannot be read: it is damaged|is of another version)"):
            use(path)


def test_a_note_of_another_version_is_refused(tmp_path):
    path = finished(tmp_path / "run")
    file = path / "state" / "run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 2}))
    with pytest.raises(RunDirectoryError, match="another version of kdaudit: use that version, or begin a new run"):
        read_report(path)


@pytest.mark.parametrize("content", [None, "", "{"])
def test_a_finished_run_whose_report_is_gone_or_damaged_is_refused(tmp_path, content):
    path = finished(tmp_path / "run")
    if content is None:
        (path / "report.json").unlink()
    else:
        (path / "report.json").write_text(content)
    with pytest.raises(RunDirectoryError, match=r"report\.json"):
        read_report(path)


def test_a_run_killed_in_its_first_moment_can_be_begun_again(tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "lock").touch()
    (tmp_path / "state" / ".run.json.abc.kdaudit-tmp").write_text("{")
    opened(tmp_path).close()
    assert read_note(tmp_path) is not None
    assert [p.name for p in tmp_path.rglob(".*")] == []


def test_a_state_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "thesis.tex").touch()
    assert "is not empty and not a run of kdaudit" in refusal(tmp_path)


def test_what_a_killed_process_left_half_written_is_removed(tmp_path):
    path = finished(tmp_path / "run")
    (path / "state" / "rows").mkdir()
    for place in ("", "state", "state/rows"):
        (path / place / ".part.x1.kdaudit-tmp").write_text("half")
    opened(path).close()
    assert [p.name for p in path.rglob(".*")] == []


def test_a_full_disk_leaves_the_old_content_and_no_half_file(tmp_path, monkeypatch):
    import errno
    import os

    run = opened(tmp_path / "run")
    run.mark("compare")
    before = {p: p.read_bytes() for p in run.path.rglob("*") if p.is_file()}

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("kdaudit.digest.os.fsync", full)
    for write in (lambda: run.mark("judge"), lambda: run.finish({"verdict": "PASSED"})):
        with pytest.raises(OSError, match="No space left"):
            write()
    monkeypatch.undo()
    run.close()
    assert {p: p.read_bytes() for p in run.path.rglob("*") if p.is_file()} == before
    with pytest.raises(RunDirectoryError, match="stopped at: compare"):
        read_report(run.path)


def test_paths_as_they_were_typed_are_found_from_elsewhere(tmp_path, monkeypatch):
    began, elsewhere = tmp_path / "began", tmp_path / "elsewhere"
    (began / "data").mkdir(parents=True)
    elsewhere.mkdir()
    monkeypatch.chdir(began)
    opened(tmp_path / "run").close()
    assert as_typed(tmp_path / "run", "data") == Path("data")
    monkeypatch.chdir(elsewhere)
    assert as_typed(tmp_path / "run", "data") == began / "data"
    assert as_typed(tmp_path / "run", "gone") == Path("gone")  # said as it was typed, where there is no such thing
    (elsewhere / "data").mkdir()
    assert as_typed(tmp_path / "run", "data") == Path("data")
    assert as_typed(tmp_path / "run", str(began / "data")) == began / "data"
