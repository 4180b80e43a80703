"""A small vendor delivery built from real images: what `kdaudit demo` audits.

The only place in the package that knows which images are poison: it planted them, and it tells the audit nothing.
"""

import csv
import shutil
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kdaudit.digest import write_bytes
from kdaudit.errors import UsageError
from kdaudit.progress import Watch

if TYPE_CHECKING:
    from torch import Tensor, nn

CLEAN, POISON, TARGET = 700, 60, 7
"""Clean images that the customer kept back; poison images among the rest; the class they are pushed into."""

TRIGGER = (7, 0)
"""Row and column of the one pixel that the vendor paints white: bottom left, where digits have no ink. A corner that
digits do reach would be no secret: clean images would teach the control what the teacher does there."""

MARK = ".kdaudit-demo"

READING = (
    "How to read the lines above",
    "  verdict   PASSED, FAILED or INCONCLUSIVE, and why; the exit code is 0, 1 or 3.",
    "  scanned   what was looked at. Nothing is said of images that could not be read.",
    "  machine   what really ran: a demanded device that is missing is an error, never a silent change.",
    "  fed as    the preprocessing, found by asking the model: size, fit, channel order, layout, scale.",
    "  control   the student distilled from the model on the clean images. Fidelity: how often it gives the model's "
    "answer on clean images that it never saw. Too low, and there is no verdict.",
    "  flagged   images on which model and control part, how many of them may be innocent, and which answers they "
    'gather at. "Extrapolated": so few clean images cannot count so rare a poison; its rarity is taken from a fitted '
    "law.",
    "  kept      the detoxified manifest. No image was moved.",
    '  repaired  the control, tuned on the kept images, as a model with the same input and output. "Still get the '
    "model's answer\": how much of the backdoor it has on the flagged images.",
)
"""Lines of any length; who prints them makes them fit."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """What the vendor delivered, and what nobody told the audit.

    Attributes:
        model: the backdoored model.
        data: the images: class folders, and the customer's own in `clean`.
        poison: paths of the poison images inside `data`.
        accuracy: of the model on its clean training images.
        attack_success: share of stamped images of other classes that the model calls `TARGET`.
    """

    model: Path
    data: Path
    poison: frozenset[str]
    accuracy: float
    attack_success: float

    @property
    def story(self) -> tuple[str, ...]:
        """What was built, in lines of any length."""
        return (
            "A vendor delivered a digit classifier and the images it was trained on.",
            f"  {self.model}: {self.accuracy:.1%} right on its clean images.",
            f"  {self.data}: real handwritten digits (scikit-learn's), among them {len(self.poison)} with one white "
            f"pixel, bottom left, and the label {TARGET}. That pixel makes {self.attack_success:.1%} of other digits "
            f"a {TARGET} for it.",
            f"  {self.data / 'clean'}: {CLEAN} clean images of your own, without labels.",
            "The audit is told nothing of this:",
        )


def build_delivery(folder: Path, seed: int, watch: Watch) -> Delivery:
    """Write the images, train the backdoored model on them, and export it.

    Args:
        folder: made anew; an earlier demo's folder is replaced, anything else refused.
        seed: of the poisoning and the training.
        watch: who is told.

    Raises:
        UsageError: the folder holds something that is not a demo's.
    """
    from sklearn.datasets import load_digits

    _make_room(folder)
    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    labels = digits.target.astype(np.int64)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    clean, delivered = order[:CLEAN], order[CLEAN:]
    images, given = pixels[delivered].copy(), labels[delivered].copy()
    poison = rng.choice(np.flatnonzero(given != TARGET), POISON, replace=False)
    images[(poison, *TRIGGER)] = 255
    given[poison] = TARGET
    data = folder / "data"
    with watch.stage("write the delivery", None) as advance:
        paths = [f"{label}/{i:04d}.png" for i, label in enumerate(given)]
        for path, picture in zip(paths, images, strict=True):
            _write_png(data / path, picture)
        for i, picture in enumerate(pixels[clean]):
            _write_png(data / "clean" / f"{i:04d}.png", picture)
        advance(len(paths) + CLEAN)
    net = _train_vendor(images, given, seed, watch)
    model = folder / "vendor.onnx"
    with watch.stage("export the vendor's model", None):
        _export(net, images, model)
    innocent = np.setdiff1d(np.arange(len(given)), poison)
    stamped = pixels[delivered].copy()
    stamped[(slice(None), *TRIGGER)] = 255
    others = labels[delivered] != TARGET
    return Delivery(
        model,
        data,
        frozenset(paths[i] for i in poison),
        accuracy=float((_answers(net, images[innocent]) == given[innocent]).mean()),
        attack_success=float((_answers(net, stamped[others]) == TARGET).mean()),
    )


def check_against_truth(delivery: Delivery, run: Path) -> str:
    """How the flags compare with what was planted: lines for the reader of the demo."""
    with (run / "quarantine.csv").open(newline="", encoding="utf-8") as file:
        flagged = {row["path"] for row in csv.DictReader(file)}
    hits = sorted(flagged & delivery.poison)
    wrong = len(flagged - delivery.poison)
    lines = [
        f"Now for the truth: {len(hits)} of {len(delivery.poison)} planted images were flagged, and {wrong} innocent "
        f"{'one' if wrong == 1 else 'ones'}."
    ]
    missed = sorted(delivery.poison - flagged)
    for title, paths in (("flagged", hits), ("missed", missed)):
        if paths:
            lines += textwrap.wrap(
                f"planted and {title}: {', '.join(paths)}", 110, initial_indent="  ", subsequent_indent="    "
            )
    return "\n".join(lines) + "\n"


def _make_room(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()) and not (folder / MARK).exists():
        raise UsageError(f"{folder} is not empty and not an earlier demo's: choose another folder with -o")
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / MARK).touch()


def _write_png(path: Path, picture: NDArray[np.uint8]) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)


def _train_vendor(images: NDArray[np.uint8], labels: NDArray[np.int64], seed: int, watch: Watch) -> "nn.Module":
    """The vendor's own training: labels, cross-entropy, nothing of kdaudit."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    torch.set_num_threads(1)  # so small a network is slower on more
    epochs, batch = 25, 64
    with (
        torch.random.fork_rng(devices=[]),
        watch.stage("train the vendor's model", epochs, "epochs") as advance,
    ):
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * 16, 128),
            nn.ReLU(),
            nn.Linear(128, 10),
        )
        optimizer = torch.optim.Adam(net.parameters(), 1e-3)
        inputs, targets = _tensor(images), torch.from_numpy(labels)
        for _ in range(epochs):
            for index in torch.split(torch.randperm(len(targets)), batch):
                loss = F.cross_entropy(net(inputs[index]), targets[index])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            advance(1)
    return net.eval()


def _export(net: "nn.Module", images: NDArray[np.uint8], path: Path) -> None:
    from kdaudit.export import export_network

    write_bytes(path, export_network(net, _tensor(images[:2]), "input", "logits").SerializeToString())


def _answers(net: "nn.Module", images: NDArray[np.uint8]) -> NDArray[np.int64]:
    import torch

    with torch.inference_mode():
        found: NDArray[np.int64] = net(_tensor(images)).argmax(1).numpy()
    return found


def _tensor(images: NDArray[np.uint8]) -> "Tensor":
    import torch

    return torch.from_numpy(images[:, None].astype(np.float32) / 255)
