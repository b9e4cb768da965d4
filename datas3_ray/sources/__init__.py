"""Where images come from: one file a format, each yields the same samples.

>>> from datas3_ray.sources import parse_source
>>> parse_source({"webdataset": "shards/{00000..00003}.tar", "columns": {"region": "json.region"}}).describe()
'webdataset shards/{00000..00003}.tar; columns caption, label, region, meta'
"""

from __future__ import annotations

from datas3_ray.sources.base import (
    REASONS,
    FileSource,
    Item,
    Reject,
    Sample,
    SampleError,
    Shard,
    Source,
    VectorSource,
    parse_source,
)
from datas3_ray.sources.columns import Columns
from datas3_ray.sources.decode import DecodedImage, ImageError, decode_image

__all__ = [
    "REASONS",
    "Columns",
    "DecodedImage",
    "FileSource",
    "ImageError",
    "Item",
    "Reject",
    "Sample",
    "SampleError",
    "Shard",
    "Source",
    "VectorSource",
    "decode_image",
    "parse_source",
]
