"""Photographs as a data set of few classes: Caltech-101's, sorted into kinds, at 128 px.

One hundred and one classes of 43 photographs teach nobody anything from scratch; five kinds of some hundreds do.
Written once to the laboratory in the layout of the other sets: encoded images, names, labels.
"""

import io
import json
import tarfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps

SIDE, QUALITY, TESTED = 128, 90, 0.2
KINDS = {
    "animals": "Leopards ant bass beaver brontosaurus butterfly cougar_body cougar_face crab crayfish crocodile "
    "crocodile_head dalmatian dolphin dragonfly elephant emu flamingo flamingo_head gerenuk hawksbill hedgehog ibis "
    "kangaroo llama lobster mayfly nautilus octopus okapi panda pigeon platypus rhino rooster scorpion sea_horse "
    "starfish stegosaurus tick trilobite wild_cat",
    "plants": "bonsai joshua_tree lotus strawberry sunflower water_lilly",
    "vehicles": "Motorbikes airplanes car_side ferry helicopter inline_skate ketch schooner wheelchair",
    "instruments": "accordion electric_guitar euphonium gramophone grand_piano mandolin metronome saxophone",
    "things": "anchor barrel binocular camera cannon ceiling_fan cellphone chair chandelier cup ewer headphone lamp "
    "laptop menorah revolver scissors soccer_ball stapler stop_sign umbrella watch windsor_chair wrench",
}
"""The rest (faces, buildings, drawings, what is two kinds at once) is left out."""


def made(shared: Path, lab: Path) -> Path:
    """The folder with train.parquet and test.parquet, written where it is not there yet."""
    folder = lab / "photos"
    if (folder / "test.parquet").exists():
        return folder
    source = shared / "data" / "caltech101"
    names = json.loads((source / "classes.json").read_text())
    label = {names.index(name): i for i, kind in enumerate(KINDS.values()) for name in kind.split()}
    rows: dict[str, list[tuple[bytes, str, int]]] = defaultdict(list)
    rng = np.random.default_rng(0)
    for shard in sorted(source.glob("*.tar")):
        with tarfile.open(shard) as tar:
            members = {m.name: m for m in tar if m.isfile()}
            for name in sorted(m for m in members if m.endswith(".cls")):
                number = int(_read(tar, members[name]))
                if number in label:
                    photo = name[:-4] + ".jpg"
                    split = "test" if rng.random() < TESTED else "train"
                    rows[split].append((_prepared(_read(tar, members[photo])), photo, label[number]))
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        _write(rows[split], folder / f"{split}.parquet")
    return folder


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None
    return file.read()


def _prepared(data: bytes) -> bytes:
    """The middle of a photograph, as people prepare them."""
    picture = ImageOps.fit(Image.open(io.BytesIO(data)).convert("RGB"), (SIDE, SIDE), Image.Resampling.BILINEAR)
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


def _write(rows: list[tuple[bytes, str, int]], path: Path) -> None:
    order = np.random.default_rng(1).permutation(len(rows))
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([{"bytes": rows[i][0], "path": rows[i][1]} for i in order], kind)
    schema = pa.schema([("image", kind), ("label", pa.int32())], metadata={"classes": ",".join(KINDS)})
    table = pa.table({"image": images, "label": pa.array([rows[i][2] for i in order], pa.int32())}, schema)
    partial = path.with_suffix(".partial")
    pq.write_table(table, partial)
    partial.replace(path)
