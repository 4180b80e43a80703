"""How faithful the control becomes and how long it takes: networks beside one another, threads that draw beside one.

    python benchmarks/distilling.py TEACHER POOL TEST --networks residual resnet18 --drawers 1 8
    python benchmarks/distilling.py TEACHER POOL TEST --networks residual head --backbone TRUSTED

On any teacher, clean pool and labelled test set that kdaudit reads; on a GPU where torch has one. Fidelity (the
teacher's answer) and accuracy are counted on the test images, which no control has seen. Printed, and appended to
results/distilling.csv with machine, versions and n.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks import lab
from kdaudit import student, training
from kdaudit.admission import admit
from kdaudit.audit import distil_alone
from kdaudit.cli.console import watch
from kdaudit.decoder import open_decoder
from kdaudit.machine import choose_device, cores
from kdaudit.mixtures import top1_by
from kdaudit.opening import open_session
from kdaudit.preprocess import Preprocess
from kdaudit.settings import load_settings
from kdaudit.source import open_source

HEAD = "head"
"""A control on a backbone."""

BATCH = 256
"""Test images decoded at once."""


def main() -> None:
    """Distil, test, print, append."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("pool", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--networks", nargs="+", default=["residual"], choices=["residual", "resnet18", HEAD])
    parser.add_argument("--backbone", type=Path, help=f"what a {HEAD} stands on")
    parser.add_argument("--clean", type=int, help="clean images used")
    parser.add_argument("--drawers", nargs="+", type=int, default=[], help="threads; as distilling takes when left out")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--size", help="recipe for --preprocess, where the model takes any size")
    parser.add_argument("--note", default="")
    parser.add_argument("--dry", action="store_true", help="append nothing")
    given = parser.parse_args()
    written = []
    for row in rows(given):
        print(*(f"{name} {value}" for name, value in row.items()), sep="; ", flush=True)
        written.append(row)
    if not given.dry:
        lab.append_rows(lab.RESULTS / "distilling.csv", written)


def rows(given: argparse.Namespace) -> Iterator[dict[str, object]]:
    """A row for each network and number of threads."""
    device = choose_device("auto")
    for network in given.networks:
        backbone = given.backbone if network == HEAD else None
        settings = load_settings(steps=given.steps, preprocess=given.size, backbone=backbone, max_clean=given.clean)
        for drawers in given.drawers or [training.drawers_for(device)]:
            student.choose_architecture = lambda *_size, on_gpu, name=network: name  # noqa: ARG005
            training.drawers_for = lambda _device, n=drawers: n
            with tempfile.TemporaryDirectory() as folder:
                control = Path(folder) / "student.onnx"
                made = distil_alone(given.teacher, given.pool, control, settings, watch(quiet=True))
                side = recipe_of(control).geometry.height
                faithful, right, n = tested(given.teacher, control, given.test)
            yield {
                "date": lab.today(),
                "machine": lab.machine(),
                "device": device_name(device),
                "teacher": f"{given.teacher.parent.name}/{given.teacher.name}",
                "note": given.note,
                "network": f"{network} on {backbone.name}" if backbone else network,
                "side": side,
                "drawers": drawers,
                "cores": cores(),
                "steps": made.steps,
                "seconds": round(made.curve.seconds, 1),
                "ms_per_step": round(1000 * made.curve.seconds / made.steps, 2),
                "fidelity": lab.rate(faithful, n),
                "accuracy": lab.rate(right, n),
            }


def device_name(device: str) -> str:
    """What torch trains on."""
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else device


def recipe_of(control: Path) -> Preprocess:
    """How teacher and control are fed."""
    return Preprocess.parse(dict(admit(control).notes)["kdaudit.preprocess"])


def tested(teacher: Path, control: Path, test: Path) -> tuple[int, int, int]:
    """On how many test images the control gives the teacher's answer, on how many the label, and their number."""
    preprocess = recipe_of(control)
    records = list(open_source(test).records())
    labels = np.array([record.label for record in records], np.int64)
    decoder, found = open_decoder(), []
    for model in (teacher, control):
        admitted = admit(model)
        session = open_session(admitted.model, admitted.signature, threads=cores())
        answers = []
        for first in range(0, len(records), BATCH):
            pixels = decoder.decode([r.data for r in records[first : first + BATCH]], preprocess.geometry).pixels
            answers.append(top1_by(session, preprocess, pixels))
        found.append(np.concatenate(answers))
    known, own = found
    return int((known == own).sum()), int((own == labels).sum()), len(labels)


if __name__ == "__main__":
    main()
