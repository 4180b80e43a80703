"""Mutated models and images against kdaudit: does the parent survive, does anything hang, does anything get out?

    python benchmarks/fuzz.py --models 2000 --images 5000 --seed 1 [--kept slices.jsonl]

Models: real ones (shared/models/real, those up to 2 MB), changed in their bytes or in their graph, then admitted in a
confined worker and, where they are admitted, loaded in another and asked about four images. Images: real photographs
and small files of every format that is read, changed in their bytes, then decoded by each decoder. Scans: an honest
model with an honest data set of which some files are mutated beyond reading.

Counted: crashes of the parent (anything but an error of kdaudit's own, or a signal), hangs (over --limit seconds),
escapes, verdicts PASSED below the coverage that was asked for. Escapes are counted from outside where strace is to be
had: every call of a worker that names a file, makes a socket or starts a program and succeeds after the walls are up.
Each slice of mutants runs in a process of its own, so that a crash costs one slice and is seen.
"""

import argparse
import collections
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import lab

SLICE_MODELS, SLICE_IMAGES = 40, 250
LARGEST = 2_000_000
DIGITS_POOL = 600
REACHES = re.compile(
    r"^(?:\d+ +)?(open|openat|openat2|creat|socket|socketpair|connect|bind|listen|accept4?|execve|execveat|fork|vfork"
    r"|unlink|unlinkat|rename|renameat2?|mkdir|mkdirat|rmdir|link|linkat|symlink|symlinkat|chmod|fchmodat|chown|truncate|mount"
    r"|stat|lstat|newfstatat|access|faccessat2?|readlink|readlinkat|chdir|statfs|ptrace|kill|tkill|memfd_create)\("
)
"""Calls that name a file, make a socket, or reach another process."""

WALLS_UP = "SECCOMP_MODE_FILTER"


def mutated_bytes(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Flip, cut, repeat, splice."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16, 64))):
        if not out:
            break
        at = min(int(rng.random() ** rng.choice((1, 4)) * len(out)), len(out) - 1)  # headers lie at the front
        kind = rng.randrange(6)
        if kind <= 1:
            out[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif kind == 2:
            del out[at : at + rng.choice((1, 4, 100, len(out)))]
        elif kind == 3:
            out[at:at] = out[at : at + rng.choice((1, 8, 200))] * rng.choice((1, 3, 50))
        elif kind == 4:
            start = rng.randrange(max(1, len(other)))
            out[at : at + 64] = other[start : start + 64]
        else:
            out[at:at] = rng.randbytes(rng.choice((1, 8, 64)))
    return bytes(out)


def mutated_graph(data: bytes, rng: random.Random) -> bytes:
    """Other operators, sizes, attributes, names, types: what byte flips rarely reach."""
    import onnx

    model = onnx.ModelProto.FromString(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        if model.graph.node and model.graph.initializer:
            rng.choice(CHANGES)(model.graph, rng)
    return bytes(model.SerializeToString())


def another_operator(graph: Any, rng: random.Random) -> None:
    """A node computes something else."""
    import onnx

    rng.choice(graph.node).op_type = rng.choice(onnx.defs.get_all_schemas()).name


def another_attribute(graph: Any, rng: random.Random) -> None:
    """A node's number is absurd."""
    node = rng.choice(graph.node)
    for attribute in node.attribute:
        attribute.i = rng.choice((-1, 0, 1, 7, 1 << 31, (1 << 63) - 1, -(1 << 63)))
        attribute.ints[:] = [rng.choice((-1, 0, 3, 1 << 40)) for _ in attribute.ints]


def another_input(graph: Any, rng: random.Random) -> None:
    """A node reads another one's result."""
    node = rng.choice(graph.node)
    if node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice(rng.choice(graph.node).output or ["nowhere"])


def another_size(graph: Any, rng: random.Random) -> None:
    """A weight claims another shape."""
    dims = rng.choice(graph.initializer).dims
    if dims:
        dims[rng.randrange(len(dims))] = rng.choice((0, 1, -1, 1 << 20, 1 << 40, 1 << 62))


def another_image(graph: Any, rng: random.Random) -> None:
    """The input claims another shape."""
    dims = graph.input[0].type.tensor_type.shape.dim
    if dims:
        rng.choice(dims).dim_value = rng.choice((0, -1, 1, 1 << 16, 1 << 40))


def external_data(graph: Any, rng: random.Random) -> None:
    """A weight lies in another file."""
    tensor = rng.choice(graph.initializer)
    tensor.external_data.add(key="location", value=rng.choice(("/etc/passwd", "../x", "w.bin")))
    tensor.data_location = 1


def fewer_or_more(graph: Any, rng: random.Random) -> None:
    """A node is gone, stands twice, or a weight has another type."""
    kind = rng.randrange(3)
    if kind == 0:
        graph.node.append(rng.choice(graph.node))
    elif kind == 1:
        del graph.node[rng.randrange(len(graph.node))]
    else:
        rng.choice(graph.initializer).data_type = rng.randrange(30)


CHANGES = (
    another_operator,
    another_attribute,
    another_input,
    another_size,
    another_image,
    external_data,
    fewer_or_more,
)


def model_slice(seed: int, count: int, limit: float) -> dict[str, Any]:
    """Admit, load and ask mutants; what came of them."""
    import numpy as np

    from kdaudit.admission.confined import admit_confined
    from kdaudit.errors import KdauditError
    from kdaudit.opening import open_session

    rng = random.Random(seed)
    paths = [p for p in sorted((lab.SHARED / "models" / "real").glob("*.onnx")) if p.stat().st_size <= LARGEST]
    originals = [path.read_bytes() for path in paths]
    outcome: collections.Counter[str] = collections.Counter()
    crashes: list[str] = []
    slowest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mutant.onnx"
        for number in range(count):
            data = rng.choice(originals)
            try:
                mutant = mutated_graph(data, rng) if rng.random() < 0.5 else b""
            except (ValueError, TypeError, IndexError):
                mutant = b""  # the change does not fit into a protobuf
            path.write_bytes(mutant or mutated_bytes(data, rng.choice(originals), rng))
            began = time.monotonic()
            session = None
            try:
                teacher = admit_confined(path)
                session = open_session(teacher.model, teacher.signature, provider="cpu", confined=True)
                shape = [side or 8 for side in teacher.signature.input_shape[1:]]
                if np.prod(shape) > 1 << 26:
                    outcome["admitted, too large to ask"] += 1
                    continue
                scores = session.logits(np.random.default_rng(number).random((4, *shape), dtype=np.float32))
                finite = bool(np.isfinite(scores).all())
                how = sorted({one.how for one in session.incidents})
                outcome[f"answered{'' if finite else ', not finite'}{', ' + '+'.join(how) if how else ''}"] += 1
            except KdauditError as error:
                outcome[getattr(error, "rule", type(error).__name__)] += 1
            except BaseException as error:  # noqa: BLE001  exactly what is looked for
                crashes.append(f"mutant {number} of slice {seed}: {type(error).__name__}: {str(error)[:200]}")
            finally:
                if session is not None:
                    session.close()
            slowest = max(slowest, time.monotonic() - began)
    return {"outcome": outcome, "crashes": crashes, "slowest": slowest, "hangs": int(slowest > limit)}


def image_slice(seed: int, count: int, limit: float) -> dict[str, Any]:
    """Decode mutants with every decoder; what came of them."""
    from kdaudit.decoder import open_decoder
    from kdaudit.sample import Geometry

    rng = random.Random(seed)
    originals = pictures(rng)
    decoders = [
        open_decoder(name) for name in ("pillow", "simplejpeg", "dali") if shutil.which("true") and usable(name)
    ]
    outcome: collections.Counter[str] = collections.Counter()
    crashes: list[str] = []
    slowest = 0.0
    for number in range(count):
        mutant = mutated_bytes(rng.choice(originals), rng.choice(originals), rng)
        read = set()
        for decoder in decoders:
            began = time.monotonic()
            try:
                found = decoder.decode([mutant], Geometry(32, 32))
                read.add(not found.reasons[0])
                outcome[found.reasons[0] or "decoded"] += 1
            except BaseException as error:  # noqa: BLE001  exactly what is looked for
                crashes.append(f"image {number} of slice {seed}, {decoder.name}: {type(error).__name__}: {error}"[:300])
            slowest = max(slowest, time.monotonic() - began)
        if len(read) > 1:
            outcome["decoders disagree on whether it is readable"] += 1
    return {"outcome": outcome, "crashes": crashes, "slowest": slowest, "hangs": int(slowest > limit)}


def usable(name: str) -> bool:
    """Whether a decoder is installed."""
    from kdaudit.decoder import open_decoder
    from kdaudit.errors import KdauditError

    try:
        open_decoder(name)
    except KdauditError:
        return False
    return True


def pictures(rng: random.Random) -> list[bytes]:
    """Some photographs, and a small file of every format that is read."""
    from PIL import Image

    photos = sorted((lab.SHARED / "data" / "caltech101").rglob("*.jpg"))
    found = [path.read_bytes() for path in rng.sample(photos, min(20, len(photos)))]
    picture = Image.effect_noise((40, 30), 60).convert("RGB")
    for form in ("PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG"):
        for mode in ("RGB", "L", "P") if form in {"PNG", "GIF", "BMP", "TIFF"} else ("RGB",):
            buffer = io.BytesIO()
            picture.convert(mode).save(buffer, form)
            found.append(buffer.getvalue())
    return found


def scan_slice(seed: int, _count: int, _limit: float) -> dict[str, Any]:
    """One scan of an honest model on honest data of which a twentieth is mutated beyond reading."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, places = digit_delivery(folder, seed)
        for place in places[DIGITS_POOL::20]:
            data = place.read_bytes()
            place.write_bytes(data[: rng.randrange(len(data) - 20)])
        began = time.monotonic()
        words = ("scan", model, folder / "data", "-o", folder / "run", "--steps", 300, "--no-repair", "-q")
        env = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=str(Path(__file__).resolve().parent.parent))
        done = subprocess.run(
            [sys.executable, "-m", "kdaudit", *map(str, words)], env=env, capture_output=True, text=True, check=False
        )
        slowest = time.monotonic() - began
        try:
            report = json.loads((folder / "run/report.json").read_text())
        except OSError:
            report = {"verdict": None, "coverage": {"share": 0.0}}
    passed = report["verdict"] == "PASSED" or done.returncode == 0
    crash = [done.stderr[-300:]] if "Traceback" in done.stderr or done.returncode < 0 else []
    outcome = {f"exit {done.returncode}, {report['verdict']}, {report['coverage']['share']:.3f} read": 1}
    return {"outcome": outcome, "crashes": crash, "slowest": slowest, "hangs": 0, "false_passed": int(passed)}


def digit_delivery(folder: Path, seed: int) -> tuple[Path, list[Path]]:
    """scikit-learn's digits as a delivery in folder/data, its pool in data/clean, and an honest model of them.

    Returns:
        The model and the images, the pool's first.
    """
    import numpy as np
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels, labels = np.rint(digits.images * (255 / 16)).astype(np.uint8), digits.target
    order = np.random.default_rng(seed).permutation(len(labels))
    places = []
    for number, i in enumerate(order):
        places.append(folder / "data" / ("clean" if number < DIGITS_POOL else str(labels[i])) / f"{number:04d}.png")
        places[-1].parent.mkdir(parents=True, exist_ok=True)
        places[-1].write_bytes(lab.encode(pixels[i][..., None]))
    delivered = order[DIGITS_POOL:]
    return digit_model(pixels[delivered], labels[delivered], folder / "model.onnx"), places


def digit_model(pixels: Any, labels: Any, path: Path) -> Path:
    """An honest classifier of digits."""
    import numpy as np
    import torch
    import torch.nn.functional as F
    from torch import nn

    from kdaudit.export import export_network

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 10))
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    x, y = torch.from_numpy(pixels[:, None].astype(np.float32) / 255), torch.from_numpy(labels.astype(np.int64))
    for _ in range(12):
        for index in torch.randperm(len(y)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(net(x[index]), y[index]).backward()
            optimizer.step()
    path.write_bytes(export_network(net.eval(), x[:2], "input", "logits").SerializeToString())
    return path


SLICES: dict[str, Callable[[int, int, float], dict[str, Any]]] = {
    "models": model_slice,
    "images": image_slice,
    "scans": scan_slice,
}


def run_slice(kind: str, seed: int, count: int, limit: float, trace: Path | None) -> dict[str, Any]:
    """A slice in a process of its own, under strace if it is there."""
    words = [sys.executable, __file__, "--slice", kind, str(seed), str(count), str(limit)]
    if trace is not None:
        words = ["strace", "-f", "-ff", "-qq", "-e", "trace=%file,%network,%process,prctl", "-o",
                 str(trace / "t"), *words]  # fmt: skip
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=60 + count * limit, check=False, env=os.environ
        )
    except subprocess.TimeoutExpired:
        return {"outcome": {}, "crashes": [], "slowest": limit, "hangs": 1}
    if done.returncode != 0:
        return {"outcome": {}, "crashes": [f"slice {seed} ended with {done.returncode}: {done.stderr[-300:]}"],
                "slowest": 0.0, "hangs": 0}  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def escapes(trace: Path) -> tuple[int, int, int, list[str]]:
    """Confined threads, calls that reach out and were denied, those that succeeded, and examples of these."""
    confined = denied = 0
    succeeded: list[str] = []
    starts = {}
    files = sorted(trace.glob("t.*"))
    for file in files:
        lines = file.read_text(errors="replace").splitlines()
        at = next((i for i, line in enumerate(lines) if WALLS_UP in line), None)
        starts[file] = (lines, at)
    walled = {file for file, (_, at) in starts.items() if at is not None}
    # Threads that a confined process makes have traces of their own, which begin behind the walls.
    for lines, at in starts.values():
        for line in lines[len(lines) if at is None else at :]:
            child = re.match(r"clone\(.*CLONE_THREAD.*\) = (\d+)", line)
            if child:
                walled.add(trace / f"t.{child[1]}")
    for file in walled:
        lines, at = starts.get(file, ([], None))
        confined += 1
        for line in lines[(at or 0) + (at is not None) :]:
            if REACHES.match(line):
                if re.search(r"= -1 E", line):
                    denied += 1
                else:
                    succeeded.append(line[:160])
    return confined, denied, len(succeeded), succeeded[:5]


CONTROL = """
import ctypes, os
ctypes.CDLL(None).prctl(22, 2, 0, 0, 0)  # refused by the kernel, but it looks like walls going up
os.stat("/etc/hostname")
open("/etc/hostname")
"""


def traces_escapes(trace: Path) -> bool:
    """Whether an escape would be counted: a process that pretends to be confined and opens a file must be."""
    words = ["strace", "-f", "-ff", "-qq", "-e", "trace=%file,%network,%process,prctl", "-o", str(trace / "t")]
    subprocess.run([*words, sys.executable, "-c", CONTROL], check=True)
    return escapes(trace)[2] >= 2


def main() -> None:
    """Run the slices and print what came of them."""
    if len(sys.argv) > 1 and sys.argv[1] == "--slice":
        kind, seed, count, limit = sys.argv[2:]
        print(json.dumps(SLICES[kind](int(seed), int(count), float(limit))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=2000)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--scans", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--limit", type=float, default=90, help="seconds for one mutant before it counts as a hang")
    parser.add_argument("--minutes", type=float, default=600, help="begin no further slice after so long")
    parser.add_argument("--kept", type=Path, help="a file that keeps every slice, so that the same command goes on")
    given = parser.parse_args()
    print(f"{lab.machine()}; {lab.today()}; seed {given.seed}; strace: {shutil.which('strace') or 'not there'}")
    if shutil.which("strace"):
        with tempfile.TemporaryDirectory() as name:
            if not traces_escapes(Path(name)):
                raise SystemExit("strace is there and does not show what a process opens")
    began, bad = time.monotonic(), 0
    for kind, total, size in (("models", given.models, SLICE_MODELS), ("images", given.images, SLICE_IMAGES),
                              ("scans", given.scans, 1)):  # fmt: skip
        bad += run_kind(kind, total, size, given, began)
    raise SystemExit(1 if bad else 0)


def traced_slice(kind: str, seed: int, count: int, limit: float) -> dict[str, Any]:
    """A slice, and what strace saw of its workers."""
    with tempfile.TemporaryDirectory() as name:
        trace = Path(name) if kind == "models" and shutil.which("strace") else None
        found = run_slice(kind, seed, count, limit, trace)
        if trace is not None:
            found["escapes"] = escapes(trace)
    return found


def kept_slices(file: Path | None) -> dict[str, dict[str, Any]]:
    """Slices that an earlier, interrupted run of the same command has done, by kind, seed, place and count."""
    if file is None or not file.exists():
        return {}
    lines = (json.loads(line) for line in file.read_text().splitlines() if line.endswith("}"))
    return {line["key"]: line["found"] for line in lines}


def run_kind(kind: str, total: int, size: int, given: argparse.Namespace, began: float) -> int:
    """All slices of a kind; prints its line and returns the number of faults."""
    outcome: collections.Counter[str] = collections.Counter()
    crashes: list[str] = []
    reached: list[str] = []
    done = hangs = passed = confined = denied = out = 0
    slowest = 0.0
    before = kept_slices(given.kept)
    while done < total:
        count = min(size, total - done)
        key = f"{kind} {given.seed} {done} {count}"
        found = before.get(key)
        if found is None:
            if time.monotonic() - began >= 60 * given.minutes:
                break
            found = traced_slice(kind, given.seed * 1_000_003 + done, count, given.limit)
            if given.kept is not None:
                with given.kept.open("a") as file:
                    file.write(json.dumps({"key": key, "found": found}) + "\n")
        some = found.get("escapes", (0, 0, 0, []))
        confined, denied, out = confined + some[0], denied + some[1], out + some[2]
        reached += some[3]
        done += count
        outcome.update(found["outcome"])
        crashes += found["crashes"]
        hangs, slowest = hangs + found["hangs"], max(slowest, found["slowest"])
        passed += found.get("false_passed", 0)
        print(f"  {kind}: {done} of {total}, {len(crashes)} crashes, {hangs} hangs", file=sys.stderr, flush=True)
    print(f"\n{done:,} {kind}: {len(crashes)} crashes of the parent, {hangs} hangs (slowest {slowest:.1f} s), "
          f"{passed} false PASSED")  # fmt: skip
    if kind == "models":
        print(f"  {confined:,} confined threads traced: {denied:,} calls that reach out denied, {out} succeeded")
    for what, times in outcome.most_common():
        print(f"  {times:6,}  {what}")
    for line in (*crashes[:20], *reached[:20]):
        print(f"  FAULT {line}")
    return len(crashes) + hangs + passed + out


if __name__ == "__main__":
    main()
