"""Imports go down only: the floors of pyproject.toml's layers contract hold, and no room stands outside them."""

import re
import subprocess
import sys
import tomllib

from deliveries import ROOT

RUN_LINT_IMPORTS = "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"


def layers() -> list[set[str]]:
    """Rooms per floor, from the roof down."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (contract,) = (c for c in table["contracts"] if c["type"] == "layers")
    return [set(re.split(r"\s*\|\s*", layer)) for layer in contract["layers"]]


def test_imports_go_down_only():
    done = subprocess.run(
        [sys.executable, "-c", RUN_LINT_IMPORTS, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"[1-9]\d* kept, 0 broken", done.stdout), done.stdout


def test_every_room_stands_on_a_floor():
    files = [path for path in (ROOT / "kdaudit").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    rooms = {f"kdaudit.{path.stem}" for path in files} - {"kdaudit.__init__"}
    # The report stands on two floors: what it says is known on the ground, what fills it only under the roof.
    rooms |= {f"kdaudit.report.{path.stem}" for path in (ROOT / "kdaudit/report").glob("*.py")}
    rooms -= {"kdaudit.report", "kdaudit.report.__init__"}
    assert set().union(*layers()) == rooms


def test_no_room_stands_on_two_floors():
    named = [room for floor in layers() for room in floor]
    assert len(named) == len(set(named))
