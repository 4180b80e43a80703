"""A trial: the control in int8 (onnxruntime's static QDQ quantisation), its speed, its answers and what it detects.

    python benchmarks/int8_control.py

On the suite's BadNets case (CIFAR-10, 5 % poison, 25,000 images; `python -m benchmarks.suite` builds it). The control
is ours and may be rounded; the teacher never is. Ranges are taken on the clean pool, which the control was distilled
on. Printed: images per CPU-second of float32 and int8 in interleaved rounds; on how many images both give the same
answer; and, with the truth that only this benchmark knows, how well the cheap pass's score separates poison with
either.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from numpy.typing import NDArray

from benchmarks import lab
from kdaudit import divergence
from kdaudit.admission import Teacher, admit
from kdaudit.decoder import open_decoder
from kdaudit.export import control_signature
from kdaudit.opening import open_session
from kdaudit.preprocess import Preprocess
from kdaudit.session import Session
from kdaudit.source import open_source

CASE = lab.LAB / "suite" / "cifar10" / "badnets-0.05-seed0"
POOL = lab.LAB / "suite" / "cifar10" / "pool-seed0" / "clean-0.05.parquet"
BATCH = 64


def main() -> None:
    """Quantise, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=25_000, help="of the delivery, for answers and detection")
    parser.add_argument("--calibration", type=int, default=512, help="clean images that the ranges are taken on")
    given = parser.parse_args()
    file = CASE / "control-0.05.onnx"
    control, teacher = admit(file), admit(CASE / "teacher.onnx")
    preprocess = Preprocess.parse(dict(control.notes)["kdaudit.preprocess"])
    clean = pixels_of(POOL, preprocess, given.calibration)
    exact, rounded = opened(control, control.model), opened(control, quantised(file, preprocess.apply(clean)))
    own = open_session(teacher.model, teacher.signature, provider="cpu")
    print(f"{lab.today()}; {lab.machine()}; batch {BATCH}, one thread")
    speed([exact, rounded], preprocess.apply(clean), given.rounds)
    images = pixels_of(CASE / "delivery", preprocess, given.images)
    known, one, other = (answered(session, preprocess, images) for session in (own, exact, rounded))
    poison = np.load(CASE / "truth.npz")["poison"][: len(images)]
    detection(known, one, other, poison)


def quantised(control: Path, tensor: NDArray[np.generic]) -> bytes:
    """The control with int8 weights and activations, ranges from a tensor of clean images."""
    import onnx
    from onnxruntime import quantization

    name = onnx.load(control).graph.input[0].name

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches: Iterator[dict[str, Any]] = iter(
                {name: tensor[i : i + BATCH]} for i in range(0, len(tensor), BATCH)
            )

        def get_next(self) -> dict[str, Any] | None:
            return next(self.batches, None)

    with tempfile.TemporaryDirectory() as folder:
        prepared, made = Path(folder) / "prepared.onnx", Path(folder) / "int8.onnx"
        quantization.shape_inference.quant_pre_process(str(control), str(prepared), skip_symbolic_shape=True)
        quantization.quantize_static(
            str(prepared),
            str(made),
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
        )
        return made.read_bytes()


def opened(control: Teacher, model: bytes) -> Session:
    """A control in this process."""
    return open_session(model, control_signature(control.signature), provider="cpu")


def pixels_of(place: Path, preprocess: Preprocess, n: int) -> NDArray[np.uint8]:
    """The first n images of a set, decoded."""
    records = [record.data for _, record in zip(range(n), open_source(place).records(), strict=False)]
    return open_decoder().decode(records, preprocess.geometry).pixels


def answered(session: Session, preprocess: Preprocess, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Logits [n, K]."""
    parts = (pixels[i : i + BATCH] for i in range(0, len(pixels), BATCH))
    return np.concatenate([session.logits(preprocess.apply(part)) for part in parts])


def speed(sessions: list[Session], tensor: NDArray[np.generic], rounds: int) -> None:
    """Images per CPU-second of each, interleaved, the order turned round from round to round."""
    found = np.zeros((rounds, len(sessions)))
    for number in range(-1, rounds):
        for which in range(len(sessions))[:: 1 if number % 2 else -1]:
            began = time.process_time()
            for start in range(0, len(tensor), BATCH):
                sessions[which].logits(tensor[start : start + BATCH])
            if number >= 0:
                found[number, which] = len(tensor) / (time.process_time() - began)
    quotients = found[:, 1] / found[:, 0]
    print(
        f"images per CPU-second: float32 {np.median(found[:, 0]):,.0f}, int8 {np.median(found[:, 1]):,.0f}: "
        f"{np.median(quotients):.2f} times ({quotients.min():.2f} to {quotients.max():.2f}), {rounds} rounds of "
        f"{len(tensor)} images"
    )


def detection(
    known: NDArray[np.float32], one: NDArray[np.float32], other: NDArray[np.float32], poison: NDArray[np.bool_]
) -> None:
    """Agreement of the two controls, and how the cheap pass's score separates poison with either."""
    same = one.argmax(1) == other.argmax(1)
    print(f"the same answer on {same.sum():,} of {len(same):,} images ({same.mean():.2%})")
    print(f"Jensen-Shannon between the two: median {np.median(divergence.jensen_shannon(one, other)):.2g} nats")
    for name, logits in (("float32", one), ("int8", other)):
        gap = divergence.answers(known, logits).gap
        limit = np.quantile(gap[~poison], 0.99)
        print(
            f"{name:<8} agrees with the teacher on {(known.argmax(1) == logits.argmax(1))[~poison].mean():.2%} of the "
            f"{(~poison).sum():,} innocent; AUROC of the score {auroc(gap, poison):.4f}; "
            f"{(gap[poison] > limit).mean():.2%} of {poison.sum():,} poison at 1 % false"
        )


def auroc(score: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    """Chance that a positive scores above a negative, ties half."""
    from scipy.stats import rankdata

    ranks = rankdata(score)
    n, m = int(positive.sum()), int((~positive).sum())
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * m))


if __name__ == "__main__":
    main()
