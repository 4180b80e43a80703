"""The GitHub action, the GitLab template and the pre-commit hook: valid by their schemas, and their commands run."""

import json
import os
import re
import shlex
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from deliveries import ROOT, Scan, copied, environment, honest_scan, vendor_scan
from jsonschema import Draft7Validator
from onnx import helper
from onnx_builders import Patterns, classifier
from ruamel.yaml import YAML

ACTION = "action.yml"
GITLAB = "ci/gitlab.yml"
HOOKS = ".pre-commit-hooks.yaml"


def yaml(name: str) -> Any:
    return YAML(typ="safe").load((ROOT / name).read_text(encoding="utf-8"))


def vendor_schema(name: str) -> Draft7Validator:
    """A schema that check-jsonschema ships."""
    file = resources.files("check_jsonschema") / "builtin_schemas" / "vendor" / name
    return Draft7Validator(json.loads(file.read_text(encoding="utf-8")))


def shell(tmp_path: Path) -> dict[str, str]:
    """An environment in which `kdaudit` and `python3` are those of these tests."""
    folder = tmp_path / "bin"
    folder.mkdir(exist_ok=True)
    (folder / "kdaudit").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m kdaudit "$@"\n')
    (folder / "kdaudit").chmod(0o755)
    if not (folder / "python3").exists():
        (folder / "python3").symlink_to(sys.executable)
    return environment(PATH=f"{folder}{os.pathsep}{os.environ['PATH']}")


class Job:
    """A GitHub job that runs the action's own steps, as the runner does: expressions filled in, files for outputs."""

    def __init__(self, tmp_path: Path, **inputs: str) -> None:
        self.action = yaml(ACTION)
        self.inputs = {name: entry.get("default", "") for name, entry in self.action["inputs"].items()}
        self.inputs |= {name.replace("_", "-"): value for name, value in inputs.items()}
        self.outputs: dict[str, dict[str, str]] = {}
        self.folder, self.env = tmp_path, shell(tmp_path)
        self.summary = tmp_path / "summary.md"
        self.log = ""
        self.uploaded = ""

    def expand(self, text: str) -> str:
        """Fill in `${{ inputs.x }}` and `${{ steps.x.outputs.y }}`."""

        def value(match: re.Match[str]) -> str:
            parts = match[1].split(".")
            if parts[0] == "inputs":
                return self.inputs[parts[1]]
            assert (parts[0], parts[2]) == ("steps", "outputs")
            return self.outputs.get(parts[1], {}).get(parts[3], "")

        return re.sub(r"\$\{\{\s*([\w.-]+)\s*\}\}", value, text)

    def run(self) -> int:
        """Run all steps; the exit code of the first that fails, like the runner's."""
        code = 0
        for step in self.action["runs"]["steps"]:
            if "uses" in step:
                self.uploaded = self.expand(step["with"]["sarif_file"])
                continue
            if step["name"] == "Install kdaudit":
                continue  # .ci/run does what it does; here kdaudit is installed already
            done = self.step(step)
            code = code or done
        return code

    def step(self, step: dict[str, Any]) -> int:
        """Run one shell step."""
        assert step["shell"] == "bash"
        assert "${{" not in step["run"]  # inputs come as variables only
        file = self.folder / "output"
        file.write_text("")
        env = self.env | {name: self.expand(text) for name, text in step.get("env", {}).items()}
        env |= {"GITHUB_OUTPUT": str(file), "GITHUB_STEP_SUMMARY": str(self.summary), "GITHUB_ACTION_PATH": str(ROOT)}
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
            env=env, cwd=self.folder, capture_output=True, text=True, check=False, timeout=900,
        )  # fmt: skip
        self.log += done.stdout + done.stderr
        if "id" in step:
            lines = (line.partition("=") for line in file.read_text().splitlines())
            self.outputs[step["id"]] = {name: value for name, _, value in lines}
        return done.returncode

    def output(self, name: str) -> str:
        """An output of the action."""
        return self.expand(self.action["outputs"][name]["value"])


@pytest.fixture(scope="session")
def planted(tmp_path_factory) -> Scan:
    """The vendor's poisoned delivery, scanned once."""
    return vendor_scan(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def clean(tmp_path_factory) -> Scan:
    """The honest delivery, scanned once."""
    return honest_scan(tmp_path_factory.getbasetemp())


@pytest.mark.parametrize(("file", "schema"), [(ACTION, "github-actions.json"), (GITLAB, "gitlab-ci.json")])
def test_the_files_are_valid_by_the_schemas_of_those_who_read_them(file, schema):
    assert [error.message for error in vendor_schema(schema).iter_errors(yaml(file))] == []


def test_the_action_installs_as_the_readme_does():
    step = yaml(ACTION)["runs"]["steps"][0]["run"]
    assert "pip install -q -c" in step
    assert '"$GITHUB_ACTION_PATH/constraints.txt" "$GITHUB_ACTION_PATH"' in step


@pytest.mark.slow
def test_the_action_reports_a_planted_delivery_and_fails_only_then(planted, tmp_path):
    copied(planted.run, tmp_path / "audit run")
    job = Job(
        tmp_path, model=str(planted.delivery.model), data=str(planted.delivery.data), run="audit run",
        args="--steps 400 --seed 0 --no-repair",
    )  # fmt: skip
    assert job.run() == 1, job.log
    assert {name: job.output(name) for name in ("verdict", "gate", "exit-code", "scanned", "run")} == {
        "verdict": "FAILED", "gate": "failed", "exit-code": "1", "scanned": "1097", "run": "audit run",
    }  # fmt: skip
    report = json.loads((tmp_path / "audit run/report.json").read_text())
    assert job.output("flagged") == str(report["judgement"]["flagged"]["hits"])
    assert (tmp_path / job.output("report")).is_file()
    assert job.uploaded == job.output("sarif") == "audit run/findings.sarif"
    assert job.summary.read_text() == (tmp_path / "audit run/summary.md").read_text()
    assert "::error file=vendor.onnx,title=KDA201" in job.log


@pytest.mark.slow
def test_the_action_passes_on_its_own_baseline(planted, tmp_path):
    copied(planted.run, tmp_path / "run")
    job = Job(
        tmp_path, model=str(planted.delivery.model), data=str(planted.delivery.data), run="run",
        baseline=str(planted.run / "report.json"), args="--steps 400 --seed 0 --no-repair",
    )  # fmt: skip
    assert job.run() == 0, job.log
    assert (job.output("verdict"), job.output("gate")) == ("FAILED", "passed")


def test_the_action_says_that_a_scan_did_not_finish_and_uploads_nothing(tmp_path):
    (tmp_path / "data").mkdir()
    job = Job(tmp_path, model="gone.onnx", data="data", run="run", args="--fail-on 'high' -q")
    assert job.run() == 2
    assert (job.output("verdict"), job.output("exit-code"), job.output("report")) == ("ERROR", "2", "")
    assert job.uploaded == ""
    assert "::error title=kdaudit did not finish::exit code 2" in job.log
    assert not job.summary.exists()


def test_no_input_can_run_a_command(tmp_path):
    trap = tmp_path / "trap"
    nasty = f"$(touch {trap}); `touch {trap}`; touch {trap} #"
    job = Job(tmp_path, model=nasty, data=nasty, clean=nasty, run=nasty.replace("/", "_"), baseline=nasty, args="-q")
    assert job.run() == 2
    assert not trap.exists()


@pytest.mark.slow
def test_the_gitlab_template_runs_and_leaves_what_it_promises(clean, tmp_path):
    job = yaml(GITLAB)[".kdaudit"]
    copied(clean.run, tmp_path / "kdaudit-run")
    env = shell(tmp_path) | {name: str(value) for name, value in job["variables"].items()}
    env |= {
        "AUDIT_MODEL": str(clean.delivery.model), "AUDIT_DATA": str(clean.delivery.data),
        "AUDIT_CLEAN": str(clean.delivery.data / "clean"), "AUDIT_ARGS": "--steps 400 --seed 0 --no-repair -q",
    }  # fmt: skip
    script = "\n".join(job["script"])
    done = subprocess.run(["bash", "-ec", script], env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for pattern in (*job["artifacts"]["paths"], job["artifacts"]["reports"]["junit"]):
        assert list(tmp_path.glob(pattern.replace("$AUDIT_RUN", env["AUDIT_RUN"]))), pattern
    assert job["artifacts"]["when"] == "always"


def test_the_hook_passes_fails_and_refuses(tmp_path):
    (hook,) = yaml(HOOKS)
    assert {"id", "name", "entry", "language"} <= hook.keys()
    assert re.search(hook["files"], "models/a.onnx")
    assert not re.search(hook["files"], "models/a.onnx.txt")
    sound = classifier(Patterns.draw(), "8x8x3-stretch-RGB-NCHW-unit")
    (tmp_path / "sound.onnx").write_bytes(sound.SerializeToString())
    (tmp_path / "text.onnx").write_text("not a model")
    noisy = classifier(Patterns.draw(), "8x8x3-stretch-RGB-NCHW-unit")
    noisy.graph.node.append(helper.make_node("RandomNormalLike", [noisy.graph.output[0].name], ["noise"]))
    (tmp_path / "noisy.onnx").write_bytes(noisy.SerializeToString())

    def hooked(*files: str) -> int:
        words = [*shlex.split(hook["entry"]), *files]
        return subprocess.run(words, env=shell(tmp_path), cwd=tmp_path, capture_output=True, check=False).returncode

    assert hooked("sound.onnx", "sound.onnx") == 0
    assert hooked("sound.onnx", "noisy.onnx") == 1
    assert hooked("sound.onnx", "text.onnx") == 2
