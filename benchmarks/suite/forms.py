"""What victims look like: the suite's own network, others that share nothing with it, some for larger images.

All take x/255 [B, C, H, W] and give logits [B, K]; `outside` is how the exported file wants to be fed and answers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.suite.pretrained import Squeeze
from kdaudit.preprocess import Preprocess

WIDTH = 24


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_convolution(width, width), _convolution(width, width))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.body(x)
        return out


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class Scaled(nn.Module):
    """x/255 in, logits out: standardises with fixed numbers, as exported models often do."""

    def __init__(self, classes: int, channels: int, _side: int) -> None:
        super().__init__()
        w = WIDTH
        self.body = nn.Sequential(
            _convolution(channels, w), _convolution(w, 2 * w, 2), _Residual(2 * w), _convolution(2 * w, 4 * w, 2),
            _Residual(4 * w), _convolution(4 * w, 4 * w), nn.AdaptiveMaxPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(4 * w, classes)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] in 0..1 -> logits [B, K]."""
        logits: Tensor = self.head(self.body((x - 0.45) / 0.25))
        return logits


class Plain(nn.Module):
    """Convolutions, pooling, dropout and two dense layers, without normalisation: what tutorials teach."""

    def __init__(self, classes: int, channels: int, side: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, width in ((channels, 32), (32, 64)):
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)]
            layers += [nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.2)]
        self.body = nn.Sequential(
            *layers, nn.Flatten(), nn.Linear(64 * (side // 4) ** 2, 256), nn.ReLU(), nn.Dropout(0.4)
        )
        self.head = nn.Linear(256, classes)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] in 0..1 -> logits [B, K]."""
        logits: Tensor = self.head(self.body(x))
        return logits


class Transformer(nn.Module):
    """A small vision transformer (Dosovitskiy et al., 2021): patches of 4 px, four layers, mean of the tokens."""

    def __init__(self, classes: int, channels: int, side: int, width: int = 96, depth: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, width, 4, 4)
        self.places = nn.Parameter(0.02 * torch.randn(1, (side // 4) ** 2, width))
        self.layers = nn.ModuleList(_Attending(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] in 0..1 -> logits [B, K]."""
        x = self.patches((x - 0.45) / 0.25).flatten(2).transpose(1, 2) + self.places
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.head(self.norm(x).mean(1))
        return logits


class _Attending(nn.Module):
    """Attention, then a dense layer, each after a norm and beside a shortcut."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.dense = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        b, n, width = x.shape
        parts = self.mix(self.before(x)).view(b, n, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(parts[0], parts[1], parts[2])
        x = x + self.out(seen.transpose(1, 2).reshape(b, n, width))
        out: Tensor = x + self.dense(self.between(x))
        return out


class Strided(nn.Module):
    """The suite's network behind a convolution with strides, for larger images: what it sees is 32 by 32."""

    def __init__(self, classes: int, channels: int, side: int) -> None:
        super().__init__()
        stride = side // 32
        self.stem = nn.Sequential(nn.Conv2d(channels, WIDTH, 7, stride, 3), nn.ReLU())
        self.rest = Scaled(classes, WIDTH, side // stride)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] in 0..1 -> logits [B, K]."""
        logits: Tensor = self.rest(self.stem(x))
        return logits


class Enlarged(nn.Module):
    """`Strided` on images made three times as large: 32 px are 96."""

    def __init__(self, classes: int, channels: int, side: int) -> None:
        super().__init__()
        self.side = 3 * side
        self.inner = Strided(classes, channels, self.side)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] in 0..1 -> logits [B, K]."""
        logits: Tensor = self.inner(F.interpolate(x, size=(self.side, self.side), mode="bilinear", antialias=True))
        return logits


class _Nhwc(nn.Module):
    """Pixels last, probabilities out: what exporters of other frameworks write."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.permute(0, 3, 1, 2)).softmax(1)


class _Signed(nn.Module):
    """Pixels in -1..1."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x * 0.5 + 0.5)
        return logits


@dataclass(frozen=True)
class Form:
    """A victim's kind.

    Attributes:
        make: (classes, channels, side) -> network.
        what: for a table's foot.
        outside: what the exported file is, around the network; None: the network itself.
        layout: of the exported file's input.
        scale: of the exported file's input, as `kdaudit.preprocess` names it.
        softmax: whether the exported file answers with probabilities.
        times: side of the exported file's input over that of the data set's images.
        adam: peak rate of AdamW in place of SGD, which does not train it.
    """

    make: Callable[[int, int, int], nn.Module]
    what: str
    outside: Callable[[nn.Module], nn.Module] | None = None
    layout: str = "NCHW"
    scale: str = "unit"
    softmax: bool = False
    times: int = 1
    adam: float | None = None

    def feed(self, shape: Sequence[int]) -> Preprocess:
        """How the exported file wants to be fed with images of shape (H, W, C)."""
        height, width, channels = self.times * shape[0], self.times * shape[1], shape[2]
        return Preprocess.parse(f"{height}x{width}x{channels}-stretch-RGB-{self.layout}-{self.scale}")


USUAL = "resnet"
FORMS = {
    USUAL: Form(Scaled, f"short ResNet-9 of width {WIDTH}"),
    "plain": Form(
        Plain, "four convolutions and two dense layers without normalisation, NHWC in, softmax out", _Nhwc, "NHWC",
        softmax=True, adam=1e-3,
    ),
    "vit": Form(
        Transformer, "vision transformer of width 96 and depth 4, pixels in -1..1", _Signed, scale="symmetric",
        adam=2e-3,
    ),
    "strided": Form(Strided, f"short ResNet-9 of width {WIDTH} behind a strided convolution"),
    "large": Form(
        Enlarged, f"short ResNet-9 of width {WIDTH} behind a strided convolution, images enlarged to 96 px",
        lambda net: net.get_submodule("inner"), times=3,
    ),
    "pretrained": Form(Squeeze, "SqueezeNet 1.1, trained on ImageNet by others", adam=3e-4),
}  # fmt: skip
