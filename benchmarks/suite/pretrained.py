"""A victim that was somebody else's first: SqueezeNet 1.1, trained on ImageNet, with a head for other classes.

Most models that are handed around began like this. The weights are those of the third-party file, read where it lies.
"""

from functools import cache

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import lab

FILE = "winml_squeezenet_fp16.onnx"
BLUE_GREEN_RED_MEANS = (104.0, 117.0, 123.0)
"""What the file wants subtracted from pixels in 0..255, blue first (Caffe's convention)."""

FIRES = (
    (64, 16, 64), (128, 16, 64), (128, 32, 128), (256, 32, 128),
    (256, 48, 192), (384, 48, 192), (384, 64, 256), (512, 64, 256),
)  # fmt: skip
"""Inputs, squeezed and expanded channels of fire2 to fire9 (Iandola et al., 2016)."""

POOLED_AFTER = (1, 3)
"""Fires (0-based) that are followed by pooling."""


class _Fire(nn.Module):
    def __init__(self, inputs: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze1x1 = nn.Conv2d(inputs, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze1x1(x))
        return torch.cat([F.relu(self.expand1x1(x)), F.relu(self.expand3x3(x))], 1)


class Squeeze(nn.Module):
    """SqueezeNet 1.1 as ImageNet left it, and a linear head over the mean of its last features."""

    def __init__(self, classes: int, channels: int, _side: int) -> None:
        super().__init__()
        assert channels == 3
        self.conv1 = nn.Conv2d(3, 64, 3, 2)
        self.fires = nn.ModuleList(_Fire(*sizes) for sizes in FIRES)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(512, classes)
        self.register_buffer("means", torch.tensor(BLUE_GREEN_RED_MEANS).view(1, 3, 1, 1), persistent=False)
        weights = _weights()
        with torch.no_grad():
            for name, convolution in [("conv1", self.conv1), *self._convolutions()]:
                convolution.weight.copy_(torch.from_numpy(weights[f"{name}_w_0"]))
                convolution.bias.copy_(torch.from_numpy(weights[f"{name}_b_0"]))  # type: ignore[union-attr]

    def _convolutions(self) -> list[tuple[str, nn.Conv2d]]:
        return [
            (f"fire{number}/{name}", convolution)
            for number, fire in enumerate(self.fires, start=2)
            for name, convolution in fire.named_children()
            if isinstance(convolution, nn.Conv2d)
        ]

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] in 0..1, red first -> logits [B, K]."""
        x = F.max_pool2d(F.relu(self.conv1(255 * x.flip(1) - self.means)), 3, 2)
        for number, fire in enumerate(self.fires):
            x = fire(x)
            if number in POOLED_AFTER:
                x = F.max_pool2d(x, 3, 2)
        logits: Tensor = self.head(self.drop(x).mean((2, 3)))
        return logits


@cache
def _weights() -> dict[str, np.ndarray]:
    graph = onnx.load(lab.SHARED / "models" / "real" / FILE).graph
    return {one.name: onnx.numpy_helper.to_array(one).astype(np.float32) for one in graph.initializer}
