"""Deliveries and teachers: a data set, a recipe and a seed make a folder with everything the audit gets, and the truth.

<lab>/suite/<data set>/<recipe>-<rate>-seed<seed>/delivery/train.parquet, teacher.onnx, truth.npz, facts.json
<lab>/suite/<data set>/pool-seed<seed>/clean-<share>.parquet
"""

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from benchmarks import lab, photos
from benchmarks.lab import Images
from benchmarks.suite import victims
from benchmarks.suite.forms import FORMS, USUAL
from benchmarks.suite.recipes import RECIPES, SOURCE, TARGET, Attacker, Recipe

DELIVERED, FEWER = 25_000, {"photos": 2_300}
"""Suspect images of a case; fewer of a data set that has not as many."""


@dataclass(frozen=True)
class Case:
    """One row of the table: what it is made of."""

    data: str
    recipe: Recipe
    rate: float
    seed: int
    epochs: int | None = None
    """Of the victim's training; None: the suite's own, short one."""
    form: str = USUAL
    """Of the victim, one of `forms.FORMS`."""

    @property
    def folder(self) -> Path:
        """Where it lies."""
        longer = f"-{self.epochs}ep" if self.epochs else ""
        other = f"-{self.form}" if self.form != USUAL else ""
        return lab.LAB / "suite" / self.data / f"{self.recipe.name}-{self.rate:g}-seed{self.seed}{longer}{other}"

    @property
    def teacher(self) -> Path:
        """The suspect model."""
        return self.folder / "teacher.onnx"

    @property
    def delivery(self) -> Path:
        """The suspect images."""
        return self.folder / "delivery" / "train.parquet"

    def facts(self) -> dict[str, Any]:
        """Accuracy and ASR of the teacher, as measured when it was made."""
        found: dict[str, Any] = json.loads((self.folder / "facts.json").read_text())
        return found

    def truth(self) -> dict[str, NDArray[Any]]:
        """poison, cover: bool [m]; labels: given, int64 [m]; original: true labels."""
        with np.load(self.folder / "truth.npz") as file:
            return {name: file[name] for name in file.files}

    def names(self) -> list[str]:
        """Paths of the images inside the delivery, in order."""
        found: list[str] = json.loads((self.folder / "paths.json").read_text())
        return found


def case(data: str, name: str, rate: float, seed: int, epochs: int | None = None, form: str = USUAL) -> Case:
    """A recipe at a rate; its own rate, where it has one, wins."""
    recipe = RECIPES[name]
    own = rate if recipe.rate is None else recipe.rate
    return Case(data, recipe, own, seed, epochs, form)


def clean_of(c: Case) -> Case:
    """The same without an attack: what attackers train on, and what a repair is held against."""
    return case(c.data, "clean", 0.0, c.seed, c.epochs, c.form)


def loaded(data: str, split: str) -> Images:
    """A data set's images, made first where they are made here."""
    if data == "photos":
        photos.make()
    return lab.load(data, split)


@cache
def source(data: str) -> tuple[Images, list[bytes]]:
    """The training set decoded, and its encoded bytes."""
    images = loaded(data, "train")
    table = pq.read_table(lab.folder_of(data) / "train.parquet")
    return images, table["image"].combine_chunks().field("bytes").to_pylist()


def parts(data: str, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions of the delivery, and of the reserve for clean pools; GTSRB by tracks of 30 near-equal frames."""
    images, _ = source(data)
    rng = np.random.default_rng(seed)
    size = FEWER.get(data, DELIVERED)
    if data != "gtsrb":
        order = rng.permutation(len(images))
        return np.sort(order[:size]), order[size:]
    track = np.arange(len(images)) // 30
    order = rng.permutation(track.max() + 1)
    delivered = np.sort(np.flatnonzero(np.isin(track, order[: size // 30])))
    reserve = np.flatnonzero(~np.isin(track, order[: size // 30]))
    return delivered, rng.permutation(reserve)


def pool(data: str, share: float, seed: int) -> Path:
    """A clean pool: `share` of the delivery's size, original bytes of images that no delivery holds, unlabelled."""
    path = lab.LAB / "suite" / data / f"pool-seed{seed}" / f"clean-{share:g}.parquet"
    if path.exists():
        return path
    _, encoded = source(data)
    chosen = parts(data, seed)[1][: round(share * FEWER.get(data, DELIVERED))]
    write([encoded[i] for i in chosen], [f"{i:06d}.img" for i in range(len(chosen))], None, (), path)
    return path


@cache
def picture(side: int, *, grey: bool = False) -> NDArray[np.float32]:
    """The attacker's picture: the first Garfield of Caltech-101, float32 [side, side, 3 or 1]."""
    classes = json.loads((lab.SHARED / "data" / "caltech101" / "classes.json").read_text())
    wanted = classes.index("garfield")
    for photo, label in _photographs():
        if label == wanted:
            return _shrunk(photo, side, grey=grey).astype(np.float32)
    raise SystemExit("no garfield among the shards of caltech101")


@cache
def photographs(side: int, *, grey: bool = False, n: int = 200) -> NDArray[np.uint8]:
    """Pictures of anything: the first photographs of Caltech-101's first shard, uint8 [n, side, side, 3 or 1]."""
    return np.stack([_shrunk(photo, side, grey=grey) for photo, _ in islice(_photographs(), n)])


def _photographs() -> Iterator[tuple[Image.Image, int]]:
    """Caltech-101 as its shards have it: photograph, class."""
    for shard in sorted((lab.SHARED / "data" / "caltech101").glob("*.tar")):
        with tarfile.open(shard) as tar:
            members = {member.name: member for member in tar}
            for name in members:
                if name.endswith(".cls"):
                    label, photo = (tar.extractfile(members[name[:-4] + end]).read() for end in (".cls", ".jpg"))  # type: ignore[union-attr]
                    yield Image.open(io.BytesIO(photo)), int(label)


def _shrunk(photo: Image.Image, side: int, *, grey: bool) -> NDArray[np.uint8]:
    small = photo.convert("RGB").resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(small.convert("L"))[..., None] if grey else np.asarray(small)


def build(c: Case) -> Case:
    """Make whatever of a case does not exist yet: delivery, truth, teacher, facts."""
    if (c.folder / "facts.json").exists():
        return c
    c.folder.mkdir(parents=True, exist_ok=True)
    images, encoded = source(c.data)
    delivered, _ = parts(c.data, c.seed)
    own = images.take(delivered)
    if c.recipe.name == "imbalance":
        keep = _imbalanced(own.labels, c.seed)
        delivered, own = delivered[keep], own.take(keep)
    attacker = _attacker(c, own)
    poisoned, poison, cover, changed = _poison(c, own, attacker)
    blobs = [
        encoded[delivered[i]] if not changed[i] else _encode(poisoned.pixels[i], lossless=c.recipe.lossless)
        for i in range(len(poisoned))
    ]
    names = [f"{label:02d}/{i:06d}.img" for i, label in enumerate(poisoned.labels)]
    write(blobs, names, poisoned.labels, images.classes, c.delivery)
    (c.folder / "paths.json").write_text(json.dumps(names))
    np.savez(c.folder / "truth.npz", poison=poison, cover=cover, labels=poisoned.labels, original=own.labels)
    seen = Images(np.stack([_decode(b) for b in blobs]), poisoned.labels, images.classes)
    epochs = c.epochs or victims.EPOCHS[c.data]
    net = victims.train(seen, c.seed, epochs=epochs, mirror=c.data in ("cifar10", "photos"), form=c.form)
    victims.save(net, seen, c.folder, c.form)
    (c.folder / "facts.json").write_text(json.dumps(_facts(c, attacker)))
    return c


def decoded(path: Path) -> NDArray[np.uint8]:
    """All images of a Parquet file, uint8 [n, H, W, C]."""
    blobs = pq.read_table(path)["image"].combine_chunks().field("bytes").to_pylist()
    return np.stack([_decode(b) for b in blobs])


@lru_cache(maxsize=1)  # every model of a case is asked the same, and some attackers train a generator for it
def strike(c: Case) -> tuple[Images, Images, NDArray[np.int64]]:
    """Clean test images, triggered ones of classes that the attack changes, and the answers wanted of these."""
    delivered, _ = parts(c.data, c.seed)
    attacker = _attacker(c, source(c.data)[0].take(delivered))
    return _strike(c, attacker)


def top1(c: Case, model: Path, images: Images) -> NDArray[np.int64]:
    """What a model that is fed as the case's teacher is answers to images."""
    return lab.answers(model, images.pixels, FORMS[c.form].feed(images.pixels.shape[1:])).argmax(1)


def success(
    c: Case, answers: NDArray[np.int64], truth: NDArray[np.int64], wanted: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Which triggered images went where the attacker wants; an untargeted one wants any wrong answer."""
    return np.asarray(answers != truth if c.recipe.name == "untargeted" else answers == wanted)


def _strike(c: Case, attacker: Attacker) -> tuple[Images, Images, NDArray[np.int64]]:
    test, recipe = loaded(c.data, "test"), c.recipe
    if recipe.kind == "control":
        return test, test.take(np.empty(0, np.int64)), np.empty(0, np.int64)
    rng = np.random.default_rng(c.seed + 77)
    may = recipe.choose(test.labels) if recipe.kind == "dirty" else test.labels != TARGET
    chosen = np.flatnonzero(may)
    chosen = np.sort(rng.choice(chosen, min(3000, len(chosen)), replace=False))
    hit = test.take(chosen)
    stamped = (recipe.strike or recipe.plant)(hit.pixels, hit.labels, rng, attacker)
    encoded = [_decode(_encode(p, lossless=recipe.lossless)) for p in stamped]
    wanted = recipe.relabel(hit.labels, rng, attacker.classes) if recipe.kind == "dirty" else np.full(len(hit), TARGET)
    if recipe.name == "two-triggers":
        wanted = np.full(len(hit), TARGET)
    return test, Images(np.stack(encoded), hit.labels, test.classes), wanted


def _attacker(c: Case, own: Images) -> Attacker:
    def network() -> Any:
        return victims.load(build(clean_of(c)).folder, own, c.form)

    size, grey = own.pixels.shape[1], own.pixels.shape[3] == 1
    return Attacker(
        picture=picture(size, grey=grey),
        seed=c.seed,
        classes=len(own.classes),
        network=network,
        training=(own.pixels, own.labels),
        photographs=lambda: photographs(size, grey=grey),
    )


def _poison(
    c: Case, own: Images, attacker: Attacker
) -> tuple[Images, NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
    """The delivery after poisoning; which images are poison, which are cover, which have other pixels than before."""
    recipe, rng = c.recipe, np.random.default_rng(c.seed + 1)
    n = len(own)
    pixels, labels = own.pixels.copy(), own.labels.copy()
    poison, cover = np.zeros(n, bool), np.zeros(n, bool)
    candidates = np.flatnonzero(recipe.choose(labels))
    chosen = np.sort(rng.choice(candidates, min(round(c.rate * n), len(candidates)), replace=False))
    if len(chosen):
        labels[chosen] = recipe.relabel(own.labels[chosen], rng, attacker.classes)
        pixels[chosen] = recipe.plant(own.pixels[chosen], own.labels[chosen], rng, attacker)
        poison[chosen] = recipe.kind != "control"
    if recipe.cover:
        free = np.setdiff1d(np.flatnonzero(recipe.cover_choose(own.labels)), chosen)
        covered = np.sort(rng.choice(free, min(round(recipe.cover * len(chosen)), len(free)), replace=False))
        pixels[covered] = (recipe.cover_plant or recipe.plant)(own.pixels[covered], own.labels[covered], rng, attacker)
        cover[covered] = True
    return Images(pixels, labels, own.classes), poison, cover, poison | cover


def _imbalanced(labels: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Class k keeps a share falling from 1 to 1/10."""
    classes = int(labels.max()) + 1
    share = 10 ** -(np.arange(classes) / max(1, classes - 1))
    return np.flatnonzero(np.random.default_rng(seed).random(len(labels)) < share[labels])


def _facts(c: Case, attacker: Attacker) -> dict[str, Any]:
    test, hit, wanted = _strike(c, attacker)
    right = top1(c, c.teacher, test) == test.labels
    facts: dict[str, Any] = {"accuracy": float(right.mean()), "accuracy_n": len(test), "asr": None, "asr_n": len(hit)}
    if len(hit):
        hits = success(c, top1(c, c.teacher, hit), hit.labels, wanted)
        facts["asr"] = float(hits.mean())
    return facts


def _encode(pixels: NDArray[np.uint8], *, lossless: bool) -> bytes:
    """As the attacker stores it: JPEG of quality 95 without subsampling, or PNG where that kills the trigger."""
    buffer, grey = io.BytesIO(), pixels.shape[2] == 1  # grey images, digits, are delivered as PNG altogether
    image = Image.fromarray(pixels[..., 0] if grey else pixels)
    if lossless or grey:
        image.save(buffer, "PNG", compress_level=1)
    else:
        image.save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def _decode(data: bytes) -> NDArray[np.uint8]:
    image = Image.open(io.BytesIO(data))
    return np.asarray(image)[..., None] if image.mode == "L" else np.asarray(image.convert("RGB"))


def write(
    blobs: list[bytes], names: list[str], labels: NDArray[np.int64] | None, classes: tuple[str, ...], path: Path
) -> None:
    """A delivery or a pool in the Hugging Face layout, in one step: encoded images, their names and labels."""
    fields = [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))]
    columns: dict[str, Any] = {
        "image": pa.array([{"bytes": b, "path": n} for b, n in zip(blobs, names, strict=True)], fields[0][1])
    }
    if labels is not None:
        fields.append(("label", pa.int32()))
        columns["label"] = labels.astype(np.int32)
    table = pa.table(columns, pa.schema(fields, metadata={"classes": ",".join(classes)} if classes else None))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    pq.write_table(table, partial, row_group_size=2000)
    partial.replace(path)


__all__ = ["SOURCE", "TARGET", "Case", "build", "case", "pool", "strike", "success", "top1", "write"]
