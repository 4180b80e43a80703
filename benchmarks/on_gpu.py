"""`benchmarks/throughput.py --device cuda`: the same question on a GPU, where other things are the wall.

`plain` is the plain loop with both networks on the GPU, as torch leaves it: convolutions round to TensorFloat-32;
`plain exact` is the same in float32. `scan` is the cheap pass (one graph, decoded on the GPU) in float32, as kdaudit
runs it; `scan tf32` is `--tf32`; `cpu decoder` decodes with simplejpeg on the cores; `two graphs` asks two sessions;
`default rule` mixes a quarter of the images with others as well. `decode` (DALI), `decode cpu` (simplejpeg) and
`inference` (the one graph in this process, its input and output on the GPU) are the ceilings: on a GPU they overlap, so
the limit is the lower of the two. The teacher is a ResNet-50 (224 px) or a ResNet-20 (32 px), the control what kdaudit
would distil for a GPU, all of random weights.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from benchmarks.bare import Networks, decode_alone
from benchmarks.kernels.harness import machine
from benchmarks.plain import Encoded, plain_loop
from kdaudit.comparison import Subjects, compare, compare_pixels
from kdaudit.decoder import open_decoder
from kdaudit.fusion.blueprint import draw
from kdaudit.fusion.confined import compose_confined
from kdaudit.interventions import InterventionPlan, Partners
from kdaudit.machine import Gpu, Placement, cores, versions
from kdaudit.onegraph import open_one_graph
from kdaudit.opening import open_session
from kdaudit.runtime import provider_options
from kdaudit.sample import Decoder, Record, Source
from kdaudit.settings import Settings

PLAIN_TIMES = 3
"""The plain loop goes over so many times the images: its processes take a while to start."""


@dataclass(frozen=True)
class GpuBench:
    """Everything that is measured with on a GPU, ready."""

    nets: Networks
    source: Source
    records: list[Record]
    subjects: dict[str, Subjects]
    decoders: dict[str, Decoder]
    bare: dict[str, tuple[Any, Any]]
    batch: int
    workers: int

    def rows(self) -> dict[str, Callable[[], int]]:
        """What is measured, by the name of its row; each gives the number of images it went over."""
        n = len(self.records)
        return {
            "plain": lambda: self.plain(tf32=True),
            "plain exact": lambda: self.plain(tf32=False),
            "scan": lambda: self.compared("exact", "gpu", n),
            "scan tf32": lambda: self.compared("tf32", "gpu", n),
            "cpu decoder": lambda: self.compared("exact", "cpu", n),
            "cpu decoder tf32": lambda: self.compared("tf32", "cpu", n),
            "two graphs": lambda: self.compared("two", "gpu", n),
            "default rule": lambda: self.compared("default", "gpu", n // 2),
            "decode": lambda: self.decode("gpu"),
            "decode cpu": lambda: self.decode("cpu"),
            "inference": lambda: self.inference("exact"),
            "inference tf32": lambda: self.inference("tf32"),
        }

    def compared(self, how: str, decoder: str, n: int) -> int:
        """The comparison, from the files to the columns."""
        again = itertools.chain.from_iterable(self.source.records() for _ in itertools.count())
        parts = compare(
            self.subjects[how],
            itertools.islice(again, n),
            self.decoders[decoder],
            batch=self.batch,
            workers=self.workers,
        )
        return sum(len(part) for part in parts)

    def decode(self, decoder: str) -> int:
        """Bytes in memory to pixels in memory."""
        geometry = self.nets.preprocess.geometry
        return decode_alone(self.decoders[decoder], self.records, geometry, self.batch, self.workers)

    def inference(self, how: str) -> int:
        """Both networks as one graph, from pixels on the GPU to columns on the GPU."""
        session, binding = self.bare[how]
        for _ in range(len(self.records) // self.batch):
            session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return len(self.records) // self.batch * self.batch

    def plain(self, *, tf32: bool) -> int:
        """The plain loop."""
        torch.backends.cudnn.allow_tf32 = tf32
        images = Encoded([record.data for record in self.records] * PLAIN_TIMES, self.nets.preprocess)
        teacher, student = self.nets.teacher.cuda(), self.nets.student.cuda()
        return len(plain_loop(images, teacher, student, batch=self.batch, workers=cores(), threads=1, device="cuda"))


def set_up(nets: Networks, source: Source, images: int, batch: int, workers: int) -> GpuBench:
    """Data, networks and sessions; n images, those of the source over and over."""
    again = itertools.chain.from_iterable(source.records() for _ in itertools.count())
    records = list(itertools.islice(again, images))
    few = [record.data for record in records[:256]]
    pixels = open_decoder("simplejpeg").decode(few, nets.preprocess.geometry).pixels
    subjects: dict[str, Subjects] = {}
    bare: dict[str, tuple[Any, Any]] = {}
    for how in ("exact", "tf32"):
        where = Placement(batch=batch, tf32=how == "tf32")
        teacher, student = (
            open_session(model, nets.signature, provider="cuda", confined=confined, placement=where)
            for model, confined in ((nets.teacher_onnx, True), (nets.student_onnx, False))
        )
        partners = Partners.of(pixels, teacher, nets.preprocess)
        both = Subjects(teacher, student, nets.preprocess, partners, InterventionPlan(()))
        one = replace(both, graph=open_one_graph(teacher, student, nets.preprocess, pixels, where))
        subjects[how] = one
        plan = draw(teacher.signature, student.signature, nets.preprocess, teacher.features, nets.teacher_onnx)
        model = compose_confined(nets.teacher_onnx, nets.student_onnx, plan).model
        some = np.resize(pixels, (batch, *pixels.shape[1:]))
        bare[how] = _bound(model, plan.pixels, plan.rows, some, tf32=where.tf32)
        if how == "exact":
            seen = compare_pixels(one, pixels, [record.id for record in records[:256]])
            mixed = InterventionPlan(Settings().interventions, above=float(np.quantile(seen.js, 0.75)))
            subjects |= {"two": both, "default": replace(one, plan=mixed)}
    decoders = {"gpu": open_decoder("dali", device="cuda", pool=cores()), "cpu": open_decoder("simplejpeg")}
    return GpuBench(nets, source, records, subjects, decoders, bare, batch, workers)


def _bound(model: bytes, name: str, output: str, pixels: np.ndarray, *, tf32: bool) -> tuple[Any, Any]:
    """A session in this process, its input and output bound to the GPU's memory."""
    import onnxruntime as ort

    session = ort.InferenceSession(model, providers=provider_options("cuda", Gpu(tf32=tf32)))
    binding = session.io_binding()
    binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(pixels, "cuda", 0))
    binding.bind_output(output, "cuda")
    return session, binding


def rows(found: dict[str, list[tuple[float, float]]]) -> Iterator[dict[str, object]]:
    """A row of the table for each thing measured: images per second, and against the plain loop and the ceilings."""
    for name, pairs in found.items():
        clock = np.array(pairs)[:, 0]
        row: dict[str, object] = {"what": name, "images_per_s": f"{np.median(clock):.1f}"}
        row |= {"images_per_s_low": f"{clock.min():.1f}", "images_per_s_high": f"{clock.max():.1f}"}
        for other in ("plain", "plain exact", "decode", "decode cpu", "inference", "inference tf32"):
            against = np.array(found.get(other, [(np.nan, np.nan)]))[:, 0]
            row[f"times_{other.replace(' ', '_')}"] = f"{np.median(clock / against):.3f}"
        yield row


def conditions() -> dict[str, str]:
    """The GPU, what drives it, and the versions that matter."""
    there = versions()
    return machine() | {name: there.get(name, "") for name in ("onnxruntime-gpu", "nvidia-dali-cuda130")}
