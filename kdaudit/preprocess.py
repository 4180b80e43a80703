"""From decoded pixels to the teacher's input tensor: the scales that people use, and how one is applied.

Arrays in, arrays out. Which of them a teacher wants is found by `fitting`.
"""

from dataclasses import dataclass, replace
from typing import Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from kdaudit.sample import Fit, Geometry
from kdaudit.signature import InputType, Layout

Order = Literal["RGB", "BGR"]


@dataclass(frozen=True, slots=True)
class Scale:
    """An affine map per channel: `(x - mean) / std`, with x, mean and std in 0..255, channels in RGB order.

    Attributes:
        name: short name without hyphens, printed and accepted by `--preprocess`.
        mean: per channel; one value serves all channels.
        std: per channel; one value serves all channels; negative values invert the picture.
        colour: whether models of three channels use it too.
    """

    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    colour: bool = True

    def serves(self, channels: int) -> bool:
        """Whether models of so many channels are fed like this."""
        return len(self.mean) <= channels and (self.colour or channels == 1)

    @property
    def gain(self) -> float:
        """How much a step of a pixel moves the tensor, mean over the channels; above 0."""
        return float(np.mean([1 / abs(s) for s in self.std]))


def _unit(name: str, mean: tuple[float, ...], std: tuple[float, ...]) -> Scale:
    """A scale written the usual way, for x/255."""
    return Scale(name, tuple(255 * m for m in mean), tuple(255 * s for s in std))


SCALES: tuple[Scale, ...] = (
    _unit("unit", (0.0,), (1.0,)),  # x / 255
    Scale("raw", (0.0,), (1.0,)),  # 0..255
    _unit("symmetric", (0.5,), (0.5,)),  # -1..1
    _unit("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    _unit("cifar10", (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    _unit("cifar100", (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    _unit("gtsrb", (0.3403, 0.3121, 0.3214), (0.2724, 0.2608, 0.2669)),
    replace(_unit("mnist", (0.1307,), (0.3081,)), colour=False),  # strokes on black
    Scale("caffe", (123.68, 116.779, 103.939), (1.0,)),  # mean taken off, range kept
    Scale("centred", (128.0,), (1.0,)),
    _unit("inverted", (1.0,), (-1.0,)),  # 1 - x / 255: dark on light against light on dark
)
"""The scales that published models use. Three-channel means serve only three-channel models."""


def scale_named(name: str) -> Scale:
    """The scale of `SCALES` with this name.

    Raises:
        ValueError: there is none; the message lists them.
    """
    for scale in SCALES:
        if scale.name == name:
            return scale
    raise ValueError(f"{name!r} is none of {', '.join(scale.name for scale in SCALES)}")


@dataclass(frozen=True, slots=True)
class Preprocess:
    """Everything that happens to an image between its file and the network.

    Attributes:
        geometry: size, channels and fit.
        scale: the affine map.
        order: channel order of the tensor; RGB for one channel.
        layout: where the channels stand in the tensor.
        dtype: element type of the tensor.
        ranks: number of dimensions of the tensor; a flat input may be [N, P] or [N, P, 1].
    """

    geometry: Geometry
    scale: Scale
    order: Order
    layout: Layout
    dtype: InputType = "float32"
    ranks: int = 4

    @property
    def recipe(self) -> str:
        """A name that encodes every parameter, as printed, stored and accepted by `--preprocess`."""
        g = self.geometry
        return f"{g.height}x{g.width}x{g.channels}-{g.fit}-{self.order}-{self.layout}-{self.scale.name}"

    def apply(self, pixels: NDArray[np.uint8] | NDArray[np.float32]) -> NDArray[np.generic]:
        """Turn pixels [B, H, W, C], RGB, 0..255 (blends are float32) into the teacher's input tensor."""
        B, H, W, C = pixels.shape
        mean, std = (np.broadcast_to(np.asarray(v, np.float32), C) for v in (self.scale.mean, self.scale.std))
        planes = self.layout in ("NCHW", "flatCHW")
        whole = self.dtype == "uint8"
        tensor: NDArray[np.generic] = np.empty((B, C, H, W) if planes else pixels.shape, "u1" if whole else "f4")
        # Channel by channel into its place: a quarter of the time that whole arrays and a transposition take.
        for channel in range(C):
            place = C - 1 - channel if self.order == "BGR" else channel
            into, values = (tensor[:, place] if planes else tensor[..., place]), pixels[..., channel]
            if whole:
                into[...] = values if values.dtype == np.uint8 else np.clip(np.rint(values), 0, 255)
            else:
                np.subtract(values, mean[channel], out=into, dtype=np.float32)
                np.multiply(into, 1 / std[channel], out=into)
        if self.layout in ("flat", "flatCHW"):
            tensor = tensor.reshape(B, H * W * C, *(1,) * (self.ranks - 2))
        return tensor.astype(self.dtype, copy=False)

    def undo(self, tensor: NDArray[np.generic]) -> NDArray[np.float32]:
        """From the teacher's input tensor back to planes, x/255 float32 [B, C, H, W].

        In the steps and the order in which a control's graph does it: a backbone with whole-number arithmetic answers
        otherwise where the last digit is another.
        """
        g, values = self.geometry, tensor.astype(np.float32)
        if self.layout in ("NCHW", "flatCHW"):
            values = values.reshape(-1, g.channels, g.height, g.width)
        else:
            values = values.reshape(-1, g.height, g.width, g.channels).transpose(0, 3, 1, 2)
        if self.order == "BGR":
            values = values[:, ::-1]
        std, mean = self.planes
        return np.ascontiguousarray(values * std + mean)

    @property
    def planes(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """What brings a tensor of planes back to x/255, by channel: factors and summands, float32 [1, C, 1, 1]."""
        scales = ((1.0,), (0.0,)) if self.dtype == "uint8" else (self.scale.std, self.scale.mean)
        std, mean = (np.broadcast_to(np.asarray(v, np.float32), self.geometry.channels) for v in scales)
        return std.reshape(1, -1, 1, 1) / np.float32(255), mean.reshape(1, -1, 1, 1) / np.float32(255)

    @classmethod
    def parse(cls, recipe: str, dtype: InputType = "float32", ranks: int = 4) -> "Preprocess":
        """The inverse of `recipe`.

        Args:
            recipe: such as ``32x32x3-stretch-RGB-NCHW-unit``.
            dtype: element type of the tensor.
            ranks: number of dimensions of the tensor.

        Raises:
            ValueError: the text is no recipe; the message says which part is wrong.
        """
        parts = recipe.split("-")
        if len(parts) != 5:
            raise ValueError(f"{recipe!r} has {len(parts)} parts between hyphens, not 5")
        size, fit, order, layout, name = parts
        numbers = size.split("x")
        if len(numbers) != 3 or not all(number.isdecimal() and 0 < int(number) <= 4096 for number in numbers):
            raise ValueError(f"{size!r} is not HEIGHTxWIDTHxCHANNELS")
        height, width, channels = map(int, numbers)
        scale = scale_named(name)
        if channels not in (1, 3) or len(scale.mean) > channels:
            raise ValueError(f"{name!r} does not fit {channels} channels; there are 1 or 3")
        for word, known in ((fit, get_args(Fit)), (order, get_args(Order)), (layout, get_args(Layout))):
            if word not in known:
                raise ValueError(f"{word!r} is none of {', '.join(known)}")
        geometry = Geometry(height, width, 3 if channels == 3 else 1, cast("Fit", fit))
        return cls(geometry, scale, cast("Order", order), cast("Layout", layout), dtype, ranks)
