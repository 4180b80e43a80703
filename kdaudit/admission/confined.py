"""Admission in a confined worker: the parent opens files and hashes them, the worker parses and checks.

The worker sees the model file and its external data as descriptors that the parent has opened; it can name no file
itself. What it answers is checked for form, and the digests are the parent's own.
"""

import hashlib
import io
import mmap
import os
import socket
import stat
from dataclasses import asdict, dataclass, replace
from io import BufferedReader
from pathlib import Path
from typing import Any

from kdaudit.admission import Teacher, admit_bytes
from kdaudit.admission.catalogue import Finding
from kdaudit.admission.external import open_external, read_range
from kdaudit.admission.limits import MAX_MODEL_BYTES
from kdaudit.admission.reading import open_model
from kdaudit.admission.refusal import REFUSALS, refuse
from kdaudit.errors import ModelRefused
from kdaudit.sandbox.process import Worker, WorkerLost
from kdaudit.sandbox.talk import receive_with_descriptors, send, shared_memory
from kdaudit.signature import Signature

CHECK_S = 45
"""Seconds for checking a small model, of the clock and of computing; large ones get one more for every `PACE` bytes."""

PACE = 50_000_000

MEMORY = 3 << 30
"""Address space for checking, beside ten times the size of model and external data."""

PER_BYTE = 10

MAX_FACTS = 64 << 20
"""Bytes of what the worker says about a model."""


@dataclass(frozen=True, slots=True)
class Facts:
    """A `Teacher` without its bytes and its digests, as the worker tells it."""

    digest: str
    signature: Signature
    opsets: tuple[tuple[str, int], ...]
    producer: str
    nodes: int
    parameters: int
    multiplications: int
    findings: tuple[Finding, ...]
    external: tuple[str, ...]
    notes: tuple[tuple[str, str], ...]


def parsing_walls(size: int) -> tuple[dict[str, Any], int]:
    """What a worker that parses graphs of somebody else's is given, and its seconds, of the clock and of computing.

    Args:
        size: bytes that it parses.
    """
    seconds = CHECK_S + size // PACE
    memory = MEMORY + PER_BYTE * size
    return {"memory": memory, "cpu_s": seconds, "readable": [], "writable": "", "filter": True}, seconds


class Admitter:
    """A worker that admits models, one after the other."""

    def __init__(self, size: int = 0) -> None:
        """Start the worker.

        Args:
            size: bytes of the largest model that it will be given.

        Raises:
            WorkerLost: it does not come up.
        """
        setup, self._seconds = parsing_walls(size)
        self._worker = Worker("admit", setup)
        self.level = self._worker.level

    @property
    def pid(self) -> int:
        """The worker's process id."""
        return self._worker.pid

    def admit(self, path: Path, file: BufferedReader) -> Teacher:
        """Have an open model file checked; see `kdaudit.admission.admit`.

        Raises:
            ModelRefused: KDA017 too, when the check ends the worker or takes too long.
        """
        descriptor, memory = shared_memory(MAX_MODEL_BYTES + MAX_FACTS)
        try:
            request = {"do": "admit", "path": str(path)[:4096]}
            answer = self._worker.ask(
                self._worker.control,
                request,
                self._seconds,
                [file.fileno(), descriptor],
                lambda question: self._opened(path, question),
            )
            return self._teacher(path, file, answer, memory)
        except WorkerLost as lost:
            refuse("KDA017", f"{path.name}: the check of the model was ended: {lost.detail}; do not use it")
        finally:
            memory.close()
            os.close(descriptor)

    def close(self) -> None:
        """End the worker."""
        self._worker.close()

    def _opened(self, path: Path, question: dict[str, Any]) -> list[int]:
        """Open the external data that the worker asks for, by the parent's own rules."""
        location, tensor = question.get("location"), question.get("tensor")
        if not isinstance(location, str) or not isinstance(tensor, str):
            raise ValueError("a question of the wrong form")
        try:
            descriptor = open_external(path.parent, location, tensor)
        except ModelRefused as refused:
            raise _named(path, refused.rule, str(refused)) from None
        self._worker.allow_memory(PER_BYTE * os.fstat(descriptor).st_size)
        return [descriptor]

    def _teacher(self, path: Path, file: BufferedReader, answer: dict[str, Any], memory: mmap.mmap) -> Teacher:
        """Check the form of an answer and take it over."""
        from pydantic import TypeAdapter, ValidationError

        refused = answer.get("refused")
        if isinstance(refused, list) and len(refused) == 2 and refused[0] in REFUSALS:
            raise ModelRefused(refused[0], " ".join(str(refused[1])[:1000].split()))
        sizes = answer.get("facts"), answer.get("model")
        try:
            facts_size, model_size = (int(size) for size in sizes if isinstance(size, int) and size > 0)
            if facts_size > MAX_FACTS or model_size > MAX_MODEL_BYTES:
                raise ValueError("too long")
            facts = TypeAdapter(Facts).validate_json(memory[:facts_size])
            model = memory[facts_size : facts_size + model_size]
        except (ValidationError, ValueError):
            self._worker.end()
            raise WorkerLost("confused", "its answer is not of the agreed form") from None
        digest = _digest(file)
        if digest != facts.digest:
            refuse("KDA001", f"cannot read the model {path}: it changes while it is read; try again")
        return Teacher(
            model=model,
            digest=digest,
            canonical_digest=hashlib.sha256(model).hexdigest(),
            signature=facts.signature,
            opsets=facts.opsets,
            producer=facts.producer,
            nodes=facts.nodes,
            parameters=facts.parameters,
            multiplications=facts.multiplications,
            findings=facts.findings,
            external=facts.external,
            notes=facts.notes,
            confinement=self.level,
        )


def admit_confined(path: Path) -> Teacher:
    """As `kdaudit.admission.admit`, in a worker process behind walls: for models that came from somebody else."""
    path = Path(path)
    with open_model(path) as file:
        try:
            admitter = Admitter(os.fstat(file.fileno()).st_size)
        except WorkerLost as lost:
            refuse("KDA017", f"{path.name}: the process that checks models does not start: {lost.detail}")
        try:
            return admitter.admit(path, file)
        finally:
            admitter.close()


def warm_up() -> None:
    """The worker's side, before the walls: load every library by admitting a model of one node."""
    from onnx import TensorProto, helper

    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 4, 4])
    scores = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 48])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    body = [helper.make_node("Flatten", ["a"], ["b"])]
    function = helper.make_function("own", "Flat", ["a"], ["b"], body, opsets[:1])
    node = helper.make_node("Flat", ["x"], ["y"], domain="own")
    graph = helper.make_graph([node], "warm", [image], [scores])
    model = helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=8)
    admit_bytes(model.SerializeToString(), Path("warm.onnx"), _no_file)
    for broken in (b"\x08\x07", b"\xff" * 40):
        try:
            admit_bytes(broken, Path("warm.onnx"), _no_file)
        except ModelRefused:
            continue


def serve(control: socket.socket) -> None:
    """The worker's side, behind the walls: admit what the parent hands over until it is gone."""

    def open_by_parent(_folder: Path, location: str, tensor: str) -> int:
        send(control, {"ask": "open", "location": location, "tensor": tensor})
        message, descriptors = receive_with_descriptors(control)
        if message is None or not descriptors:
            os._exit(0)  # the parent has refused the model already
        return descriptors[0]

    while True:
        message, descriptors = receive_with_descriptors(control)
        if message is None:
            return
        source, target = descriptors
        try:
            data = read_range(source, 0, os.lseek(source, 0, os.SEEK_END))
            os.close(source)
            teacher = admit_bytes(data, Path(message["path"]), open_by_parent)
            send(control, _written(teacher, target))
        except ModelRefused as refused:
            text = str(refused).removesuffix(f" [{refused.rule}]")
            send(control, {"refused": [refused.rule, text[:2000]]})
        finally:
            os.close(target)


def _written(teacher: Teacher, target: int) -> dict[str, int]:
    """Put facts and canonical copy into the shared memory; says how long both are."""
    import json

    facts = asdict(replace(teacher, model=b""))
    del facts["model"], facts["canonical_digest"], facts["confinement"]
    text = json.dumps(facts).encode()
    size = len(text) + len(teacher.model)
    with mmap.mmap(target, size) as memory:
        memory[: len(text)] = text
        memory[len(text) :] = teacher.model
    return {"facts": len(text), "model": len(teacher.model)}


def _no_file(_folder: Path, _location: str, _tensor: str) -> int:
    raise AssertionError("the model that warms up has no external data")


def _named(path: Path, rule: str, text: str) -> ModelRefused:
    return ModelRefused(rule, f"{path.name}: {text.removesuffix(f' [{rule}]')}")


def _digest(file: BufferedReader) -> str:
    file.seek(0, io.SEEK_SET)
    assert stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    return hashlib.file_digest(file, "sha256").hexdigest()
