"""Small data sets of every format, built from the same pictures."""

import csv
import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from kdaudit.sample import Record, Source, Status


class Picture(NamedTuple):
    path: str
    label: int
    data: bytes


def png(seed: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 3), (seed % 256, seed // 256, 7)).save(file, "PNG")
    return file.getvalue()


def pictures(count: int = 12, classes: Sequence[str] = ("0", "1", "2")) -> list[Picture]:
    """Sorted by path, so that every format holds them in the same order."""
    labels = [number % len(classes) for number in range(count)]
    made = [Picture(f"{classes[label]}/{number:04}.png", label, png(number)) for number, label in enumerate(labels)]
    return sorted(made)


def write_folder(root: Path, images: Iterable[Picture]) -> Path:
    for image in images:
        write(root / image.path, image.data)
    return root


def write(path: Path, data: bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def tar_bytes(members: Iterable[tuple[str, bytes]], layout: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=layout) as archive:
        for name, data in members:
            information = tarfile.TarInfo(name)
            information.size = len(data)
            archive.addfile(information, io.BytesIO(data))
    return file.getvalue()


def samples(images: Iterable[Picture]) -> list[tuple[str, bytes]]:
    """Members in the WebDataset layout."""
    members: list[tuple[str, bytes]] = []
    for image in images:
        members.append((image.path, image.data))
        members.append((image.path.replace(".png", ".cls"), str(image.label).encode()))
    return members


def write_tar(path: Path, images: Iterable[Picture]) -> Path:
    return write(path, tar_bytes(samples(images)))


def write_parquet(
    path: Path,
    images: Sequence[Picture],
    *,
    group: int = 5,
    plain: bool = False,
    labels: bool = True,
    metadata: dict[str, str] | None = None,
    paths: bool = True,
) -> Path:
    data = [image.data for image in images]
    columns: dict[str, pa.Array] = {}
    if plain:
        columns["image"] = pa.array(data, pa.binary())
    else:
        names = [image.path if paths else None for image in images]
        columns["image"] = pa.StructArray.from_arrays(
            [pa.array(data, pa.binary()), pa.array(names, pa.string())], ["bytes", "path"]
        )
    if labels:
        columns["label"] = pa.array([image.label for image in images], pa.int64())
    table = pa.table(columns).replace_schema_metadata(metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=group)
    return path


def write_csv(path: Path, rows: Iterable[Sequence[object]], header: Sequence[str] = ("path", "label")) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path


def write_jsonl(path: Path, rows: Iterable[object]) -> Path:
    return write(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def rows(source: Source, start: int = 0) -> list[tuple[str, int | None]]:
    """`(id, label)` of every record."""
    return [(record.id, record.label) for record in source.records(start)]


def outcomes(source: Source) -> dict[str, tuple[Status, str]]:
    """Status and reason by path; every path stands once."""
    records = list(source.records())
    found = {record.path: (record.status, record.reason) for record in records}
    assert len(found) == len(records)
    return found


def by_path(source: Source) -> dict[str, Record]:
    return {record.path: record for record in source.records()}
