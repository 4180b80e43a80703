"""What a person must see to believe a flag: thumbnails of the candidates, and what sets each group apart.

Every picture is decoded and encoded anew; no byte of the suspect set goes into a report. Thumbnails are packed into
sheets, so that ten thousand of them stay a small file. Written once by the scan as gallery.json; renderings read it.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdaudit.digest import write_bytes
from kdaudit.errors import RunDirectoryError
from kdaudit.progress import Advance
from kdaudit.report.candidates import Candidates
from kdaudit.report.pictures import Likeness, Pictures, encode
from kdaudit.report.results import ClusterSection
from kdaudit.rereading import decode_chosen
from kdaudit.sample import Decoder, Geometry, Source

FILE = "gallery.json"
MAX_TILES = 10_000
"""Candidates with a thumbnail, highest score first; the others are in quarantine.csv."""

PER_ROW, PER_SHEET = 20, 400
SMALL, LARGE, FEW = 64, 96, 2_500
"""Tiles of up to 64 pixels a side, 96 where there are few candidates; never larger than what the model sees."""

LOSSLESS_BYTES = 3 << 20
SHEETS_BYTES = 7 << 20
"""Raw pixels up to which sheets are lossless, and what all sheets together may weigh otherwise."""

MAX_KEPT = 4_000
"""Kept images that stand for answers, in all."""


@dataclass(frozen=True, slots=True)
class Gallery:
    """Everything drawn for one report.

    Attributes:
        tile: height and width of a thumbnail in pixels.
        per_row, per_sheet: thumbnails in a row of a sheet, and on a sheet.
        sheets: WebP images, base64.
        paths, digests, labels, teacher, control, scores, p_values, clusters: one entry per thumbnail, in the order of
            the sheets; scores are None where the model's answer was no number, p_values where there are none.
        missing: numbers of thumbnails whose image could not be had again.
        pictures: by cluster id, what sets it apart.
        targets: by target answer (as text), the same over all its clusters.
        names: class names by answer (as text).
        classes: names of the data set's labels.
        total: candidates in all.
    """

    tile: tuple[int, int]
    per_row: int
    per_sheet: int
    sheets: list[str]
    paths: list[str]
    digests: list[str]
    labels: list[int]
    teacher: list[int]
    control: list[int]
    scores: list[float | None]
    p_values: list[float | None]
    clusters: list[str]
    missing: list[int]
    pictures: dict[str, Pictures]
    targets: dict[str, Pictures]
    names: dict[str, str]
    classes: list[str]
    total: int

    def write(self, run: Path) -> None:
        """Write gallery.json into a run directory, in one step."""
        write_bytes(run / FILE, json.dumps(asdict(self), allow_nan=False).encode())


def read_gallery(run: Path) -> Gallery:
    """The gallery of a finished run.

    Raises:
        RunDirectoryError: it is not there, or damaged.
    """
    file = run / FILE
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        found["tile"] = tuple(found["tile"])
        for part in ("pictures", "targets"):
            found[part] = {name: Pictures(**pictures) for name, pictures in found[part].items()}
        return Gallery(**found)
    except OSError as error:
        raise RunDirectoryError(f"{file} cannot be read ({error.strerror}): scan again to have it drawn") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise RunDirectoryError(f"{file} is damaged or of another version of kdaudit: scan again") from error


def empty_gallery() -> Gallery:
    """The gallery of a run that flagged nothing."""
    return Gallery((1, 1), PER_ROW, PER_SHEET, [], [], [], [], [], [], [], [], [], [], {}, {}, {}, [], 0)


def draw_gallery(
    found: Candidates,
    clusters: Sequence[ClusterSection],
    source: Source,
    decoder: Decoder,
    geometry: Geometry,
    names: Mapping[int, str],
    advance: Advance,
) -> Gallery:
    """Draw the candidates, in one pass over the suspect set.

    Args:
        found: the candidates.
        clusters: what they were grouped into.
        source: the suspect set.
        decoder: bytes to pixels.
        geometry: what the model sees.
        names: class names by answer.
        advance: told the number of images drawn since the last call, and of how many.
    """
    if not len(found):
        return replace(empty_gallery(), classes=list(source.classes or ()))
    shown = min(len(found), MAX_TILES)
    small = tile_geometry(geometry, LARGE if shown <= FEW else SMALL)
    tiles = np.zeros((shown, small.height, small.width, small.channels), np.uint8)
    there = np.zeros(shown, bool)
    likeness = Likeness(small, found, len(clusters))
    place = {int(row): i for i, row in enumerate(found.rows[:shown])}
    kept = {int(row): int(answer) for row, answer in zip(*_sampled(found), strict=True)}
    chosen = place.keys() | kept.keys()
    total = len(chosen)
    wanted = np.zeros(max(chosen) + 1, bool)
    wanted[list(chosen)] = True
    for rows, decoded in decode_chosen(source, decoder, small, wanted):
        for row, picture, reason in zip(rows.tolist(), *decoded, strict=True):
            if reason:
                continue
            if row in place:
                tiles[place[row]], there[place[row]] = picture, True
                likeness.add(place[row], picture)
            else:
                likeness.compare(kept[row], picture)
        advance(len(rows), total)
    sheets = pack(tiles)
    scores, p_values = (_plain(values[:shown]) for values in (found.scores, found.p_values))
    answers = {*found.teacher.tolist(), *found.control.tolist()}
    return Gallery(
        tile=(small.height, small.width),
        per_row=PER_ROW,
        per_sheet=PER_SHEET,
        sheets=[base64.b64encode(sheet).decode() for sheet in sheets],
        paths=list(found.paths[:shown]),
        digests=list(found.digests[:shown]),
        labels=found.labels[:shown].tolist(),
        teacher=found.teacher[:shown].tolist(),
        control=found.control[:shown].tolist(),
        scores=scores,
        p_values=p_values,
        clusters=[f"C{number + 1}" for number in found.clusters[:shown]],
        missing=np.flatnonzero(~there).tolist(),
        pictures=likeness.of_clusters([cluster.id for cluster in clusters]),
        targets=likeness.of_targets([cluster.target for cluster in clusters]),
        names={str(answer): names[answer] for answer in sorted(answers) if answer in names},
        classes=list(source.classes or ()),
        total=len(found),
    )


def tile_geometry(geometry: Geometry, side: int) -> Geometry:
    """A thumbnail's size: what the model sees, made smaller where its longer side is over `side` pixels."""
    longer = max(geometry.height, geometry.width)
    if longer <= side:
        return geometry
    height, width = (max(1, round(side * n / longer)) for n in (geometry.height, geometry.width))
    return replace(geometry, height=height, width=width)


def pack(tiles: NDArray[np.uint8]) -> list[bytes]:
    """Thumbnails uint8 [n, h, w, C] as WebP sheets of `PER_SHEET`, as fine as their budget allows."""
    sheets = [_sheet(tiles[first : first + PER_SHEET]) for first in range(0, len(tiles), PER_SHEET)]
    if tiles.nbytes <= LOSSLESS_BYTES:
        return [encode(sheet, None) for sheet in sheets]
    for quality in (88, 75, 60, 45, 30):
        packed = [encode(sheets[0], quality)]
        if len(packed[0]) * len(sheets) <= SHEETS_BYTES:
            break
    return packed + [encode(sheet, quality) for sheet in sheets[1:]]


def _sheet(tiles: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Up to `PER_SHEET` tiles side by side, uint8 [rows * h, PER_ROW * w, C]; the last row is filled with black."""
    n, height, width, channels = tiles.shape
    rows = -(-n // PER_ROW)
    full = np.zeros((rows * PER_ROW, height, width, channels), np.uint8)
    full[:n] = tiles
    grid = full.reshape(rows, PER_ROW, height, width, channels).swapaxes(1, 2)
    return np.ascontiguousarray(grid.reshape(rows * height, PER_ROW * width, channels))


def _sampled(found: Candidates) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of kept images that stand for the answers the control gives to candidates, and these answers."""
    rows, answers = [], []
    for answer in np.unique(found.control):
        here = found.kept[found.kept_control == answer]
        rows.append(here)
        answers.append(np.full(len(here), answer, np.int64))
    chosen, of = np.concatenate(rows), np.concatenate(answers)
    some = np.linspace(0, len(chosen) - 1, min(MAX_KEPT, len(chosen))).astype(int) if len(chosen) else slice(0)
    return chosen[some], of[some]


def _plain(values: NDArray[np.float64]) -> list[float | None]:
    """Numbers to six digits; None for those that JSON does not have."""
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values]
