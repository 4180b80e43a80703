"""The tar parser against the standard library, and against damage."""

import io
import tarfile
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from source_builders import tar_bytes

from kdaudit.source.archive import Held
from kdaudit.source.tar import BLOCK, Kind, Member
from kdaudit.source.tar import members as members_of

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]

_parts = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=90).filter(
    lambda part: part not in {".", ".."}
)
_names = st.lists(_parts, min_size=1, max_size=4).map("/".join)
_members = st.lists(st.tuples(_names, st.binary(max_size=1500)), max_size=8)


def members(archive: bytes) -> list[Member]:
    return list(members_of(Held(archive)))


def files(archive: bytes) -> list[tuple[str, bytes]]:
    return [(m.name, archive[m.offset : m.offset + m.size]) for m in members(archive) if m.kind is Kind.FILE]


def reference(archive: bytes) -> list[tuple[str, bytes]]:
    found = []
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as file:
        for member in file:
            if member.isreg() and not member.issparse():
                content = file.extractfile(member)
                assert content is not None
                found.append((member.name, content.read()))
    return found


@given(content=_members, layout=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
def test_agrees_with_tarfile(content: list[tuple[str, bytes]], layout: int) -> None:
    archive = tar_bytes(content, layout)
    assert files(archive) == content == reference(archive)
    assert all(member.kind is Kind.FILE for member in members(archive))


_kinds = st.sampled_from(
    [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
)


@given(
    content=st.lists(st.tuples(_names, st.binary(max_size=1500), _kinds), max_size=8),
    layout=st.sampled_from(FORMATS),
)
def test_agrees_with_tarfile_on_what_is_no_file(content: list[tuple[str, bytes, bytes]], layout: int) -> None:
    file = io.BytesIO()
    expected = []
    with tarfile.open(fileobj=file, mode="w", format=layout) as archive:
        for name, data, kind in content:
            information = tarfile.TarInfo(name)
            information.type, information.linkname = kind, "../" * 40 + "etc/passwd"
            information.size = len(data) if kind == tarfile.REGTYPE else 0
            try:
                archive.addfile(information, io.BytesIO(data))
            except ValueError:  # a ustar header has no room for the name
                continue
            if kind != tarfile.DIRTYPE:
                expected.append((name, kind == tarfile.REGTYPE))
    assert files(file.getvalue()) == reference(file.getvalue())
    assert [(m.name, m.kind is Kind.FILE) for m in members(file.getvalue())] == expected


@given(
    content=_members.filter(bool),
    layout=st.sampled_from(FORMATS[1:]),
    changes=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=6),
    cut=st.none() | st.integers(0, 1 << 16),
    repair=st.booleans(),
)
def test_damage_never_raises(
    content: list[tuple[str, bytes]],
    layout: int,
    changes: Sequence[tuple[int, int]],
    cut: int | None,
    repair: bool,
) -> None:
    archive = bytearray(tar_bytes(content, layout))
    for number, value in changes:
        place = number % len(archive)
        archive[place] = value
        block = place // BLOCK * BLOCK
        if repair:  # let the damage past the checksum
            archive[block + 148 : block + 156] = b" " * 8
            checksum = sum(archive[block : block + BLOCK])
            archive[block + 148 : block + 156] = b"%06o\0 " % checksum
    damaged = bytes(archive[: cut % len(archive)] if cut is not None else archive)
    found = members(damaged)
    for member in found:
        assert 0 <= member.offset <= member.offset + member.size <= len(damaged)
        assert bool(member.reason) == (member.kind is not Kind.FILE)
        member.name.encode()
    assert all(member.kind is not Kind.DAMAGED for member in found[:-1])


@given(st.binary(max_size=2000))
def test_noise_never_raises(noise: bytes) -> None:
    assert len(members(noise)) <= 4


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize(
    "name",
    ["a.jpg", "n" * 100, "d" * 60 + "/" + "n" * 90, "d" * 150 + "/" + "n" * 99],
)
def test_long_names(name: str, layout: int) -> None:
    assert files(tar_bytes([(name, b"x")], layout)) == [(name, b"x")]


@pytest.mark.parametrize("layout", FORMATS[1:])
def test_very_long_names(layout: int) -> None:
    name = "d/" * 2000 + "é" * 300 + ".jpg"
    assert files(tar_bytes([(name, b"x"), ("b", b"y")], layout)) == [(name, b"x"), ("b", b"y")]


def test_leading_dot_slash_is_dropped() -> None:
    assert files(tar_bytes([("././/a.jpg", b"x")], tarfile.GNU_FORMAT)) == [("a.jpg", b"x")]


def test_names_that_are_not_utf8() -> None:
    archive = tar_bytes([("caf\udce9.jpg", b"x")], tarfile.GNU_FORMAT)
    assert files(archive) == [(r"caf\xe9.jpg", b"x")]


def _special(kind: bytes, **fields: object) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        information = tarfile.TarInfo("a.jpg")
        information.type = kind
        for field, value in fields.items():
            setattr(information, field, value)
        archive.addfile(information)
        after = tarfile.TarInfo("b.jpg")
        after.size = 1
        archive.addfile(after, io.BytesIO(b"x"))
    return file.getvalue()


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (tarfile.SYMTYPE, "a link, not a file"),
        (tarfile.LNKTYPE, "a link, not a file"),
        (tarfile.CHRTYPE, "a device, not a file"),
        (tarfile.BLKTYPE, "a device, not a file"),
        (tarfile.FIFOTYPE, "a FIFO, not a file"),
        (b"S", "a sparse file"),
        (b"Z", "a member of unknown type b'Z'"),
    ],
)
def test_what_is_no_file_is_named_and_stepped_over(kind: bytes, reason: str) -> None:
    archive = _special(kind, linkname="/etc/passwd" * 20)
    first, second = members(archive)
    assert (first.name, first.kind, first.reason) == ("a.jpg", Kind.OTHER, reason)
    assert (second.name, second.kind) == ("b.jpg", Kind.FILE)


def test_link_whose_size_field_lies() -> None:
    archive = _special(tarfile.LNKTYPE, linkname="b.jpg", size=5)
    assert [member.name for member in members(archive)] == ["a.jpg", "b.jpg"]


def test_folders_are_left_out() -> None:
    assert [member.name for member in members(_special(tarfile.DIRTYPE))] == ["b.jpg"]
    assert [member.name for member in members(_special(tarfile.AREGTYPE, name="old/"))] == ["b.jpg"]


def _header(name: bytes = b"a.jpg", size: bytes = b"00000000001\0", kind: bytes = b"0") -> bytearray:
    header = bytearray(BLOCK)
    header[: len(name)] = name
    header[124:136] = size
    header[156:157] = kind
    header[257:265] = b"ustar\x0000"
    return header


def _sealed(header: bytearray, *, signed: bool = False) -> bytes:
    header[148:156] = b" " * 8
    total = sum(header) - (256 * sum(byte > 127 for byte in header) if signed else 0)
    header[148:156] = b"%06o\0 " % total
    return bytes(header)


BODY = b"x" + bytes(BLOCK - 1)
END = bytes(2 * BLOCK)


def _one(archive: bytes) -> Member:
    (member,) = members(archive)
    return member


def test_base_256_size() -> None:
    size = b"\x80" + (1).to_bytes(11, "big")
    assert _one(_sealed(_header(size=size)) + BODY + END).size == 1
    huge = _one(_sealed(_header(size=b"\x80" + b"\x7f" * 11)) + BODY + END)
    assert huge.reason == "archive cut short in member 'a.jpg' at byte 0"
    negative = _one(_sealed(_header(size=b"\xff" * 12)) + BODY + END)
    assert negative.reason == "header with a negative size at byte 0"


def test_signed_checksum() -> None:
    header = _sealed(_header(name=b"\xe9.jpg"), signed=True)
    assert _one(header + BODY + END).kind is Kind.FILE


def test_gnu_header_keeps_no_prefix() -> None:
    header = _header()
    header[257:265] = b"ustar  \0"
    header[345:350] = b"12345"
    assert _one(_sealed(header) + BODY + END).name == "a.jpg"


def test_pax_size_and_sparse() -> None:
    def pax(records: bytes) -> bytes:
        body = records + bytes(-len(records) % BLOCK)
        return _sealed(_header(size=b"%011o\0" % len(records), kind=b"x")) + body

    empty = _sealed(_header(size=b"00000000000\0"))
    assert _one(pax(b"10 size=1\n") + empty + BODY + END).size == 1
    sparse = _one(pax(b"22 GNU.sparse.major=1\n25 GNU.sparse.name=b.jpg\n") + empty + END)
    assert (sparse.name, sparse.reason) == ("b.jpg", "a sparse file")
    for broken in (
        b"x path=a\n",
        b"99 path=a\n",
        b"9 path=ab\n",
        b"2 \n",
        b"0 a=b\n",
        b"pathpathpathpath",
    ):
        assert _one(pax(broken) + empty + END).reason == "damaged pax header at byte 0"
    assert _one(pax(b"11 size=-1\n") + empty + END).kind is Kind.DAMAGED


def test_global_pax_header_stays_in_force() -> None:
    information = tarfile.TarInfo("a.jpg")
    archive = tarfile.TarInfo.create_pax_global_header({"comment": "x"}) + information.tobuf() + END
    assert _one(archive).name == "a.jpg"


def test_header_extension_bomb() -> None:
    header = _sealed(_header(size=b"77777777777\0", kind=b"L"))
    assert _one(header + END).reason == "header extension of 8589934591 bytes at byte 0"


def test_sparse_map_that_never_ends() -> None:
    header = _header(kind=b"S")
    header[482] = 1
    block = bytearray(BLOCK)
    block[504] = 1
    assert _one(_sealed(header) + bytes(block) * 3).reason.startswith("archive cut short in a sparse map")


@pytest.mark.parametrize(
    ("keep", "names", "reason"),
    [
        (3 * BLOCK, ["a"], "archive cut short in member 'b' at byte 1024"),
        (2 * BLOCK + 100, ["a"], "archive cut short in a header at byte 1024"),
        (2 * BLOCK, ["a"], "archive without an end mark, perhaps cut short, at byte 1024"),
    ],
)
def test_truncation(keep: int, names: list[str], reason: str) -> None:
    archive = tar_bytes([("a", b"x"), ("b", b"y" * 600), ("c", b"z")], tarfile.GNU_FORMAT)[:keep]
    found = members(archive)
    assert [member.name for member in found[:-1]] == names
    assert (found[-1].kind, found[-1].reason) == (Kind.DAMAGED, reason)


def test_bytes_after_the_end_are_reported() -> None:
    first = tar_bytes([("a", b"x")])
    found = members(first + tar_bytes([("b", b"y")]))
    assert [member.name for member in found] == ["a", ""]
    assert found[1].reason == f"bytes after the archive's end mark, from byte {len(first)} on"


@given(st.text("0123456789 =\npathsize", max_size=40))
def test_any_pax_header_comes_to_an_end(text: str) -> None:
    body = text.encode().ljust(BLOCK, b"\0")
    archive = _sealed(_header(size=b"%011o\0" % len(text), kind=b"x")) + body + _sealed(_header()) + BODY + END
    assert len(members(archive)) == 1
