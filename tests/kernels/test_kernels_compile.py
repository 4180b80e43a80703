"""Every kernel compiles for the H100 and H200, here, without one."""

import subprocess
import sys

import pytest
from triton_here import needs_triton


@needs_triton
def test_every_kernel_compiles_for_sm_90():
    # In a process of its own: the interpreter, once chosen, cannot be left.
    done = subprocess.run([sys.executable, "-m", "kdaudit.kernels.ahead"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for kernel, variants in (("divergence_kernel", 9), ("distill_loss_kernel", 9), ("augment_kernel", 6)):
        own = [line for line in lines if line.startswith(kernel)]
        assert len(own) == variants
        assert all("sm_90 cubin" in line for line in own)
        assert all(int(line.split()[-2].replace(",", "")) > 1000 for line in own)


@needs_triton
def test_the_code_is_for_the_architecture_that_was_asked_for(tmp_path):
    program = (
        "from kdaudit.kernels.ahead import build_all\n"
        "b = next(iter(build_all()))\n"
        "assert '.target sm_90' in b.ptx and b.cubin[:4] == b'\\x7fELF', b.ptx[:200]\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_interpreter_leaves_nothing_to_compile(monkeypatch):
    from kdaudit.kernels.ahead import build_all

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(RuntimeError, match="another process"):
        next(build_all())
