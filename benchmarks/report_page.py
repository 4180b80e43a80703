"""The page of a report with 10,000 candidates: how large the file is, and how fast a browser draws it.

    python benchmarks/report_page.py KDAUDIT-RUN SHARED/data/cifar10/train.parquet

Takes any finished run for what the page says around the gallery, and real images for the gallery itself: 10,000 of them
with a square stamped in, as if all had been flagged. Prints a table. Needs Chromium and chromedriver.
"""

import argparse
import io
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kdaudit.decoder import open_decoder
from kdaudit.gate import candidates_section
from kdaudit.report import outputs
from kdaudit.report.build import rate_of
from kdaudit.report.candidates import Candidates, cluster_sections, group_of
from kdaudit.report.document import Document, read_document
from kdaudit.report.gallery import draw_gallery
from kdaudit.report.results import GatheringRow
from kdaudit.sample import Geometry, Record, Source
from kdaudit.source import open_source

TARGET = 7
SQUARE = (slice(26, 30), slice(2, 6))


class Stamped:
    """A source whose first `n` images carry a yellow square."""

    def __init__(self, source: Source, n: int) -> None:
        self.kind, self.root, self.classes = source.kind, source.root, source.classes
        self._source, self._n = source, n

    def records(self, start: int = 0) -> Iterator[Record]:
        """All records, the first ones stamped and encoded anew."""
        for number, record in enumerate(self._source.records(start), start):
            if number >= self._n:
                yield record
                continue
            pixels = np.array(Image.open(io.BytesIO(record.data)).convert("RGB"))
            pixels[SQUARE] = (255, 220, 0)
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
            yield Record(record.path, record.label, buffer.getvalue())


def build_run(run: Path, images: Path, like: Document, n: int = 10_000, kept: int = 2_000) -> Document:
    """A run directory whose report has `n` candidates, drawn from real images of 32x32 pixels.

    Args:
        run: made anew.
        images: a Parquet file of images with labels, `n + kept` rows or more.
        like: what the report says of everything else.
        n: candidates.
        kept: images that were not flagged.
    """
    run.mkdir(parents=True)
    source = Stamped(open_source(images), n)
    labels = np.array(
        [-1 if r.label is None else r.label for r, _ in zip(source.records(n), range(kept), strict=False)]
    )
    rng = np.random.default_rng(0)
    control = rng.integers(0, 10, n)
    teacher = np.where(rng.random(n) < 0.97, TARGET, rng.integers(0, 10, n))
    names = dict(enumerate(source.classes or ()))
    found = _candidates(n, kept, teacher, control, labels)
    clusters = cluster_sections(found, names)
    gallery = draw_gallery(found, clusters, source, open_decoder(), Geometry(32, 32), names, lambda *_: None)
    gallery.write(run)
    answers, counts = np.unique(teacher, return_counts=True)
    rows = [
        GatheringRow(answer=int(a), name=names.get(int(a)), flagged=rate_of(int(c), 2 * int(c)), share_of_flags=c / n)
        for a, c in sorted(zip(answers, counts, strict=True), key=lambda pair: -pair[1])
    ]
    judgement = like.judgement.model_copy(update={"flagged": rate_of(n, 5 * n), "by_answer": rows})
    made = like.model_copy(
        update={"clusters": clusters, "candidates": candidates_section(found.digests), "judgement": judgement}
    )
    (run / "report.json").write_text(json.dumps(made.model_dump(mode="json")))
    outputs.write(made, run)
    return made


def _candidates(
    n: int, kept: int, teacher: NDArray[np.int64], control: NDArray[np.int64], labels: NDArray[np.int64]
) -> Candidates:
    return Candidates(
        rows=np.arange(n),
        digests=tuple(f"{i:032x}" for i in range(n)),
        paths=tuple(f"shard-{i // 1000:02d}/{i:06d}.jpg" for i in range(n)),
        labels=teacher,
        teacher=teacher,
        control=control,
        scores=np.linspace(0.69, 0.08, n),
        p_values=np.geomspace(1e-9, 1e-3, n),
        triggers=np.full(len(teacher), -1),
        clusters=group_of(teacher, control, np.full(len(teacher), -1)),
        kept=np.arange(n, n + kept),
        kept_control=labels,
        unread=(),
        reasons=(),
    )


@contextmanager
def browser(downloads: Path | None = None) -> Iterator[Any]:
    """Headless Chromium with a fresh profile, told to ask the network for nothing.

    Raises:
        FileNotFoundError: Chromium or chromedriver is not installed.
    """
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        raise FileNotFoundError("no Chromium with chromedriver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in (
            "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
            "disable-component-update", "disable-sync", f"user-data-dir={profile}", "window-size=1200,900",
        ):  # fmt: skip
            options.add_argument(f"--{flag}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        page = webdriver.Chrome(options=options, service=Service(driver))
        try:
            if downloads is not None:
                page.execute_cdp_cmd(
                    "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(downloads)}
                )
            yield page
        finally:
            page.quit()


def requests_of(page: Any) -> list[str]:
    """Addresses asked for since the last call, other than the page, its own data and the browser's start page."""
    events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    return [
        url
        for url in asked
        if not url.startswith(("data:", "blob:", "chrome:")) and url != page.current_url.partition("#")[0]
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a finished run")
    parser.add_argument("images", type=Path, help="a Parquet file of 12,000 images or more")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        began = time.perf_counter()
        build_run(run, given.images, read_document(given.run))
        drawn = time.perf_counter() - began
        file = run / "report.html"
        paints, filters = [], []
        with browser() as page:
            for _ in range(given.repeats):
                page.get(file.as_uri())
                paints.append(page.execute_script(FIRST_PAINT))
                filters.append(page.execute_script(FILTER))
            stray = requests_of(page)
        print("| what | measured |\n|---|---|")
        print(f"| candidates | 10,000 of 32x32, {file.stat().st_size / 1e6:.1f} MB |")
        print(f"| drawing the gallery and writing all outputs | {drawn:.1f} s |")
        print(f"| first contentful paint, median (worst) of {given.repeats} | {_times(paints)} |")
        print(f"| filtering to one group and drawing it | {_times(filters)} |")
        print(f"| requests | {len(stray)} |")


FIRST_PAINT = "return performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? -1"
FILTER = """
const began = performance.now();
const select = document.getElementById("cluster");
select.value = "C2";
select.dispatchEvent(new Event("input"));
document.getElementById("grid").getBoundingClientRect();
return performance.now() - began;
"""


def _times(milliseconds: list[float]) -> str:
    return f"{statistics.median(milliseconds):.0f} ms ({max(milliseconds):.0f})"


if __name__ == "__main__":
    main()
