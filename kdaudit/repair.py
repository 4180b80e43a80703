"""Repairing in the audit: stage 9 and its export, the control tuned on what was kept."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdaudit.clock import Clock
from kdaudit.control import Control, training_threads
from kdaudit.digest import joint_digest
from kdaudit.export import export_student
from kdaudit.judgement import Judged
from kdaudit.pool import MIN_POOL
from kdaudit.rundir import RunDirectory
from kdaudit.settings import Settings
from kdaudit.tuning import Kept, Tuned, read_kept, tune
from kdaudit.workbench import Sets, Workbench


@dataclass(frozen=True, slots=True, eq=False)
class Repaired:
    """The tuned control as a file.

    Attributes:
        path: the ONNX file, with the teacher's own input and output.
        tuned: how it was made; None where the data set has no labels and the control is exported as it is.
        parity: largest difference between torch and onnxruntime.
    """

    path: Path
    tuned: Tuned | None
    parity: float


def repair(
    control: Control,
    judged: Judged,
    sets: Sets,
    bench: Workbench,
    settings: Settings,
    run: RunDirectory,
    clock: Clock,
    output: Path | None = None,
) -> Repaired:
    """Tune the control on the kept images and export it with the teacher's own input and output."""
    assert control.trainable is not None
    assert sets.suspect is not None
    run.mark("repair")
    path = output or run.file("repaired.onnx")
    network, tuned = control.trainable, None
    left_out = judged.flags.flag | judged.flags.doubtful
    keep = judged.columns.read & ~left_out & (judged.labels >= 0)
    kept = _kept(judged, keep, sets, bench, run, clock)
    if len(kept.targets) >= MIN_POOL:
        with clock.epochs("tune on the kept images") as on_epoch:
            tuned = tune(
                network,
                kept,
                epochs=settings.repair_epochs,
                seed=settings.seed,
                patterns=judged.patterns,
                device=bench.device,
                threads=training_threads(bench),
                checkpoint=run.state / "tuning.pt",
                identity=joint_digest(
                    control.digest,
                    hashlib.sha256(left_out.tobytes()).hexdigest(),
                    *(hashlib.sha256(p.mean.tobytes()).hexdigest() for p in judged.patterns),
                ),
                on_epoch=on_epoch,
            )
        network = tuned.network
    else:
        clock.say("the data set has no labels to tune on: the repaired model is the distilled control itself")
    with clock.stage("export the repaired model"):
        parity = export_student(network, bench.preprocess, bench.signature, kept.samples(64), path, drop_in=True)
    return Repaired(path, tuned, parity)


def _kept(
    judged: Judged, keep: NDArray[np.bool_], sets: Sets, bench: Workbench, run: RunDirectory, clock: Clock
) -> Kept:
    assert sets.suspect is not None
    order = bench.fitted.class_order if bench.fitted else None
    outputs = np.array(order if order is not None else range(bench.signature.classes), np.int64)
    with clock.stage("read the kept images", sets.suspect_survey.count) as advance:
        return read_kept(
            sets.suspect,
            bench.decoder,
            bench.preprocess.geometry,
            keep,
            judged.flags.flag,
            judged.columns.groups,
            judged.labels,
            outputs,
            cache=run.state / "kept.npy",
            on_image=advance,
        )
