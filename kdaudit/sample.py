"""The words for images on their way through the audit: records, geometry, decoded batches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from kdaudit.digest import content_digest

MAX_PATH = 8192
"""Characters of a record's path. File systems end at 4,096 bytes; archives and tables do not."""


class Status(StrEnum):
    """What became of an image: `UNREADABLE` could not be decoded, `SKIPPED` was not tried, each with a reason."""

    READ = "read"
    UNREADABLE = "unreadable"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Record:
    """One image of a data set, still encoded.

    Attributes:
        path: where it lies inside its source, with forward slashes: a file's path below the root, a tar
            member's name, a Parquet row's `image.path`, a manifest's path column. Of one beyond `MAX_PATH` the
            beginning and a digest are kept: no table and no page is made for megabytes of name.
        label: index into the source's `classes`; None when the image has no label.
        data: the encoded image; empty when it could not be read or was not tried.
        status: READ here means that the bytes were read, not that they decode.
        reason: why not, in a few words; empty when READ.
        many: whether it stands for images of unknown number: an archive that was not opened, a folder not looked into.
        aside: whether it is no image by name and by content, such as a label beside each image: no share counts it.
    """

    path: str
    label: int | None
    data: bytes
    status: Status = Status.READ
    reason: str = ""
    many: bool = False
    aside: bool = False

    def __post_init__(self) -> None:
        if len(self.path) > MAX_PATH:
            digest = content_digest(self.path.encode("utf-8", "surrogatepass")).hex()
            object.__setattr__(self, "path", f"{self.path[:200]}...({len(self.path):,} characters, {digest})")

    @property
    def id(self) -> str:
        """Content digest plus path: `3f0c...:cat/0001.jpg`. Same image at two places: two ids, one digest."""
        return f"{content_digest(self.data).hex()}:{self.path}"


class Source(Protocol):
    """A data set that can be read from front to back, again and again, in the same order.

    Attributes:
        kind: the recognised format: folder, flat, webdataset, parquet, manifest.
        root: the location it was opened from.
        classes: names in label order; None when the set carries no labels.
    """

    kind: str
    root: Path
    classes: tuple[str, ...] | None

    def records(self, start: int = 0) -> Iterator[Record]:
        """Yield all images in a fixed order, from the `start`-th on (0-based, counting every record).

        An image whose bytes cannot be had is yielded with a status and a reason, never dropped.
        """
        ...


Fit = Literal["stretch", "crop"]


@dataclass(frozen=True, slots=True)
class Geometry:
    """What a decoded image looks like.

    Attributes:
        height: pixels.
        width: pixels.
        channels: 3 (RGB) or 1 (luma, ITU-R 601, as Pillow's "L").
        fit: "stretch" resizes to height x width whatever the aspect ratio; "crop" resizes the shorter side
            to 8/7 of the target (256 for 224) and cuts the centre, the usual ImageNet evaluation.
    """

    height: int
    width: int
    channels: Literal[1, 3] = 3
    fit: Fit = "stretch"


class Decoded(NamedTuple):
    """A decoded batch. Rows whose reason is not empty could not be decoded and hold zeros."""

    pixels: NDArray[np.uint8]  # [B, H, W, C]
    reasons: tuple[str, ...]  # [B], empty string: decoded


class Decoder(Protocol):
    """Bytes to pixels. Thread-safe. One unreadable image never loses its batch.

    Attributes:
        name: pillow, simplejpeg, dali-cpu or dali-mixed; stored in every report.
    """

    name: str

    def decode(self, encoded: Sequence[bytes], geometry: Geometry) -> Decoded:
        """Decode and resize (antialiased bilinear) a batch; never raises for a bad image."""
        ...
