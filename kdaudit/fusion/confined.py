"""Composing the audit graph in a confined worker: the teacher came from somebody else and is parsed nowhere else.

What comes back may have been written by the teacher: its form is checked here, and it is run confined only.
"""

import mmap
import os
import socket
from dataclasses import asdict
from typing import Any

from kdaudit.admission.confined import parsing_walls
from kdaudit.fusion.blueprint import Blueprint, Fused, Network, NotFused
from kdaudit.sandbox.process import Worker, WorkerLost
from kdaudit.sandbox.talk import receive_with_descriptors, send, shared_memory

MORE_BYTES = 64 << 20
"""What an audit graph holds beside the two networks: a projection of the longest row of features, and some."""


def compose_confined(teacher: bytes, control: bytes, blueprint: Blueprint) -> Fused:
    """As `kdaudit.fusion.graph.compose`, behind walls.

    Raises:
        NotFused: the two do not go into one graph, or the worker did not survive the attempt.
    """
    size = len(teacher) + len(control)
    setup, seconds = parsing_walls(size)
    descriptor, memory = shared_memory(size + MORE_BYTES)
    try:
        worker = Worker("fuse", setup)
        try:
            memory[:size] = teacher + control
            request = {"teacher": len(teacher), "control": len(control), "blueprint": asdict(blueprint)}
            return _taken(worker.ask(worker.control, request, seconds, [descriptor]), memory, blueprint)
        finally:
            worker.close()
    except WorkerLost as lost:
        raise NotFused(f"the process that composes the graph was ended: {lost.detail}") from None
    finally:
        memory.close()
        os.close(descriptor)


def _taken(answer: dict[str, Any], memory: mmap.mmap, blueprint: Blueprint) -> Fused:
    """Check the form of an answer and take it over."""
    why, length = answer.get("why"), answer.get("length")
    if isinstance(why, str):
        raise NotFused("".join(c if c.isprintable() else "?" for c in why[:300]))
    if not isinstance(length, int) or not 0 < length <= len(memory):
        raise WorkerLost("confused", "its answer is not of the agreed form")
    return Fused(memory[:length], blueprint)


def warm_up() -> None:
    """The worker's side, before the walls: load every library by composing small ones, projections included."""
    from kdaudit.fusion.graph import compose

    for opset in (20, 17, 12, 5):
        blueprint = Blueprint(
            Network("x", "y", "probabilities", "z"), Network("x", "y", "logits"),
            "4x4x3-stretch-BGR-flatCHW-unit", "float16", 2, 48, 48, None, "warm/",
        )  # fmt: skip
        try:
            compose(_tiny(opset), _tiny(20), blueprint)
        except NotFused:
            continue


def serve(control: socket.socket) -> None:
    """The worker's side, behind the walls: compose once."""
    from kdaudit.fusion.graph import compose

    message, descriptors = receive_with_descriptors(control)
    if message is None:
        return
    first, size = message["teacher"], message["teacher"] + message["control"]
    given = message["blueprint"]
    blueprint = Blueprint(**given | {name: Network(**given[name]) for name in ("teacher", "control")})
    with mmap.mmap(descriptors[0], size + MORE_BYTES) as memory:
        try:
            made = compose(memory[:first], memory[first:size], blueprint).model
            if len(made) > len(memory):
                raise NotFused("the composed graph is too large")
        except NotFused as why:
            send(control, {"why": str(why)[:300]})
            return
        memory[: len(made)] = made
    send(control, {"length": len(made)})


def _tiny(opset: int) -> bytes:
    """A network of two nodes, from x [n, 48] to z and y [n, 48]."""
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT16, ["n", 48]) for name in "xy")
    nodes = [helper.make_node("Relu", ["x"], ["z"], "first"), helper.make_node("Identity", ["z"], ["y"], "second")]
    graph = helper.make_graph(nodes, "tiny", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return bytes(model.SerializeToString())
