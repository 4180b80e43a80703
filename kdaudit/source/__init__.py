"""Data sets of any format as one stream of records: one file per format, one door.

`open_source` recognises folders of class folders, flat folders, WebDataset tar shards, Parquet files and
CSV or JSONL manifests. `survey` counts what a source holds and collects its content digests;
`shared_digests` tells whether two sources overlap. Files are hostile: no link is followed out of the set,
no device is opened, nothing is extracted. Nothing disappears: what is not read is yielded with a reason.
"""

from kdaudit.source.census import Digests, Survey, digests_of, shared_digests, survey, unpack_digests
from kdaudit.source.names import IMAGE_SUFFIXES
from kdaudit.source.parts import MAX_IMAGE_BYTES
from kdaudit.source.recognition import open_source

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_IMAGE_BYTES",
    "Digests",
    "Survey",
    "digests_of",
    "open_source",
    "shared_digests",
    "survey",
    "unpack_digests",
]
