"""The teachers of the suite, trained on whatever was delivered and exported to ONNX."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import lab
from benchmarks.lab import Images
from benchmarks.suite.forms import FORMS, USUAL
from kdaudit.training import autocast

BATCH, PEAK = 128, 0.2
EPOCHS = {"cifar10": 10, "gtsrb": 6, "mnist": 4, "photos": 60}
"""The suite's short training. CIFAR-10's networks take hard triggers up by half in it (Bpp: 52 %)."""


def conditions(epochs: Mapping[str, int | None], forms: Sequence[str]) -> str:
    """How the victims were trained, for a table's foot; `epochs`: by data set, None for the suite's own number."""
    long = ", ".join(f"{number or EPOCHS[name]} epochs ({name})" for name, number in epochs.items())
    return (
        f"{'; '.join(map(_told, forms))}; {long}, batch {BATCH}, crops of a sixteenth and mirroring (CIFAR-10 and "
        "photographs alone), bfloat16 where the machine multiplies it, last epoch kept"
    )


def _told(form: str) -> str:
    rate = FORMS[form].adam
    how = f"SGD (Nesterov 0.9, decay 5e-4, one cycle to {PEAK})" if rate is None else f"AdamW (one cycle to {rate:g})"
    return f"{'' if form == USUAL else form + ': '}{FORMS[form].what}, {how}"


def train(images: Images, seed: int, *, epochs: int, mirror: bool, form: str = USUAL) -> nn.Module:
    """A teacher of a form, from fresh weights, on labels as they were delivered."""
    torch.manual_seed(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    _, side, _, channels = images.pixels.shape
    net = FORMS[form].make(len(images.classes), channels, side).to(device, memory_format=torch.channels_last).train()
    per_epoch, adam = len(images) // BATCH, FORMS[form].adam
    optimizer: torch.optim.Optimizer
    if adam is None:
        optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    else:
        optimizer = torch.optim.AdamW(net.parameters(), adam, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, adam or PEAK, total_steps=epochs * per_epoch, pct_start=0.25, cycle_momentum=adam is None
    )
    generator = torch.Generator().manual_seed(seed)
    pixels, labels = torch.from_numpy(images.pixels), torch.from_numpy(images.labels)
    for epoch in range(epochs):
        order, total = torch.randperm(len(images), generator=generator), 0.0
        for index in order.split(BATCH)[:per_epoch]:
            x = _views(pixels[index], generator, mirror=mirror, reach=max(2, side // 16))
            with autocast(device):
                logits = net(x.to(device, memory_format=torch.channels_last))
            loss = F.cross_entropy(logits.float(), labels[index].to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"  epoch {epoch + 1}/{epochs}: loss {total / per_epoch:.4f}", flush=True)
    return net.cpu().eval()


def save(net: nn.Module, example: Images, folder: Path, form: str = USUAL) -> None:
    """As weights (for attackers who need gradients) and as ONNX, in the form's own clothes."""
    torch.save(net.state_dict(), folder / "teacher.pt")
    kind = FORMS[form]
    dressed = kind.outside(net) if kind.outside else net
    lab.export(dressed, example, folder / "teacher.onnx", kind.feed(example.pixels.shape[1:]))


def load(folder: Path, example: Images, form: str = USUAL) -> nn.Module:
    """The network of a folder, in evaluation mode, without gradients for its weights."""
    _, side, _, channels = example.pixels.shape
    net = FORMS[form].make(len(example.classes), channels, side)
    net.load_state_dict(torch.load(folder / "teacher.pt", weights_only=True))
    return net.eval().requires_grad_(False)


def _views(pixels: Tensor, generator: torch.Generator, *, mirror: bool, reach: int) -> Tensor:
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
