"""What confinement costs: images a second with the model in a confined worker and in this process, interleaved.

    python benchmarks/confinement.py --rounds 15

Each round asks both sessions for the same batches on the same threads, the order turned round from one to the next, so
that whatever else the machine does falls on both. The figure is the median over the rounds of the quotient
(confined / free) with a bootstrap 95 % interval. The model is asked alone, without decoding and without the control:
the share that confinement has in a scan is smaller.
"""

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from numpy.typing import NDArray

from benchmarks import lab
from kdaudit.admission import admit
from kdaudit.machine import cores
from kdaudit.session import Session, open_session

MODELS = ("ext_mnist_web/mnist.onnx", "dogun_gtsrb_cnn.onnx", "vit_cifar10_ibp_3_3_8.onnx", "edgeopt_model_uint8.onnx")


def pace(session: Session, batches: list[NDArray[np.float32]], threads: int) -> float:
    """Images a second over all batches."""
    began = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        done = sum(len(scores) for scores in pool.map(session.logits, batches))
    return done / (time.perf_counter() - began)


def measure(path: Path, rounds: int, threads: int, batch: int) -> str:
    """One row of the table."""
    teacher = admit(path)
    free = open_session(teacher.model, teacher.signature, provider="cpu")
    confined = open_session(teacher.model, teacher.signature, provider="cpu", confined=True)
    rng = np.random.default_rng(0)
    shape = tuple(side or 1 for side in teacher.signature.input_shape[1:])
    one = rng.random((batch, *shape), dtype=np.float32)
    speed = pace(free, [one] * 2, threads)
    count = int(np.clip(2.0 * speed / batch, 2 * threads, 400))  # a side of a round lasts about two seconds
    batches = [one] * count
    pace(confined, batches[:2], threads)
    quotients, speeds = [], []
    for number in range(rounds):
        order = (free, confined) if number % 2 else (confined, free)
        found = {session.confinement: pace(session, batches, threads) for session in order}
        quotients.append(found[confined.confinement] / found["none"])
        speeds.append(found["none"])
    confined.close()
    drawn = np.median(rng.choice(quotients, (2000, rounds)), axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return (
        f"| {path.name} | {np.median(speeds):,.0f} | {100 * np.median(quotients):.1f} % [{100 * low:.1f}, "
        f"{100 * high:.1f}] | {confined.confinement} | {rounds} x {count * batch:,} |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--batch", type=int, default=64)
    given = parser.parse_args()
    print(f"{given.threads} threads, batches of {given.batch}; {lab.machine()}; {lab.today()}\n")
    print("| model | free, images/s | confined / free | confined by | rounds x images |\n|---|---|---|---|---|")
    for name in MODELS:
        print(measure(lab.SHARED / "models" / "real" / name, given.rounds, given.threads, given.batch), flush=True)


if __name__ == "__main__":
    main()
