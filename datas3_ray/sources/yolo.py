"""YOLO data sets in ultralytics' layout: a data.yaml, folders of images, and the parallel folders of label files."""

from __future__ import annotations

import json
import logging
import posixpath
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar

import pyarrow as pa
from pydantic import BeforeValidator, Field, PrivateAttr

from datas3_ray.errors import UsageError, checked, did_you_mean
from datas3_ray.sources.arrow_tables import TableError
from datas3_ray.sources.base import FileSource, Item, Reject, Sample, SampleError, Shard
from datas3_ray.sources.below import absolute, below, folder_of, last_folders, stem
from datas3_ray.sources.boxes import BOXES, as_values, finished, image_size, only_label
from datas3_ray.sources.files import BAD, is_image, mark, read_items
from datas3_ray.sources.storage import File, Files, PassingError, as_list, list_folder, read_file
from datas3_ray.sources.yolo_labels import parse_data_yaml, parse_labels

logger = logging.getLogger(__name__)

_SPLITS = ("train", "val", "test")
_MAX_TEXT = 256 << 20
_FAULT = "\0"  # begins what is wrong with a line of a list, where an image's uri would be


class Yolo(Files, FileSource):
    """A data.yaml, or the folder it is in. Its ``train``, ``val`` and ``test`` are folders or .txt lists of images.

    ``root`` replaces the data.yaml's ``path``; nothing outside of it is read. An image's boxes are in the label file
    that ultralytics would read; without one it has none. The label is the only class of an image; the record has
    ``split`` and ``boxes_dropped``.

    >>> Yolo(yolo="coco8/data.yaml", splits=["train", "val"]).describe()
    'yolo coco8/data.yaml, split train, val; columns caption, label, meta, boxes'
    """

    name: ClassVar[str] = "yolo"

    yolo: Annotated[str, Field(min_length=1)]
    root: str | None = None
    splits: Annotated[tuple[str, ...] | None, BeforeValidator(as_list)] = None
    id_folders: Annotated[int, Field(ge=0, le=32)] = 1
    items_per_shard: Annotated[int, Field(ge=1)] = 1000

    _names: dict[int, str] | None = PrivateAttr(default=None)

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Yolo:
        """The source of a recipe's mapping ``{yolo: data.yaml or folder, splits: [...], columns: {...}, ...}``."""
        return checked(cls, spec, "source")

    def own_fields(self) -> list[pa.Field]:
        """The column ``boxes``."""
        return [BOXES]

    def describe(self) -> str:
        """One line for the plan; reads nothing."""
        splits = f", split {', '.join(self.splits)}" if self.splits else ""
        columns = ", ".join([*self.columns.fields_by_name(), "boxes"])
        return f"yolo {self.yolo}{splits}; columns {columns}"

    def items(self) -> list[Item]:
        """Every image of the splits, sorted by id.

        Raises UsageError for a missing file, folder or split, an image that is in two splits, and where no image is
        there. A line of a list that leads out of the data set is an item that becomes a Reject.
        """
        uri, document, names = self._data_yaml()
        root, listing = self._root(uri, document)
        named = [split for split in _SPLITS if document.get(split)]
        for split in self.splits or ():
            if split not in named:
                hint = did_you_mean(split, named)
                raise UsageError(f"yolo: {uri!r} has no split {split!r}; it has {', '.join(named) or 'none'}.{hint}")
        if not named:
            raise UsageError(f"yolo: {uri!r} has none of train, val and test; name the folders of images.")
        splits: dict[str, str] = {}
        for split in self.splits or named:
            for image in self._images(root, document[split], listing, f"{uri!r}: {split}"):
                if splits.setdefault(image, split) != split:
                    raise UsageError(f"yolo: the image {image!r} is in {splits[image]} and in {split}; keep it in one.")
        if not splits:
            raise UsageError(f"yolo: {uri!r}: there are no images below {root!r} in {', '.join(self.splits or named)}.")
        _check_there(splits, listing, root)
        owners: dict[str, int] = {}
        for image in splits:
            owners[stem(image)] = owners.get(stem(image), 0) + 1
        classes = mark(json.dumps(names))
        top = last_folders(root, self.id_folders)
        items = []
        for image, split in splits.items():
            key = image if owners[stem(image)] > 1 else stem(image)
            item_id = self.id_of("/".join([*top, key[len(root) + 1 :]]))
            items.append(_item(item_id, image, split, listing, classes, uri))
        return sorted(items, key=lambda item: item.id)

    def read(self, shard: Shard) -> Iterator[Sample | Reject]:
        """The images of a group in their order, and a Reject in the place of each that cannot be a sample."""
        if self._names is None:
            self._data_yaml()
        prefix = self.id_prefix.rstrip("/")
        for item in read_items(shard, prefix, lambda _: self.storage_options, self.max_bytes):
            try:
                yield finished(item, self._finish)
            except TableError as error:
                yield Reject(shard.uri, 0, error.reason, error.message, "")
                return

    def _finish(self, sample: Sample) -> Sample:
        """The sample with the boxes of its label file."""
        labels = sample.extra["labels"]
        boxes, dropped = parse_labels(self._text(labels), self._names or {}, image_size(sample.image), labels or "")
        members: dict[str, Any] = {"json": {**sample.members["json"], "boxes_dropped": dropped}}
        label = only_label(box.label for box in boxes)
        if label is not None:
            members["cls"] = label
        return replace(sample, members=members, extra={"boxes": as_values(boxes)})

    def _text(self, labels: str | None) -> str:
        if labels is None:
            return ""
        try:
            return read_file(labels, self.storage_options, self.max_bytes).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise SampleError("bad_record", f"{labels!r} is not UTF-8: {error}") from None
        except PassingError as error:  # the shard is to be read again another time
            raise TableError("unreadable_shard", error.message) from None

    def _data_yaml(self) -> tuple[str, dict[str, Any], dict[int, str]]:
        """The data.yaml's uri, what it holds and the names of the classes."""
        uri = absolute(self.yolo, self.storage_options)
        if not uri.lower().endswith((".yaml", ".yml")):
            listed = list_folder(uri, self.storage_options, self.name)
            found = [file.uri for file in listed if folder_of(file.uri) == uri and file.uri.endswith((".yaml", ".yml"))]
            usual = [name for name in found if posixpath.basename(name) in ("data.yaml", "dataset.yaml")]
            if len(usual) != 1 and len(found) != 1:
                words = ", ".join(map(posixpath.basename, found)) or "no .yaml file"
                raise UsageError(f"yolo: the folder {uri!r} has {words}; name the data.yaml itself.")
            uri = usual[0] if len(usual) == 1 else found[0]
        try:
            text = read_file(uri, self.storage_options, _MAX_TEXT)
        except SampleError as error:
            raise UsageError(f"yolo: {error}.") from None
        document, names = parse_data_yaml(text, uri)
        self._names = names
        return uri, document, names

    def _root(self, uri: str, document: Mapping[str, Any]) -> tuple[str, dict[str, File]]:
        """The data set's folder and every file in it: ``root``, else ``path`` in the data.yaml's folder, else that."""
        if self.root:
            folders = [absolute(self.root, self.storage_options)]
        else:
            home = folder_of(uri)
            path = document.get("path")
            folders = [home]
            if isinstance(path, str) and path not in ("", "."):
                outer = path.startswith("/") or "://" in path
                folders.insert(0, absolute(path if outer else f"{home}/{path}", self.storage_options))
        errors = []
        for folder in folders:
            try:
                listing = {file.uri: file for file in list_folder(folder, self.storage_options, self.name)}
            except UsageError as error:
                errors.append(error)
                continue
            return folder, listing
        raise errors[0]

    def _images(self, root: str, entry: Any, listing: Mapping[str, File], where: str) -> Iterator[str]:
        """The images that one split's entry stands for: a folder, a list's lines, or several of those."""
        entries = entry if isinstance(entry, list) else [entry]
        for name in entries:
            path = self._place(root, name, listing, where)
            if path.endswith(".txt"):
                yield from self._lines(root, path, where)
                continue
            found = [uri for uri in listing if uri.startswith(path + "/") and is_image(uri)]
            if not found:
                raise UsageError(f"yolo: {where}: there are no images in {path!r}; correct it, or set `root:`.")
            yield from sorted(found)

    def _place(self, root: str, name: Any, listing: Mapping[str, File], where: str) -> str:
        if isinstance(name, str):
            name = name.rstrip("/") or name
            if name.startswith(root + "/"):
                name = name[len(root) + 1 :]
            if name.startswith("../"):  # written for a data.yaml in a folder of its own, as Roboflow does
                name = name[3:]
            if name in (".", root):
                return root
        try:
            return below(root, name)
        except SampleError as error:
            raise UsageError(f"yolo: {where}: {error}; set `root:` to the data set's folder.") from None

    def _lines(self, root: str, path: str, where: str) -> Iterator[str]:
        try:
            text = read_file(path, self.storage_options, _MAX_TEXT).decode("utf-8-sig")
        except (SampleError, UnicodeDecodeError) as error:
            raise UsageError(f"yolo: {where}: {error}.") from None
        for number, line in enumerate(text.splitlines(), 1):
            line = line.strip()
            if not line:
                continue
            # ./ is the list's own folder, anything else is below the data set's.
            base = folder_of(path) if line.startswith("./") else root
            try:
                yield below(base, line[len(root) + 1 :] if line.startswith(root + "/") else line)
            except SampleError as error:
                yield f"{_FAULT}{path}#{number}{_FAULT}{error.message}"


def _check_there(images: Collection[str], listing: Mapping[str, File], root: str) -> None:
    """Raises UsageError where none of the images exists; warns where none has a label file, as a wrong path may be."""
    there = [image for image in images if image in listing]
    if not there:
        example = next(iter(images)).rpartition(_FAULT)[2]
        raise UsageError(
            f"yolo: none of the {len(images)} images is below {root!r}, such as {example}; correct the list, or set "
            "`root:` to the data set's folder."
        )
    if not any(labels_of(image) in listing for image in there):
        logger.warning(
            "yolo: none of the %d images has a label file, such as %s: all count as images without an object",
            len(there),
            labels_of(there[0]),
        )


def labels_of(image: str) -> str:
    """The label file of an image: in ``labels`` instead of the last folder ``images``, else beside it.

    >>> labels_of("/d/images/images/train/1.jpg"), labels_of("/d/train/1.jpg")
    ('/d/images/labels/train/1.txt', '/d/train/1.txt')
    """
    before, found, after = image.rpartition("/images/")
    return stem(f"{before}/labels/{after}" if found else image) + ".txt"


def _item(item_id: str, image: str, split: str, listing: Mapping[str, File], classes: str, data_yaml: str) -> Item:
    if image.startswith(_FAULT):
        _, place, fault = image.split(_FAULT)
        members: dict[str, Any] = {"json": {}, BAD: ["bad_record", fault]}
        return Item(place, place, 0, mark(image), json.dumps(members))
    file, labels = listing.get(image), listing.get(labels_of(image))
    members = {"json": {"split": split}, "extra": {"labels": labels.uri if labels else None}}
    parts = [file.fingerprint if file else "missing", labels.fingerprint if labels else "none", split, classes]
    return Item(item_id, image, file.size if file else 0, mark(*parts), json.dumps(members))
