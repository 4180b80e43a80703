"""Kernels run in Triton's interpreter, on a CPU, in a process of their own: triton chooses it when imported."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

RUN = """
import sys, torch
from importlib import import_module
name, given, found = sys.argv[1:]
op = getattr(import_module(f"kdaudit.kernels.{name}"), name)
torch.set_num_threads(1)
out = []
for arguments, wants_gradient in torch.load(given, weights_only=False):
    if wants_gradient:
        arguments[0].requires_grad_()
    result = op(*arguments)
    if wants_gradient:
        (result * wants_gradient).backward()
        result = (result.detach(), arguments[0].grad)
    out.append(tuple(result) if isinstance(result, tuple) else result)
torch.save(out, found)
"""


@pytest.fixture(scope="session")
def interpreted(tmp_path_factory) -> Callable[[str, list[tuple[tuple[Any, ...], float]]], list[Any]]:
    """Run an op on many argument lists; with a number beside them, also its gradient times that number."""

    def run(name: str, cases: list[tuple[tuple[Any, ...], float]]) -> list[Any]:
        folder: Path = tmp_path_factory.mktemp(name)
        torch.save(cases, folder / "given.pt")
        command = [sys.executable, "-W", "ignore", "-c", RUN, name, folder / "given.pt", folder / "found.pt"]
        done = subprocess.run(
            command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        found: list[Any] = torch.load(folder / "found.pt", weights_only=False)
        return found

    return run
