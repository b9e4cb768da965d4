"""Rows of a table that can be read as images in any process: where each image is, and never the images themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datas3_ray.errors import UsageError
from datas3_ray.sources.base import SampleError
from datas3_ray.sources.fetch import fetch_images

if TYPE_CHECKING:
    from datas3_ray.lake import Table
    from datas3_ray.lake.storage import StorageOptions

_PLACES = {"uri": pa.string(), "offset": pa.int64(), "length": pa.int64()}
_STORED = "image"
_ROW = "row"
_STORED_AT_ONCE = 64  # images whose stored bytes are in memory together


@dataclass(frozen=True)
class StoredIn:
    """The pinned table that holds the images' bytes itself."""

    uri: str
    version: int
    options: StorageOptions | None = None


@dataclass(frozen=True)
class ImageRows:
    """Where the images of n rows are. Small, and the same in every process it is sent to.

    Attributes
    ----------
    ids : pyarrow.Array of string, (n,)
    places : pyarrow.Table of n rows
        ``uri``, ``offset`` and ``length`` as :func:`datas3_ray.sources.fetch.fetch_images` takes them. Where a table
        stores the images' bytes, ``row`` is their place in it: bytes are read when they are asked for.
    stored : StoredIn, optional
        That table.
    """

    ids: pa.Array
    places: pa.Table
    stored: StoredIn | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: np.ndarray) -> ImageRows:
        """The rows at positions ``rows`` (m,), in that order."""
        at = pa.array(np.asarray(rows, dtype=np.int64))
        return replace(self, ids=self.ids.take(at), places=self.places.take(at).combine_chunks())

    def positions(self, ids: pa.Array) -> np.ndarray:
        """Where the rows of some ids are, ascending int64; ids that are not here are passed over."""
        found = pc.index_in(ids, value_set=self.ids).drop_null().to_numpy(zero_copy_only=False)
        return np.sort(found.astype(np.int64))

    def somewhere(self) -> np.ndarray:
        """Which rows say where their image is, bool (n,)."""
        if self.stored is not None:
            return np.ones(len(self), dtype=bool)
        return np.asarray(pc.is_valid(self.places.column("uri")).to_numpy())

    def encoded(self) -> Iterator[bytes | SampleError]:
        """The encoded image of every row in order, or why there is none; a few megabytes are in memory at a time.

        >>> places = pa.table({"uri": ["nowhere.tar"], "offset": [512], "length": [9]})
        >>> [str(image) for image in ImageRows(pa.array(["a"]), places).encoded()]
        ["'nowhere.tar' is not there"]
        """
        if self.stored is None:
            yield from fetch_images(self.places)
            return
        from datas3_ray.lake.storage import open_dataset

        dataset = open_dataset(self.stored.uri, self.stored.version, self.stored.options)
        for start in range(0, len(self), _STORED_AT_ONCE):
            part = self.places.slice(start, _STORED_AT_ONCE)
            rows, inverse = np.unique(part.column(_ROW).to_numpy(), return_inverse=True)
            found = dataset.take(rows.tolist(), columns=[_STORED]).column(_STORED).combine_chunks()
            images = found.cast(pa.large_binary()).take(pa.array(inverse))
            yield from fetch_images(part.drop_columns([_ROW]).append_column(_STORED, images))


def read_image_rows(table: Table, keep: pa.Array | None, columns: tuple[str, ...]) -> tuple[ImageRows, pa.Table]:
    """The rows of a pinned table that are in ``keep`` (all where it is None), in the table's order.

    Parameters
    ----------
    table : Table
        An image table.
    keep : pyarrow.Array of string, optional
        Ids.
    columns : tuple of str
        Columns to read beside the images' places, such as the label.

    Returns
    -------
    ImageRows, pyarrow.Table
        As many rows in both; the second has exactly ``columns``, as the table stores them.

    Raises
    ------
    UsageError
        When a column is not there, the table has no images, or it lacks rows of ``keep``.
    """
    for column in columns:
        table.require_column(column)
    names = table.schema.names
    stored = _STORED in names
    if not stored and "uri" not in names:
        raise UsageError(
            f"table '{table.name}' has no images: neither 'uri', which says where they are, nor 'image', which holds "
            "them; only its vectors can be trained on."
        )
    places = [name for name in _PLACES if name in names]
    wanted = list(dict.fromkeys(("id", *places, *columns)))
    parts, first = [], 0
    for batch in table.dataset.scanner(columns=wanted, scan_in_order=True).to_batches():
        part = pa.Table.from_batches([batch])
        part = part.append_column(_ROW_NAME, pa.array(np.arange(first, first + batch.num_rows)))
        first += batch.num_rows
        parts.append(part if keep is None else part.filter(pc.is_in(part.column("id"), value_set=keep)))
    found = pa.concat_tables(parts) if parts else _nothing(table, wanted)
    if keep is not None and found.num_rows != len(keep):
        raise UsageError(
            f"{len(keep) - found.num_rows} of {len(keep)} selected rows are not in version {table.version} of table "
            f"'{table.name}'; make the selection again."
        )
    where = pa.table(
        {
            name: found.column(name).cast(kind) if name in places else pa.nulls(found.num_rows, kind)
            for name, kind in _PLACES.items()
        }
    )
    home = None
    if stored:
        where = where.append_column(_ROW, found.column(_ROW_NAME))
        home = StoredIn(table.uri, table.version, table.options)
    ids = found.column("id").cast(pa.string()).combine_chunks()
    return ImageRows(ids, where.combine_chunks(), home), found.select(list(columns))


_ROW_NAME = "__row__"  # no column of a user's has this name


def _nothing(table: Table, wanted: list[str]) -> pa.Table:
    schema = pa.schema([table.schema.field(name) for name in wanted]).append(pa.field(_ROW_NAME, pa.int64()))
    return schema.empty_table()
