"""The renderings of a report, by name and as the files of a run directory. Nothing is run again for any of them."""

import json
from collections.abc import Callable
from pathlib import Path

from kdaudit.digest import write_bytes
from kdaudit.report.document import Document

FILES = {"html": "report.html", "sarif": "findings.sarif", "junit": "junit.xml", "markdown": "summary.md"}
"""What every scan writes beside report.json, by format."""


def write(document: Document, run: Path) -> None:
    """Write all renderings into a run directory, each in one step."""
    for form, name in FILES.items():
        write_bytes(run / name, render_as(form, document, run).encode())


RESULTS = ("samples.parquet", "kept.csv", "quarantine.csv", "repaired.onnx")
"""What else speaks of one result."""


def remove(run: Path) -> None:
    """Take the renderings and the results of an earlier pass away: a pass that ends early leaves none."""
    for name in (*FILES.values(), *RESULTS):
        (run / name).unlink(missing_ok=True)


def render_as(form: str, document: Document, run: Path) -> str:
    """A report in one format.

    Args:
        form: one of text, json, html, sarif, junit, markdown, github.
        document: the report.
        run: its run directory; only html reads from it.

    Raises:
        RunDirectoryError: html, and the gallery is gone or damaged.
    """
    if form == "html":
        from kdaudit.report.gallery import read_gallery
        from kdaudit.report.page import render_html

        return render_html(document, read_gallery(run))
    return _renderer(form, run)(document)


def _renderer(form: str, run: Path) -> Callable[[Document], str]:
    if form == "json":
        # As report.json is written: a path may hold what UTF-8 has no sign for.
        return lambda document: json.dumps(document.model_dump(mode="json"), indent=2, allow_nan=False) + "\n"
    if form == "sarif":
        from kdaudit.report.sarif import render_sarif

        return render_sarif
    if form == "junit":
        from kdaudit.report.junit import render_junit

        return render_junit
    if form in ("markdown", "github"):
        from kdaudit.report.markdown import render_github, render_markdown

        return render_markdown if form == "markdown" else render_github
    from kdaudit.report.text import render

    return lambda document: render(document, run) + "\n"
