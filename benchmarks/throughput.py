"""How fast images are compared: our scan's comparison beside the plain loop, decoding alone and inference alone.

    python benchmarks/throughput.py --size 32 --rounds 5
    python benchmarks/throughput.py --size 224 --rounds 5

Everything is measured in one run, the order turned round from one round to the next, by the clock and by the seconds
of computing of this process and all processes below it: a busy machine changes the second less. Quotients are taken
within a round; medians and the lowest and highest round are printed and appended to results/throughput.csv.

What the rows are. `plain` is `benchmarks/plain.py`: the cheap pass (each image as it is), without a table. `scan` is
`kdaudit.comparison.compare` over the same files with the suspect model in its confined worker: the cheap pass too
(`--rule score`), with two sessions; `one graph` is the same with both networks as one graph. `detector` is the default
rule on a model that shows no features: six further pictures of every image (with features, four of those images on
which the networks part). `decode` and `inference` are the two parts alone, from bytes in memory and on a ready tensor;
`limit` is what they allow together, 1 / (1 / decode + 1 / inference). `product` is what the machine can do at all: as
many multiplications and additions as both networks take for the images, as products of large matrices. The teacher is a
ResNet-20 (32 px) or ResNet-18 (224 px) of random weights, the control what kdaudit would distil, of random weights too:
neither changes how long an answer takes.
"""

import argparse
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")  # as the command does, before numpy is there (`kdaudit.memory`)

import numpy as np

from benchmarks import lab, on_gpu, processes
from benchmarks.bare import Networks, Product, decode_alone, networks
from benchmarks.plain import Encoded, plain_loop
from kdaudit.comparison import Subjects, compare, usual_batch
from kdaudit.decoder import open_decoder
from kdaudit.interventions import InterventionPlan, Partners
from kdaudit.machine import GPU_BATCH, cores
from kdaudit.onegraph import open_one_graph
from kdaudit.opening import open_session
from kdaudit.sample import Geometry, Record, Source
from kdaudit.session import Session
from kdaudit.settings import Settings
from kdaudit.source import open_source

DATA = {32: "cifar10/test.parquet", 224: "caltech101"}
IMAGES = {32: 4096, 224: 192}
"""Per round: some ten seconds of the plain loop on one core."""

DETECTOR_SHARE = 4
"""The detector goes through a quarter of them: it does seven times the work."""


DECODE_TIMES = 10
"""Decoding alone goes over them so often: processes are billed in steps of 10 ms."""


@dataclass(frozen=True)
class Bench:
    """Everything that is measured with, ready."""

    nets: Networks
    source: Source
    records: list[Record]
    cheap: Subjects
    fused: Subjects
    full: Subjects
    own: Session
    batch: int
    workers: int
    matrices: Product

    def rows(self) -> dict[str, Callable[[], int]]:
        """What is measured, by the name of its row; each gives the number of images it went over."""
        return {
            "plain": lambda: self.plain(1),
            "scan": self.scan,
            "one graph": self.one_graph,
            "decode": self.decode,
            "inference": self.inference,
            "detector": self.detector,
            "product": self.product,
        }

    def scan(self) -> int:
        """The cheap pass."""
        return self._compared(self.cheap, len(self.records))

    def one_graph(self) -> int:
        """The cheap pass with both networks as one graph."""
        return self._compared(self.fused, len(self.records))

    def detector(self) -> int:
        """The default rule."""
        return self._compared(self.full, len(self.records) // DETECTOR_SHARE)

    def _compared(self, subjects: Subjects, n: int) -> int:
        records = itertools.islice(self.source.records(), n)
        decoder = open_decoder()
        return sum(len(part) for part in compare(subjects, records, decoder, batch=self.batch, workers=self.workers))

    def decode(self) -> int:
        """Bytes in memory to pixels."""
        geometry = self.nets.preprocess.geometry
        return decode_alone(open_decoder(), self.records * DECODE_TIMES, geometry, self.batch, self.workers)

    def inference(self) -> int:
        """Both networks in this process on a tensor that is there already."""
        decoder = open_decoder()
        pixels = decoder.decode([r.data for r in self.records[: self.batch]], self.nets.preprocess.geometry).pixels
        tensor = self.nets.preprocess.apply(pixels)
        full, rest = divmod(len(self.records), self.batch)

        def ask(n: int) -> int:
            self.own.logits(tensor[:n])
            return len(self.cheap.student.logits(tensor[:n]))

        with ThreadPoolExecutor(self.workers) as pool:
            return sum(pool.map(ask, [self.batch] * full + [rest] * (rest > 0)))

    def product(self) -> int:
        """As much arithmetic as both networks take, and nothing else."""
        self.matrices.worth(self.nets.operations * len(self.records), self.workers)
        return len(self.records)

    def plain(self, threads: int) -> int:
        """The plain loop with so many torch threads in the main process."""
        images = Encoded([r.data for r in self.records], self.nets.preprocess)
        return len(
            plain_loop(images, self.nets.teacher, self.nets.student, batch=self.batch, workers=cores(), threads=threads)
        )


def set_up(size: int, images: int, batch: int, workers: int) -> Bench:
    """Data, networks and sessions for a size."""
    source = open_source(lab.SHARED / "data" / DATA[size])
    records = list(itertools.islice(source.records(), images))
    nets = networks(size, len(source.classes or ()), records[:256])
    confined = open_session(nets.teacher_onnx, nets.signature, provider="cpu", confined=True)
    student = open_session(nets.student_onnx, nets.signature, provider="cpu")
    pixels = open_decoder().decode([r.data for r in records[:256]], nets.preprocess.geometry).pixels
    partners = Partners.of(pixels, confined, nets.preprocess)
    cheap = Subjects(confined, student, nets.preprocess, partners, InterventionPlan(()))
    fused = replace(cheap, graph=open_one_graph(confined, student, nets.preprocess, pixels))
    full = Subjects(confined, student, nets.preprocess, partners, InterventionPlan(Settings().interventions))
    own = open_session(nets.teacher_onnx, nets.signature, provider="cpu")
    return Bench(nets, source, records, cheap, fused, full, own, batch, workers, Product())


def measure(
    what: dict[str, Callable[[], int]], rounds: int, only: Sequence[str]
) -> dict[str, list[tuple[float, float]]]:
    """Images per second and per second of computing, a pair per round, of each row."""
    what = {name: run for name, run in what.items() if not only or name in only}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in what}
    for number in range(-1, rounds):  # the first is for the caches
        for name in list(what) if number % 2 else list(what)[::-1]:
            before, began = processes.computed(), time.perf_counter()
            done = what[name]()
            seconds, work = time.perf_counter() - began, max(processes.computed() - before, 0.01)
            print(f"  {name}: {done / seconds:.0f} images/s", file=sys.stderr, flush=True)
            if number >= 0:
                found[name].append((done / seconds, done / work))
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return found


def with_limit(found: dict[str, list[tuple[float, float]]]) -> dict[str, list[tuple[float, float]]]:
    """With what decoding and inference allow together on the same cores."""
    if not {"decode", "inference"} <= found.keys():
        return found
    parts = zip(found["decode"], found["inference"], strict=True)
    found["limit"] = [tuple(1 / (1 / d + 1 / i) for d, i in zip(*pair, strict=True)) for pair in parts]  # type: ignore[misc]
    return found


def rows(found: dict[str, list[tuple[float, float]]]) -> Iterator[dict[str, object]]:
    """A row of the table for each thing measured."""
    for name, pairs in found.items():
        clock, work = np.array(pairs).T
        row: dict[str, object] = {"what": name}
        for unit, values in (("images_per_s", clock), ("images_per_cpu_s", work)):
            row |= {unit: f"{np.median(values):.1f}", f"{unit}_low": f"{values.min():.1f}"}
            row[f"{unit}_high"] = f"{values.max():.1f}"
        for other in ("plain", "limit", "product"):
            against = np.array(found.get(other, [(np.nan, np.nan)])).T  # "nan" where it was not measured
            row[f"times_{other}_clock"] = f"{np.median(clock / against[0]):.3f}"
            row[f"times_{other}_cpu"] = f"{np.median(work / against[1]):.3f}"
        yield row


def one_to_two(found: dict[str, list[tuple[float, float]]]) -> str:
    """What one graph does to the images per second, against two, where both were measured."""
    if not {"scan", "one graph"} <= found.keys():
        return ""
    quotients = np.array(found["one graph"]) / np.array(found["scan"])
    lines = (f"{np.median(q):.3f} ({q.min():.3f} to {q.max():.3f})" for q in quotients.T)
    return "one graph against two, by the clock {}, per CPU-second {}".format(*lines)


def main_on_gpu(given: argparse.Namespace) -> None:
    """The same on a GPU; appended to results/throughput_gpu.csv."""
    source = open_source(lab.SHARED / "data" / DATA[given.size])
    nets = networks(given.size, len(source.classes or ()), list(itertools.islice(source.records(), 256)), "cuda")
    n, batch = given.images or 4096, given.batch or GPU_BATCH
    bench = on_gpu.set_up(nets, source, n, batch, given.workers)
    told = {"date": lab.today(), "size": given.size, "note": given.note} | on_gpu.conditions()
    told |= {"confined_by": bench.subjects["exact"].teacher.confinement, "decoder": bench.decoders["gpu"].name}
    told |= {"workers": given.workers, "batch": batch, "n": n, "rounds": given.rounds}
    written = [told | row for row in on_gpu.rows(measure(bench.rows(), given.rounds, given.only))]
    for row in written:
        print(*(f"{value!s:>12}" for value in list(row.values())[len(told) :]), flush=True)
    if not given.dry:
        lab.append_rows(lab.RESULTS / "throughput_gpu.csv", written)


def main() -> None:
    """Measure, print, append."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, choices=sorted(DATA), required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: benchmarks/on_gpu.py's rows")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, help="per round; the default takes the plain loop about ten seconds")
    parser.add_argument("--batch", type=int, help="images per batch; what a scan takes when left out")
    parser.add_argument("--workers", type=int, default=cores())
    parser.add_argument("--only", nargs="*", default=[], help="rows to measure; all when left out")
    parser.add_argument("--note", default="", help="a word for the table: what was different")
    parser.add_argument("--dry", action="store_true", help="append nothing")
    given = parser.parse_args()
    if given.device == "cuda":
        main_on_gpu(given)
    else:
        main_on_cpu(given)


def main_on_cpu(given: argparse.Namespace) -> None:
    """On the cores of this machine; appended to results/throughput.csv."""
    n = given.images or IMAGES[given.size]
    bench = set_up(given.size, n, given.batch or usual_batch(Geometry(given.size, given.size), "cpu"), given.workers)
    conditions = {
        "date": lab.today(),
        "size": given.size,
        "note": given.note,
        "machine": lab.machine(),
        "provider": bench.cheap.teacher.provider,
        "decoder": open_decoder().name,
        "confined_by": bench.cheap.teacher.confinement,
        "workers": given.workers,
        "batch": bench.batch,
        "n": n,
        "rounds": given.rounds,
    }
    found = with_limit(measure(bench.rows(), given.rounds, given.only))
    written = [conditions | row for row in rows(found)]
    bench.cheap.teacher.close()
    if bench.fused.graph is not None:
        bench.fused.graph.close()
    for row in written:
        print(*(f"{value!s:>10}" for value in list(row.values())[len(conditions) :]))
    print(one_to_two(found))
    if given.dry:
        return
    lab.append_rows(lab.RESULTS / "throughput.csv", written)


if __name__ == "__main__":
    main()
