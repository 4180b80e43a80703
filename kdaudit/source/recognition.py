"""Which format a location is in: found by looking, never asked."""

import stat
from collections.abc import Sequence
from pathlib import Path

from kdaudit.errors import DataError
from kdaudit.sample import Source
from kdaudit.source.files import walk
from kdaudit.source.folder import GIVE, MANIFESTS, FolderSource
from kdaudit.source.manifest import ManifestSource
from kdaudit.source.names import Names, excluded, is_hidden, is_image_name, printable
from kdaudit.source.parquet import ParquetSource
from kdaudit.source.parts import COMPRESSED
from kdaudit.source.webdataset import WebDatasetSource


def open_source(location: Path, *, exclude: Sequence[str] = ()) -> Source:
    """Open a data set in whatever format it is.

    A file is known by its extension, else by its first bytes. A folder with shards (.tar, .parquet) at any
    depth and no image file is read as shards. Any other folder is a folder of images; shards that lie
    deeper than its top are skipped there.

    Args:
        location: folder, tar, Parquet file or manifest.
        exclude: sub-folders of the location left out, such as `clean` when it is the clean pool; for a
            manifest, sub-folders of its own folder.

    Raises:
        DataError: the location does not exist, holds no images, is of a kind that is not read, or could be
            meant in two ways: images beside shards, or shards of two kinds.
    """
    try:
        mode = location.stat().st_mode
    except (FileNotFoundError, ValueError) as error:  # ValueError: a NUL in the path
        raise DataError(f"{location} does not exist: check the path of the data set.") from error
    except OSError as error:
        raise DataError(f"{location} cannot be read: {error.strerror}.") from error
    try:
        if stat.S_ISDIR(mode):
            return _open_folder(location, excluded(exclude))
        if stat.S_ISREG(mode):
            return _open_file(location, excluded(exclude))
    except OSError as error:
        raise DataError(f"{location} cannot be read: {error.strerror}.") from error
    raise DataError(f"{location} is neither a file nor a folder: {GIVE}.")


def _open_file(location: Path, exclude: frozenset[str]) -> Source:
    suffix = location.suffix.lower()
    if suffix in MANIFESTS:
        return ManifestSource(location, exclude)
    if suffix == ".tar":
        return WebDatasetSource(location, ())
    if suffix == ".parquet":
        return ParquetSource(location, ())
    with location.open("rb") as file:
        head = file.read(512)
    if head[257:262] == b"ustar":
        return WebDatasetSource(location, ())
    if head[:4] == b"PAR1":
        return ParquetSource(location, ())
    if is_image_name(location.name):
        raise DataError(f"{location} is a single image: give the folder it lies in.")
    if suffix in COMPRESSED:
        raise DataError(f"{location} is compressed: unpack it and give the folder or the uncompressed tar.")
    raise DataError(f"{location} is of a kind that is not read: {GIVE}.")


def _open_folder(location: Path, exclude: frozenset[str]) -> Source:
    names = Names(walk(location.resolve(), exclude))
    image = next((name for name in names if is_image_name(name) and not is_hidden(name)), None)
    tars, parquets = (
        [n for n in names if n.lower().endswith(end) and not is_hidden(n)] for end in (".tar", ".parquet")
    )
    on_top = [name for name in (*tars, *parquets) if "/" not in name]
    if image is not None and on_top:
        raise _mixture(location, on_top[0], image)
    if image is None and tars and parquets:
        raise _mixture(location, tars[0], parquets[0])
    if image is None and tars:
        return WebDatasetSource(location, names)
    if image is None and parquets:
        return ParquetSource(location, names)
    return FolderSource(location, names, exclude)


def _mixture(location: Path, one: str, other: str) -> DataError:
    return DataError(
        f"{location} holds both {printable(one)} and {printable(other)}, which are two data sets: "
        f"give the one that is meant, or put each into a folder of its own."
    )
