"""Parquet: both layouts, class names, paths, damage, bounded reading."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_builders import outcomes, pictures, png, rows, write, write_parquet

from kdaudit.errors import DataError
from kdaudit.sample import Status
from kdaudit.source import open_source, parquet, survey

READ = (Status.READ, "")


def write_table(path: Path, columns: dict[str, object]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_plain_binary_column(tmp_path: Path) -> None:
    images = pictures(7)
    source = open_source(write_parquet(tmp_path / "a.parquet", images, plain=True))
    records = list(source.records())
    assert [record.data for record in records] == [image.data for image in images]
    assert [record.label for record in records] == [image.label for image in images]
    assert [record.path for record in records][:2] == ["a.parquet#0", "a.parquet#1"]


def test_without_labels(tmp_path: Path) -> None:
    source = open_source(write_parquet(tmp_path / "a.parquet", pictures(3), labels=False))
    assert source.classes is None
    assert {record.label for record in source.records()} == {None}


def test_class_names_from_metadata(tmp_path: Path) -> None:
    images = pictures(3)
    plain = write_parquet(tmp_path / "a.parquet", images, metadata={"classes": "cat,dog,eel"})
    assert open_source(plain).classes == ("cat", "dog", "eel")
    for number, names in enumerate((["cat", "dog", "eel"], {"0": "cat", "1": "dog", "2": "eel"})):
        features = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        hub = write_parquet(tmp_path / f"h{number}.parquet", images, metadata={"huggingface": json.dumps(features)})
        assert open_source(hub).classes == ("cat", "dog", "eel")
    for number, odd in enumerate(("[", "[]", '{"info": 3}', '{"info": {"features": {"label": {"names": [1]}}}}')):
        odd_file = write_parquet(tmp_path / f"o{number}.parquet", images, metadata={"huggingface": odd})
        assert open_source(odd_file).classes == ("0", "1", "2")


def test_labels_past_the_names_and_odd_ones_are_none(tmp_path: Path) -> None:
    columns = {
        "image": pa.array([b"x"] * 5),
        "label": pa.array([0, -1, None, 10**15, 2], pa.int64()),
    }
    source = open_source(write_table(tmp_path / "a.parquet", columns))
    assert source.classes == ("0", "1", "2")
    assert [record.label for record in source.records()] == [0, None, None, None, 2]
    named = pa.table(columns).replace_schema_metadata({"classes": "a,b"})
    pq.write_table(named, tmp_path / "b.parquet")
    assert [r.label for r in open_source(tmp_path / "b.parquet").records()] == [0, None, None, None, None]


@pytest.mark.parametrize("kind", [pa.uint8(), pa.int16(), pa.uint64()])
def test_integer_types(kind: pa.DataType, tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.parquet", {"image": pa.array([b"x"]), "label": pa.array([1], kind)})
    assert [record.label for record in open_source(path).records()] == [1]


def test_disagreeing_class_names(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", pictures(3), metadata={"classes": "a,b,c"})
    write_parquet(tmp_path / "b.parquet", pictures(3), metadata={"classes": "c,b,a"})
    with pytest.raises(DataError, match=r"disagree on class names \(a\.parquet, b\.parquet\)"):
        open_source(tmp_path)


def test_rows_without_bytes(tmp_path: Path) -> None:
    images = pa.array(
        [
            {"bytes": b"x", "path": "a.png"},
            {"bytes": None, "path": "b.png"},
            None,
            {"bytes": b"", "path": None},
        ],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    source = open_source(write_table(tmp_path / "a.parquet", {"image": images}))
    assert outcomes(source) == {
        "a.png": READ,
        "b.png": (Status.UNREADABLE, "names a file instead of holding its bytes"),
        "a.parquet#2": (Status.UNREADABLE, "no image bytes"),
        "a.parquet#3": (Status.UNREADABLE, "empty file"),
    }


def test_ambiguous_paths_become_row_numbers(tmp_path: Path) -> None:
    images = pictures(2)
    twins = [images[0], images[1], images[0]._replace(data=png(99))]
    write_parquet(tmp_path / "a.parquet", twins)
    write_parquet(tmp_path / "b.parquet", [images[1]._replace(path="own.png")])
    found = outcomes(open_source(tmp_path))
    assert list(found) == ["a.parquet#0", images[1].path, "a.parquet#2", "own.png"]


def test_paths_that_are_not_utf8(tmp_path: Path) -> None:
    raw = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\x04\0\0\0"), pa.py_buffer(b"caf\xe9"))
    image = pa.StructArray.from_arrays([pa.array([b"x"]), raw], ["bytes", "path"])
    source = open_source(write_table(tmp_path / "a.parquet", {"image": image}))
    assert outcomes(source) == {r"caf\xe9": READ}


def test_large_types(tmp_path: Path) -> None:
    kind = pa.struct([("bytes", pa.large_binary()), ("path", pa.large_string())])
    image = pa.array([{"bytes": b"x", "path": "a.png"}], kind)
    assert outcomes(open_source(write_table(tmp_path / "a.parquet", {"image": image}))) == {"a.png": READ}


@pytest.mark.parametrize(
    "columns",
    [
        {"img": pa.array([b"x"])},
        {"image": pa.array(["text"])},
        {"image": pa.array([{"path": "a.png"}])},
        {"image": pa.array([{"bytes": "text"}])},
    ],
)
def test_no_image_column(columns: dict[str, pa.Array], tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.parquet", columns)
    with pytest.raises(DataError, match=r"\(a\.parquet: no column `image` of encoded bytes\): give files"):
        open_source(path)


def test_twin_columns(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array([b"x"]), pa.array([1]), pa.array([2])], ["image", "label", "label"])
    pq.write_table(table, tmp_path / "a.parquet")
    assert open_source(tmp_path / "a.parquet").classes is None
    table = pa.Table.from_arrays([pa.array([b"x"]), pa.array([b"y"])], ["image", "image"])
    pq.write_table(table, tmp_path / "b.parquet")
    with pytest.raises(DataError, match="no column `image`"):
        open_source(tmp_path / "b.parquet")


def test_bad_file_among_good_ones_is_one_record(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", pictures(3))
    write(tmp_path / "b.parquet", b"PAR1 broken")
    write_table(tmp_path / "c.parquet", {"x": pa.array([1])})
    (tmp_path / "d.parquet").symlink_to("/etc/passwd")
    source = open_source(tmp_path)
    found = outcomes(source)
    assert found["b.parquet"][1].startswith("not a readable Parquet file: ")
    assert found["c.parquet"] == (Status.UNREADABLE, "no column `image` of encoded bytes")
    assert found["d.parquet"] == (Status.SKIPPED, "link out of the data set")
    counted = survey(source)
    assert (counted.read, counted.unreadable, counted.skipped) == (3, 2, 1)


def test_damaged_row_group_loses_only_itself(tmp_path: Path) -> None:
    images = [image._replace(data=png(n) + bytes([n]) * 3000) for n, image in enumerate(pictures(30))]
    path = tmp_path / "a.parquet"
    data = pa.array([image.data for image in images], pa.binary())
    table = pa.table({"image": data, "label": [image.label for image in images]})
    pq.write_table(table, path, row_group_size=10, compression="none", write_page_checksum=True, use_dictionary=False)
    offset = pq.read_metadata(path).row_group(1).column(0).data_page_offset
    content = bytearray(path.read_bytes())
    content[offset + 20_000] ^= 0xFF
    path.write_bytes(content)
    source = open_source(path)
    everything = rows(source)
    assert len(everything) == 30
    statuses = [record.status for record in source.records()]
    assert statuses[:10] == statuses[20:] == [Status.READ] * 10
    assert set(statuses[10:20]) == {Status.UNREADABLE}
    assert all(r.reason.startswith("damaged row group: ") for r in source.records(10) if r.reason)
    for start in range(30):
        assert rows(source, start) == everything[start:]


def test_start_skips_row_groups_without_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(write_parquet(tmp_path / "a.parquet", pictures(20), group=5))
    read: list[int] = []
    batches = parquet._batches

    def watched(file: object, group: int, columns: list[str], rows: int) -> object:
        read.append(group)
        return batches(file, group, columns, rows)

    monkeypatch.setattr(parquet, "_batches", watched)
    assert len(list(source.records(12))) == 8
    assert read == [2, 3]


def test_more_rows_than_bytes_could_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_parquet(tmp_path / "a.parquet", pictures(50))
    monkeypatch.setattr(parquet, "MAX_ROWS_PER_BYTE", 0)
    with pytest.raises(DataError, match="claims 50 rows in"):
        open_source(path)


def test_mutated_files_never_raise_anything_else(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", pictures(20))
    content = path.read_bytes()
    for place in range(0, len(content), max(1, len(content) // 300)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
        try:
            counted = survey(open_source(path))
        except DataError:
            continue
        assert counted.count == counted.read + counted.unreadable
