"""Stage 5: a control as ONNX with the teacher's own input and output, proven to compute what torch computes.

The doors to `torch.onnx` and, for the label and map outputs that torch cannot express, to `onnx`. The exported
file takes the teacher's input tensor, so the map from there back to x/255 is its first layer.
"""

import io
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdaudit.digest import write_bytes
from kdaudit.errors import KdauditError
from kdaudit.grafting import grown
from kdaudit.opening import open_session
from kdaudit.preprocess import Preprocess
from kdaudit.signature import Signature
from kdaudit.version import __version__

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import Tensor, nn

OPSET = 20
"""What torch's exporter writes by default; onnxruntime reads it since 1.17."""

ML = "ai.onnx.ml"
"""The domain of the operators for labels and maps."""

PARITY = 1e-3
"""Largest allowed difference of any class probability between torch and onnxruntime; sums in another order give 1e-5.
What float16 rounds away is allowed on top (`_allowed`)."""


def export_student(
    network: "nn.Module",
    preprocess: Preprocess,
    signature: Signature,
    samples: NDArray[np.uint8],
    path: Path,
    *,
    drop_in: bool = False,
    metadata: dict[str, str] | None = None,
) -> float:
    """Write a control as ONNX.

    Args:
        network: x/255 float32 [B, C, H, W] -> logits [B, K], in evaluation mode.
        preprocess: what the teacher's users do to their pixels before the model.
        signature: the teacher's.
        samples: some images uint8 [n, H, W, C] to prove parity on; a few dozen.
        path: file to write, in one step.
        drop_in: also take over the teacher's fixed batch size and its label and map outputs, so that the file
            replaces the teacher's. Without it the batch is free and the file has the one score output.
        metadata: written into the file's metadata_props.

    Returns:
        The largest difference of any class probability between torch and onnxruntime.

    Raises:
        KdauditError: the exported file does not compute what torch computes.
    """
    exported = _exported(network, preprocess, signature, samples[:2])
    data = _with_shapes(exported, signature, metadata or {}, drop_in=drop_in)
    own = signature if drop_in else control_signature(signature)
    session = open_session(_with_scores(data, own), own, provider="cpu", confined=stands_on_another(network))
    fed = preprocess.apply(samples)
    expected = _torch_logits(network, preprocess.undo(fed))
    worst = _difference(expected, session.logits(fed))
    allowed = _allowed(expected, signature)
    if not worst <= allowed:
        raise KdauditError(
            f"the exported control differs from torch by {worst:.2g} (allowed {allowed:.2g}): {path.name} was not "
            "written; please report this with the output of `kdaudit doctor`"
        )
    write_bytes(path, data)
    return worst


def stands_on_another(network: "nn.Module") -> bool:
    """Whether somebody else's graph is in a control: then it runs confined, as the teacher does."""
    from kdaudit.student import Headed

    return isinstance(network, Headed)


def _exported(
    network: "nn.Module", preprocess: Preprocess, signature: Signature, samples: NDArray[np.uint8]
) -> "ModelProto":
    import torch

    from kdaudit.student import Headed

    if isinstance(network, Headed):
        head = {name: values.numpy() for name, values in network.head.state_dict().items()}
        return grown(network.trunk.model, head, preprocess, signature)
    model = _wrapped(network, preprocess, signature)
    example = torch.from_numpy(preprocess.apply(samples))
    exported: ModelProto = export_network(model, example, signature.input_name, signature.output_name)
    return exported


def _wrapped(network: "nn.Module", preprocess: Preprocess, signature: Signature) -> "nn.Module":
    import torch
    from torch import Tensor, nn

    geometry = preprocess.geometry
    dtype = {"float32": torch.float32, "float16": torch.float16}[signature.output_type]

    class DropIn(nn.Module):
        """Teacher's input tensor in, teacher's output tensor out; the network in between."""

        mean: Tensor
        std: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.network = network
            std, mean = (torch.from_numpy(values) for values in preprocess.planes)
            self.register_buffer("mean", mean)
            self.register_buffer("std", std)

        def forward(self, tensor: Tensor) -> Tensor:
            x = tensor.to(torch.float32)
            if preprocess.layout == "flat":
                x = x.reshape(-1, geometry.height, geometry.width, geometry.channels)
            elif preprocess.layout == "flatCHW":
                x = x.reshape(-1, geometry.channels, geometry.height, geometry.width)
            if preprocess.layout in ("NHWC", "flat"):
                x = x.permute(0, 3, 1, 2)
            if preprocess.order == "BGR":
                x = x.flip(1)
            logits = self.network(x * self.std + self.mean)
            if signature.output_kind == "probabilities":
                logits = torch.softmax(logits, 1)
            elif signature.output_kind == "log-probabilities":
                logits = torch.log_softmax(logits, 1)
            for _ in range(len(signature.output_shape) - 2):
                logits = logits.unsqueeze(-1)
            scores: Tensor = logits.to(dtype)
            return scores

    return DropIn().eval()


def export_network(network: "nn.Module", example: "Tensor", input_name: str, output_name: str) -> Any:
    """Any network as an ONNX model (a ModelProto) with a free batch, quietly."""
    import contextlib
    import logging
    import warnings

    import torch

    # The exporter reports its own progress and deprecations on both streams; a failure raises.
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            program = torch.onnx.export(
                network,
                (example,),
                input_names=[input_name],
                output_names=[output_name],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
        finally:
            logger.setLevel(level)
    assert program is not None
    return _bare(program.model_proto)


def _bare(model: Any) -> Any:
    """The model without the exporter's notes: stack traces and paths of this machine, other at every version."""
    graph = model.graph
    for owner in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        owner.ClearField("doc_string")
        if owner is not model:
            owner.ClearField("metadata_props")
    return model


def _with_shapes(model: Any, signature: Signature, metadata: dict[str, str], *, drop_in: bool) -> bytes:
    """Declare the teacher's shapes, and for a drop-in its fixed batch and its label and map outputs."""
    import onnx

    graph = model.graph
    del graph.value_info[:]
    graph.name = "kdaudit control"
    # Else torch's version stands behind our name.
    model.producer_name, model.producer_version = "kdaudit", __version__
    onnx.helper.set_model_props(model, metadata)
    batch = signature.batch if drop_in else None
    _declare(graph.input[0], (batch, *_sizes(graph.input[0])))
    _declare(graph.output[0], (batch, *_sizes(graph.output[0])))
    if drop_in and (signature.label_output or signature.map_output):
        _add_label_and_map(model, signature)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))


def _sizes(value: Any) -> tuple[int, ...]:
    return tuple(d.dim_value for d in value.type.tensor_type.shape.dim[1:])


def _declare(value: Any, shape: tuple[int | None, ...]) -> None:
    for dimension, size in zip(value.type.tensor_type.shape.dim, shape, strict=True):
        if size is None:
            dimension.dim_param = "batch"
        else:
            dimension.dim_value = size


def _add_label_and_map(model: Any, signature: Signature) -> None:
    """Append ArgMax (a label) and ZipMap (a sequence of maps), as classical exporters do."""
    from onnx import TensorProto, helper

    graph, scores = model.graph, signature.output_name
    outputs = []
    names = signature.class_names
    strings = names is not None and not _integers(names)
    kind = TensorProto.STRING if strings else TensorProto.INT64
    if signature.label_output:
        indices = f"{signature.label_output}_index"
        values = {"values_strings": list(names or ())} if strings else {"values_int64s": _numbers(signature)}
        positions = list(range(signature.classes))
        graph.node.append(helper.make_node("ArgMax", [scores], [indices], axis=1, keepdims=0))
        graph.node.append(
            helper.make_node(
                "LabelEncoder", [indices], [signature.label_output], domain=ML, keys_int64s=positions, **values
            )
        )
        outputs.append(helper.make_tensor_value_info(signature.label_output, kind, ["batch"]))
    if signature.map_output:
        labels = {"classlabels_strings": list(names or ())} if strings else {"classlabels_int64s": _numbers(signature)}
        graph.node.append(helper.make_node("ZipMap", [scores], [signature.map_output], domain=ML, **labels))
        value = helper.make_tensor_type_proto(TensorProto.FLOAT, None)
        sequence = helper.make_sequence_type_proto(helper.make_map_type_proto(kind, value))
        outputs.append(helper.make_value_info(signature.map_output, sequence))
        del graph.output[0]
    graph.output.extend(outputs)
    model.opset_import.append(helper.make_opsetid(ML, 3))


def _numbers(signature: Signature) -> list[int]:
    """The classes' numbers: the model's own names where these are numbers, else the positions."""
    return [int(name) for name in signature.class_names or map(str, range(signature.classes))]


def _integers(names: tuple[str, ...]) -> bool:
    return all(n.lstrip("-").isdigit() for n in names)


def _with_scores(data: bytes, signature: Signature) -> bytes:
    """The file to prove parity on: a ZipMap hands the scores out as maps only, so they become an output as well."""
    if not signature.map_output:
        return data
    import onnx

    model = onnx.load_model_from_string(data)
    scores = onnx.helper.make_tensor_value_info(
        signature.output_name, onnx.TensorProto.FLOAT, [signature.batch, signature.classes]
    )
    model.graph.output.append(scores)
    return bytes(model.SerializeToString())


def control_signature(teacher: Signature) -> Signature:
    """The signature of a control that is no drop-in: the teacher's, with a free batch and the one score output."""
    return replace(teacher, batch=None, label_output=None, map_output=None, features=None)


def _torch_logits(network: "nn.Module", planes: NDArray[np.float32]) -> NDArray[np.float32]:
    import torch

    with torch.inference_mode():
        logits: NDArray[np.float32] = network(torch.from_numpy(planes)).float().numpy()
    return logits


def _difference(torch_logits: NDArray[np.float32], onnx_logits: NDArray[np.float32]) -> float:
    """Largest difference of any class probability; infinite where one side is not finite."""
    from kdaudit.divergence import log_softmax

    if not (np.isfinite(torch_logits).all() and np.isfinite(onnx_logits).all()):
        return float("inf")
    a, b = (np.exp(log_softmax(z)) for z in (torch_logits, onnx_logits))
    return float(np.abs(a - b).max())


def _allowed(torch_logits: NDArray[np.float32], signature: Signature) -> float:
    """`PARITY`, and what float16 takes: a score's rounding moves a probability by at most a quarter step."""
    allowed = PARITY
    if signature.output_type == "float16" and np.isfinite(torch_logits).all():
        allowed += float(np.spacing(np.float16(min(np.abs(torch_logits).max(), 3e4)))) / 4
    return allowed
