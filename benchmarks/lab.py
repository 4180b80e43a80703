"""What every benchmark needs: real images, victims trained on them, and a place to keep both.

Ground truth (which images were poisoned) lives here and never in the package. Data sets are read where they lie
(`../shared/data`, or `$KDAUDIT_SHARED/data`); what is trained or written goes to `$KDAUDIT_LAB`
(default `~/.cache/kdaudit-lab`), keyed by recipe, so that every stage resumes.
"""

import csv
import datetime
import io
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from kdaudit.decoder.resize import resize
from kdaudit.preprocess import Preprocess
from kdaudit.training import autocast

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("KDAUDIT_SHARED", REPOSITORY.parent / "shared"))
LAB = Path(os.environ.get("KDAUDIT_LAB", Path.home() / ".cache" / "kdaudit-lab"))
RESULTS = Path(__file__).resolve().parent / "results"
READING = "\n## Reading\n"
"""In a file of results: what follows was written by a person."""


@dataclass(frozen=True)
class Images:
    """Decoded images with their labels: pixels uint8 [N, H, W, C], labels int64 [N]."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]

    def take(self, index: NDArray[np.int64]) -> "Images":
        """The images at `index`."""
        return Images(self.pixels[index], self.labels[index], self.classes)

    def __len__(self) -> int:
        return len(self.labels)


def load(name: str, split: str) -> Images:
    """A data set of shared/data, decoded with Pillow and cached as an array.

    Raises:
        SystemExit: shared/data is not there.
    """
    file = folder_of(name) / f"{split}.parquet"
    if not file.exists():
        raise SystemExit(f"{file} is missing: set KDAUDIT_SHARED to the folder that holds data/{name}")
    table = pq.read_table(file)
    classes = tuple((table.schema.metadata or {}).get(b"classes", b"").decode().split(","))
    labels = table["label"].to_numpy().astype(np.int64)
    cache = LAB / "arrays" / f"{name}-{split}.npy"
    if cache.exists():
        return Images(np.load(cache), labels, classes)
    encoded = table["image"].combine_chunks().field("bytes").to_pylist()
    pictures = [np.asarray(Image.open(io.BytesIO(data))) for data in encoded]
    pixels = np.stack([p if p.ndim == 3 else p[..., None] for p in pictures])
    cache.parent.mkdir(parents=True, exist_ok=True)
    np.save(cache, pixels)
    return Images(pixels, labels, classes)


def folder_of(name: str) -> Path:
    """Where a data set's Parquet files lie: in the laboratory, if it was made there, else among the shared ones."""
    own = LAB / "made" / name
    return own if own.exists() else SHARED / "data" / name


def encode(pixels: NDArray[np.uint8], *, jpeg_quality: int | None = None) -> bytes:
    """One image [H, W, C] as PNG, or as JPEG of the given quality."""
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    buffer = io.BytesIO()
    if jpeg_quality is None:
        picture.save(buffer, "PNG", compress_level=1)
    else:
        picture.save(buffer, "JPEG", quality=jpeg_quality)
    return buffer.getvalue()


def write_parquet(images: Images, path: Path, encoder: Callable[[NDArray[np.uint8]], bytes] = encode) -> list[str]:
    """Write a delivery in the Hugging Face layout; returns the paths inside it, in order."""
    suffix = "png" if encoder(images.pixels[0])[:4] == b"\x89PNG" else "jpg"
    names = [f"{label:02d}/{i:06d}.{suffix}" for i, label in enumerate(images.labels)]
    rows = [{"bytes": encoder(p), "path": n} for p, n in zip(images.pixels, names, strict=True)]
    schema = pa.schema(
        [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int32())],
        metadata={"classes": ",".join(images.classes)},
    )
    table = pa.table(
        {"image": pa.array(rows, schema.field("image").type), "label": images.labels.astype(np.int32)}, schema
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=2000)
    return names


def tensor(pixels: NDArray[np.uint8]) -> torch.Tensor:
    """Pixels [N, H, W, C] as float32 [N, C, H, W] in 0..1 (the victims' only preprocessing)."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))).float().div_(255)


def train(
    net: nn.Module,
    images: Images,
    *,
    epochs: int,
    seed: int,
    rate: float = 1e-3,
    batch: int = 128,
    cosine: bool = False,
    views: Callable[[torch.Tensor, torch.Generator], torch.Tensor] | None = None,
) -> nn.Module:
    """Train a victim with Adam on labels, bfloat16 where the CPU has it. No model selection: the last epoch counts."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    net = net.to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adam(net.parameters(), rate)
    steps = epochs * -(-len(images) // batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps) if cosine else None
    generator = torch.Generator().manual_seed(seed)
    labels = torch.from_numpy(images.labels)
    for epoch in range(epochs):
        order = torch.randperm(len(images), generator=generator)
        total = 0.0
        for index in order.split(batch):
            x = tensor(images.pixels[index.numpy()])
            if views is not None:
                x = views(x, generator)
            with autocast(device):
                logits = net(x.to(device, memory_format=torch.channels_last))
            loss = F.cross_entropy(logits.float(), labels[index].to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if schedule is not None:
                schedule.step()
            total += loss.item() * len(index)
        print(f"  epoch {epoch + 1}/{epochs}: loss {total / len(images):.4f}", flush=True)
    return net.cpu().eval()


def export(net: nn.Module, example: Images, path: Path, feed: Preprocess | None = None) -> Path:
    """Export a victim to ONNX, one file, free batch; its input is what `feed` makes (default: what `tensor` does)."""
    first = torch.from_numpy(fed(example.pixels[:2], feed)) if feed else tensor(example.pixels[:2])
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.onnx")
    torch.onnx.export(
        net.eval(),
        (first,),
        str(partial),
        input_names=["input"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        verbose=False,
        external_data=False,
    )
    partial.replace(path)
    return path


def answers(
    model: Path, pixels: NDArray[np.uint8], feed: Preprocess | None = None, batch: int = 256
) -> NDArray[np.float32]:
    """Raw outputs [N, K] of a model for pixels [N, H, W, C], fed as `feed` says (default: as `tensor` does)."""
    import onnxruntime as ort

    ort.set_default_logger_severity(3)
    options = ort.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    prepared = (lambda part: fed(part, feed)) if feed else (lambda part: tensor(part).numpy())
    parts = [session.run(None, {name: prepared(pixels[i : i + batch])})[0] for i in range(0, len(pixels), batch)]
    return np.concatenate(parts)


def fed(pixels: NDArray[np.uint8] | NDArray[np.float32], feed: Preprocess) -> NDArray[np.generic]:
    """What a model gets for pixels [N, h, w, C], 0..255: resized as kdaudit does it where it wants another size."""
    g = feed.geometry
    if pixels.shape[1:3] == (g.height, g.width):
        return feed.apply(pixels)
    whole = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    return feed.apply(resize(np.repeat(whole, 3 // whole.shape[3], axis=3), g)[..., : g.channels])


def machine() -> str:
    """The conditions of a figure: processor, cores, library versions."""
    import onnxruntime as ort

    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    cores = len(os.sched_getaffinity(0))
    libraries = f"Python {platform.python_version()}, torch {torch.__version__}, onnxruntime {ort.__version__}"
    return f"{cpu}, {cores} cores (shared); {libraries}"


def today() -> str:
    """The date for a results file, UTC."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def rate(hits: int, n: int) -> str:
    """A rate in percent with its 95 % Clopper-Pearson interval."""
    from scipy.stats import binomtest

    if n == 0:
        return "-"
    low, high = binomtest(int(hits), int(n)).proportion_ci(method="exact")
    return f"{100 * hits / n:.2f} [{100 * low:.2f}, {100 * high:.2f}]"


def split(n: int, parts: Sequence[int], seed: int) -> list[NDArray[np.int64]]:
    """Disjoint random index sets of the given sizes out of range(n)."""
    order = np.random.default_rng(seed).permutation(n)
    return [np.sort(order[a:b]) for a, b in pairwise(np.cumsum([0, *parts]))]


def append_rows(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Add rows to a CSV table; a column that it has not is added, and empty in its earlier rows."""
    earlier: list[dict[str, str]] = []
    if path.exists():
        with path.open(newline="") as file:
            earlier = list(csv.DictReader(file))
    columns = list(dict.fromkeys([*(earlier[0] if earlier else ()), *rows[0]]))
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(earlier)
        writer.writerows(rows)
    partial.replace(path)


def kdaudit(*words: str | Path, allowed: tuple[int, ...] = (0,)) -> None:
    """Run a command of the tool as users do; an exit code that is not allowed ends the benchmark with its words."""
    line = [sys.executable, "-m", "kdaudit", *map(str, words)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode not in allowed:
        raise SystemExit(f"{' '.join(line[2:])}\nended with {done.returncode}: {done.stderr.strip()}")


def finished(run: Path) -> dict[str, Any] | None:
    """The report of a run directory, if there is a finished one."""
    path = run / "report.json"
    if not path.exists():
        return None
    report: dict[str, Any] = json.loads(path.read_text())
    return report if report["status"] == "finished" else None


def write_result(name: str, text: str) -> None:
    """Write a file of results; what stood below "## Reading" in it stays, and wants to be read again."""
    path = RESULTS / name
    former = path.read_text(encoding="utf-8") if path.exists() else ""
    reading = former.partition(READING)[2]
    path.write_text(text.rstrip("\n") + "\n" + (READING + reading if reading else ""), encoding="utf-8")
