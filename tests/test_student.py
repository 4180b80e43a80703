"""The control's networks: sized from the images, the same for the same seed, blind to no scale."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from kdaudit.student import SMALL_SIDE, StudentSpec, build, choose_architecture

torch.set_num_threads(1)


def spec(architecture: str = "residual", channels: int = 3, side: int = 32, classes: int = 10) -> StudentSpec:
    return StudentSpec(architecture, channels, side, side, classes, (0.5,) * channels, (0.25,) * channels)  # type: ignore[arg-type]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("architecture", "side"),
    [
        ("residual", 4),
        ("residual", 8),
        ("residual", 28),
        ("residual", 32),
        ("residual", 64),
        ("residual", 96),
        ("residual", 225),
        ("resnet18", 80),
    ],
)
def test_every_network_gives_one_score_per_class(architecture, side, channels):
    net = build(spec(architecture, channels, side, 7), 0).eval()
    with torch.inference_mode():
        logits = net(torch.rand(2, channels, side, side))
    assert logits.shape == (2, 7)
    assert torch.isfinite(logits).all()
    assert not torch.equal(logits[0], logits[1])


def test_images_need_not_be_square():
    net = build(StudentSpec("residual", 3, 20, 48, 4, (0.5,) * 3, (0.25,) * 3), 0).eval()
    assert net(torch.rand(2, 3, 20, 48)).shape == (2, 4)


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one, same, other = (build(spec(), seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_the_input_is_standardised_with_the_pools_mean_and_spread():
    net = build(StudentSpec("residual", 3, 8, 8, 4, (0.1, 0.5, 0.9), (0.2, 0.25, 0.3)), 0).eval()
    x = torch.rand(2, 3, 8, 8)
    mean, std = torch.tensor([0.1, 0.5, 0.9]).view(1, 3, 1, 1), torch.tensor([0.2, 0.25, 0.3]).view(1, 3, 1, 1)
    assert torch.allclose(net(x), net.body((x - mean) / std))
    assert {"mean", "std"} <= net.state_dict().keys()  # they travel with the weights


@pytest.mark.parametrize(
    ("height", "width", "on_gpu", "expected"),
    [
        (28, 28, False, "residual"), (64, 64, True, "residual"), (SMALL_SIDE, SMALL_SIDE + 1, False, "residual"),
        (224, 224, False, "residual"), (224, 224, True, "resnet18"), (65, 10, True, "resnet18"),
    ],
)  # fmt: skip
def test_the_architecture_follows_size_and_device(height, width, on_gpu, expected):
    assert choose_architecture(height, width, on_gpu=on_gpu) == expected


def test_a_large_network_for_small_images_is_refused():
    with pytest.raises(ValueError, match="larger than 64 px"):
        build(spec("resnet18", side=64), 0)


@pytest.mark.parametrize("side", [65, 96, 128, 224, 299, 512])
def test_the_first_convolution_makes_a_small_map_of_large_images(side):
    stem = build(spec(side=side), 0).body.stem
    with torch.inference_mode():
        assert 24 <= stem(torch.rand(1, 3, side, side)).shape[-1] <= 40
    kernel, stride = stem[0][0].kernel_size[0], stem[0][0].stride[0]
    assert kernel > stride  # every pixel is seen


def test_more_classes_get_a_wider_network():
    def size(net: nn.Module) -> int:
        return sum(p.numel() for p in net.body.stages.parameters())  # type: ignore[union-attr]

    sizes = {k: size(build(spec(classes=k), 0)) for k in (2, 20, 21, 100, 101)}
    assert sizes[101] > sizes[100] == sizes[21] > sizes[20] == sizes[2]


def test_every_weight_learns():
    net = build(spec(side=16), 0).train()
    net(torch.rand(8, 3, 16, 16)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


OWN_OPERATORS = """
import torch
library = torch.library.Library("torchvision", "DEF")
library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
from torchvision import models
"""
"""A torchvision that matches its torch, as most installations have it: it brings its operators along."""


def test_a_torchvision_that_brings_its_operators_is_left_alone(tmp_path):
    """Declaring them for it ended the process on the first machine with a GPU: nothing here has such a torchvision."""
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(OWN_OPERATORS)
    (package / "models.py").write_text("own = True\n")
    line = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from kdaudit.student import _torchvision_models as door"
    done = subprocess.run(
        [sys.executable, "-c", f"{line}; assert door().own and door().own"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
