"""A folder of images: labels from the names of its folders, and what a metadata file beside the images says of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from datas3_ray.errors import UsageError, checked
from datas3_ray.sources.base import FileSource, Item, Reject, Sample, SampleError, Shard
from datas3_ray.sources.below import absolute, below, folder_of, last_folders, stem
from datas3_ray.sources.files import is_image, mark, members_text, read_items, unique_keys
from datas3_ray.sources.records import read_records
from datas3_ray.sources.storage import File, Files, Root, iter_folder

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
FILE_NAME = "file_name"


class Folder(Files, FileSource):
    """Every image below a folder, however deep; other files, and hidden ones, are passed over.

    The label is the name of the first folder on the way to an image (``label: folder``), of the last one (``parent``),
    or none. A file ``metadata.csv``, ``.jsonl`` or ``.parquet`` has the records of the images in its folder and below:
    its column ``file_name`` is their path from there. Ids are the image's path without the extension, after the names
    of the last ``id_folders`` folders that lead to it; the extension stays where two paths differ in nothing else.

    >>> Folder(folder="s3://bucket/pets").describe()
    'folder s3://bucket/pets; label from the first folder; columns caption, label, meta'
    """

    name: ClassVar[str] = "folder"

    folder: Root
    label: Literal["folder", "parent", "none"] = "folder"
    id_folders: Annotated[int, Field(ge=0, le=32)] = 1
    items_per_shard: Annotated[int, Field(ge=1)] = 1000

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Folder:
        """The source of a recipe's mapping ``{folder: path, label: folder, columns: {...}, ...}``."""
        return checked(cls, spec, "source")

    def describe(self) -> str:
        """One line for the plan; reads nothing."""
        label = {"folder": "label from the first folder", "parent": "label from the last folder", "none": "no label"}
        return f"folder {self.folder}; {label[self.label]}; columns {', '.join(self.columns.fields_by_name())}"

    def items(self) -> list[Item]:
        """Every image, sorted by id, and every row of the metadata whose image is not there.

        Raises UsageError for a folder that does not exist or holds no image, and for metadata that cannot be read,
        have no column ``file_name``, or name a file twice.
        """
        root = absolute(self.folder, self.storage_options)
        start = root.rstrip("/") + "/"
        images: list[File] = []
        tables: list[File] = []
        for file in iter_folder(root, self.storage_options, self.name):
            if is_image(file.uri):
                images.append(file)
            elif file.uri.rpartition("/")[2].lower() in METADATA:
                tables.append(file)
        if not images:
            raise UsageError(f"folder: {root!r} holds no image; correct the path.")
        records = self._records(sorted(tables))
        images.sort()
        keys = unique_keys((file.uri[len(start) :] for file in images), stem)
        prefix = self._prefix(root)
        texts: dict[str | None, str] = {}
        items = []
        for at, key in enumerate(keys):
            file, images[at] = images[at], None  # type: ignore[call-overload]  # a million files are not kept twice
            items.append(self._item(file, prefix + key, file.uri[len(start) :], records.pop(file.uri, None), texts))
        taken = {item.id for item in items}
        for uri, (where, record) in records.items():
            items.append(_without_file(uri, where, record, prefix, start, taken))
        items.sort(key=lambda item: item.id)
        return items

    def read(self, shard: Shard) -> Iterator[Sample | Reject]:
        """The images of one group in their order, and a Reject in the place of each that cannot be a sample."""
        prefix = self._prefix(absolute(self.folder, self.storage_options)).rstrip("/")
        yield from read_items(shard, prefix, lambda uri: self.storage_options, self.max_bytes)

    def _prefix(self, root: str) -> str:
        """What every id begins with, with a slash at its end where there is anything."""
        prefix = self.id_of("/".join(last_folders(root, self.id_folders))).strip("/")
        return f"{prefix}/" if prefix else ""

    def _item(
        self, file: File, id: str, path: str, described: tuple[str, dict[str, Any]] | None, texts: dict[str | None, str]
    ) -> Item:
        label = self._label(path)
        if described is None:
            if label not in texts:
                texts[label] = members_text(cls=label)
            return Item(id, file.uri, file.size, file.fingerprint, texts[label])
        members = members_text(described[1], cls=label)
        return Item(id, file.uri, file.size, f"{file.fingerprint}-{mark(members)}", members)

    def _label(self, path: str) -> str | None:
        folders = path.split("/")[:-1]
        if self.label == "none" or not folders:
            return None
        return folders[0] if self.label == "folder" else folders[-1]

    def _records(self, tables: list[File]) -> dict[str, tuple[str, dict[str, Any]]]:
        """What the metadata say of each file: where they say it, and the record."""
        found: dict[str, tuple[str, dict[str, Any]]] = {}
        for table in tables:
            for number, row in read_records(table.uri, self.storage_options, self.name):
                where = f"row {number} of {table.uri!r}"
                if isinstance(row, SampleError):
                    raise UsageError(f"folder: {row.message}.")
                if FILE_NAME not in row:
                    known = ", ".join(row) or "none"
                    raise UsageError(f"folder: {where} has no column {FILE_NAME!r}; its columns are {known}.")
                try:
                    uri = below(folder_of(table.uri), row.pop(FILE_NAME))
                except SampleError as error:
                    raise UsageError(f"folder: {where}: {error.message}.") from None
                twin = found.setdefault(uri, (where, row))
                if twin[1] is not row:
                    raise UsageError(f"folder: {twin[0]} and {where} both describe {uri!r}; keep one.")
        return found


def _without_file(uri: str, where: str, record: dict[str, Any], prefix: str, start: str, taken: set[str]) -> Item:
    """The item of a row whose file is not there, or is none that is read as an image."""
    path = uri[len(start) :]
    id = prefix + stem(path)
    if id in taken:
        id = prefix + path
    taken.add(id)
    why = "which is not there" if is_image(uri) else "which is not there or has not the extension of an image"
    bad = SampleError("unreadable_file", f"{where} describes {uri!r}, {why}")
    members = members_text(record, bad=bad)
    return Item(id, uri, 0, mark(json.dumps(record, sort_keys=True, default=str), uri), members)
