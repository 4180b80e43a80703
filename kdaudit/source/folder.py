"""A folder of class folders, or a flat folder of images."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from kdaudit.errors import DataError
from kdaudit.sample import Record, Status
from kdaudit.source.files import head_of, read_file, regular_file
from kdaudit.source.names import is_hidden, is_image_name, printable
from kdaudit.source.parts import COMPRESSED, HIDDEN, Unreadable, beside

MANIFESTS = (".csv", ".jsonl")
GIVE = "give a folder of images or of class folders, tar shards, Parquet files, or a manifest (.csv, .jsonl)"


class FolderSource:
    """Images as files; a class is a folder directly below the root, whatever lies deeper in it.

    Where class folders and loose images are mixed, the class folders give the classes and the loose images
    carry no label. An empty folder is a class too: leaving it out would renumber the others. A folder that
    holds files but no image is none. The list of names is taken once, so that a file that vanishes later
    is counted as unreadable.
    """

    def __init__(self, root: Path, names: Sequence[str], exclude: frozenset[str] = frozenset()) -> None:
        """Make a source of the files `names`, as `walk` lists them.

        Raises:
            DataError: there is no image among them.
        """
        self.root = root
        self._real = root.resolve()
        self._names = names
        found = {name.partition("/")[0] for name in names if "/" in name and _is_visible_image(name)}
        if not found and not any(map(_is_visible_image, names)):
            raise DataError(_no_images(root, names, exclude))
        folders = sort_classes([*found, *(_empty_folders(self._real) - exclude - found)]) if found else []
        self._labels = {folder: label for label, folder in enumerate(folders)}
        self.classes: tuple[str, ...] | None = tuple(map(printable, folders)) if folders else None
        self.kind = "folder" if folders else "flat"

    def records(self, start: int = 0) -> Iterator[Record]:
        """Yield every file in the order of path components, from the `start`-th on."""
        for place in range(start, len(self._names)):
            yield self._record(self._names[place])

    def _record(self, name: str) -> Record:
        folder, slash, _ = name.partition("/")
        label = self._labels.get(folder) if slash else None
        path = printable(name)
        if is_hidden(name):
            return Record(path, label, b"", Status.SKIPPED, HIDDEN)
        try:
            if is_image_name(name):
                return Record(path, label, read_file(self._real, name))
            regular_file(self._real, name)
        except Unreadable as outcome:
            return outcome.record(path, label)
        return beside(path, label, name, lambda: head_of(self._real, name))


def sort_classes(names: Sequence[str]) -> list[str]:
    """Sort by number when all names are decimal integers ("2" before "10"), else by character."""
    if all(name.isascii() and name.isdecimal() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def _no_images(root: Path, names: Sequence[str], exclude: frozenset[str]) -> str:
    where = f"{root} (without {', '.join(sorted(exclude))})" if exclude else f"{root}"
    for name in names:
        if name.lower().endswith(COMPRESSED):
            return f"{where} holds no images but {printable(name)}: unpack compressed archives first."
        if name.lower().endswith(MANIFESTS):
            return f"{where} holds no images but {printable(name)}: give the file itself if it is a manifest."
    return f"{where} holds no images: {GIVE}."


def _is_visible_image(name: str) -> bool:
    return is_image_name(name) and not is_hidden(name)


def _empty_folders(root: Path) -> frozenset[str]:
    with os.scandir(root) as entries:
        folders = [e for e in entries if not e.name.startswith(".") and e.is_dir(follow_symlinks=False)]
    return frozenset(folder.name for folder in folders if _is_empty(folder.path))


def _is_empty(folder: str) -> bool:
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is None
    except OSError:
        return False
