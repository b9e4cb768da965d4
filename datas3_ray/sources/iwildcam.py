"""iWildCam: camera traps of many places, as the WILDS release and as the COCO Camera Traps files of its challenges."""

from __future__ import annotations

import logging
import posixpath
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar

import pyarrow as pa
from pydantic import BeforeValidator, Field

from datas3_ray.errors import UsageError, checked, did_you_mean
from datas3_ray.sources.base import FileSource, Item, Reject, Sample, Shard
from datas3_ray.sources.below import absolute, last_folders, stem
from datas3_ray.sources.camera_traps import Shot, read_animals, read_camera_traps, read_gps, read_wilds
from datas3_ray.sources.coco_json import split_of
from datas3_ray.sources.files import read_items
from datas3_ray.sources.named_files import NamedFile, NamedFiles, list_images
from datas3_ray.sources.storage import File, Files, Pattern, Patterns, Root, as_list, find_files, iter_folder

logger = logging.getLogger(__name__)

_FIELDS = [
    pa.field("location", pa.int64()),
    pa.field("latitude", pa.float64()),
    pa.field("longitude", pa.float64()),
    pa.field("split", pa.string()),
    pa.field("datetime", pa.string()),
    pa.field("category_id", pa.int64()),
    pa.field("sequence", pa.string()),
]
_ANIMAL = pa.field("animal", pa.float64())


class IWildCam(Files, FileSource):
    """The folder of a release of iWildCam: that of WILDS, or, with ``annotations``, a challenge's JSON files.

    WILDS has ``metadata.csv``, ``categories.csv`` and the images of all splits in ``train``. ``annotations`` are COCO
    Camera Traps files, which may lack the list of annotations; ``images`` is the folder of their files, or a mapping of
    each file's name without extension to its folder, by default the data set's own. ``gps`` is the file of the places
    of cameras, ``detections`` that of MegaDetector, which fills the column ``animal``. ``splits`` takes some splits
    only. Without ``check_files`` images are not looked for before they are read, so that metadata alone can be planned.
    Ids are ``FOLDER/NAME``, the name without its extension.

    >>> IWildCam(iwildcam="s3://bucket/iwildcam_v2.0", splits="train").describe()[:56]
    'iwildcam s3://bucket/iwildcam_v2.0, split train; columns'
    """

    name: ClassVar[str] = "iwildcam"

    iwildcam: Root
    annotations: Patterns | None = None
    images: Pattern | dict[str, Pattern] | None = None
    gps: Pattern | None = None
    detections: Pattern | None = None
    splits: Annotated[tuple[Pattern, ...] | None, BeforeValidator(as_list), Field(min_length=1)] = None
    check_files: bool = True
    id_folders: Annotated[int, Field(ge=0, le=32)] = 1
    items_per_shard: Annotated[int, Field(ge=1)] = 1000

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> IWildCam:
        """The source of a recipe's mapping ``{iwildcam: folder, gps: file, columns: {...}, ...}``."""
        source = checked(cls, spec, "source")
        if isinstance(source.images, dict) and source.annotations is None:
            raise UsageError("source: `images:` as a mapping needs `annotations:`, whose files it names.")
        return source

    def own_fields(self) -> list[pa.Field]:
        """Where, when and in which split an image was taken, its category; ``animal`` where there are detections."""
        return [*_FIELDS, _ANIMAL] if self.detections else list(_FIELDS)

    def describe(self) -> str:
        """One line for the plan; reads nothing."""
        files = f" with {', '.join(self.annotations)}" if self.annotations else ""
        splits = f", split {', '.join(self.splits)}" if self.splits else ""
        columns = [*self.columns.fields_by_name(), *(field.name for field in self.own_fields())]
        return f"iwildcam {self.iwildcam}{files}{splits}; columns {', '.join(columns)}"

    def items(self) -> list[Item]:
        """Every image that the metadata name, sorted by id.

        Raises UsageError for a file or folder that is missing or is not what it should be, a split that no image is
        in, two rows with one file, and where none of the images is there. An image whose file is missing, or whose row
        does not fit the format, is an item whose reading gives a Reject.
        """
        root = absolute(self.iwildcam, self.storage_options)
        prefix = self.id_of("/".join(last_folders(root, self.id_folders))).strip("/")
        sets = self._sets(root)
        listing: dict[str, File] | None = {} if self.check_files else None
        if listing is not None:
            for folder in dict.fromkeys(folder for _, folder, _ in sets):
                listing.update(list_images(folder, self.storage_options, "iwildcam: images"))
        gather = _Gather(self, NamedFiles(self.name, f"{prefix}/" if prefix else "", listing))
        for table, folder, shots in sets:
            for shot in shots:
                gather.add(table, folder, shot)
        gather.finish()
        return gather.files.items()

    def read(self, shard: Shard) -> Iterator[Sample | Reject]:
        """The images of a group in their order, and a Reject in the place of each that cannot be a sample."""
        yield from read_items(shard, self.id_prefix.rstrip("/"), lambda _: self.storage_options, self.max_bytes)

    def _sets(self, root: str) -> list[tuple[str, str, Iterator[Shot]]]:
        """The files of metadata, each with its folder of images and what it says of them."""
        if self.annotations is None:
            table = f"{root}/metadata.csv"
            if not any(file.uri == table for file in iter_folder(root, self.storage_options, "iwildcam", deep=False)):
                raise UsageError(
                    f"iwildcam: {root!r} has no metadata.csv, as a release of WILDS has beside categories.csv and "
                    "train/; correct the folder, or name the JSON file of a challenge with `annotations:`."
                )
            folder = absolute(self.images, self.storage_options) if isinstance(self.images, str) else f"{root}/train"
            return [(table, folder, read_wilds(root, self.storage_options))]
        sets = []
        for file in find_files(self.annotations, self.storage_options, "iwildcam: annotations"):
            split = split_of(stem(posixpath.basename(file.uri)))
            shots = read_camera_traps(file.uri, split, self.storage_options)
            sets.append((file.uri, self._folder(file.uri, root), shots))
        return sets

    def _folder(self, uri: str, root: str) -> str:
        if not isinstance(self.images, dict):
            return absolute(self.images, self.storage_options) if self.images else root
        name = stem(posixpath.basename(uri))
        if name not in self.images:
            known = ", ".join(self.images)
            raise UsageError(f"iwildcam: images: there is no folder for {name!r}; it has {known}.")
        return absolute(self.images[name], self.storage_options)


class _Gather:
    """Makes rows of shots: adds the places and detections, leaves out splits, and counts."""

    def __init__(self, source: IWildCam, files: NamedFiles) -> None:
        self.files = files
        self._source = source
        options = source.storage_options
        self._gps = read_gps(absolute(source.gps, options), options) if source.gps else {}
        self._animals = read_animals(absolute(source.detections, options), options) if source.detections else None
        self._splits: Counter[str] = Counter()
        self._without_gps = self._taken = self._seen = 0

    def add(self, table: str, folder: str, shot: Shot) -> None:
        if shot.split is not None:
            self._splits[shot.split] += 1
            if self._source.splits and shot.split not in self._source.splits:
                self.files.leave_out(folder, shot.name)
                return
        self._taken += 1
        place = self._gps.get(str(shot.sub_location)) or self._gps.get(str(shot.location))
        self._without_gps += place is None
        latitude, longitude = place or (None, None)
        extra: dict[str, Any] = {
            "location": shot.location,
            "latitude": latitude,
            "longitude": longitude,
            "split": shot.split,
            "datetime": shot.datetime,
            "category_id": shot.category_id,
            "sequence": shot.sequence,
        }
        if self._animals is not None:
            extra["animal"] = self._confidence(shot)
        self.files.add(NamedFile(table, shot.number, folder, shot.name, shot.record, extra, shot.fault))

    def finish(self) -> None:
        """Tells what is missing; a UsageError where a split is, or where the detections are of other images."""
        source = self._source
        for split in source.splits or ():
            if split not in self._splits:
                there = ", ".join(f"{name} ({count})" for name, count in sorted(self._splits.items())) or "none"
                hint = did_you_mean(split, self._splits)
                raise UsageError(f"iwildcam: splits: no image is in {split!r}; the splits are {there}.{hint}")
        if source.splits and (rest := self._splits.total() - sum(self._splits[name] for name in set(source.splits))):
            logger.info("iwildcam: %d images of other splits than %s are left out", rest, ", ".join(source.splits))
        if self._animals and not self._seen:
            raise UsageError(
                f"iwildcam: detections: {source.detections!r} has none of the {self._taken} images, but ids such as "
                f"{next(iter(self._animals))!r}; name the file of this data set."
            )
        if source.gps and self._without_gps:
            logger.warning(
                "iwildcam: %d of %d images have no GPS: their locations are not in %s",
                self._without_gps,
                self._taken,
                source.gps,
            )

    def _confidence(self, shot: Shot) -> float | None:
        assert self._animals is not None
        key = str(shot.record.get("image_id"))
        if key not in self._animals and isinstance(shot.name, str):
            key = stem(posixpath.basename(shot.name))
        self._seen += key in self._animals
        return self._animals.get(key)
