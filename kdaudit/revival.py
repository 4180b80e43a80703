"""A control's file back as a network that can be trained: `kdaudit repair` after a comparison with a given control.

The file holds the weights under their own names, with every batch norm folded into the convolution before it. A fresh
network of the architecture that such a teacher gets is filled with them, and its norms are set, layer by layer, to what
clean images do there: it answers as the file does, and goes on learning from where the distillation ended.
"""

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from kdaudit.errors import UsageError
from kdaudit.grafting import parted
from kdaudit.sample import Geometry

if TYPE_CHECKING:
    from torch import Tensor, nn

    from kdaudit.student import Head, StudentSpec

Trainable: TypeAlias = "nn.Module"
"""A control's network, to go on from: x/255 float32 [B, C, H, W] -> logits [B, K]; evaluation mode, on the CPU."""

PREFIX = "network."
"""What `kdaudit.export` puts before a weight's name."""

AGREE = 1e-2
"""How far the network's logits may lie from the file's, relative to their spread; rounding gives 1e-5."""


def revived(model: bytes, spec: "StudentSpec", pixels: NDArray[np.uint8], logits: NDArray[np.float32]) -> "nn.Module":
    """The network in a control's file.

    Args:
        model: the admitted file.
        spec: what a control of this teacher looks like; mean and spread are taken from the file.
        pixels: clean images in the control's geometry, uint8 [n, H, W, C], some hundred.
        logits: what the file answers to these, float32 [n, K].

    Returns:
        x/255 float32 [B, C, H, W] -> logits [B, K]; evaluation mode, on the CPU.

    Raises:
        UsageError: the file holds another architecture, or its network does not answer as the file does.
    """
    import torch

    from kdaudit.student import build
    from kdaudit.views import to_planes

    weights = _weights(model)
    network = build(spec, seed=0)
    norms = _filled(network, weights)
    x = to_planes(pixels)
    hooks = [norm.register_forward_pre_hook(_adapt) for norm in norms]
    with torch.inference_mode():
        network.eval()(x)
        for hook in hooks:
            hook.remove()
        answered = network(x).numpy()
    if not np.abs(answered - logits).max() <= AGREE * float(np.ptp(logits)):
        raise UsageError("the control's file does not hold the network that answers: distil a control anew")
    return network


def revived_head(model: bytes, geometry: Geometry, classes: int) -> "tuple[bytes, Head]":
    """What a control's file is made of that is a head over a backbone's features.

    Args:
        model: the admitted file.
        geometry: of the images that it takes.
        classes: K.

    Returns:
        The backbone's trunk, and the head in evaluation mode.

    Raises:
        UsageError: the file holds no such head.
    """
    import torch

    from kdaudit.student import Head

    trunk, weights = parted(model, geometry)
    tensors = {name: torch.from_numpy(values.copy()) for name, values in weights.items()}
    try:
        head = Head(tensors["mean"], tensors["std"], classes)
        head.load_state_dict(tensors)
    except (KeyError, RuntimeError):  # torch's word for names or shapes that do not fit
        raise UsageError("the control's file does not hold the head that it tells of: distil a control anew") from None
    return trunk, head.eval()


def _weights(model: bytes) -> dict[str, NDArray[np.float32]]:
    """Initializers by the names that they have in the network."""
    import onnx

    graph = onnx.load_from_string(model).graph
    return {
        one.name.removeprefix(PREFIX): onnx.numpy_helper.to_array(one)
        for one in graph.initializer
        if one.name.startswith(PREFIX) and one.data_type == onnx.TensorProto.FLOAT
    }


def _filled(network: "nn.Module", weights: dict[str, NDArray[np.float32]]) -> list[Any]:
    """Put the weights where they belong; the norms, in the order in which images meet them, still hold a bias only."""
    import torch
    from torch import nn

    norms: list[nn.Module] = []
    left, convolution = dict(weights), ""
    with torch.no_grad():
        for name, module in network.named_modules():
            if isinstance(module, nn.BatchNorm2d):
                _take(module.bias, left, f"{convolution}.weight_bias")
                norms.append(module)
                continue
            for key, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
                _take(tensor, left, f"{name}.{key}" if name else key)
            if isinstance(module, nn.Conv2d):
                convolution = name
    if left:
        raise _foreign(min(left))
    return norms


def _take(tensor: "Tensor", left: dict[str, NDArray[np.float32]], name: str) -> None:
    """Move a weight from what is left to where it belongs."""
    import torch

    found = left.pop(name, None)
    if found is None or found.shape != tuple(tensor.shape):
        raise _foreign(name)
    tensor.copy_(torch.from_numpy(found.copy()))


def _foreign(name: str) -> UsageError:
    return UsageError(f"the control's file is of another architecture ({name} does not fit): distil a control anew")


def _adapt(norm: Any, inputs: "tuple[Tensor]") -> None:
    """Set a norm, before images meet it, such that it adds its bias and no more: its input's own mean and variance."""
    (z,) = inputs
    mean, variance = z.mean((0, 2, 3)), z.var((0, 2, 3), unbiased=False)
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
    norm.weight.data.copy_((variance + norm.eps).sqrt())
    norm.bias.data.add_(mean)
