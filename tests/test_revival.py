"""A control's file becomes a network again that answers as the file does and goes on learning from there."""

import numpy as np
import onnx
import pytest
import torch
from test_export import NAMES

from kdaudit.errors import UsageError
from kdaudit.export import export_student
from kdaudit.opening import open_session
from kdaudit.preprocess import Preprocess
from kdaudit.revival import revived
from kdaudit.signature import Signature
from kdaudit.student import StudentSpec, build
from kdaudit.views import to_planes


def signature(side: int, channels: int) -> Signature:
    shape = (None, channels, side, side)
    return Signature(
        "image", "float32", shape, "NCHW", None, side, side, channels, "scores", "float32", (None, len(NAMES)),
        "logits", len(NAMES), NAMES,
    )  # fmt: skip


def spec(side: int, channels: int = 3, architecture: str = "residual") -> StudentSpec:
    return StudentSpec(architecture, channels, side, side, len(NAMES), (0.4,) * channels, (0.2,) * channels)


def images(n: int, side: int, channels: int = 3) -> np.ndarray:
    rng = np.random.default_rng(5)
    coarse = rng.integers(0, 256, (n, 4, 4, channels)).repeat(side // 4, 1).repeat(side // 4, 2)
    return np.clip(coarse + rng.normal(0, 20, coarse.shape), 0, 255).astype(np.uint8)


def trained(which: StudentSpec, seed: int) -> torch.nn.Module:
    """A network whose norms have seen images, so that folding them changes every weight."""
    network = build(which, seed).train()
    optimizer = torch.optim.SGD(network.parameters(), 0.05)
    x = to_planes(images(32, which.height, which.channels))
    for _ in range(3):
        loss = torch.nn.functional.cross_entropy(network(x), torch.arange(32) % len(NAMES))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


@pytest.mark.parametrize(
    ("side", "channels", "architecture"),
    [(32, 3, "residual"), (8, 1, "residual"), (96, 3, "residual"), (96, 3, "resnet18")],
)
def test_it_answers_as_the_file_and_keeps_its_answers_while_it_learns(tmp_path, side, channels, architecture):
    which, pixels = spec(side, channels, architecture), images(64, side, channels)
    preprocess = Preprocess.parse(f"{side}x{side}x{channels}-stretch-RGB-NCHW-unit", "float32", 4)
    export_student(trained(which, 1), preprocess, signature(side, channels), pixels[:16], tmp_path / "control.onnx")
    data = (tmp_path / "control.onnx").read_bytes()
    logits = open_session(data, signature(side, channels), provider="cpu").logits(preprocess.apply(pixels))
    network = revived(data, spec(side, channels, architecture), pixels, logits)
    x = to_planes(pixels)
    with torch.inference_mode():
        np.testing.assert_allclose(network(x).numpy(), logits, atol=1e-3 * np.ptp(logits))
        learning = network.train()(x).numpy()  # norms by the batch's own mean and spread
    np.testing.assert_allclose(learning, logits, atol=0.02 * np.ptp(logits))


def test_another_architecture_is_refused(tmp_path):
    pixels = images(64, 32)
    preprocess = Preprocess.parse("32x32x3-stretch-RGB-NCHW-unit", "float32", 4)
    export_student(trained(spec(32), 1), preprocess, signature(32, 3), pixels[:16], tmp_path / "control.onnx")
    data = (tmp_path / "control.onnx").read_bytes()
    logits = open_session(data, signature(32, 3), provider="cpu").logits(preprocess.apply(pixels))
    with pytest.raises(UsageError, match="another architecture"):
        revived(data, spec(8), pixels, logits)
    changed = onnx.load_from_string(data)
    for one in changed.graph.initializer:
        if one.name.endswith("head.bias"):
            one.CopyFrom(onnx.numpy_helper.from_array(np.full(len(NAMES), np.nan, np.float32), one.name))
    with pytest.raises(UsageError, match="does not hold the network"):
        revived(changed.SerializeToString(), spec(32), pixels, logits)
