"""Photographs as a data set of few classes: Caltech-101's, sorted into kinds, at 128 px.

One hundred and one classes of 43 photographs teach nobody anything from scratch; five kinds of some hundreds do.
Written once to the laboratory in the layout of the other sets.
"""

import io
from collections import defaultdict

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from benchmarks import lab
from kdaudit.source import open_source

SIDE, QUALITY, TESTED = 128, 90, 0.2
KINDS = {
    "instruments": "accordion electric_guitar euphonium gramophone grand_piano mandolin metronome saxophone",
    "plants": "bonsai joshua_tree lotus strawberry sunflower water_lilly",
    "vehicles": "Motorbikes airplanes car_side ferry helicopter inline_skate ketch schooner wheelchair",
    "animals": "Leopards ant bass beaver brontosaurus butterfly cougar_body cougar_face crab crayfish crocodile "
    "crocodile_head dalmatian dolphin dragonfly elephant emu flamingo flamingo_head gerenuk hawksbill hedgehog ibis "
    "kangaroo llama lobster mayfly nautilus octopus okapi panda pigeon platypus rhino rooster scorpion sea_horse "
    "starfish stegosaurus tick trilobite wild_cat",
    "things": "anchor barrel binocular camera cannon ceiling_fan cellphone chair chandelier cup ewer headphone lamp "
    "laptop menorah revolver scissors soccer_ball stapler stop_sign umbrella watch windsor_chair wrench",
}
"""The attackers' target comes first, a small kind: with animals, nearly half of all photographs, no attack took.
The rest (faces, buildings, drawings, what is two kinds at once) is left out."""


def make() -> None:
    """Write train.parquet and test.parquet where they are not there yet."""
    folder = lab.LAB / "made" / "photos"
    if folder.exists():
        return
    source = open_source(lab.SHARED / "data" / "caltech101")
    assert source.classes is not None
    label = {source.classes.index(name): i for i, kind in enumerate(KINDS.values()) for name in kind.split()}
    found: dict[str, list[tuple[NDArray[np.uint8], int]]] = defaultdict(list)
    rng = np.random.default_rng(0)
    for record in source.records():
        if record.label in label:
            split = "test" if rng.random() < TESTED else "train"
            found[split].append((_prepared(record.data), label[record.label]))
    partial = folder.with_suffix(".partial")
    for split, rows in found.items():
        pixels, labels = zip(*rows, strict=True)
        images = lab.Images(np.stack(pixels), np.array(labels, np.int64), tuple(KINDS))
        shuffled = images.take(np.random.default_rng(1).permutation(len(images)))
        lab.write_parquet(shuffled, partial / f"{split}.parquet", lambda p: lab.encode(p, jpeg_quality=QUALITY))
    partial.replace(folder)


def _prepared(data: bytes) -> NDArray[np.uint8]:
    """The middle of a photograph, as people prepare them."""
    photo = Image.open(io.BytesIO(data)).convert("RGB")
    return np.asarray(ImageOps.fit(photo, (SIDE, SIDE), Image.Resampling.BILINEAR))
