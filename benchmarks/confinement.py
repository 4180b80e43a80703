"""What confinement costs: images a second with the model in a confined worker and in this process, interleaved.

    python benchmarks/confinement.py --rounds 15

Each round asks both sessions for the same batches on the same threads, the order turned round from one to the next, so
that whatever else the machine does falls on both. The figures are medians over the rounds of the quotient
(confined / free) with bootstrap 95 % intervals: once by the clock, and once by the seconds of computing that both
processes spent, which a busy machine changes less. The model is asked alone, and then with a control of kdaudit's own
architecture on the same tensor, as a scan does it (which decodes and blends as well: its share is smaller still).

    python benchmarks/confinement.py --scan --rounds 9

This is the scan's own throughput: `kdaudit.comparison.compare` from files to columns, reading, decoding and blending
among it, over the networks and images of `benchmarks/throughput.py`, with the cheap pass and with the default rule.
"""

import argparse
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import lab, throughput
from kdaudit.admission import Teacher, admit
from kdaudit.comparison import Subjects, compare, usual_batch
from kdaudit.decoder import open_decoder
from kdaudit.machine import cores
from kdaudit.opening import open_session
from kdaudit.sample import Geometry
from kdaudit.session import Session

MODELS = ("ext_mnist_web/mnist.onnx", "dogun_gtsrb_cnn.onnx", "vit_cifar10_ibp_3_3_8.onnx", "edgeopt_model_uint8.onnx")

SCANNED = {(32, "cheap pass"): 4096, (32, "default rule"): 1024, (224, "cheap pass"): 256, (224, "default rule"): 96}
"""Images of a side of a round: some seconds each, and many batches for each thread: at the end one waits."""


def spent(session: Session) -> float:
    """Seconds of computing so far, of this process and of the session's worker."""
    own = sum(os.times()[:2])
    worker = getattr(getattr(session, "_engine", None), "_worker", None)
    if worker is None:
        return own
    user, system = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return own + (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def control_for(teacher: Teacher) -> Session:
    """A control with random weights, sized as kdaudit would size it."""
    from kdaudit.export import export_network
    from kdaudit.student import StudentSpec, build, choose_architecture

    s = teacher.signature
    height, width = s.height or 32, s.width or 32
    architecture = choose_architecture(height, width, on_gpu=False)
    mean, std = (0.5,) * s.channels, (0.25,) * s.channels
    network = build(StudentSpec(architecture, s.channels, height, width, s.classes, mean, std), 0).eval()
    example = torch.rand(2, s.channels, height, width)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "control.onnx"
        path.write_bytes(export_network(network, example, "input", "logits").SerializeToString())
        admitted = admit(path)
    return open_session(admitted.model, admitted.signature, provider="cpu")


def pace(
    session: Session, control: Session | None, batches: list[NDArray[np.float32]], threads: int
) -> tuple[float, float]:
    """Images a second over all batches, and a second of computing."""

    def ask(batch: NDArray[np.float32]) -> int:
        if control is not None:
            control.logits(batch)
        return len(session.logits(batch))

    before, began = spent(session), time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        done = sum(pool.map(ask, batches))
    return done / (time.perf_counter() - began), done / max(spent(session) - before, 1e-3)


def measure(path: Path, rounds: int, threads: int, batch: int) -> Iterator[str]:
    """The rows of one model."""
    teacher = admit(path)
    free = open_session(teacher.model, teacher.signature, provider="cpu")
    confined = open_session(teacher.model, teacher.signature, provider="cpu", confined=True)
    rng = np.random.default_rng(0)
    one = rng.random((batch, *(side or 1 for side in teacher.signature.input_shape[1:])), dtype=np.float32)
    for asked, control in (("alone", None), ("with a control", control_for(teacher))):
        speed, _ = pace(free, control, [one] * 2, threads)
        batches = [one] * int(np.clip(1.0 * speed / batch, 2 * threads, 400))  # a side of a round: about a second
        pace(confined, control, batches[:2], threads)
        sides = [partial(pace, session, control, batches, threads) for session in (free, confined)]
        cells = against(rounds, *sides)
        yield f"| {path.name} | {asked} | {cells} | {confined.confinement} | {rounds} x {len(batches) * batch:,} |"
    confined.close()


def scans(rounds: int, threads: int) -> Iterator[str]:
    """The rows of a scan's own throughput."""
    for size in sorted(throughput.DATA):
        bench = throughput.set_up(size, SCANNED[size, "cheap pass"], usual_batch(Geometry(size, size), "cpu"), threads)
        for rule, confined in (("cheap pass", bench.cheap), ("default rule", bench.full)):
            n = SCANNED[size, rule]
            of_both = (replace(confined, teacher=bench.own), confined)
            cells = against(rounds, *(partial(scanned, bench, subjects, n) for subjects in of_both))
            yield f"| {size} px | {rule} | {cells} | {confined.teacher.confinement} | {rounds} x {n:,} |"
        bench.cheap.teacher.close()


def scanned(bench: throughput.Bench, subjects: Subjects, n: int) -> tuple[float, float]:
    """Images a second of a comparison of the first n images, and a second of computing."""
    records, decoder = itertools.islice(bench.source.records(), n), open_decoder()
    before, began = spent(subjects.teacher), time.perf_counter()
    done = sum(len(part) for part in compare(subjects, records, decoder, batch=bench.batch, workers=bench.workers))
    return done / (time.perf_counter() - began), done / max(spent(subjects.teacher) - before, 1e-3)


def against(rounds: int, free: Callable[[], tuple[float, float]], confined: Callable[[], tuple[float, float]]) -> str:
    """Three cells: free images a second, and the quotient (confined / free) by the clock and by computing."""
    found = []
    for number in range(-1, rounds):  # the first is for the caches
        pair = (free(), confined()) if number % 2 else (confined(), free())[::-1]
        if number >= 0:
            found.append(pair)
    of_free, of_confined = np.array(found).transpose(1, 2, 0)
    clock, work = of_confined / of_free
    return f"{np.median(of_free[0]):,.0f} | {share(clock)} | {share(work)}"


def share(values: NDArray[np.float64]) -> str:
    """Median in percent with its bootstrap 95 % interval."""
    rng = np.random.default_rng(0)
    drawn = np.median(rng.choice(values, (2000, len(values))), axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return f"{100 * np.median(values):.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--scan", action="store_true", help="the scan's own throughput, with reading and decoding")
    given = parser.parse_args()
    asked = "batches as a scan takes them" if given.scan else f"batches of {given.batch}"
    print(f"{given.threads} threads, {asked}; {lab.machine()}; {lab.today()}\n")
    print("| what | asked | free, images/s | confined / free, by the clock | by computing | confined by | images |")
    print("|---|---|---|---|---|---|---|")
    if given.scan:
        for line in scans(given.rounds, given.threads):
            print(line, flush=True)
        return
    for name in MODELS:
        for line in measure(lab.SHARED / "models" / "real" / name, given.rounds, given.threads, given.batch):
            print(line, flush=True)


if __name__ == "__main__":
    main()
