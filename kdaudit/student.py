"""The control's network: the auditor's own architectures, sized from what the teacher takes and gives.

A torch door: imported by training, export and the stages only inside functions. The suspect graph is never
reused: a backdoor written into a graph survives retraining, a fresh architecture does not have it. Where the user has a
network to trust, the control is a head of ours over that one's features.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Architecture = Literal["residual", "resnet18"]
SMALL_SIDE = 64
"""Above this many pixels on the longer side a GPU trains torchvision's ResNet-18 in place of the residual network."""

MAP_SIDE = 32
"""Larger images are brought to a map of about this side by the first convolution."""

HIDDEN = 128
"""Width of a head's hidden layer; twice that for more classes than this."""


@dataclass(frozen=True, slots=True)
class StudentSpec:
    """Everything needed to build a control anew; stored in run directories and checkpoints.

    Attributes:
        architecture: which network.
        channels: 1 or 3.
        height: pixels.
        width: pixels.
        classes: number of outputs.
        mean: per channel, of x/255 over the clean pool.
        std: per channel, of x/255 over the clean pool.
    """

    architecture: Architecture
    channels: int
    height: int
    width: int
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class HeadSpec:
    """What a control on a trusted network is.

    Attributes:
        backbone: SHA-256 of the trusted network's file.
        trunk: SHA-256 of its graph as it is run.
        features: D, numbers that the trunk gives for an image.
        classes: number of outputs.
        architecture: the word for it in reports.
    """

    backbone: str
    trunk: str
    features: int
    classes: int
    architecture: Literal["head"] = "head"


class Trunk(Protocol):
    """A trusted network without its last layer, that is run and never trained (`kdaudit.backbone`)."""

    @property
    def model(self) -> bytes:
        """Its graph, from `kdaudit.grafting.cut`."""

    @property
    def origin(self) -> str:
        """SHA-256 of the file that it came in."""

    @property
    def digest(self) -> str:
        """SHA-256 of the graph."""

    @property
    def width(self) -> int:
        """D."""

    def features(self, planes: NDArray[np.float32]) -> NDArray[np.float32]:
        """x/255 [N, C, H, W] -> features [N, D]."""


class _Block(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al., 2016)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _convolution(width, width, 1)
        self.second = _convolution(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, H, W] -> the same shape."""
        return torch.relu(self.second(torch.relu(self.first(x))) + x)


def _convolution(inputs: int, outputs: int, stride: int, size: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False), nn.BatchNorm2d(outputs))


def _activated(inputs: int, outputs: int, stride: int, size: int = 3) -> nn.Sequential:
    return nn.Sequential(_convolution(inputs, outputs, stride, size), nn.ReLU(inplace=True))


class ResidualNet(nn.Module):
    """A short residual network.

    At full resolution it has one convolution only; the blocks come after the first stride, where an image costs a
    quarter: more faithful and cheaper than a block at full resolution. Of larger images that one convolution makes a
    map of `MAP_SIDE`: a few hundred images teach that much, and no deeper network (docs/design/distillation.md).
    """

    def __init__(self, channels: int, classes: int, widths: Sequence[int], stem_stride: int) -> None:
        super().__init__()
        self.stem = _activated(channels, widths[0], stem_stride, 3 if stem_stride <= 2 else stem_stride // 2 * 2 + 3)
        if len(widths) == 1:  # too small an image to stride over
            stages: list[nn.Module] = [_Block(widths[0])]
        else:
            stages = [nn.Sequential(_activated(a, b, 2), _Block(b)) for a, b in pairwise(widths)]
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(2 * widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Standardised images [B, C, H, W] -> logits [B, K]."""
        x = self.stages(self.stem(x))
        # Mean and maximum: a thin stroke fills little of a 7x7 map and drowns in the mean alone.
        logits: Tensor = self.head(torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1))
        return logits


class Standardised(nn.Module):
    """The body of a control: x/255 [N, C, H, W] in, logits [N, K] out."""

    mean: Tensor
    std: Tensor

    def __init__(self, body: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.body = body
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """x/255 [B, C, H, W] -> logits [B, K]."""
        logits: Tensor = self.body((x - self.mean) / self.std)
        return logits


class Head(nn.Module):
    """A small perceptron over features."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor, classes: int) -> None:
        super().__init__()
        width = HIDDEN if classes <= HIDDEN else 2 * HIDDEN
        self.hidden, self.scores = nn.Linear(len(mean), width), nn.Linear(width, classes)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, features: Tensor) -> Tensor:
        """Features [B, D] -> logits [B, K]."""
        logits: Tensor = self.scores(torch.relu(self.hidden((features - self.mean) / self.std)))
        return logits


class Headed(nn.Module):
    """A head over a trusted network's features: x/255 [B, C, H, W] in, logits [B, K] out; the head alone learns."""

    def __init__(self, trunk: Trunk, head: nn.Module) -> None:
        super().__init__()
        self.trunk, self.head = trunk, head

    def seen(self, x: Tensor) -> Tensor:
        """x/255 [B, C, H, W] -> features [B, D]."""
        return torch.from_numpy(self.trunk.features(x.numpy()))

    def forward(self, x: Tensor) -> Tensor:
        """x/255 [B, C, H, W] -> logits [B, K]."""
        logits: Tensor = self.head(self.seen(x))
        return logits


def headed(trunk: Trunk, features: NDArray[np.float32], classes: int, seed: int) -> Headed:
    """A control with a fresh head; `features` [n, D] of clean images say what is usual."""
    mean, std = (torch.from_numpy(of.astype(np.float32)) for of in (features.mean(0), features.std(0)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # A feature that hardly ever moves says nothing, and would say much if its spread were made one.
        return Headed(trunk, Head(mean, std + 0.1 * std.mean() + 1e-6, classes))


def learner(network: nn.Module) -> nn.Module:
    """The part of a control that learns."""
    return network.head if isinstance(network, Headed) else network


def seen(network: nn.Module, x: Tensor) -> Tensor:
    """What that part is given for x/255 [B, C, H, W]."""
    return network.seen(x) if isinstance(network, Headed) else x


def choose_architecture(height: int, width: int, *, on_gpu: bool) -> Architecture:
    """The network for images of this size."""
    return "resnet18" if on_gpu and max(height, width) > SMALL_SIDE else "residual"


def build(spec: StudentSpec, seed: int) -> Standardised:
    """A control with fresh weights: the same seed gives the same weights.

    Raises:
        ValueError: the architecture does not serve such images.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Standardised(_body(spec), spec.mean, spec.std)


def multiplications(spec: StudentSpec) -> int:
    """How many a control takes for one image, in its convolutions and linear layers."""
    counts: list[int] = []

    def count(layer: nn.Module, _inputs: object, output: Tensor) -> None:
        assert isinstance(layer.weight, Tensor)
        counts.append(output[0].numel() * layer.weight[0].numel())

    network = build(spec, 0).eval()
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    with torch.no_grad():
        network(torch.zeros(1, spec.channels, spec.height, spec.width))
    return sum(counts)


def _body(spec: StudentSpec) -> nn.Module:
    if spec.architecture == "residual":
        side = max(spec.height, spec.width)
        stages = min(3, max(1, round(math.log2(side / 4))))
        widths = [_width(spec.classes) << i for i in range(stages)]
        stride = 1 if side <= 48 else max(2, round(side / MAP_SIDE))
        return ResidualNet(spec.channels, spec.classes, widths, stride)
    if max(spec.height, spec.width) <= SMALL_SIDE:
        raise ValueError(f"{spec.architecture} is for images larger than {SMALL_SIDE} px")
    net: Any = _torchvision_models().resnet18(weights=None, num_classes=spec.classes)
    if spec.channels == 1:
        net.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    return cast("nn.Module", net)


def _width(classes: int) -> int:
    """Channels of the first stage: more classes need more features to tell them apart."""
    return 24 if classes <= 20 else 32 if classes <= 100 else 48


def _torchvision_models() -> Any:
    """The one door to torchvision.

    A torchvision that was built for another torch (one with CUDA beside a CPU-only one, say) cannot load its compiled
    operators, and its import ends in "operator torchvision::nms does not exist". Declaring the two names is enough
    then: no network here calls them. Where its own load, a second declaration would end the process.
    """
    global _operators  # noqa: PLW0603  the declaration lives as long as its library object
    try:
        from torchvision import models
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
        _operators = library
        from torchvision import models
    return models


_operators: torch.library.Library | None = None
