"""Models that ask for too much are refused, in a worker that is ended rather than in this process."""

import resource
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from deliveries import ROOT, environment
from graph_backdoors import host
from hostile_models import RUNNING, STATIC
from onnx import TensorProto

from kdaudit.admission import admit
from kdaudit.admission.confined import admit_confined
from kdaudit.errors import ModelRefused
from kdaudit.opening import open_session
from kdaudit.sandbox import engine

GIB = 1 << 30


def written(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def rule_of(call, *arguments: object) -> str:
    with pytest.raises(ModelRefused) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return caught.value.rule


@pytest.mark.parametrize("name", STATIC)
def test_a_model_that_is_too_much_is_refused_before_it_is_run(name, tmp_path):
    build, rule = STATIC[name]
    assert rule_of(admit, written(build(), tmp_path)) == rule


@pytest.mark.parametrize("name", ["many messages", "doubling functions"])
def test_the_confined_check_gives_the_same_refusal(name, tmp_path):
    build, rule = STATIC[name]
    assert rule_of(admit_confined, written(build(), tmp_path)) == rule


@pytest.mark.parametrize("name", RUNNING)
def test_a_model_that_is_too_much_when_it_runs_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "FIRST_RUN_S", 3)  # only the endless one needs it
    build, rules = RUNNING[name]
    teacher = admit_confined(written(build(), tmp_path))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelRefused) as caught:
        open_session(teacher.model, teacher.signature, provider="cpu", confined=True)
    assert caught.value.rule in rules
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes


CLI = """
import sys
from kdaudit.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    print("exit", end.code)
status = dict(line.split(":", 1) for line in open("/proc/self/status"))  # ru_maxrss would count the forking parent too
print("parent", int(status["VmHWM"].split()[0]) * 1024)
"""


@pytest.mark.parametrize("place", ["/etc/hostname", "../outside.bin", "link.bin", "sparse"])
def test_inspect_reads_no_file_that_is_not_the_models_own(place, tmp_path):
    (tmp_path / "outside.bin").write_bytes(b"secret" * 100)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link.bin").symlink_to(tmp_path / "outside.bin")
    model = host()
    weight = model.graph.initializer[0]
    if place == "sparse":
        weight = model.graph.sparse_initializer.add(dims=[4]).values
        weight.name, weight.data_type = "sparse", TensorProto.FLOAT
        weight.dims.append(2)
        place = "/etc/hostname"
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=place)
    done = subprocess.run(
        [sys.executable, "-c", CLI, "inspect", written(model, folder)],
        capture_output=True, text=True, check=True, env=environment(), cwd=ROOT,
    )  # fmt: skip
    assert "exit 2\n" in done.stdout
    assert "[KDA005]" in done.stderr
    assert int(done.stdout.split()[-1]) < GIB


def test_external_data_reach_the_confined_check(tmp_path):
    model = host()
    honest = admit(written(model, tmp_path)).model
    weight = model.graph.initializer[0]
    (tmp_path / "weights.bin").write_bytes(weight.raw_data)
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="weights.bin")
    teacher = admit_confined(written(model, tmp_path))
    assert teacher.model == honest
    assert teacher.external == ("weights.bin",)


def test_the_confined_check_says_what_the_plain_one_says(shared):
    path = shared / "models" / "real" / "edgeopt_model_uint8.onnx"
    plain, confined = admit(path), admit_confined(path)
    for name in type(plain).__slots__:
        if name != "confinement":
            assert getattr(plain, name) == getattr(confined, name), name


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch):
    path = written(host(), tmp_path)
    monkeypatch.setattr("kdaudit.admission.confined._digest", lambda _file: "0" * 64)
    assert rule_of(admit_confined, path) == "KDA001"


def test_no_descriptor_is_left_open(tmp_path):
    path = written(host(), tmp_path)
    admit_confined(path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    admit_confined(path)
    rule_of(admit_confined, written(STATIC["circular functions"][0](), tmp_path))
    assert len(list(Path("/proc/self/fd").iterdir())) == before
