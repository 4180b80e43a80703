"""What confinement costs: images a second with the model in a confined worker and in this process, interleaved.

    python benchmarks/confinement.py --rounds 15

Each round asks both sessions for the same batches on the same threads, the order turned round from one to the next, so
that whatever else the machine does falls on both. The figures are medians over the rounds of the quotient
(confined / free) with bootstrap 95 % intervals: once by the clock, and once by the seconds of computing that both
processes spent, which a busy machine changes less. The model is asked alone, and then with a control of kdaudit's own
architecture on the same tensor, as a scan does it (which decodes and blends as well: its share is smaller still).
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import lab
from kdaudit.admission import Teacher, admit
from kdaudit.machine import cores
from kdaudit.session import Session, open_session

MODELS = ("ext_mnist_web/mnist.onnx", "dogun_gtsrb_cnn.onnx", "vit_cifar10_ibp_3_3_8.onnx", "edgeopt_model_uint8.onnx")


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
        quotients, work, speeds = [], [], []
        for number in range(rounds):
            order = (free, confined) if number % 2 else (confined, free)
            found = {session.confinement: pace(session, control, batches, threads) for session in order}
            quotients.append(found[confined.confinement][0] / found["none"][0])
            work.append(found[confined.confinement][1] / found["none"][1])
            speeds.append(found["none"][0])
        yield (
            f"| {path.name} | {asked} | {np.median(speeds):,.0f} | {share(quotients, rng)} | {share(work, rng)} | "
            f"{confined.confinement} | {rounds} x {len(batches) * batch:,} |"
        )
    confined.close()


def share(values: list[float], rng: np.random.Generator) -> str:
    """Median in percent with its bootstrap 95 % interval."""
    drawn = np.median(rng.choice(values, (2000, len(values))), axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return f"{100 * np.median(values):.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--batch", type=int, default=64)
    given = parser.parse_args()
    print(f"{given.threads} threads, batches of {given.batch}; {lab.machine()}; {lab.today()}\n")
    print("| model | asked | free, images/s | confined / free, by the clock | by computing | confined by | images |")
    print("|---|---|---|---|---|---|---|")
    for name in MODELS:
        for line in measure(lab.SHARED / "models" / "real" / name, given.rounds, given.threads, given.batch):
            print(line, flush=True)


if __name__ == "__main__":
    main()
