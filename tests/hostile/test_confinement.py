"""What a confined process can still do: nothing with files, network, programs or other processes."""

import json
import subprocess
import sys

import numpy as np
import pytest
from deliveries import ROOT
from graph_backdoors import host

from kdaudit.admission import admit_bytes
from kdaudit.opening import open_session
from kdaudit.sandbox import process
from kdaudit.sandbox.confine import Walls, confine  # noqa: F401  its import is part of what is tested
from kdaudit.sandbox.process import Worker, WorkerLost
from kdaudit.session import Session

ATTEMPTS = r"""
import ctypes, json, mmap, os, signal, socket, subprocess, sys, threading
from kdaudit.sandbox.confine import Walls, confine
held = os.open(sys.executable, os.O_RDONLY)
parent = os.getppid()
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    if libc.syscall(number, *arguments) == -1:
        raise OSError(ctypes.get_errno(), "denied")
attempts = {
    "read a file": lambda: open("/etc/hostname").read(),
    "write a file": lambda: open("/tmp/kdaudit-escape", "w"),
    "list a folder": lambda: os.listdir("/"),
    "make a folder": lambda: os.mkdir("/tmp/kdaudit-escape"),
    "remove a file": lambda: os.unlink("/tmp/nothing"),
    "rename a file": lambda: os.rename("/tmp/a", "/tmp/b"),
    "link a file": lambda: os.symlink("/etc", "/tmp/kdaudit-escape"),
    "look at a file": lambda: os.stat("/etc/hostname"),
    "change the folder": lambda: os.chdir("/"),
    "make a socket": lambda: socket.socket(),
    "make a unix socket": lambda: socket.socket(socket.AF_UNIX),
    "make a pair of sockets": lambda: socket.socketpair(),
    "start a program": lambda: subprocess.run(["/bin/true"]),
    "replace itself": lambda: os.execv("/bin/true", ["true"]),
    "replace itself by a descriptor": lambda: os.execve(held, ["true"], {}),
    "fork": lambda: os.fork(),
    "signal its parent": lambda: os.kill(parent, 0),
    "signal its parent's thread": lambda: call(234, parent, parent, 0),
    "trace its parent": lambda: call(101, 16, parent, 0, 0),
    "read its parent's memory": lambda: call(310, parent, 0, 0, 0, 0, 0),
    "make code": lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC),
    "lift a limit": lambda: __import__("resource").setrlimit(7, (1 << 16, 1 << 16)),
    "load a kernel program": lambda: call(321, 0, 0, 0),
    "make a ring of calls": lambda: call(425, 8, 0),
    "enter a namespace": lambda: call(272, 0x10000000),
    "mount": lambda: call(165, 0, 0, 0, 0, 0),
    "take a key": lambda: call(250, 0, 0, 0),
    "become dumpable": lambda: call(157, 4, 1, 0, 0, 0),
    "grow its memory without end": lambda: bytearray(1 << 33),
}
import resource
level = confine(Walls(memory=1 << 30, cpu_s=60))
done = []
for name, attempt in attempts.items():
    try:
        attempt()
        done.append(name)
    except (OSError, MemoryError, ValueError):
        pass
thread = threading.Thread(target=lambda: done.append("a thread"))
thread.start()
thread.join()
numbers = bytearray(1 << 20)
print(json.dumps({"level": level, "done": done}), flush=True)
os._exit(0)
"""


def test_nothing_that_reaches_out_is_left():
    run = subprocess.run(
        [sys.executable, "-c", ATTEMPTS], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    found = json.loads(run.stdout)
    if "seccomp" not in found["level"]:
        pytest.skip(f"this machine confines by {found['level']} only")
    assert found["done"] == ["a thread"]


def loaded(**options) -> Session:
    from pathlib import Path

    teacher = admit_bytes(host().SerializeToString(), Path("host.onnx"), lambda *_: -1)
    return open_session(teacher.model, teacher.signature, provider="cpu", **options)


def test_a_confined_model_answers_as_a_free_one_does():
    confined, free = loaded(confined=True), loaded()
    assert confined.confinement.endswith("limits")
    assert free.confinement == "none"
    tensor = np.random.default_rng(0).random((70, 3, 16, 16), dtype=np.float32)
    assert np.array_equal(confined.logits(tensor), free.logits(tensor))
    # A batch of another size needs other memory.
    larger = np.random.default_rng(1).random((5000, 3, 16, 16), dtype=np.float32)
    assert np.array_equal(confined.logits(larger), free.logits(larger))
    confined.close()


def test_threads_share_a_confined_model():
    from concurrent.futures import ThreadPoolExecutor

    confined, free = loaded(confined=True), loaded()
    parts = [np.random.default_rng(i).random((7, 3, 16, 16), dtype=np.float32) for i in range(24)]
    with ThreadPoolExecutor(6) as pool:
        for part, found in zip(parts, pool.map(confined.logits, parts), strict=True):
            assert np.array_equal(found, free.logits(part))
    confined.close()


def test_several_outputs_of_one_run():
    confined, free = loaded(confined=True), loaded()
    tensor = np.random.default_rng(0).random((4, 3, 16, 16), dtype=np.float32)
    names = ["scores"]
    ours, theirs = (s._engine.run({"image": tensor}, names * 2) for s in (confined, free))
    assert len(ours) == 2
    assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
    confined.close()


@pytest.mark.parametrize(
    ("boot", "how"),
    [
        ("import os; os._exit(3)", "died"),
        ("import os; os.kill(os.getpid(), 11)", "died"),
        ("import socket, sys; s = socket.socket(fileno=int(sys.argv[2])); s.send(b'no json'); s.recv(9)", "confused"),
        ("import socket, sys; s = socket.socket(fileno=int(sys.argv[2])); s.send(b'[1]'); s.recv(9)", "confused"),
        ("import socket, sys; s = socket.socket(fileno=int(sys.argv[2])); s.send(b'[' * 60000); s.recv(9)", "confused"),
        ("import time; time.sleep(99)", "blocked"),
    ],
)
def test_a_worker_that_is_not_one_is_lost(boot, how, monkeypatch):
    monkeypatch.setattr(process, "_BOOT", boot)
    monkeypatch.setattr(process, "START_S", 2)
    with pytest.raises(WorkerLost) as caught:
        Worker("run", {})
    assert caught.value.how == how


LIES = [
    {},
    {"outputs": []},
    {"outputs": [{"kind": "object", "shape": [4, 5], "at": 64}]},
    {"outputs": [{"kind": "float32", "shape": [1 << 40], "at": 64}]},
    {"outputs": [{"kind": "float32", "shape": [-4, -5], "at": 64}]},
    {"outputs": [{"kind": "float32", "shape": [4, 5], "at": -64}]},
    {"outputs": [{"kind": "float32", "shape": [4, 5], "at": 1 << 62}]},
    {"outputs": [{"kind": "float32", "shape": [4, 5], "at": 0}]},
    {"outputs": [{"kind": "float32", "shape": "45", "at": 0}]},
    {"outputs": [{"kind": "float32", "shape": [1] * 40, "at": 64}]},
    {"outputs": [7]},
    {"needs": -1},
    {"needs": 1 << 50},
    {"needs": "more"},
]


@pytest.mark.parametrize("lie", LIES, ids=str)
def test_a_lie_about_an_answer_is_one(lie, monkeypatch):
    """A worker that was taken over may say anything: nothing but its own memory is read for it."""
    confined = loaded(confined=True)
    engine = confined._engine
    with engine._lane() as lane:
        monkeypatch.setattr(lane.worker, "ask", lambda *_: lie)
        with pytest.raises(WorkerLost) as caught:
            lane.run({"image": np.zeros((4, 3, 16, 16), np.float32)}, ["scores"], 5)
        assert caught.value.how == "confused"
    monkeypatch.undo()
    confined.close()
