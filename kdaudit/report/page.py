"""The report as one HTML file: opens from disk, asks the network for nothing, runs one script of its own.

Names come from outside: the template escapes all of them, the data block cannot be left, and the page's content
security policy allows no other script than the one whose digest it names.
"""

import base64
import hashlib
import json
from dataclasses import asdict
from importlib import resources
from typing import Any

from kdaudit.report import charts
from kdaudit.report.advice import next_steps
from kdaudit.report.candidates import answer_name
from kdaudit.report.document import Document
from kdaudit.report.escape import printable
from kdaudit.report.gallery import Gallery
from kdaudit.report.results import ClusterSection
from kdaudit.report.rules import rules
from kdaudit.report.sections import Rate

MAX_TABLE = 200
"""Rows of a table on the page; report.json has all of them."""


def render_html(document: Document, gallery: Gallery) -> str:
    """The report as a self-contained page.

    Args:
        document: the report.
        gallery: its pictures.
    """
    from jinja2 import Environment
    from markupsafe import Markup

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    environment.filters |= {"rate": _rate, "share": _share, "shown": printable, "pct": lambda x: f"{100 * x:.2f}"}
    script, style = _asset("page.js"), _asset("page.css")
    names = {int(answer): name for answer, name in gallery.names.items()}
    targets = _targets(document, gallery)
    plots = document.plots
    page = environment.from_string(_asset("page.html.jinja")).render(
        d=document,
        gallery=gallery,
        targets=targets,
        steps=next_steps(document),
        known=rules(),
        answer=lambda number: printable(answer_name(number, names)),
        total_seconds=sum(document.timings.values()),
        slowest=sorted(document.timings.items(), key=lambda item: -item[1]),
        score_chart=Markup(charts.score_histogram(plots)) if plots else "",  # noqa: S704  numbers and our own words
        p_chart=Markup(charts.p_value_histogram(plots)) if plots and sum(plots.p_values) else "",  # noqa: S704
        settings=json.dumps(document.recipe.settings, indent=2),
        max_table=MAX_TABLE,
        style=Markup(style),  # noqa: S704  our own file
        script=Markup(script),  # noqa: S704  our own file
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        data=Markup(embedded(_data(gallery))),  # noqa: S704  `embedded` leaves no way out of its element
    )
    return str(page)


def embedded(value: Any) -> str:
    """JSON for a script element: nothing in it can end the element or open a comment."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _data(gallery: Gallery) -> dict[str, Any]:
    """What the script needs of the gallery; names without control characters, as everywhere on the page."""
    found = asdict(gallery)
    for part in ("pictures", "targets"):
        del found[part]
    found["paths"] = [printable(path) for path in gallery.paths]
    found["names"] = {answer: printable(name) for answer, name in gallery.names.items()}
    found["classes"] = [printable(name) for name in gallery.classes]
    return found


def _targets(document: Document, gallery: Gallery) -> list[dict[str, Any]]:
    """Clusters by target answer, most candidates first, each with its pictures and the images that really get it."""
    grouped: dict[int, list[Any]] = {}
    for cluster in document.clusters:
        grouped.setdefault(cluster.target, []).append(cluster)
    rows = [
        {
            "target": target,
            "size": sum(cluster.size for cluster in clusters),
            "hits": sum(_calls(cluster) for cluster in clusters),
            "clusters": clusters,
            "pictures": gallery.targets.get(str(target)),
            "kind": clusters[0].kind,
            "row": next((row for row in document.judgement.by_answer if row.answer == target), None),
        }
        for target, clusters in grouped.items()
    ]
    return sorted(rows, key=lambda row: -row["size"])


def _calls(cluster: ClusterSection) -> int:
    """Images of a cluster that get its target as the answer; all of them where an older report does not say."""
    return next((count.images for count in cluster.says if count.answer == cluster.target), cluster.size)


def _rate(rate: Rate | None, digits: int = 2) -> str:
    """`1.25 % [0.90, 1.70]`."""
    if rate is None or not rate.of:
        return "-"
    return f"{100 * rate.hits / rate.of:.{digits}f} % [{100 * rate.low:.{digits}f}, {100 * rate.high:.{digits}f}]"


def _share(rate: Rate | None) -> str:
    if rate is None or not rate.of:
        return "-"
    return f"{100 * rate.hits / rate.of:.2f} %"


def _asset(name: str) -> str:
    return (resources.files("kdaudit.report") / "assets" / name).read_text(encoding="utf-8")
