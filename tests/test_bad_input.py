"""Bad input ends with one clear sentence on stderr and exit code 2, before anything is trained; no traceback."""

import json
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest
from onnx import TensorProto, helper
from onnx_builders import Patterns, classifier

from kdaudit import training
from kdaudit.admission import admit
from kdaudit.cli.main import main
from kdaudit.control import demand_sound
from kdaudit.errors import Inconclusive
from kdaudit.incidents import Incident

PATTERNS = Patterns.draw(classes=4, size=8)
RECIPE = "8x8x3-stretch-RGB-NCHW-unit"


@pytest.fixture(autouse=True)
def _nothing_long_begins(monkeypatch, tmp_path):
    def train(*_arguments, **_options):
        raise AssertionError("training began before the input was checked")

    monkeypatch.setattr(training, "train", train)
    empty = tmp_path / "elsewhere"
    empty.mkdir()
    monkeypatch.chdir(empty)  # no configuration file of this checkout


@pytest.fixture
def kdaudit(capsys):
    """Runs a command line in this process: its exit code, stdout and stderr."""

    def run(*arguments) -> tuple[int, str, str]:
        before = signal.getsignal(signal.SIGTERM)
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        signal.signal(signal.SIGTERM, before)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err, captured.err
        return int(end.value.code), captured.out, captured.err

    return run


@pytest.fixture
def refused(kdaudit):
    """Runs a command line that must be refused: the sentence on stderr."""

    def run(*arguments, code: int = 2) -> str:
        exit_code, output, errors = kdaudit(*arguments, "--quiet")
        assert exit_code == code, errors
        assert output == ""
        assert errors.startswith("kdaudit: error: ")
        assert errors.count("\n") == 1, errors
        return errors.removeprefix("kdaudit: error: ").strip()

    return run


@pytest.fixture(scope="module")
def delivery(tmp_path_factory) -> Path:
    """`model.onnx`, 120 images in `data`, 120 clean ones in `clean`; all tests only read it."""
    folder = tmp_path_factory.mktemp("delivery")
    save(classifier(PATTERNS, RECIPE), folder / "model.onnx")
    images(folder / "data", 120, seed=1)
    images(folder / "clean", 120, seed=2)
    return folder


def save(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def images(folder: Path, n: int, seed: int) -> Path:
    for number, (data, label) in enumerate(zip(*PATTERNS.images(n, seed), strict=True)):
        file = folder / str(label) / f"{number:04d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return folder


def scan(folder: Path, run: Path) -> tuple[object, ...]:
    return ("scan", folder / "model.onnx", folder / "data", "--clean", folder / "clean", "-o", run)


# The model


def test_a_model_that_does_not_exist_is_named(refused, delivery, tmp_path):
    error = refused("scan", tmp_path / "gone.onnx", delivery / "data", "--clean", delivery / "clean")
    assert "gone.onnx: no such file" in error
    assert "[KDA001]" in error


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"these are not the bytes of a model", "not an ONNX file"),
        (b"\x89PNG\r\n\x1a\n", "not an ONNX file"),
        (b"PK\x03\x04archive", "zip archive"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
        (b"", "is empty"),
    ],
)
def test_a_file_that_is_no_onnx_model_is_refused_with_what_it_is(content, why, refused, delivery, tmp_path):
    model = tmp_path / "model.onnx"
    model.write_bytes(content)
    assert why in refused("scan", model, delivery / "data", "--clean", delivery / "clean")


def test_a_truncated_model_is_called_truncated(refused, delivery, tmp_path):
    whole = (delivery / "model.onnx").read_bytes()
    (tmp_path / "model.onnx").write_bytes(whole[: len(whole) // 2])
    error = refused("scan", tmp_path / "model.onnx", delivery / "data", "--clean", delivery / "clean")
    assert "truncated" in error
    assert "[KDA003]" in error


def test_a_model_that_gives_an_image_is_no_classifier(refused, delivery, tmp_path):
    shape = ["batch", 3, 8, 8]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("image", "styled")]
    graph = helper.make_graph([helper.make_node("Relu", ["image"], ["styled"])], "style", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    error = refused("scan", save(model, tmp_path / "m.onnx"), delivery / "data", "--clean", delivery / "clean")
    assert "m.onnx" in error
    assert "classifier" in error or "class" in error


def test_a_folder_given_as_the_model_is_refused(refused, delivery):
    assert "is a folder" in refused("scan", delivery, delivery / "data", "--clean", delivery / "clean")


def test_inspect_refuses_with_the_same_sentence_as_scan(kdaudit, delivery, tmp_path):
    code, _, errors = kdaudit("inspect", tmp_path / "gone.onnx")
    assert code == 2
    assert errors == kdaudit("scan", tmp_path / "gone.onnx", delivery / "data", "-q")[2]


# The images


def test_a_data_folder_that_does_not_exist_is_named(refused, delivery, tmp_path):
    error = refused("scan", delivery / "model.onnx", tmp_path / "gone", "--clean", delivery / "clean")
    assert "gone does not exist" in error


def test_an_empty_data_folder_is_refused(refused, delivery, tmp_path):
    (tmp_path / "data").mkdir()
    error = refused(
        "scan", delivery / "model.onnx", tmp_path / "data", "--clean", delivery / "clean", "-o", tmp_path / "run"
    )
    assert "holds no images" in error


def test_a_data_folder_without_images_is_refused(refused, delivery, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/notes.txt").write_text("no image here")
    error = refused(
        "scan", delivery / "model.onnx", tmp_path / "data", "--clean", delivery / "clean", "-o", tmp_path / "run"
    )
    assert "holds no images" in error


def test_data_of_which_nothing_can_be_read_is_refused(refused, delivery, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/empty.png").touch()
    error = refused(
        "scan", delivery / "model.onnx", tmp_path / "data", "--clean", delivery / "clean", "-o", tmp_path / "run"
    )
    assert "not one of 1 images could be read" in error


def test_without_a_clean_pool_the_error_says_what_one_is_and_how_many_images(refused, delivery):
    error = refused("scan", delivery / "model.onnx", delivery / "data")
    assert "no clean pool" in error
    assert "--clean" in error
    assert str(delivery / "data/clean") in error
    assert "images of the same kind that you trust" in error
    assert "1,000 images" in error
    assert "poison rate of 1 %" in error


def test_a_clean_pool_that_does_not_exist_is_named(refused, delivery, tmp_path):
    error = refused("scan", delivery / "model.onnx", delivery / "data", "--clean", tmp_path / "gone")
    assert "gone does not exist" in error
    assert "clean pool" in error


@pytest.mark.parametrize("spelling", ["data", "data/../data", "clean/../data/."])
def test_the_suspect_set_is_no_clean_pool(spelling, refused, delivery):
    error = refused("scan", delivery / "model.onnx", delivery / "data", "--clean", delivery / spelling)
    assert "the clean pool is the suspect set itself" in error


def test_an_empty_clean_pool_is_refused(refused, delivery, tmp_path):
    (tmp_path / "clean").mkdir()
    error = refused(
        "scan", delivery / "model.onnx", delivery / "data", "--clean", tmp_path / "clean", "-o", tmp_path / "run"
    )
    assert "clean holds no images" in error


def test_too_few_clean_images_are_inconclusive(refused, delivery, tmp_path):
    clean = images(tmp_path / "clean", 20, seed=5)
    error = refused(
        "scan", delivery / "model.onnx", delivery / "data", "--clean", clean, "-o", tmp_path / "run", code=3
    )
    assert "20 usable images" in error
    assert "at least 100 are needed" in error


def test_a_copy_of_the_suspect_set_leaves_nothing_of_the_clean_pool(refused, delivery, tmp_path):
    shutil.copytree(delivery / "data", tmp_path / "copy")
    error = refused(
        "scan", delivery / "model.onnx", delivery / "data", "--clean", tmp_path / "copy", "-o", tmp_path / "r", code=3
    )
    assert "0 usable images (120 more are in the suspect set" in error


def test_more_classes_than_the_model_has_outputs_cannot_match(refused, delivery, tmp_path):
    data = images(tmp_path / "data", 80, seed=6)
    shutil.copytree(data / "0", data / "4")
    error = refused("scan", delivery / "model.onnx", data, "--clean", delivery / "clean", "-o", tmp_path / "run")
    assert "5 classes" in error
    assert "4" in error.replace("5 classes", "")


# The run directory


def test_a_file_in_the_way_of_the_run_directory_is_refused(refused, delivery, tmp_path):
    (tmp_path / "run").write_text("something else")
    error = refused(*scan(delivery, tmp_path / "run"))
    assert "run cannot be written" in error
    assert "-o" in error
    assert (tmp_path / "run").read_text() == "something else"


def test_a_file_in_the_way_of_its_parent_is_refused(refused, delivery, tmp_path):
    (tmp_path / "file").write_text("something else")
    assert "cannot be written" in refused(*scan(delivery, tmp_path / "file/run"))


def test_the_run_directory_of_another_model_is_refused(refused, delivery, tmp_path):
    other = tmp_path / "run/state"
    other.mkdir(parents=True)
    note = {"format": 1, "command": "scan", "model": "other.onnx", "model_digest": "0" * 64, "stage": "done"}
    (other / "run.json").write_text(json.dumps(note | {"status": "finished"}))
    error = refused(*scan(delivery, tmp_path / "run"))
    assert "the run of another model (other.onnx)" in error
    assert "-o" in error


def test_a_directory_that_is_not_empty_and_no_run_is_left_alone(refused, delivery, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/thesis.txt").write_text("years of work")
    error = refused(*scan(delivery, tmp_path / "run"))
    assert "not empty and not a run of kdaudit" in error
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("note", ["not json", "{}", '{"format": 999}', "[1]"])
def test_a_damaged_run_directory_is_refused(note, refused, delivery, tmp_path):
    (tmp_path / "run/state").mkdir(parents=True)
    (tmp_path / "run/state/run.json").write_text(note)
    assert "run.json" in refused(*scan(delivery, tmp_path / "run"))


@pytest.mark.parametrize("command", ["report", "repair"])
def test_what_is_no_run_has_no_report(command, kdaudit, tmp_path):
    code, output, errors = kdaudit(command, tmp_path / "gone")
    assert (code, output) == (2, "")
    assert "is not a run of kdaudit" in errors


@pytest.mark.parametrize("content", ["", "{", "{}", '{"schema": "kdaudit-report", "verdict": "PASSED"}', "\udcff"])
def test_a_damaged_report_is_refused_and_never_called_passed(content, kdaudit, tmp_path):
    (tmp_path / "run/state").mkdir(parents=True)
    note = {"format": 1, "command": "scan", "model": "m.onnx", "model_digest": "0" * 64, "stage": "done"}
    (tmp_path / "run/state/run.json").write_text(json.dumps(note | {"status": "finished"}))
    (tmp_path / "run/report.json").write_text(content, errors="surrogateescape")
    code, output, errors = kdaudit("report", tmp_path / "run")
    assert (code, output) == (2, "")
    assert "report.json" in errors


def test_a_finished_run_without_its_report_is_refused(kdaudit, tmp_path):
    (tmp_path / "run/state").mkdir(parents=True)
    note = {"format": 1, "command": "scan", "model": "m.onnx", "model_digest": "0" * 64, "stage": "done"}
    (tmp_path / "run/state/run.json").write_text(json.dumps(note | {"status": "finished"}))
    code, _, errors = kdaudit("report", tmp_path / "run")
    assert code == 2
    assert "report.json" in errors


# Controls and outputs


def test_a_control_that_does_not_exist_is_found_before_the_images_are_read(refused, delivery, tmp_path, monkeypatch):
    never_surveys(monkeypatch)
    error = refused(
        "compare",
        delivery / "model.onnx",
        tmp_path / "gone.onnx",
        delivery / "data",
        "--clean",
        delivery / "clean",
        "-o",
        tmp_path / "run",
    )
    assert "gone.onnx: no such file" in error


def test_a_model_that_is_no_control_is_found_before_the_images_are_read(refused, delivery, tmp_path, monkeypatch):
    never_surveys(monkeypatch)
    error = refused(
        "compare",
        delivery / "model.onnx",
        delivery / "model.onnx",
        delivery / "data",
        "--clean",
        delivery / "clean",
        "-o",
        tmp_path / "run",
    )
    assert "is not a control of `kdaudit distill`" in error


@pytest.mark.parametrize(
    "wrong", [{"seed": "-1"}, {"validated": "0"}, {"agreed": "many"}, {"seed": "9" * 40}, {"guarded": "-2"}]
)
def test_a_control_whose_numbers_are_none_is_refused(wrong, refused, delivery, tmp_path, monkeypatch):
    never_surveys(monkeypatch)
    teacher = admit(delivery / "model.onnx").canonical_digest
    control = onnx.load(delivery / "model.onnx")
    facts = {"teacher": teacher, "seed": "0", "preprocess": RECIPE, "agreed": "9", "validated": "9"} | wrong
    helper.set_model_props(control, {f"kdaudit.{name}": value for name, value in facts.items()})
    error = refused(
        "compare", delivery / "model.onnx", save(control, tmp_path / "c.onnx"), delivery / "data", "--clean",
        delivery / "clean", "-o", tmp_path / "run",
    )  # fmt: skip
    assert "carries numbers that `kdaudit distill` does not write" in error


def test_a_control_that_turns_on_its_process_is_not_compared_with():
    session = SimpleNamespace(incidents=[Incident("died", "it was killed by SIGSEGV")])
    with pytest.raises(Inconclusive, match=r"the control did what no sound one does on 1 occasions.*SIGSEGV"):
        demand_sound(SimpleNamespace(session=session))
    demand_sound(SimpleNamespace(session=SimpleNamespace(incidents=[])))


def test_the_control_of_another_model_is_found_before_the_images_are_read(refused, delivery, tmp_path, monkeypatch):
    never_surveys(monkeypatch)
    control = onnx.load(delivery / "model.onnx")
    facts = {"teacher": "0" * 64, "seed": "0", "preprocess": RECIPE, "agreed": "9", "validated": "9"}
    helper.set_model_props(control, {f"kdaudit.{name}": value for name, value in facts.items()})
    error = refused(
        "compare",
        delivery / "model.onnx",
        save(control, tmp_path / "c.onnx"),
        delivery / "data",
        "--clean",
        delivery / "clean",
        "-o",
        tmp_path / "run",
    )
    assert "was distilled from another model" in error


def never_surveys(monkeypatch) -> None:
    def survey(*_arguments):
        raise AssertionError("the images were read before the control was looked at")

    monkeypatch.setattr("kdaudit.workbench.survey", survey)


def test_an_output_that_cannot_be_written_is_found_before_the_distillation(refused, delivery, tmp_path):
    error = refused("distill", delivery / "model.onnx", delivery / "clean", "-o", tmp_path / "no/such/folder/s.onnx")
    assert "cannot be written" in error


def test_an_output_that_is_a_folder_is_refused(refused, delivery, tmp_path):
    assert "is a folder" in refused("distill", delivery / "model.onnx", delivery / "clean", "-o", tmp_path)


# Options and configuration


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("fdr", "0"),
        ("fdr", "1.5"),
        ("seed", "-1"),
        ("batch-size", "0"),
        ("workers", "0"),
        ("budget", "-3"),
        ("steps", "0"),
        ("temperature", "0"),
        ("max-clean", "3"),
        ("min-fidelity", "2"),
        ("min-coverage", "-0.1"),
        ("sensitivity", "0"),
        ("repair-epochs", "0"),
    ],
)
def test_a_value_out_of_range_names_its_option(option, value, refused, delivery, tmp_path):
    assert f"--{option}" in refused(*scan(delivery, tmp_path / "run"), f"--{option}", value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("--rule", "guess"),
        ("--device", "tpu"),
        ("--provider", "none"),
        ("--decoder", "jpeg"),
        ("--fail-on", "all"),
        ("--fdr", "few"),
        ("--seed", "1.5"),
        ("--format", "pdf"),
        ("--no-such-option",),
        ("one-argument-too-many",),
    ],
)
def test_an_option_that_makes_no_sense_is_a_usage_error(arguments, kdaudit, delivery, tmp_path):
    code, output, errors = kdaudit(*scan(delivery, tmp_path / "run"), *arguments)
    assert (code, output) == (2, "")
    assert errors.count("Error: ") == 1
    assert arguments[0] in errors
    assert not (tmp_path / "run").exists()


def test_an_unknown_command_is_a_usage_error(kdaudit):
    code, _, errors = kdaudit("scna")
    assert code == 2
    assert "scna" in errors


@pytest.mark.parametrize("recipe", ["9x9x3-stretch-RGB-NCHW-unit", "nonsense", "8x8x3", "8x8x3-stretch-RGB-NHWC-unit"])
def test_a_preprocessing_that_does_not_fit_the_model_is_refused(recipe, refused, delivery, tmp_path):
    error = refused(*scan(delivery, tmp_path / "run"), "--preprocess", recipe)
    assert recipe in error


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("kdaudit.toml", "fdr = ", "cannot be read"),
        ("kdaudit.toml", "fdr = 7", "'fdr'"),
        ("kdaudit.toml", "speed = 'high'", "'speed'"),
        ("kdaudit.toml", "interventions = []", "'interventions'"),
        ("kdaudit.toml", "interventions = ['cut-2']", "'interventions"),
        ("pyproject.toml", "[tool.kdaudit]\nfdr = 7", "'fdr'"),
        ("pyproject.toml", "[tool.kdaudit\n", "cannot be read"),
        ("pyproject.toml", "[tool.kdaudit]\nrule = 'guess'", "'rule'"),
    ],
)
def test_a_bad_configuration_file_is_refused(name, content, why, refused, delivery, tmp_path):
    Path(name).write_text(content)
    error = refused(*scan(delivery, tmp_path / "run"))
    assert why in error
    assert name in error or "configuration file" in error
    assert not (tmp_path / "run").exists()


def test_a_configuration_file_that_is_not_text_is_refused(refused, delivery, tmp_path):
    Path("kdaudit.toml").write_bytes(b"\xff\xfe\x00fdr")
    assert "configuration file" in refused(*scan(delivery, tmp_path / "run"))


def test_a_bad_environment_variable_is_named(refused, delivery, tmp_path, monkeypatch):
    monkeypatch.setenv("KDAUDIT_FDR", "many")
    assert "KDAUDIT_FDR" in refused(*scan(delivery, tmp_path / "run"))


@pytest.mark.parametrize("more", [(), ("--fail-on", "low")])
def test_an_unknown_environment_variable_is_refused_by_inspect_too(more, kdaudit, delivery, monkeypatch):
    monkeypatch.setenv("KDAUDIT_FDRR", "3")
    code, output, errors = kdaudit("inspect", delivery / "model.onnx", *more)
    assert (code, output) == (2, "")
    assert "unknown setting 'fdrr' in the variable KDAUDIT_FDRR; did you mean 'fdr'?" in errors


def test_an_environment_variable_that_is_not_json_where_a_list_is_wanted_is_named(
    refused, delivery, tmp_path, monkeypatch
):
    monkeypatch.setenv("KDAUDIT_INTERVENTIONS", "0.8 and 0.5")
    assert "interventions" in refused(*scan(delivery, tmp_path / "run")).lower()


@pytest.mark.parametrize("rule", ["KDA999", "KDA001"])
def test_an_ignore_of_a_rule_that_no_finding_has_is_refused(rule, kdaudit, delivery, tmp_path):
    Path("kdaudit.toml").write_text(f'[[ignores]]\nrule = "{rule}"\nreason = "x"\nexpires = 2030-01-01\n')
    for command in (scan(delivery, tmp_path / "run"), ("gate", tmp_path / "run")):
        code, _, error = kdaudit(*command)
        assert code == 2
        assert f"setting 'ignores.0.rule': no finding has the rule '{rule}'" in error
        assert "KDA1.." in error
        assert "KDA2.." in error
    assert not (tmp_path / "run").exists()


def test_the_demo_does_not_overwrite_a_folder_that_is_not_its_own(refused, tmp_path):
    (tmp_path / "delivery").mkdir()
    (tmp_path / "delivery/thesis.txt").write_text("years of work")
    assert "not an earlier demo's" in refused("demo", "-o", tmp_path)
    assert (tmp_path / "delivery/thesis.txt").exists()
