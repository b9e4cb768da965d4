"""Hugging Face data sets in a folder: what ``save_to_disk`` wrote, or the Parquet files of a hub's repository."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Annotated, Any, ClassVar

import pyarrow as pa
from pydantic import BeforeValidator, Field, PrivateAttr

from datas3_ray.errors import UsageError, checked, did_you_mean
from datas3_ray.sources.arrow_rows import BATCH_ROWS, Layout, find_layout, samples
from datas3_ray.sources.arrow_tables import ArrowTable, ParquetTable, TableError
from datas3_ray.sources.base import Reject, Sample, SampleError, Shard, Source
from datas3_ray.sources.below import absolute, below, folder_of, last_folders, stem
from datas3_ray.sources.boxes import BOXES, BoxFormat, as_values, clip, image_size
from datas3_ray.sources.hf_features import boxes_of, class_columns, features_of, image_columns, named
from datas3_ray.sources.parquet import NamedFiles
from datas3_ray.sources.storage import File, Files, as_list, list_folder, read_file

_NUMBERED = re.compile(r"(.+?)-[0-9]+-of-[0-9]+(-[0-9a-f]+)?")  # train-00000-of-00002-0123456789abcdef
_MAX_JSON = 64 << 20
_ADDED = ("split", "boxes_dropped")  # to the record of each row


@dataclass(frozen=True)
class _Part:
    """One file of the data set, and the split that it belongs to."""

    file: File
    split: str | None


class HF(Files, Source):
    """A folder that the ``datasets`` library wrote with ``save_to_disk``, or one with Parquet files as the hub has.

    The images are in the column ``image``, or the only one whose feature is Image. Numbers of classes become their
    names; the label is a column ``label``, else the first class column. ``boxes`` names a column of objects with
    ``bbox`` and ``category``. ``splits`` takes only those; the record has ``split``.

    >>> HF(hf="data/pets", splits="train").describe()
    'hf data/pets, split train; columns caption, label, meta'
    """

    name: ClassVar[str] = "hf"
    ranged: ClassVar[bool] = False
    rows_elsewhere: ClassVar[bool] = True

    hf: Annotated[str, Field(min_length=1)]
    splits: Annotated[tuple[str, ...] | None, BeforeValidator(as_list)] = None
    image: str | None = None
    id: str | None = None
    boxes: str | None = None
    box_format: BoxFormat = "xywh"
    id_folders: Annotated[int, Field(ge=0, le=32)] = 1

    _parts: dict[str, str | None] | None = PrivateAttr(default=None)

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> HF:
        """The source of a recipe's mapping ``{hf: folder, splits: [...], columns: {...}, ...}``."""
        source = checked(cls, spec, "source")
        if not source.boxes and "box_format" in spec:
            raise UsageError("source: box_format says how the column that `boxes:` names is written; set it, too.")
        return source

    def own_fields(self) -> list[pa.Field]:
        """The column ``boxes`` where the recipe names a column of objects."""
        return [BOXES] if self.boxes else []

    def describe(self) -> str:
        """One line for the plan; reads nothing."""
        splits = f", split {', '.join(self.splits)}" if self.splits else ""
        columns = [*self.columns.fields_by_name(), *(field.name for field in self.own_fields())]
        return f"hf {self.hf}{splits}; columns {', '.join(columns)}"

    def shards(self) -> list[Shard]:
        """Every file of the data set, sorted by uri.

        Raises UsageError where the folder holds no such data set, a file of it is missing, a split is unknown, or the
        first file lacks a column that is named.
        """
        root = absolute(self.hf, self.storage_options)
        top = "/".join(last_folders(root, self.id_folders))
        parts = self._find(root)
        self._check(parts[0].file)
        shards = []
        for part in parts:
            inner = stem(part.file.uri[len(root) + 1 :])
            prefix = self.id_of(f"{top}/{inner}" if top else inner)
            shards.append(Shard(part.file.uri, part.file.size, part.file.fingerprint, prefix))
        return sorted(shards, key=lambda shard: shard.uri)

    def read(self, shard: Shard) -> Iterator[Sample | Reject]:
        """The rows of one file in their order, and a Reject in the place of each that cannot be a sample."""
        files = NamedFiles(folder_of(shard.uri), self.storage_options, self.max_bytes)
        count = 0
        try:
            with _open(shard.uri, self.storage_options) as table:
                features = features_of(table.schema)
                layout = self._layout(table.schema, features, f"hf {shard.uri!r}")
                if isinstance(table, ParquetTable):
                    batches = table.batches(layout.names, BATCH_ROWS)
                else:
                    batches = table.batches(layout.names)
                finish = _Finish(features, self._split_of(shard.uri), self.boxes, self.box_format)
                for item in samples(shard, batches, layout, files.read, self.max_bytes, finish):
                    count += 1
                    yield item
        except TableError as error:
            yield Reject(shard.uri, count, error.reason, error.message, "")
        except UsageError as error:
            yield Reject(shard.uri, 0, "not_a_table", str(error), "")
        else:
            if not count:
                yield Reject(shard.uri, 0, "empty_shard", "the table has no rows", "")

    def _layout(self, schema: pa.Schema, features: Mapping[str, Any], where: str) -> Layout:
        images = image_columns(features)
        image = self.image or ("image" if "image" in images else images[0] if len(images) == 1 else None)
        if image is None and images:
            raise UsageError(f"{where}: several columns are images: {', '.join(images)}; name one with `image:`.")
        layout = find_layout(schema, Layout(image=image, id=self.id), where)
        if layout.image is None:
            raise UsageError(f"{where}: no column holds images; `parquet:` reads tables that name files.")
        if self.boxes and self.boxes not in layout.record:
            known = ", ".join(layout.record)
            hint = did_you_mean(self.boxes, layout.record)
            raise UsageError(f"{where}: boxes: there is no column {self.boxes!r}; it has {known}.{hint}")
        return layout

    def _check(self, file: File) -> None:
        try:
            with _open(file.uri, self.storage_options) as table:
                where = f"hf {file.uri!r}"
                record = self._layout(table.schema, features_of(table.schema), where).record
                self.columns.check([*(name for name in record if name != self.boxes), *_ADDED], where)
        except TableError:
            return  # the reading tells

    def _split_of(self, uri: str) -> str | None:
        if self._parts is None:
            self._find(absolute(self.hf, self.storage_options))
        return (self._parts or {}).get(uri)

    def _find(self, root: str) -> list[_Part]:
        listed = {file.uri: file for file in list_folder(root, self.storage_options, self.name)}
        if f"{root}/dataset_dict.json" in listed:
            parts = self._saved_splits(root, listed)
        elif f"{root}/state.json" in listed:
            parts = self._saved(root, listed, None)
        else:
            parts = [_Part(file, _hub_split(root, uri)) for uri, file in listed.items() if uri.endswith(".parquet")]
        if not parts:
            raise UsageError(
                f"hf: {root!r} holds neither what save_to_disk writes (dataset_dict.json, or state.json and "
                "data-*.arrow) nor any .parquet file; correct the path."
            )
        splits = list(dict.fromkeys(part.split or "" for part in parts))
        for name in self.splits or ():
            if name not in splits:
                known = ", ".join(splits) or "none"
                raise UsageError(f"hf: {root!r} has no split {name!r}; it has {known}.{did_you_mean(name, splits)}")
        parts = [part for part in parts if self.splits is None or part.split in self.splits]
        self._parts = {part.file.uri: part.split for part in parts}
        return parts

    def _saved_splits(self, root: str, listed: Mapping[str, File]) -> list[_Part]:
        splits = self._json(f"{root}/dataset_dict.json").get("splits")
        if not isinstance(splits, list) or not splits:
            raise UsageError(f"hf: '{root}/dataset_dict.json' names no splits.")
        return [part for split in splits for part in self._saved(self._below(root, split), listed, str(split))]

    def _saved(self, folder: str, listed: Mapping[str, File], split: str | None) -> list[_Part]:
        state = self._json(f"{folder}/state.json")
        entries = state.get("_data_files")
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise UsageError(f"hf: '{folder}/state.json' has no list _data_files; save the data set again.")
        if split is None and isinstance(state.get("_split"), str):
            split = state["_split"]
        parts = []
        for entry in entries:
            uri = self._below(folder, entry.get("filename"))
            if uri not in listed:
                raise UsageError(f"hf: {uri!r}, which '{folder}/state.json' names, is missing; copy it, too.")
            parts.append(_Part(listed[uri], split))
        return parts

    def _below(self, folder: str, name: Any) -> str:
        try:
            return below(folder, name)
        except SampleError as error:
            raise UsageError(f"hf: {error}.") from None

    def _json(self, uri: str) -> dict[str, Any]:
        try:
            document = json.loads(read_file(uri, self.storage_options, _MAX_JSON))
        except (SampleError, ValueError, RecursionError) as error:
            raise UsageError(f"hf: {uri!r} cannot be read as JSON: {error}.") from None
        if not isinstance(document, dict):
            raise UsageError(f"hf: {uri!r} is not a JSON object.")
        return document


def _open(uri: str, storage_options: Any) -> ParquetTable | ArrowTable:
    return (ParquetTable if uri.endswith(".parquet") else ArrowTable)(uri, storage_options)


def _hub_split(root: str, uri: str) -> str:
    """The split of a hub's file, from its name: else, where that is a number, from its folder's.

    >>> _hub_split("/d", "/d/data/train-00000-of-00002-0a1b.parquet"), _hub_split("/d", "/d/default/test/0000.parquet")
    ('train', 'test')
    """
    path = PurePosixPath(uri[len(root) + 1 :])
    numbered = _NUMBERED.fullmatch(path.stem)
    if numbered:
        return numbered[1]
    if path.stem.isdecimal() and len(path.parts) > 1:
        return path.parts[-2]
    return path.stem


@dataclass(frozen=True)
class _Finish:
    """What the features and the folder say of a row besides its values."""

    features: Mapping[str, Any]
    split: str | None
    boxes: str | None
    form: BoxFormat

    def __call__(self, sample: Sample) -> Sample:
        record = {
            name: named(value, self.features[name], name) if name in self.features else value
            for name, value in sample.members["json"].items()
        }
        members: dict[str, Any] = {"json": record}
        label = next((record.get(name) for name in class_columns(self.features)), None)
        if label is not None:
            members["cls"] = str(label)
        extra: dict[str, Any] = {}
        if self.boxes:
            size = image_size(sample.image)
            kept, dropped = clip(boxes_of(record.pop(self.boxes, None), self.form, size, self.boxes), size)
            extra["boxes"] = as_values(kept)
            record["boxes_dropped"] = dropped
        if self.split is not None:
            record.setdefault("split", self.split)
        return replace(sample, members=members, extra=extra)
