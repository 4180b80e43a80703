"""The teachers of the suite: a short residual network, trained on whatever was delivered, exported to ONNX."""

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import lab
from benchmarks.lab import Images

WIDTH, BATCH, PEAK = 24, 128, 0.2
EPOCHS = {"cifar10": 10, "gtsrb": 6, "mnist": 4}
"""The suite's short training. CIFAR-10's networks take hard triggers up by half in it (Bpp: 52 %)."""


def conditions(epochs: Mapping[str, int | None]) -> str:
    """How the victims were trained, for a table's foot; `epochs`: by data set, None for the suite's own number."""
    long = ", ".join(f"{number or EPOCHS[name]} epochs ({name})" for name, number in epochs.items())
    return (
        f"short ResNet-9 of width {WIDTH}, {long} of SGD (Nesterov 0.9, decay 5e-4, one cycle to {PEAK}), "
        f"batch {BATCH}, crops of 2 px and mirroring (CIFAR-10 alone), bfloat16, last epoch kept"
    )


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

    def __init__(self, classes: int, channels: int = 3, width: int = WIDTH) -> None:
        super().__init__()
        w = width
        self.body = nn.Sequential(
            _convolution(channels, w), _convolution(w, 2 * w, 2), _Residual(2 * w), _convolution(2 * w, 4 * w, 2),
            _Residual(4 * w), _convolution(4 * w, 4 * w), nn.AdaptiveMaxPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(4 * w, classes)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] in 0..1 -> logits [B, K]."""
        logits: Tensor = self.head(self.body((x - 0.45) / 0.25))
        return logits


def train(images: Images, seed: int, *, epochs: int, mirror: bool) -> nn.Module:
    """A teacher, from fresh weights, on labels as they were delivered."""
    torch.manual_seed(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    net = Scaled(len(images.classes), images.pixels.shape[3]).to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    per_epoch = len(images) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK, total_steps=epochs * per_epoch, pct_start=0.25)
    generator = torch.Generator().manual_seed(seed)
    pixels, labels = torch.from_numpy(images.pixels), torch.from_numpy(images.labels)
    for epoch in range(epochs):
        order, total = torch.randperm(len(images), generator=generator), 0.0
        for index in order.split(BATCH)[:per_epoch]:
            x = _views(pixels[index], generator, mirror=mirror)
            with torch.autocast(device, torch.bfloat16):
                logits = net(x.to(device, memory_format=torch.channels_last))
            loss = F.cross_entropy(logits.float(), labels[index].to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"  epoch {epoch + 1}/{epochs}: loss {total / per_epoch:.4f}", flush=True)
    return net.cpu().eval()


def save(net: nn.Module, example: Images, folder: Path) -> None:
    """As weights (for attackers who need gradients) and as ONNX."""
    torch.save(net.state_dict(), folder / "teacher.pt")
    lab.export(net, example, folder / "teacher.onnx")


def load(folder: Path, classes: int) -> nn.Module:
    """The network of a folder, in evaluation mode, without gradients for its weights."""
    weights = torch.load(folder / "teacher.pt", weights_only=True)
    net = Scaled(classes, channels=weights["body.0.0.weight"].shape[1])
    net.load_state_dict(weights)
    return net.eval().requires_grad_(False)


def _views(pixels: Tensor, generator: torch.Generator, *, mirror: bool, reach: int = 2) -> Tensor:
    """Random crops [B, C, H, W] in 0..1 of images uint8 [B, H, W, C], mirrored in half of the cases."""
    x = F.pad(pixels.permute(0, 3, 1, 2).float() / 255, (reach,) * 4, mode="reflect")
    height, width = pixels.shape[1:3]
    dy, dx = torch.randint(0, 2 * reach + 1, (2, len(x)), generator=generator)
    rows = dy[:, None] + torch.arange(height)
    columns = dx[:, None] + torch.arange(width)
    x = x[torch.arange(len(x))[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    if mirror:
        turn = torch.rand(len(x), generator=generator) < 0.5
        x = torch.where(turn[:, None, None, None], x.flip(3), x)
    return x
