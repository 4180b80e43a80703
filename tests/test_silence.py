"""Nothing is sent anywhere: onnxruntime's own telemetry never begins, in this process or in a worker."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from deliveries import ROOT
from onnx_builders import Patterns, classifier

PLAIN = """
import sys, time, onnxruntime
onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
time.sleep(1)
"""

OURS = """
import os, sys, time
from pathlib import Path
from kdaudit.admission import admit
from kdaudit.opening import open_session
teacher = admit(Path(sys.argv[1]))
opened = lambda confined: open_session(teacher.model, teacher.signature, provider="cpu", confined=confined)
sessions = [opened(False), opened(True)]
time.sleep(1)
worker = sessions[1]._engine._worker.pid
for process in ("self", worker):
    for entry in os.scandir(f"/proc/{process}/fd"):
        try:
            print(process, os.readlink(entry.path))
        except OSError:
            pass
"""


@pytest.fixture
def model(tmp_path) -> Path:
    path = tmp_path / "secret.onnx"
    path.write_bytes(classifier(Patterns.draw(), "8x8x3-stretch-RGB-NCHW-unit").SerializeToString())
    return path


def run(program: str, model: Path, home: Path) -> str:
    """What a program prints on a machine of a user: no variable says that it is a test or a build server's."""
    home.mkdir()
    env = {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", program, str(model)], capture_output=True, text=True, check=True, env=env
    ).stdout


def test_onnxruntime_leaves_no_trace_of_a_collector(model, tmp_path):
    opened = run(OURS, model, tmp_path / "ours")
    assert "self" in opened
    assert "Microsoft" not in opened
    assert "onnxruntime.db" not in opened
    assert list((tmp_path / "ours").rglob("*")) == []


def test_by_itself_it_would(model, tmp_path):
    """Else the test above shows nothing: a release without a collector, or a machine without certificates."""
    run(PLAIN, model, tmp_path / "plain")
    if not list((tmp_path / "plain").rglob("onnxruntime.db")):
        pytest.skip("this onnxruntime collects nothing here")
