"""Tar shards in the WebDataset layout: `000123.jpg` and its label `000123.cls` follow each other."""

import json
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from kdaudit.errors import DataError
from kdaudit.sample import Record, Status
from kdaudit.source.archive import Archive, opened
from kdaudit.source.files import head_of, read_file, regular_file
from kdaudit.source.labels import class_number, numbered_classes
from kdaudit.source.names import Repeated, is_hidden, is_image_name, printable
from kdaudit.source.parts import (
    HEAD_BYTES,
    HIDDEN,
    MAX_IMAGE_BYTES,
    TOO_LARGE,
    Leftover,
    Part,
    Unreadable,
    beside,
    chained,
    encoded,
)
from kdaudit.source.tar import Kind, Member, members

CLASSES_FILE = "classes.json"
LABEL_SUFFIXES = ("cls", "json", "txt")
"""Label members, the most trusted first: an integer, `{"label": 7}`, or a text that is an integer."""

MAX_LABEL_BYTES = 1 << 16


class WebDatasetSource:
    """One tar, or a folder of tar shards, read in the order of shard names and then of members.

    A sample is a run of members with the same key, the name up to the first dot of its last component. All
    image members of a sample share its label. A record's path is the member's name, without a leading
    `./`; where the same name stands in several places of the set, it is `shard/member`, and the second of
    one shard is skipped. Class names come from `classes.json` beside the shards, a list of names; labels
    past its end count as no label. Only headers and labels are read to open the source.
    """

    kind = "webdataset"

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        """Make a source of the files `names` below `root`, or of the tar `root` itself when empty.

        Raises:
            DataError: no shard holds an image, or `classes.json` is not a list of names.
        """
        self.root = root
        folder = root.resolve() if names else root.resolve().parent
        repeated = Repeated()
        self._parts: list[Part] = []
        shards: list[_Shard] = []
        faults: list[str] = []
        for name in names or [root.resolve().name]:
            if names and not name.lower().endswith(".tar"):
                if name != CLASSES_FILE:  # never an image: `open_source` refuses the mixture
                    self._parts.append(Leftover(beside(printable(name), None, name, partial(head_of, folder, name))))
                continue
            try:
                shard = _Shard(regular_file(folder, name)[0], printable(name), repeated)
            except Unreadable as outcome:
                faults.append(f"{printable(name)}: {outcome.reason}")
                self._parts.append(Leftover(outcome.record(printable(name), None, many=True)))
                continue
            self._parts.append(shard)
            shards.append(shard)
        repeated.close()
        if not any(shard.images for shard in shards):
            raise DataError(_no_images(root, faults + [f"{s.name}: {s.fault}" for s in shards if s.fault]))
        top = max(shard.top for shard in shards)
        self.classes: tuple[str, ...] | None = None
        if top >= 0:
            self.classes = _class_names(folder) or numbered_classes(top)
        for shard in shards:
            shard.limit = len(self.classes or ())

    def records(self, start: int = 0) -> Iterator[Record]:
        """Yield every member that is not a label, shard by shard, from the `start`-th on."""
        return chained(self._parts, start)


class _Entry(NamedTuple):
    member: Member
    label: int | None


class _Shard:
    """One tar file.

    Attributes:
        name: as shown; part of a path that would be ambiguous.
        count: records in it.
        images: how many of them are image files.
        top: the highest label; -1 when there is none.
        fault: why the archive cannot be read to its end; empty when it can.
        limit: labels from here on count as none.
    """

    def __init__(self, path: str, shown: str, repeated: Repeated) -> None:
        self._path = path
        self._repeated = repeated
        self.name = shown
        self.count = self.images = 0
        self.top = -1
        self.fault = ""
        self.limit = 0
        with opened(path) as archive:
            self._stamp = archive.stamp
            for member, label in _entries(archive):
                self.count += 1
                if member.kind is Kind.DAMAGED:
                    self.fault = member.reason
                    continue
                name = member.name
                repeated.add(name)
                self.images += member.kind is Kind.FILE and is_image_name(name) and not is_hidden(name)
                self.top = max(self.top, -1 if label is None else label)
            archive.demand_unchanged(self._stamp)

    def records(self, start: int) -> Iterator[Record]:
        """Yield the members from the `start`-th on.

        Raises:
            Unreadable: the file is not what it was when it was opened first; whatever came of it would be a mixture.
        """
        seen: set[str] = set()
        with opened(self._path) as archive:
            archive.demand_unchanged(self._stamp)
            for place, entry in enumerate(_entries(archive)):
                name = entry.member.name
                is_second = name in seen
                is_repeated = bool(name) and name in self._repeated
                if is_repeated:
                    seen.add(name)
                if place >= start:
                    path = f"{self.name}/{name}" if is_repeated else name or self.name
                    yield self._record(archive, entry, path, is_second=is_second)
            archive.demand_unchanged(self._stamp)

    def _record(self, archive: Archive, entry: _Entry, path: str, *, is_second: bool) -> Record:
        member, label = entry
        if label is not None and label >= self.limit:
            label = None
        if member.kind is Kind.DAMAGED:
            return Record(path, None, b"", Status.UNREADABLE, member.reason, many=True)
        reason = member.reason
        if not reason and is_second:
            reason = "second member of this name"
        if not reason and not is_image_name(member.name):
            head = partial(archive.read, member.offset, min(member.size, HEAD_BYTES))
            return beside(path, label, member.name, head)
        if not reason and is_hidden(member.name):
            reason = HIDDEN
        if not reason and member.size > MAX_IMAGE_BYTES:
            reason = TOO_LARGE
        if reason:
            return Record(path, label, b"", Status.SKIPPED, reason)
        return encoded(path, label, archive.read(member.offset, member.size))


def _entries(archive: Archive) -> Iterator[_Entry]:
    """Every member that is not a label in use, with its sample's label."""
    for _, run in groupby(members(archive), key=_key):
        sample = list(run)
        has_image = any(member.kind is Kind.FILE and is_image_name(member.name) for member in sample)
        labels = {_suffix(member): member for member in sample if has_image and member.kind is Kind.FILE}
        label = _label(archive, labels)
        for member in sample:
            if labels.get(_suffix(member)) is not member or _suffix(member) not in LABEL_SUFFIXES:
                yield _Entry(member, label)


def _key(member: Member) -> tuple[str, str]:
    folder, _, base = member.name.rpartition("/")
    return folder, base.partition(".")[0]


def _suffix(member: Member) -> str:
    return member.name.rpartition("/")[2].partition(".")[2].lower()


def _label(archive: Archive, labels: dict[str, Member]) -> int | None:
    for suffix in LABEL_SUFFIXES:
        member = labels.get(suffix)
        if member is None or member.size > MAX_LABEL_BYTES:
            continue
        text = archive.read(member.offset, member.size).decode("utf-8", "replace")
        if suffix == "json":
            text = _json_label(text)
        number = class_number(text)
        if number is not None:
            return number
    return None


def _json_label(text: str) -> str:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return ""
    label = value.get("label") if isinstance(value, dict) else None
    return "" if isinstance(label, bool) else str(label)


def _no_images(root: Path, faults: Sequence[str]) -> str:
    why = f" ({faults[0]})" if faults else ""
    return f"{root} holds no images in tar shards that can be read{why}: give uncompressed tar files."


def _class_names(folder: Path) -> tuple[str, ...] | None:
    """The names in `classes.json`, in label order; None without that file.

    Raises:
        DataError: it is not a list of names.
    """
    if not (folder / CLASSES_FILE).is_file():
        return None
    try:
        names = json.loads(read_file(folder, CLASSES_FILE))
    except (Unreadable, ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise DataError(f"{folder / CLASSES_FILE} is not a JSON list of class names: correct or remove it.")
    return tuple(map(printable, names))
