"""Every format: recognised, equal to the others, resumable."""

import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
from PIL import Image
from source_builders import (
    Picture,
    pictures,
    png,
    rows,
    write,
    write_csv,
    write_folder,
    write_jsonl,
    write_parquet,
    write_tar,
)

from kdaudit.errors import DataError
from kdaudit.sample import Source, Status
from kdaudit.source import open_source, survey

Images = list[Picture]


def folder(root: Path, images: Images) -> Path:
    return write_folder(root / "folder", images)


def tar(root: Path, images: Images) -> Path:
    return write_tar(root / "all.tar", images)


def shards(root: Path, images: Images) -> Path:
    write_tar(root / "shards/a.tar", images[:5])
    write_tar(root / "shards/b.tar", images[5:])
    return root / "shards"


def parquet(root: Path, images: Images) -> Path:
    return write_parquet(root / "all.parquet", images)


def parquets(root: Path, images: Images) -> Path:
    write_parquet(root / "parquets/0.parquet", images[:7])
    write_parquet(root / "parquets/1.parquet", images[7:])
    return root / "parquets"


def manifest_csv(root: Path, images: Images) -> Path:
    write_folder(root / "csv", images)
    return write_csv(root / "csv/list.csv", [(image.path, image.label) for image in images])


def manifest_jsonl(root: Path, images: Images) -> Path:
    write_folder(root / "jsonl", images)
    return write_jsonl(root / "jsonl/l.jsonl", [{"path": i.path, "label": i.label} for i in images])


FORMATS = [folder, tar, shards, parquet, parquets, manifest_csv, manifest_jsonl]
KINDS = ["folder", "webdataset", "webdataset", "parquet", "parquet", "manifest", "manifest"]


@pytest.mark.parametrize(("build", "kind"), list(zip(FORMATS, KINDS, strict=True)))
def test_same_images_give_same_rows(build: Callable[[Path, Images], Path], kind: str, tmp_path: Path) -> None:
    images = pictures()
    location = build(tmp_path, images)
    source = open_source(location)
    reference = open_source(write_folder(tmp_path / "reference", images))
    assert source.kind == kind
    assert source.root == location
    assert source.classes == ("0", "1", "2")
    assert rows(source) == rows(reference)
    assert rows(source) == rows(source), "a source can be read again"


@pytest.mark.parametrize("build", FORMATS)
def test_start_is_the_tail(build: Callable[[Path, Images], Path], tmp_path: Path) -> None:
    source = open_source(build(tmp_path, pictures(13)))
    everything = rows(source)
    assert len(everything) == 13
    for start in range(15):
        assert rows(source, start) == everything[start:]


@pytest.mark.parametrize("build", FORMATS)
def test_sources_travel_to_worker_processes(build: Callable[[Path, Images], Path], tmp_path: Path) -> None:
    source = open_source(build(tmp_path, pictures(3)))
    copy: Source = pickle.loads(pickle.dumps(source))
    assert rows(copy) == rows(source)


@pytest.mark.parametrize("build", FORMATS)
def test_half_read_source_closes_quietly(build: Callable[[Path, Images], Path], tmp_path: Path) -> None:
    records = open_source(build(tmp_path, pictures(8))).records()
    assert len(list(islice(records, 2))) == 2
    del records  # a warning about an unclosed file would fail the test


def test_relative_location(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path, pictures(3))
    monkeypatch.chdir(tmp_path)
    source = open_source(Path())
    monkeypatch.chdir("/")
    assert survey(source).read == 3


def test_recognised_by_content_without_extension(tmp_path: Path) -> None:
    images = pictures(3)
    assert open_source(write_tar(tmp_path / "delivery", images)).kind == "webdataset"
    assert open_source(write_parquet(tmp_path / "blob.bin", images)).kind == "parquet"


def test_nested_shards_of_a_hub_checkout(tmp_path: Path) -> None:
    write_parquet(tmp_path / "data/train-00000.parquet", pictures(3))
    write(tmp_path / "README.md", b"# card")
    write(tmp_path / ".gitattributes", b"x")
    source = open_source(tmp_path)
    assert source.kind == "parquet"
    assert next((r.path, r.status) for r in source.records()) == ("README.md", Status.SKIPPED)
    assert survey(source).read == 3


def test_a_tar_deep_in_a_folder_of_images_is_skipped(tmp_path: Path) -> None:
    write_folder(tmp_path, pictures(3))
    write_tar(tmp_path / "0/backup.tar", pictures(3))
    write(tmp_path / "0/more.ZIP", b"PK")
    write(tmp_path / "0/notes.txt", b"not an image")
    source = open_source(tmp_path)
    assert source.kind == "folder"
    found = survey(source)
    assert (found.skipped, found.unopened) == (3, 2)
    assert {r.path: r.reason for r in source.records() if r.many} == {
        "0/backup.tar": "an archive, not opened",
        "0/more.ZIP": "an archive, not opened",
    }


def test_a_shard_that_cannot_be_read_is_of_unknown_size(tmp_path: Path) -> None:
    write_tar(tmp_path / "tars/0.tar", pictures(3))
    whole = (tmp_path / "tars/0.tar").read_bytes()
    write(tmp_path / "tars/1.tar", whole[:700])
    write(tmp_path / "tars/2.tar", b"")
    write_parquet(tmp_path / "tables/0.parquet", pictures(3))
    write(tmp_path / "tables/1.parquet", b"PAR1 and no more")
    for name, unopened in (("tars", 2), ("tables", 1)):
        found = survey(open_source(tmp_path / name))
        assert found.unopened == unopened, name
        assert found.read >= 3


def test_exclude_leaves_a_folder_out(tmp_path: Path) -> None:
    write_folder(tmp_path, pictures(6, classes=("cat", "dog", "clean")))
    source = open_source(tmp_path, exclude=["clean/"])
    assert source.classes == ("cat", "dog")
    assert survey(source).read == 4
    with pytest.raises(DataError, match=r"without cat, clean, dog\) holds no images"):
        open_source(tmp_path, exclude=["cat", "dog", "clean"])


def test_exclude_lets_shards_stand_beside_a_clean_pool(tmp_path: Path) -> None:
    write_folder(tmp_path / "clean", pictures(3))
    write_tar(tmp_path / "s.tar", pictures(4))
    assert survey(open_source(tmp_path, exclude=["clean"])).read == 4


def test_exclude_in_a_manifest(tmp_path: Path) -> None:
    images = pictures(6)
    write_folder(tmp_path, images)
    location = write_csv(tmp_path / "m.csv", [(f"./{i.path}", i.label) for i in images])
    source = open_source(location, exclude=["0"])
    assert [record.path.partition("/")[0] for record in source.records()] == ["1", "1", "2", "2"]


def _errors(root: Path) -> dict[str, Path]:
    (root / "empty").mkdir()
    write(root / "prose/README.md", b"words")
    write(root / "packed/set.tar.gz", b"\x1f\x8b")
    write(root / "listed/m.csv", b"path\n")
    write_tar(root / "two/a.tar", pictures(1))
    write_parquet(root / "two/b.parquet", pictures(1))
    write_tar(root / "mixed/a.tar", pictures(1))
    write(root / "mixed/cat/1.png", png(1))
    write_csv(root / "pathless.csv", [("a", 1)], header=("file", "label"))
    return {
        "missing": root / "nowhere",
        "nul": root / "a\0b",
        "empty": root / "empty",
        "prose": root / "prose",
        "packed": root / "packed",
        "listed": root / "listed",
        "two": root / "two",
        "mixed": root / "mixed",
        "pathless": root / "pathless.csv",
        "no rows": write_csv(root / "norows.csv", []),
        "no bytes": write(root / "nobytes.csv"),
        "empty jsonl": write(root / "empty.jsonl"),
        "image": write(root / "one.png", png(1)),
        "zip": write(root / "set.zip", b"PK\3\4"),
        "other": write(root / "set.npy", b"\x93NUMPY"),
        "bad tar": write(root / "bad.tar", b"not a tar" * 100),
        "empty tar": write(root / "empty.tar"),
        "tar of text": write_tar(root / "text.tar", [Picture("a/b.md", 0, b"x")]),
        "bad parquet": write(root / "bad.parquet", b"PAR1" + b"x" * 100 + b"PAR1"),
        "empty parquet": write(root / "empty.parquet"),
        "no rows parquet": write_parquet(root / "norows.parquet", []),
    }


SENTENCES = {
    "missing": "does not exist: check the path",
    "nul": "does not exist: check the path",
    "empty": "holds no images: give a folder",
    "prose": "holds no images: give a folder",
    "packed": "holds no images but set.tar.gz: unpack",
    "listed": "holds no images but m.csv: give the file itself",
    "two": r"holds both a.tar and b.parquet, which are two data sets: give the one",
    "mixed": r"holds both a.tar and cat/1.png, which are two data sets: give the one",
    "pathless": "has no `path` column: the first line must name",
    "no rows": "names no images: give a manifest",
    "no bytes": "has no `path` column",
    "empty jsonl": "names no images: give a manifest",
    "image": "is a single image: give the folder",
    "zip": "is compressed: unpack it",
    "other": "is of a kind that is not read: give a folder",
    "bad tar": r"no images in tar shards .* \(bad.tar: header .* at byte 0\): give uncompressed",
    "empty tar": r"\(empty.tar: empty file\)",
    "tar of text": "holds no images in tar shards",
    "bad parquet": r"\(bad.parquet: not a readable Parquet file: ",
    "empty parquet": r"\(empty.parquet: not a readable Parquet file: ",
    "no rows parquet": "holds no images in Parquet files",
}


@pytest.mark.parametrize("case", SENTENCES)
def test_wrong_input_is_one_clear_sentence(case: str, tmp_path: Path) -> None:
    location = _errors(tmp_path)[case]
    with pytest.raises(DataError, match=SENTENCES[case]) as caught:
        open_source(location)
    sentence = str(caught.value)
    assert sentence.startswith(str(location))
    assert sentence.endswith(".")
    assert "\n" not in sentence


def test_a_device_is_no_data_set() -> None:
    with pytest.raises(DataError, match="neither a file nor a folder"):
        open_source(Path("/dev/null"))


def test_import_is_light() -> None:
    code = (
        "import sys, kdaudit.source; "
        "heavy = {'torch', 'pyarrow', 'onnx', 'onnxruntime', 'PIL', 'scipy'} & set(sys.modules); "
        "sys.exit(' '.join(heavy) or 0)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_real_caltech(shared: Path) -> None:
    source = open_source(shared / "data/caltech101")
    assert source.kind == "webdataset"
    assert source.classes is not None
    assert source.classes[:2] == ("Faces", "Faces_easy")
    found = survey(source)
    assert (found.count, found.read, found.unlabelled) == (4370, 4370, 0)
    assert found.label_counts is not None
    assert found.label_counts.max() == 45
    one = open_source(shared / "data/caltech101/shard-0001.tar")
    assert next(iter(one.records())).path == "001500.jpg"
    assert rows(one) == rows(source, 1500)[: survey(one).count]


@pytest.mark.parametrize(("name", "count", "classes"), [("mnist", 10000, 10), ("gtsrb", 12630, 43)])
def test_real_parquet(shared: Path, name: str, count: int, classes: int) -> None:
    source = open_source(shared / f"data/{name}/test.parquet")
    assert source.classes is not None
    assert len(source.classes) == classes
    found = survey(source)
    assert (found.count, found.read, found.unlabelled) == (count, count, 0)
    tail = list(source.records(count - 3))
    assert len(tail) == 3
    assert all(record.path.startswith("test/") for record in tail)


def test_real_images_in_every_format(shared: Path, tmp_path: Path) -> None:
    records = islice(open_source(shared / "data/mnist/test.parquet").records(), 200)
    images = sorted(Picture(r.path.removeprefix("test/0"), r.label or 0, r.data) for r in records)
    expected = rows(open_source(write_folder(tmp_path / "reference", images)))
    assert expected[0][1] == 0
    for build in FORMATS:
        source = open_source(build(tmp_path, images))
        assert source.classes == tuple("0123456789")
        assert rows(source) == expected
    first = next(iter(open_source(tmp_path / "folder").records()))
    with Image.open(io.BytesIO(first.data)) as image:
        assert image.size == (28, 28)
