"""Ready embeddings: .npy, .npz and Parquet files of vectors, with ids and metadata from files beside them."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import pyarrow as pa
from pydantic import BeforeValidator, Field, PrivateAttr

from datas3_ray.errors import UsageError, checked, did_you_mean
from datas3_ray.lake.schemas import vector_field
from datas3_ray.sources.arrow_tables import TableError
from datas3_ray.sources.base import Reject, Shard, VectorSource
from datas3_ray.sources.below import folder_of, stem
from datas3_ray.sources.columns import RESERVED
from datas3_ray.sources.parquet import shards_of
from datas3_ray.sources.storage import File, Files, Patterns, as_list, find_files
from datas3_ray.sources.vector_columns import TableColumns
from datas3_ray.sources.vector_shard import ShardReader, ShardSpec, VectorColumn

BATCH_ROWS = 1 << 16
BATCH_BYTES = 64 << 20
"""At most so many rows, and bytes of vectors, are in memory at once."""

_KINDS = (".npy", ".npz", ".parquet")
_ID_FILES = (".txt", ".npy", ".parquet")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


class Vectors(Files, VectorSource):
    """Files of vectors, a shard each: all .npy, all .npz or all Parquet.

    ``embeddings`` maps the names that vector columns get in the lake to those of the arrays or columns in the files;
    without it every matrix of floats is one, under its own name. A .npy, which has no names, is called ``column``.
    Ids are the column or array ``id`` (in Parquet also ``id``, ``uid`` or ``key``), else the lines, elements or column
    of the ``ids`` file of each shard, else ``STEM/000000012``. ``metadata: parquet`` reads the Parquet file of the
    same stem beside each .npz or .npy. Its other columns are the record for ``columns``; ``meta`` keeps what they
    leave.

    >>> Vectors(vectors="metadata/*.npz", metadata="parquet", embeddings={"clip": "l14_img"}).describe()
    'vectors metadata/*.npz; embeddings clip; columns caption, label, meta'
    """

    name: ClassVar[str] = "vectors"

    vectors: Patterns
    embeddings: dict[str, str] | None = None
    column: str | None = None
    ids: Annotated[tuple[str, ...] | None, BeforeValidator(as_list)] = None
    id: str | None = None
    metadata: Literal["parquet"] | None = None
    meta: bool = False
    id_folders: Annotated[int, Field(ge=0, le=32)] = 0

    _beside: dict[str, str] | None = PrivateAttr(default=None)  # each shard's file of ids or metadata
    _columns: tuple[VectorColumn, ...] | None = PrivateAttr(default=None)
    _first: str = PrivateAttr(default="")

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Vectors:
        """The source of a recipe's mapping ``{vectors: patterns, embeddings: {...}, columns: {...}, ...}``."""
        source = checked(cls, spec, "source")
        if source.ids and source.metadata:
            raise UsageError("source: both `ids` and `metadata` are given; a Parquet file for `ids` is metadata, too.")
        if source.embeddings is not None and source.column is not None:
            raise UsageError("source: both `embeddings` and `column` are given; `column` is for .npy files.")
        if source.embeddings is not None and not source.embeddings:
            raise UsageError("source: embeddings is empty; name a vector column such as {clip: l14_img}.")
        for name in source.embeddings or ([source.column] if source.column else []):
            source._check_name(name)
        return source

    def describe(self) -> str:
        """One line for the plan; reads nothing."""
        names = [self.column] if self.column else list(self.embeddings or [])
        embeddings = f"; embeddings {', '.join(names)}" if names else ""
        return f"vectors {', '.join(self.vectors)}{embeddings}; columns {', '.join(self.columns.fields_by_name())}"

    def shards(self) -> list[Shard]:
        """Every file of vectors, sorted by uri.

        Raises UsageError for a pattern that names nothing, files of several kinds, and a file of ids or metadata that
        is missing.
        """
        files = find_files(self.vectors, self.storage_options, self.name)
        if self.metadata:
            # A pattern such as part-* also matches the metadata.
            stems = {stem(file.uri) for file in files if not file.uri.endswith(".parquet")}
            files = [file for file in files if not (file.uri.endswith(".parquet") and stem(file.uri) in stems)]
        self._check_kind(files)
        beside = self._files_beside(files)
        self._beside = {uri: file.uri for uri, file in beside.items()}
        files = [
            file._replace(fingerprint=f"{file.fingerprint}+{beside[file.uri].fingerprint}")
            if file.uri in beside
            else file
            for file in files
        ]
        if self.id or self.ids or self.metadata:
            return [Shard(file.uri, file.size, file.fingerprint, self._prefix(file.uri)) for file in files]
        return shards_of(files, self.id_of, self.id_folders, self.name)

    def vector_fields(self) -> list[pa.Field]:
        """The vector columns, from the headers of the first shard.

        Raises UsageError where that cannot be read, and for names that it does not have, or that clash with columns.
        """
        if self._columns is None:
            shard = self.shards()[0]
            try:
                with ShardReader(shard, self._spec(shard)) as reader:
                    columns = reader.columns
                    names = reader.metadata_names
            except TableError as error:
                text = str(error)
                raise UsageError(f"vectors: {text if text.endswith('?') else text + '.'}") from None
            for column in columns:
                self._check_name(column.name)
            if names is not None:
                where = repr((self._beside or {}).get(shard.uri, shard.uri))
                self.columns.check(names, where)
            self._columns, self._first = tuple(columns), shard.uri
        return [vector_field(column.name, column.dim) for column in self._columns]

    def read_rows(self, shard: Shard) -> Iterator[pa.Table | Reject]:
        """Tables of ``id``, ``offset``, the recipe's columns and the vectors as float32, in the shard's order.

        A Reject with a key stands for the row of that id, one without for the shard or the rest of it.
        """
        dims = [field.type.list_size for field in self.vector_fields()]
        rows = min(BATCH_ROWS, max(1, BATCH_BYTES // (4 * sum(dims))))
        row = 0
        try:
            with ShardReader(shard, self._spec(shard)) as reader:
                self._check_shard(shard, reader.columns)
                if not reader.rows:
                    raise TableError("empty_shard", "the file has no rows")
                for batch in reader.batches(rows):
                    for index in sorted(batch.bad):
                        error, key = batch.bad[index], batch.ids[index].as_py()
                        yield Reject(shard.uri, batch.first + index, error.reason, error.message, key or "")
                    row = batch.first + len(batch.ids)
                    if len(batch.bad) < len(batch.ids):
                        yield batch.table()
        except TableError as error:
            yield Reject(shard.uri, row, error.reason, error.message, "")

    def read_ids(self, shard: Shard) -> Iterator[pa.Array]:
        """The ids that the shard's rows have of their own, in their order."""
        spec = self._spec(shard)
        if not (spec.beside or spec.id or shard.uri.lower().endswith(".parquet")):
            return
        try:
            with ShardReader(shard, spec) as reader:
                if reader.has_ids:
                    yield from reader.ids(BATCH_ROWS)
        except TableError:
            return  # the ingest tells

    def _spec(self, shard: Shard) -> ShardSpec:
        if self._beside is None:
            self.shards()
        return ShardSpec(
            embeddings=self.embeddings or ({self.column: ""} if self.column else None),
            beside=(self._beside or {}).get(shard.uri),
            id=self.id,
            need_ids=bool(self.ids),
            id_prefix=self.id_prefix.rstrip("/"),
            columns=TableColumns(self.columns, self.meta),
            fields=tuple(self.columns.fields()),
            options=self.storage_options,
            max_bytes=self.max_bytes,
        )

    def _check_shard(self, shard: Shard, columns: Sequence[VectorColumn]) -> None:
        found = {column.name: column.dim for column in columns}
        for column in self._columns or ():
            dim = found.get(column.name)
            if dim != column.dim:
                has = "is missing here" if dim is None else f"has {dim} dimensions here"
                raise TableError(
                    "not_a_table",
                    f"the vector column {column.name!r} {has}, and {column.dim} dimensions in {self._first!r}",
                )

    def _check_name(self, name: str) -> None:
        if not _NAME.fullmatch(name):
            raise UsageError(
                f"vectors: {name!r} cannot be a column name: use letters, digits and _; see `embeddings:`."
            )
        if name.lower() in {*RESERVED, *(field.lower() for field in self.columns.fields_by_name())}:
            raise UsageError(
                f"vectors: {name!r} is the name of another column; give the vectors one with `embeddings:`."
            )

    def _check_kind(self, files: Sequence[File]) -> None:
        kinds: dict[str, str] = {}
        for file in files:
            kinds.setdefault(_suffix(file.uri), file.uri)
        odd = next((uri for kind, uri in kinds.items() if kind not in _KINDS), None)
        if odd:
            raise UsageError(f"vectors: {odd!r} is no file of vectors; .npy, .npz and .parquet are read.")
        if len(kinds) > 1:
            one, other, *_ = kinds.values()
            hint = " Or set `metadata: parquet`." if {".npy", ".npz"} & set(kinds) and ".parquet" in kinds else ""
            raise UsageError(
                f"vectors: {one!r} and {other!r} are of two kinds; ingest them in steps of their own.{hint}"
            )
        kind = next(iter(kinds))
        if kind == ".npy" and not self.column:
            raise UsageError("vectors: .npy files have no names in them; name the vector column with `column:`.")
        if kind != ".npy" and self.column:
            raise UsageError(f"vectors: `column:` is for .npy files; for {kind} files use `embeddings:`.")
        if kind == ".parquet" and (self.metadata or self.ids):
            option = "metadata" if self.metadata else "ids"
            raise UsageError(
                f"vectors: `{option}:` is for .npy and .npz files; a Parquet file has its ids in a column."
            )

    def _files_beside(self, files: Sequence[File]) -> dict[str, File]:
        """The file of ids or metadata of each shard."""
        if self.ids:
            found = find_files(self.ids, self.storage_options, f"{self.name}: ids")
            if len(found) != len(files):
                raise UsageError(
                    f"vectors: ids: {len(found)} files of ids and {len(files)} of vectors were found; the files are "
                    "paired in the order of their names, so there must be as many."
                )
            odd = next((file.uri for file in found if _suffix(file.uri) not in _ID_FILES), None)
            if odd:
                raise UsageError(f"vectors: ids: {odd!r} is neither of {', '.join(_ID_FILES)}.")
            return {file.uri: ids for file, ids in zip(files, found, strict=True)}
        if not self.metadata:
            return {}
        there: dict[str, File] = {}
        for folder in dict.fromkeys(folder_of(file.uri) for file in files):
            try:
                listed = find_files([f"{folder}/*.parquet"], self.storage_options, f"{self.name}: metadata")
            except UsageError as error:
                raise UsageError(f"{error} Or leave `metadata:` out.") from None
            there.update((file.uri, file) for file in listed)
        missing = [uri for file in files if (uri := f"{stem(file.uri)}.parquet") not in there]
        if missing:
            hint = did_you_mean(missing[0], there)
            count = f"{len(missing)} of {len(files)} Parquet files are missing"
            raise UsageError(f"vectors: metadata: {count}, such as {missing[0]!r}.{hint}")
        return {file.uri: there[f"{stem(file.uri)}.parquet"] for file in files}

    def _prefix(self, uri: str) -> str:
        return self.id_of(stem(posixpath.basename(uri)))


def _suffix(uri: str) -> str:
    return posixpath.splitext(uri)[1].lower()
