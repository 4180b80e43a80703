"""Small real ONNX classifiers for the tests: each gives an image the class of the nearest of K patterns."""

import io
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from kdaudit.preprocess import Preprocess
from kdaudit.sample import Geometry

NOISE = 60.0
"""Standard deviation per pixel, in 0..255: about one copy in twenty is nearer to another picture."""

TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "uint8": TensorProto.UINT8}


@dataclass(frozen=True)
class Patterns:
    """K pictures and noisy copies of them."""

    pictures: NDArray[np.uint8]  # [K, H, W, C]

    @classmethod
    def draw(cls, classes: int = 5, size: int = 8, channels: int = 3, seed: int = 0) -> "Patterns":
        rng = np.random.default_rng(seed)
        blocks = rng.integers(-14, 15, (classes, size // 2, size // 2, channels))
        # Each class is brighter than the last and has a tint of its own: scale and channel order matter.
        tint = rng.integers(-24, 25, (classes, 1, 1, channels))
        light = np.linspace(70, 170, classes)[:, None, None, None]
        return cls(np.kron(blocks + tint + light, np.ones((1, 2, 2, 1))).astype(np.uint8))

    def copies(self, n: int, seed: int = 1, noise: float = NOISE) -> tuple[NDArray[np.uint8], list[int]]:
        """Noisy pictures [n, H, W, C] and their classes."""
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, len(self.pictures), n)
        pixels = self.pictures[labels] + rng.normal(0, noise, (n, *self.pictures.shape[1:]))
        return np.clip(pixels, 0, 255).astype(np.uint8), labels.tolist()

    def images(self, n: int, seed: int = 1, noise: float = NOISE) -> tuple[list[bytes], list[int]]:
        """Noisy pictures as PNG files, and their classes."""
        pixels, labels = self.copies(n, seed, noise)
        return [png(one) for one in pixels], labels


def png(pixels: NDArray[np.uint8]) -> bytes:
    """An image [H, W, C] as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, "PNG")
    return file.getvalue()


def classifier(
    patterns: Patterns,
    recipe: str,
    *,
    dtype: str = "float32",
    batch: int | None = None,
    head: str = "logits",
    rank3: bool = False,
    open_size: bool = False,
    weights_as_inputs: bool = False,
    names: tuple[str, ...] | None = None,
) -> onnx.ModelProto:
    """A model that wants its images as `recipe` says."""
    k, height, width, channels = patterns.pictures.shape
    ranks = (3 if rank3 else 2) if "-flat" in recipe else 4
    pre = Preprocess.parse(recipe, "float32", ranks)
    assert pre.geometry == Geometry(height, width, channels, pre.geometry.fit)
    templates = pre.apply(patterns.pictures).reshape(k, -1)
    # The logarithm of the odds under this noise: the model is as sure as it should be.
    variance = float(np.square(NOISE / np.asarray(pre.scale.std)).mean())
    weight = (templates.T / variance).astype(np.float32)
    bias = (-(templates**2).sum(1) / (2 * variance)).astype(np.float32)
    shape: list[int | str] = [batch or "batch", *pre.apply(patterns.pictures[:1]).shape[1:]]
    if open_size:
        at = (2, 3) if pre.layout == "NCHW" else (1, 2)
        shape = [f"side{i}" if i in at else size for i, size in enumerate(shape)]
    nodes = [helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT, name="cast")]
    nodes.append(helper.make_node("Flatten", ["pixels"], ["flat"], axis=1))
    nodes.append(helper.make_node("Gemm", ["flat", "weight", "bias"], ["logits"]))
    outputs = _head(head, nodes, k, batch, names)
    image = helper.make_tensor_value_info("image", TYPES[dtype], shape)
    inputs = [image]
    constants = [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(bias, "bias")]
    if weights_as_inputs:
        inputs += [helper.make_tensor_value_info(c.name, c.data_type, c.dims) for c in constants]
    constants += [numpy_helper.from_array(np.array([0, k, 1, 1]), "tall")] if head == "tall" else []
    graph = helper.make_graph(nodes, "patterns", inputs, outputs, constants)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=3 if weights_as_inputs else 8)


def _head(
    head: str, nodes: list[onnx.NodeProto], k: int, batch: int | None, names: tuple[str, ...] | None
) -> list[onnx.ValueInfoProto]:
    n = batch or "batch"
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, [n, k])
    if head == "logits":
        nodes.append(helper.make_node("Identity", ["logits"], ["scores"]))
    elif head == "probabilities":
        nodes.append(helper.make_node("Softmax", ["logits"], ["scores"], axis=1))
    elif head == "log-probabilities":
        nodes.append(helper.make_node("LogSoftmax", ["logits"], ["scores"], axis=1))
    elif head == "half":
        nodes.append(helper.make_node("Cast", ["logits"], ["scores"], to=TensorProto.FLOAT16))
        return [helper.make_tensor_value_info("scores", TensorProto.FLOAT16, [n, k])]
    elif head == "tall":
        nodes.append(helper.make_node("Reshape", ["logits", "tall"], ["scores"]))
        return [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [n, k, 1, 1])]
    elif head == "zipmap":
        nodes.append(helper.make_node("Softmax", ["logits"], ["inner"], axis=1))
        nodes.append(helper.make_node("ArgMax", ["inner"], ["label"], axis=1, keepdims=0))
        keys = {"classlabels_strings": names} if names else {"classlabels_int64s": list(range(k))}
        nodes.append(helper.make_node("ZipMap", ["inner"], ["map"], domain="ai.onnx.ml", **keys))
        key = TensorProto.STRING if names else TensorProto.INT64
        value = helper.make_tensor_type_proto(TensorProto.FLOAT, [])
        kind = helper.make_sequence_type_proto(helper.make_map_type_proto(key, value))
        label = helper.make_tensor_value_info("label", TensorProto.INT64, [n])
        return [label, helper.make_value_info("map", kind)]
    return [scores]
