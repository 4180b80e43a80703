"""The members of a tar archive, found by reading its headers.

Some four times as fast as the standard library's `tarfile` (docs/performance.md), since it makes nothing of a header
but name, type and size; and it says where and why an archive ends early instead of stopping in silence. Reads ustar,
GNU long names, pax headers and base-256 sizes. Nothing is ever extracted: a name is only a name.
"""

from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple
from zlib import adler32

from kdaudit.source.archive import Bytes
from kdaudit.source.names import printable

BLOCK = 512
MAX_EXTENSION_BYTES = 1 << 20
"""Longest body of a long name or pax header; a longer one is damage or an attack."""

_END = bytes(BLOCK)
_STRETCH = 1 << 20
_FILES = b"0\x007"
_WITHOUT_DATA = {
    b"1": "link",
    b"2": "link",
    b"3": "device",
    b"4": "device",
    b"5": "folder",
    b"6": "FIFO",
}  # their size field counts nothing in the archive
_EXTENSIONS = b"LKxXg"


class Kind(Enum):
    """What a member is to us."""

    FILE = "file"
    OTHER = "other"  # a link, a device, a sparse file: not read, with a reason
    DAMAGED = "damaged"  # the archive cannot be followed further; always the last


class Member(NamedTuple):
    """A member and where its bytes lie: `archive.read(offset, size)`."""

    name: str
    kind: Kind
    offset: int = 0
    size: int = 0
    reason: str = ""


class _Header(NamedTuple):
    name: bytes
    size: int
    type: bytes


def members(archive: Bytes) -> Iterator[Member]:
    """Yield the members of an archive in order; folders are left out.

    Never raises for a bad archive: damage is a last member of kind DAMAGED, named "". Bytes after the end
    mark, which some readers would take for more members, are one member of kind OTHER, named "".

    Raises:
        Unreadable: the file became shorter meanwhile.
        OSError: the disk does not give it.
    """
    position, read = 0, archive.read
    shared: dict[bytes, bytes] = {}  # a global pax header, in force until the end
    pending: dict[bytes, bytes] = {}  # long name and pax header of the next member
    while (header := read(position, BLOCK)) != _END:
        try:
            head = _parsed(header)
            if head.type in _EXTENSIONS:
                body = _extension(archive, position, head)
                if head.type == b"g":
                    shared |= _pax(body)
                elif head.type != b"K":  # the target of a link: we follow none
                    pending |= {b"path": _until_nul(body)} if head.type == b"L" else _pax(body)
                position = _next(position + BLOCK, head.size)
                continue
            member, position = _member(archive, position, head, shared | pending if shared else pending)
        except ValueError as fault:
            position = min(position, archive.size)
            yield Member("", Kind.DAMAGED, position, 0, f"{fault} at byte {position}")
            return
        pending = {}
        if member is not None:
            yield member
    rest = _not_zero(archive, position)
    if rest is not None:
        yield Member("", Kind.OTHER, rest, 0, f"bytes after the archive's end mark, from byte {rest} on")


def _member(archive: Bytes, position: int, head: _Header, pax: dict[bytes, bytes]) -> tuple[Member | None, int]:
    """The member at `position` (None for a folder), and where the next header stands."""
    raw_name = (pax.get(b"GNU.sparse.name") or pax.get(b"path") or head.name) if pax else head.name
    name = printable(raw_name)
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    body = position + BLOCK
    what = _WITHOUT_DATA.get(head.type)
    if head.type == b"\0" and raw_name.endswith(b"/"):  # how folders looked before ustar
        what = "folder"
    if what is not None:
        other = Member(name, Kind.OTHER, body, 0, f"a {what}, not a file")
        return (None if what == "folder" else other), body
    size = _decimal(pax[b"size"]) if b"size" in pax else head.size
    is_sparse = head.type == b"S" or (bool(pax) and any(key.startswith(b"GNU.sparse.") for key in pax))
    if head.type == b"S":
        body = _after_sparse_map(archive, position)
    if body + size > archive.size:
        raise ValueError(f"archive cut short in member {name!r}")
    following = _next(body, size)
    if is_sparse:
        return Member(name, Kind.OTHER, body, size, "a sparse file"), following
    if head.type not in _FILES:
        return Member(name, Kind.OTHER, body, size, f"a member of unknown type {head.type!r}"), following
    return Member(name, Kind.FILE, body, size), following


def _parsed(header: bytes) -> _Header:
    if not header:
        raise ValueError("archive without an end mark, perhaps cut short,")
    if len(header) < BLOCK:
        raise ValueError("archive cut short in a header")
    stored = _number(header[148:156])
    total = _sum(header[:148]) + 8 * 32 + _sum(header[156:412]) + _sum(header[412:])  # the field counts as spaces
    if stored != total:
        signed = total - 256 * sum(byte > 127 for byte in header[:148] + header[156:])
        if stored != signed:  # old writers summed signed bytes
            raise ValueError("header with a wrong checksum")
    size = _number(header[124:136])
    if size < 0:
        raise ValueError("header with a negative size")
    name = _until_nul(header[:100])
    if header[257:263] == b"ustar\0" and header[345]:  # GNU headers keep other things there
        name = _until_nul(header[345:500]) + b"/" + name
    return _Header(name, size, header[156:157])


def _sum(part: bytes) -> int:
    """Sum of up to 256 bytes: the lower half of Adler-32 is one more, modulo 65,521, which so few never reach."""
    return (adler32(part) & 0xFFFF) - 1


def _number(field: bytes) -> int:
    """An octal field, or a base-256 one when its highest bit is set."""
    if field[0] & 0x80:
        number = int.from_bytes(field, "big")
        bits = 8 * len(field)
        return number - (1 << bits) if field[0] & 0x40 else number - (1 << (bits - 1))
    text = _until_nul(field).strip()
    if text.strip(b"01234567"):
        raise ValueError("header with a field that is no number")
    return int(text or b"0", 8)


def _extension(archive: Bytes, position: int, head: _Header) -> bytes:
    if head.size > MAX_EXTENSION_BYTES:
        raise ValueError(f"header extension of {head.size} bytes")
    body = archive.read(position + BLOCK, head.size)
    if len(body) < head.size:
        raise ValueError("archive cut short in a header extension")
    return body


def _pax(body: bytes) -> dict[bytes, bytes]:
    """The records of a pax header, each `length key=value` and a line feed."""
    records: dict[bytes, bytes] = {}
    position = 0
    while position < len(body) and body[position]:
        space = body.find(b" ", position, position + 12)
        if space < 0:
            raise ValueError("damaged pax header")
        end = position + _decimal(body[position:space])
        if not space + 1 < end <= len(body) or body[end - 1] != 0x0A:  # a short length would never end
            raise ValueError("damaged pax header")
        key, equals, value = body[space + 1 : end - 1].partition(b"=")
        if not equals:
            raise ValueError("damaged pax header")
        records[key] = value
        position = end
    return records


def _decimal(text: bytes) -> int:
    if not text.isdigit() or len(text) > 20:
        raise ValueError("damaged pax header")
    return int(text)


def _after_sparse_map(archive: Bytes, position: int) -> int:
    """Where the data of an old GNU sparse member begins: behind its chain of map blocks."""
    more = archive.read(position + 482, 1)
    position += BLOCK
    while more != b"\0":
        if position + BLOCK > archive.size:
            raise ValueError("archive cut short in a sparse map")
        more = archive.read(position + 504, 1)
        position += BLOCK
    return position


def _not_zero(archive: Bytes, position: int) -> int | None:
    """Where the first byte stands that is not zero, from `position` on; None where there is none."""
    while stretch := archive.read(position, _STRETCH):
        rest = stretch.lstrip(b"\0")
        if rest:
            return position + len(stretch) - len(rest)
        position += len(stretch)
    return None


def _until_nul(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _next(body: int, size: int) -> int:
    return body + -(-size // BLOCK) * BLOCK
