"""COCO data sets: files of annotations, and a folder with the images that they name."""

from __future__ import annotations

import json
import logging
import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import replace
from operator import attrgetter
from typing import Annotated, Any, ClassVar

import pyarrow as pa
from pydantic import Field

from datas3_ray.errors import UsageError, checked
from datas3_ray.sources.base import FileSource, Item, Reject, Sample, SampleError, Shard
from datas3_ray.sources.below import absolute, below, last_folders, stem
from datas3_ray.sources.boxes import (
    BOXES,
    Box,
    as_values,
    clip,
    finished,
    image_size,
    only_label,
)
from datas3_ray.sources.coco_json import CocoFile, CocoImage, parse_coco
from datas3_ray.sources.files import BAD, mark, read_items, unique_keys
from datas3_ray.sources.storage import File, Files, Patterns, find_files, list_folder, read_file

logger = logging.getLogger(__name__)


class Coco(Files, FileSource):
    """Annotation files named by patterns, and the images that they name below the folder ``images``.

    With several files, ``images`` may be a mapping of each file's name without extension to its folder. Boxes are in
    pixels, clipped to the image; an image without annotations has an empty list. The label is the only category of an
    image. Its entry is the record, with ``split`` from the annotation file's name, ``boxes_crowd`` and
    ``boxes_dropped``.

    >>> Coco(coco="annotations/instances_{train,val}2017.json", images="images").describe()
    'coco annotations/instances_{train,val}2017.json with images; columns caption, label, meta, boxes'
    """

    name: ClassVar[str] = "coco"

    coco: Patterns
    images: Annotated[str, Field(min_length=1)] | dict[str, str]
    id_folders: Annotated[int, Field(ge=0, le=32)] = 1
    items_per_shard: Annotated[int, Field(ge=1)] = 1000

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Coco:
        """The source of a recipe's mapping ``{coco: pattern or patterns, images: folder, columns: {...}, ...}``."""
        return checked(cls, spec, "source")

    def own_fields(self) -> list[pa.Field]:
        """The column ``boxes``."""
        return [BOXES]

    def describe(self) -> str:
        """One line for the plan; reads nothing."""
        images = self.images if isinstance(self.images, str) else ", ".join(self.images.values())
        columns = ", ".join([*self.columns.fields_by_name(), "boxes"])
        return f"coco {', '.join(self.coco)} with {images}; columns {columns}"

    def items(self) -> list[Item]:
        """Every image of the annotation files, sorted by id.

        Raises UsageError for a file or folder that is missing, a file that is not COCO, images that share an id or a
        file, and where none of the images is there. Annotations that belong to no image or category are counted in a
        warning.
        """
        items: dict[str, Item] = {}
        owners: dict[str, str] = {}
        listings: dict[str, dict[str, File]] = {}
        there = 0
        for file in find_files(self.coco, self.storage_options, self.name):
            text = self._read(file)
            found = parse_coco(text, file.uri, stem(posixpath.basename(file.uri)))
            del text
            _warn(found)
            folder = self._folder(file.uri)
            if folder not in listings:
                listings[folder] = {
                    entry.uri: entry for entry in list_folder(folder, self.storage_options, "coco: images")
                }
            for image in found.images:
                item = self._item(found, image, folder, listings[folder])
                twin = items.setdefault(item.id, item)
                if twin is not item and twin.uri != item.uri:
                    raise UsageError(
                        f"coco: {twin.uri!r} and {item.uri!r} would both have the id {stem(item.id)!r}; set "
                        f"`id_folders: {self.id_folders + 1}` so that ids keep more of the path."
                    )
                if twin is not item:
                    raise UsageError(
                        f"coco: the image {item.uri!r} is in {owners[item.id]!r} and again in {file.uri!r}; each image "
                        "belongs to one entry: correct the files, or give `images:` as a mapping of each file's name "
                        "to its folder."
                    )
                owners[item.id] = file.uri
                there += item.size > 0
        if not there:
            raise UsageError(
                f"coco: none of the {len(items)} images is below {', '.join(map(repr, listings))}, such as "
                f"{next(iter(items.values())).uri!r}; correct `images:`."
            )
        keys = unique_keys(items, lambda path: path if path == items[path].uri else stem(path))
        return sorted(
            (replace(item, id=key) for item, key in zip(items.values(), keys, strict=True)), key=attrgetter("id")
        )

    def read(self, shard: Shard) -> Iterator[Sample | Reject]:
        """The images of a group in their order, and a Reject in the place of each that cannot be a sample."""
        prefix = self.id_prefix.rstrip("/")
        for item in read_items(shard, prefix, lambda _: self.storage_options, self.max_bytes):
            yield finished(item, _finish)

    def _item(self, found: CocoFile, image: CocoImage, folder: str, listing: Mapping[str, File]) -> Item:
        """An image's item, whose id has the file's extension still; one that names no file has its place for id."""
        name = image.entry.get("file_name")
        fault = image.fault
        uri = place = f"{found.uri}#{image.entry.get('id')}"
        try:
            uri = below(folder, name)
        except SampleError as error:
            fault = error.message
        record = {**image.entry, "boxes_crowd": image.crowd, "boxes_dropped": image.dropped}
        record.setdefault("split", found.split)
        members: dict[str, Any] = {"json": record, "extra": {"boxes": image.boxes, "labels": sorted(image.labels)}}
        if fault:
            members[BAD] = ["bad_record", fault]
        text = json.dumps(members, separators=(",", ":"))
        file = listing.get(uri)
        key = uri[len(folder.rstrip("/")) + 1 :]
        fingerprint = mark(file.fingerprint if file else "missing", text)
        item_id = self.id_of("/".join([*last_folders(folder, self.id_folders), key])) if uri != place else place
        return Item(item_id, uri, file.size if file else 0, fingerprint, text)

    def _read(self, file: File) -> bytes:
        try:
            return read_file(file.uri, self.storage_options, file.size + 1)
        except SampleError as error:
            raise UsageError(f"coco: {error}.") from None

    def _folder(self, uri: str) -> str:
        if isinstance(self.images, str):
            return absolute(self.images, self.storage_options)
        name = stem(posixpath.basename(uri))
        if name not in self.images:
            raise UsageError(f"coco: images: there is no folder for {name!r}; it has {', '.join(self.images)}.")
        return absolute(self.images[name], self.storage_options)


def _finish(sample: Sample) -> Sample:
    """The sample with its boxes on the image, whose size has to be that of the entry where both are known."""
    entries, labels = sample.extra["boxes"], sample.extra["labels"]
    record = sample.members["json"]
    size = image_size(sample.image) if entries else (0, 0)
    drawn_on = _size(record) or size
    if entries and drawn_on != size:
        said, real = (f"{width} x {height}" for width, height in (drawn_on, size))
        message = (
            f"its entry says {said} pixels and the upright image has {real}: its boxes were drawn on another image"
        )
        raise SampleError("bad_record", message)
    boxes, dropped = clip((Box(*entry) for entry in entries), size)
    record["boxes_dropped"] += dropped
    members = {"json": record}
    label = only_label([*(box.label for box in boxes), *labels])
    if label is not None:
        members["cls"] = label
    return replace(sample, members=members, extra={"boxes": as_values(boxes)})


def _size(record: Mapping[str, Any]) -> tuple[int, int] | None:
    width, height = record.get("width"), record.get("height")
    if isinstance(width, (int, float)) and isinstance(height, (int, float)) and width > 0 and height > 0:
        return int(width), int(height)
    return None


def _warn(found: CocoFile) -> None:
    for count, what in ((found.unknown_image, "images"), (found.unknown_category, "categories")):
        if count:
            logger.warning(
                "%s: %d annotations are left out: they are of %s that it does not list", found.uri, count, what
            )
