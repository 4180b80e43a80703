"""How fast the members of a tar are found and read: our parser, the same over a memory map, and `tarfile`.

    python benchmarks/archives.py --rounds 9

One process, interleaved, in seconds of computing (files are in the system's cache): the Caltech-101 shards, whose
members are photographs and labels, and 20,000 small JPEG images in one tar, written for this to a temporary folder.
`heads` finds the members only, which is what opening a data set does; `bytes` reads the files too.
"""

import argparse
import io
import mmap
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable
from itertools import islice, product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks import lab
from kdaudit.source import open_source
from kdaudit.source.archive import Bytes, opened
from kdaudit.source.tar import Kind, members

SMALL = 20_000


class Mapped:
    """A mapped file, as `kdaudit.source.archive.Bytes`."""

    def __init__(self, mapped: mmap.mmap) -> None:
        self.size = len(mapped)
        self._mapped = mapped

    def read(self, start: int, size: int) -> bytes:
        """Up to `size` bytes from `start` on."""
        return self._mapped[start : start + size]


def ours(archive: Bytes, *, read: bool) -> int:
    """Bytes in the files of an archive."""
    found = (m for m in members(archive) if m.kind is Kind.FILE)
    return sum(len(archive.read(m.offset, m.size)) if read else m.size for m in found)


def by_windows(path: Path, *, read: bool) -> int:
    """As the package reads."""
    with opened(str(path)) as archive:
        return ours(archive, read=read)


def by_mapping(path: Path, *, read: bool) -> int:
    """The same parser over a memory map."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        return ours(Mapped(mapped), read=read)


def by_tarfile(path: Path, *, read: bool) -> int:
    """The standard library."""
    with tarfile.open(path, "r:") as file:
        total = 0
        for member in file:
            content = file.extractfile(member) if read and member.isreg() else None
            total += len(content.read()) if content else member.size
        return total


def measure(paths: list[Path], rounds: int) -> dict[tuple[str, bool], list[float]]:
    """Seconds per round over all paths, by way and by whether the files are read."""
    ways: dict[str, Callable[..., int]] = {"windows": by_windows, "mapping": by_mapping, "tarfile": by_tarfile}
    seconds: dict[tuple[str, bool], list[float]] = {key: [] for key in product(ways, (False, True))}
    for number in range(-1, rounds):  # the first is for the caches
        sums = set()
        for way, read in list(seconds) if number % 2 else list(seconds)[::-1]:
            began = time.process_time()
            sums.add(sum(ways[way](path, read=read) for path in paths))
            if number >= 0:
                seconds[way, read].append(time.process_time() - began)
        assert len(sums) == 1, "the ways disagree"
    return seconds


def write_small(path: Path, images: Iterable[bytes]) -> None:
    """A tar of small images."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as file:
        for number, data in enumerate(images):
            member = tarfile.TarInfo(f"{number:06d}.jpg")
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    print(lab.today(), lab.machine(), f"n = {rounds}, median [lowest, highest]")
    with tempfile.TemporaryDirectory() as folder:
        small = Path(folder) / "small.tar"
        records = open_source(lab.SHARED / "data/cifar10/train.parquet").records()
        write_small(small, (record.data for record in islice(records, SMALL)))
        shards = sorted((lab.SHARED / "data/caltech101").glob("*.tar"))
        for name, paths in (("Caltech-101", shards), (f"{SMALL:,} of 32x32", [small])):
            seconds = measure(paths, rounds)
            for (way, read), own in seconds.items():
                times = np.array(seconds["tarfile", read]) / np.array(own)
                print(
                    f"{name:>16} {'bytes' if read else 'heads'} {way}: {np.median(own) * 1000:6.1f} ms, "
                    f"{np.median(times):.2f} [{times.min():.2f}, {times.max():.2f}] times tarfile"
                )


if __name__ == "__main__":
    main()
