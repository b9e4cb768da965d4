"""What the tool img2dataset writes, in its three forms: tars, files in folders, or Parquet with the images inside.

All forms have the same ids, captions and records. An image that could not be downloaded is a row of the Parquet file
that img2dataset writes with every shard; it becomes a Reject with the status that it has there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from datas3_ray.errors import UsageError, checked
from datas3_ray.sources.arrow_rows import is_binary, records
from datas3_ray.sources.arrow_tables import ParquetTable, TableError
from datas3_ray.sources.base import FileSource, Item, Reject, Sample, SampleError, Shard, Source
from datas3_ray.sources.below import absolute, last_folders, stem
from datas3_ray.sources.fetch import Found, Range, fetch
from datas3_ray.sources.files import is_image, mark, members_text, read_items
from datas3_ray.sources.storage import IMAGES, File, Files, PassingError, Root, iter_folder
from datas3_ray.sources.webdataset import WebDataset, parse_member

SUCCESS = "success"
NOTES = ("json", "txt")
_ROWS = 64  # of a table with images that are in memory at once
_STATUS_ROWS = 4096
_STATUS = ("key", "url", "status", "error_message")
_TABLE = "+table:"  # in the fingerprint of a tar, before that of the table beside it

_ABSENT = SampleError("unreadable_file", "there is none")

Form = Literal["webdataset", "files", "parquet"]


class Img2Dataset(Files, Source):
    """A folder that img2dataset wrote. ``from_spec`` makes the source of the form that the folder has.

    ``format`` says which form that is, without looking. Ids are the names of the last ``id_folders`` folders, the
    shard's number and the key: ``laion/00000/000000123``.

    >>> spec = {"img2dataset": "s3://bucket/laion", "format": "webdataset"}
    >>> Img2Dataset.from_spec(spec).describe()
    'img2dataset s3://bucket/laion (webdataset); columns caption, label, meta'
    """

    name: ClassVar[str] = "img2dataset"
    form: ClassVar[str]

    img2dataset: Root
    format: Form | None = None
    id_folders: Annotated[int, Field(ge=0, le=32)] = 1
    items_per_shard: Annotated[int, Field(ge=1)] = 1000

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Img2Dataset:
        """The source of a recipe's mapping ``{img2dataset: folder, format: files, columns: {...}}``.

        Without ``format`` the folder is listed. Raises UsageError where it holds none of the forms.
        """
        given = checked(Tars, spec, "source")
        form = _FORMS[given.format or given.detect()]
        return form(**{name: getattr(given, name) for name in Tars.model_fields})

    def describe(self) -> str:
        """One line for the plan; reads nothing."""
        return f"img2dataset {self.img2dataset} ({self.form}); columns {', '.join(self.columns.fields_by_name())}"

    def detect(self) -> Form:
        """The form of the folder: tars, else Parquet files with images in them, else folders of files."""
        if self._find(".tar"):
            return "webdataset"
        tables = self._find(".parquet")
        if not tables:
            raise UsageError(
                f"img2dataset: {self.root()!r} holds no .tar and no .parquet file, one of which every form has; "
                "correct the path, or name the form with `format:`."
            )
        try:
            with ParquetTable(tables[0].uri, self.storage_options) as table:
                return "parquet" if _image_column(table) else "files"
        except TableError as error:
            raise UsageError(f"img2dataset: {error}; name the form with `format:`.") from None

    def root(self) -> str:
        """The folder as an absolute path or a URI."""
        return absolute(self.img2dataset, self.storage_options)

    def prefix(self) -> str:
        """What every id begins with."""
        return self.id_of("/".join(last_folders(self.root(), self.id_folders))).strip("/")

    def _find(self, ending: str) -> list[File]:
        """The files right in the folder whose names end so, sorted."""
        files = iter_folder(self.root(), self.storage_options, self.name, deep=False)
        return sorted(file for file in files if file.uri.endswith(ending))

    def _shard_id(self, uri: str) -> str:
        number = stem(uri.rpartition("/")[2])
        prefix = self.prefix()
        return f"{prefix}/{number}" if prefix else number

    def _failures(self, table: str) -> Iterator[tuple[int, str, SampleError]]:
        """Row number, key and reason of every row of a shard's table that was not downloaded. Raises TableError."""
        with ParquetTable(table, self.storage_options) as rows:
            names = [name for name in _STATUS if name in rows.schema.names]
            if "key" not in names or "status" not in names:
                raise TableError("not_a_table", f"{table!r} lacks the columns key and status that img2dataset writes")
            number = 0
            for batch in rows.batches(names, _STATUS_ROWS):
                for row in records(batch, names):
                    if isinstance(row, SampleError):
                        yield number, "", row
                    elif row["status"] != SUCCESS:
                        yield number, str(row["key"]), _not_downloaded(row)
                    number += 1


class Tars(Img2Dataset):
    """The form ``webdataset``: 00000.tar with the images, beside 00000.parquet."""

    form: ClassVar[str] = "webdataset"

    def shards(self) -> list[Shard]:
        """Every tar, sorted by uri; its fingerprint is also that of the Parquet file beside it."""
        tables = {stem(file.uri): file for file in self._find(".parquet")}
        shards = []
        for file in self._find(".tar"):
            beside = tables.get(stem(file.uri))
            fingerprint = f"{file.fingerprint}{_TABLE}{beside.fingerprint}" if beside else file.fingerprint
            shards.append(Shard(file.uri, file.size, fingerprint, self._shard_id(file.uri)))
        if not shards:
            raise UsageError(f"img2dataset: {self.root()!r} holds no .tar file; correct the path or `format:`.")
        return shards

    def read(self, shard: Shard) -> Iterator[Sample | Reject]:
        """The images of a tar, then a Reject for each row beside it that was not downloaded."""
        tar = WebDataset(webdataset=(shard.uri,), max_bytes=self.max_bytes, storage_options=self.storage_options)
        emptied: Reject | None = None
        for item in tar.read(shard):
            if isinstance(item, Reject) and item.reason == "empty_shard":
                emptied = item
                continue
            yield item
            if isinstance(item, Reject) and item.reason == "unreadable_shard":
                return
        failed = 0
        if _TABLE in shard.fingerprint:
            table = stem(shard.uri) + ".parquet"
            try:
                for number, key, error in self._failures(table):
                    failed += 1
                    yield Reject(table, number, error.reason, error.message, key)
            except TableError as error:
                yield Reject(table, failed, error.reason, error.message, "")
        if emptied is not None and not failed:
            yield emptied


class Tables(Img2Dataset):
    """The form ``parquet``: 00000.parquet with the images' bytes in a column, which have no byte ranges."""

    form: ClassVar[str] = "parquet"
    ranged: ClassVar[bool] = False

    def shards(self) -> list[Shard]:
        """Every Parquet file, sorted by uri."""
        files = self._find(".parquet")
        if not files:
            raise UsageError(f"img2dataset: {self.root()!r} holds no .parquet file; correct the path or `format:`.")
        return [Shard(file.uri, file.size, file.fingerprint, self._shard_id(file.uri)) for file in files]

    def read(self, shard: Shard) -> Iterator[Sample | Reject]:
        """The rows of a file in their order, and a Reject in the place of each that has no image."""
        number = 0
        seen: set[str] = set()
        try:
            with ParquetTable(shard.uri, self.storage_options) as table:
                image = _image_column(table)
                if image is None or not {"key", "status"} <= set(table.schema.names):
                    wanted = f"key, status or the images ({', '.join(IMAGES)})"
                    message = f"{shard.uri!r} lacks one of the columns {wanted} that img2dataset writes"
                    raise TableError("not_a_table", message)
                names = [f.name for f in table.schema if not is_binary(f.type)]
                for batch in table.batches([*names, image], _ROWS):
                    images = batch.column(image)
                    for index, row in enumerate(records(batch, names)):
                        yield self._row(shard, number, row, images[index], seen)
                        number += 1
        except TableError as error:
            yield Reject(shard.uri, number, error.reason, error.message, "")
            return
        if not number:
            yield Reject(shard.uri, 0, "empty_shard", "the table has no rows", "")

    def _row(
        self, shard: Shard, number: int, row: dict[str, Any] | SampleError, image: Any, seen: set[str]
    ) -> Sample | Reject:
        key = ""
        try:
            if isinstance(row, SampleError):
                raise row
            key = str(row["key"])
            if key in seen:
                raise SampleError("duplicate_key", f"the key {key!r} came before in this file")
            seen.add(key)
            if row["status"] != SUCCESS:
                raise _not_downloaded(row)
            if not image.is_valid:
                raise SampleError("no_image", f"row {number} is a success but has no image")
            size = image.as_buffer().size
            if not size:
                raise SampleError("empty_image", f"the image of row {number} has no bytes")
            if size > self.max_bytes:
                message = f"the image of row {number} has {size} bytes, more than max_bytes = {self.max_bytes}"
                raise SampleError("too_large", message)
        except SampleError as error:
            return Reject(shard.uri, number, error.reason, error.message, key)
        text = row.pop("txt", None) or row.get("caption")
        members = {"json": row} if text is None else {"json": row, "txt": str(text)}
        return Sample(f"{shard.prefix}/{key}", key, shard.uri, number, size, image.as_py(), members)


class Folders(Img2Dataset, FileSource):
    """The form ``files``: folders 00000 with an image, a .json and a .txt each, beside 00000.parquet."""

    form: ClassVar[str] = "files"

    def items(self) -> list[Item]:
        """Every image, and every row of the Parquet files that was not downloaded, sorted by id."""
        root = self.root()
        images: list[File] = []
        beside: dict[str, dict[str, str]] = {}
        tables: list[File] = []
        for file in iter_folder(root, self.storage_options, self.name):
            kind = file.uri.rpartition(".")[2]
            if is_image(file.uri):
                images.append(file)
            elif kind in NOTES:
                beside.setdefault(stem(file.uri), {})[kind] = file.fingerprint
            elif kind == "parquet" and file.uri.rpartition("/")[0] == root:
                tables.append(file)
        items: dict[str, Item] = {}
        prefix = f"{self.prefix()}/".lstrip("/")
        for file in sorted(images):
            where = stem(file.uri)
            notes = beside.pop(where, {})
            id = prefix + where[len(root) + 1 :]
            if id in items:
                raise UsageError(f"img2dataset: {items[id].uri!r} and {file.uri!r} have the same key; remove one.")
            members = members_text(notes=" ".join(sorted(notes)))
            items[id] = Item(id, file.uri, file.size, "+".join([file.fingerprint, *sorted(notes.values())]), members)
        for table in sorted(tables):
            self._add_failures(table, items)
        if not items:
            raise UsageError(f"img2dataset: {root!r} holds no image; correct the path or `format:`.")
        return [items[id] for id in sorted(items)]

    def read(self, shard: Shard) -> Iterator[Sample | Reject]:
        """The images of one group in their order, and a Reject in the place of each that cannot be a sample."""
        images = read_items(shard, self.prefix(), lambda uri: self.storage_options, self.max_bytes)
        notes = [self._notes(shard, kind) for kind in NOTES]
        for item, *texts in zip(images, *notes, strict=False):
            key = (item.key if isinstance(item, Reject) else item.id).rpartition("/")[2]
            if isinstance(item, Reject):
                yield replace(item, key=key)
                continue
            try:
                members = {
                    kind: parse_member(_data(text), kind)
                    for kind, text in zip(NOTES, texts, strict=True)
                    if text is not _ABSENT
                }
            except PassingError as error:
                yield Reject(shard.uri, 0, "unreadable_shard", error.message, "")
                return
            except SampleError as error:
                yield Reject(item.uri, 0, error.reason, error.message, key, item.id)
                continue
            yield replace(item, key=key, members=members)

    def _notes(self, shard: Shard, kind: str) -> Iterator[Found]:
        """The .json or .txt beside each image, or _ABSENT."""
        places: list[Range | Found] = []
        for item in shard.items:
            there = kind in json.loads(item.members).get("notes", "").split()
            places.append(Range(f"{stem(item.uri)}.{kind}") if there else _ABSENT)
        return fetch(places, lambda uri: self.storage_options, self.max_bytes)

    def _add_failures(self, table: File, items: dict[str, Item]) -> None:
        try:
            for number, key, error in self._failures(table.uri):
                id = f"{self._shard_id(table.uri)}/{key or f'row-{number}'}"
                members = members_text(bad=error)
                items.setdefault(id, Item(id, table.uri, 0, mark(members), members))
        except TableError as error:
            id = f"{self._shard_id(table.uri)}/{table.uri.rpartition('/')[2]}"
            bad = SampleError("bad_record", f"what was not downloaded is not known: {error.message}")
            items[id] = Item(id, table.uri, 0, table.fingerprint, members_text(bad=bad))


def _image_column(table: ParquetTable) -> str | None:
    """The column of bytes that is named like an image's extension."""
    names = {field.name for field in table.schema if is_binary(field.type)}
    return next((name for name in IMAGES if name in names), None)


def _not_downloaded(row: Mapping[str, Any]) -> SampleError:
    why = f": {row['error_message']}" if row.get("error_message") else ""
    where = f" ({row['url']})" if row.get("url") else ""
    return SampleError("not_downloaded", f"status {row['status']!r}{why}{where}")


def _data(text: Found) -> bytes:
    if isinstance(text, SampleError):
        raise text
    return text


_FORMS: dict[str, type[Img2Dataset]] = {"webdataset": Tars, "files": Folders, "parquet": Tables}
