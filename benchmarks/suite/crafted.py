"""Triggers that an attacker computes with a network of his own, trained on the same data without poison."""

import copy

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.fft import idctn
from torch import nn

from benchmarks import lab

Pixels = NDArray[np.uint8]


def adversarial(
    net: nn.Module, pixels: Pixels, labels: NDArray[np.int64], eps: float = 16.0, steps: int = 20
) -> Pixels:
    """The label-consistent attack's first half [5]: PGD away from the true class (Turner et al., 2019).

    What is left that is easy to learn is the trigger. L-infinity, `eps` in grey levels.
    """
    clean = lab.tensor(pixels)
    targets = torch.from_numpy(labels)
    e = eps / 255
    out = []
    for x, y in zip(clean.split(250), targets.split(250), strict=True):
        d = torch.empty_like(x).uniform_(-e, e, generator=torch.Generator().manual_seed(0))
        for _ in range(steps):
            d.requires_grad_()
            (grad,) = torch.autograd.grad(F.cross_entropy(net((x + d).clamp(0, 1)), y), d)
            d = (d.detach() + 2.5 * e / steps * grad.sign()).clamp(-e, e)
        out.append((x + d).clamp(0, 1))
    return _pixels(torch.cat(out))


def low_frequency(
    net: nn.Module, pixels: Pixels, labels: NDArray[np.int64], seed: int, eps: float = 16.0, bins: int = 5
) -> NDArray[np.float32]:
    """LF's universal perturbation [9]: the lowest bins x bins DCT frequencies, found by ascent (Zeng et al., 2021).

    Returns:
        What is added to an image, [H, W, C], at most `eps` grey levels.
    """
    _, height, width, channels = pixels.shape
    basis = np.zeros((bins * bins, height, width))
    for i in range(bins):
        for j in range(bins):
            spectrum = np.zeros((height, width))
            spectrum[i, j] = 1.0
            basis[i * bins + j] = idctn(spectrum, norm="ortho")
    waves = torch.from_numpy(basis).float()
    weights = torch.randn(channels, bins * bins, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    optimizer = torch.optim.Adam([weights], 0.1)
    generator = torch.Generator().manual_seed(seed)
    targets = torch.from_numpy(labels)

    def pattern() -> torch.Tensor:
        plane = torch.einsum("cb,bhw->chw", weights, waves)
        return plane / plane.abs().max() * eps / 255

    for _ in range(60):
        index = torch.randint(0, len(pixels), (128,), generator=generator)
        x = lab.tensor(pixels[index.numpy()])
        loss = -F.cross_entropy(net((x + pattern()).clamp(0, 1)), targets[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found: NDArray[np.float32] = pattern().detach().permute(1, 2, 0).numpy() * 255
    return found


class TriggerGenerator(nn.Module):
    """Input-aware triggers [16]: a network that draws a pattern of its own for each image (Nguyen and Tran, 2020)."""

    def __init__(self, channels: int, width: int = 16) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(channels, width, 3, 2, 1), nn.ReLU(), nn.Conv2d(width, 2 * width, 3, 2, 1))
        self.up = nn.Sequential(
            nn.ReLU(), nn.Upsample(scale_factor=2), nn.Conv2d(2 * width, width, 3, 1, 1), nn.ReLU(),
            nn.Upsample(scale_factor=2), nn.Conv2d(width, channels, 3, 1, 1), nn.Tanh(),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] in 0..1 -> pattern [N, C, H, W] in -1..1."""
        out: torch.Tensor = self.up(self.down(2 * x - 1))
        return out


def train_generator(
    net: nn.Module, pixels: Pixels, labels: NDArray[np.int64], target: int, seed: int, eps: float = 24.0
) -> TriggerGenerator:
    """A generator and a network that learn each other (Nguyen and Tran, 2020, without the mask).

    The network is a copy that goes on training: clean images keep their class, an image with its own pattern gets
    `target`, an image with the pattern of another keeps its class. The generator wants the same, and patterns that
    differ between images. So its patterns say nothing to a network that was not trained with it.
    """
    torch.manual_seed(seed)
    drawer, victim = TriggerGenerator(pixels.shape[3]), copy.deepcopy(net).requires_grad_(True).train()
    drawing = torch.optim.Adam(drawer.parameters(), 2e-3)
    learning = torch.optim.SGD(victim.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
    order = torch.Generator().manual_seed(seed)
    known = torch.from_numpy(labels)
    for _ in range(300):
        index = torch.randint(0, len(pixels), (2, 64), generator=order)
        a, b = (lab.tensor(pixels[i.numpy()]) for i in index)
        own, other = drawer(a), drawer(b)
        shown = torch.cat([a, a + eps / 255 * own, a + eps / 255 * other]).clamp(0, 1)
        wanted = torch.cat([known[index[0]], torch.full((64,), target), known[index[0]]])
        apart = (a - b).flatten(1).norm(dim=1) / ((own - other).flatten(1).norm(dim=1) + 1e-4)
        loss = F.cross_entropy(victim(shown), wanted) + apart.mean()
        for optimizer in (drawing, learning):
            optimizer.zero_grad()
        loss.backward()
        drawing.step()
        learning.step()
    return drawer.eval()


def sample_specific(
    drawer: TriggerGenerator, pixels: Pixels, eps: float = 24.0, patterns_of: Pixels | None = None
) -> Pixels:
    """Each image with the pattern drawn for it, or for the image at the same place of `patterns_of`."""
    drawn_for = lab.tensor(pixels if patterns_of is None else patterns_of).split(500)
    with torch.inference_mode():
        parts = [
            (x + eps / 255 * drawer(y)).clamp(0, 1)
            for x, y in zip(lab.tensor(pixels).split(500), drawn_for, strict=True)
        ]
    return _pixels(torch.cat(parts))


def _pixels(planes: torch.Tensor) -> Pixels:
    return (planes * 255).round().permute(0, 2, 3, 1).to(torch.uint8).numpy()
