"""VIAME's FishTrack23 and what is laid out like it: sequences of frames or videos with boxes of fish."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Annotated, Any, ClassVar, Literal

import pyarrow as pa
from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr

from datas3_ray.errors import UsageError, checked, did_you_mean
from datas3_ray.sources.base import FileSource, Item, Reject, Sample, SampleError, Shard, as_shard
from datas3_ray.sources.below import absolute, last_folders, located
from datas3_ray.sources.boxes import BOXES, Box, as_values, clip, finished, image_size, only_label
from datas3_ray.sources.files import BAD, read_items
from datas3_ray.sources.fish_annotations import read_annotations
from datas3_ray.sources.fishtrack_items import Maker, Passed
from datas3_ray.sources.fishtrack_layout import Footage, Layout, find_sequences
from datas3_ray.sources.fishtrack_names import programme_of, read_regions, region_of, site_of, split_of
from datas3_ray.sources.storage import Files, PassingError, Root, as_list, iter_folder, list_folder
from datas3_ray.sources.video import (
    Encoding,
    encode,
    frame_place,
    is_video,
    open_video,
    require_opencv,
)

_FIELDS = [
    BOXES,
    pa.field("sequence", pa.string()),
    pa.field("programme", pa.string()),
    pa.field("site", pa.string()),
    pa.field("region", pa.string()),
    pa.field("frame", pa.int64()),
    pa.field("split", pa.string()),
    pa.field("fps", pa.float64()),
]


class FishTrack(Files, FileSource):
    """A folder with sequences below it: folders of frames, or videos, each with its annotations beside it.

    A row is a frame: those with a box that is kept (``frames: annotated``) or all of an annotated sequence. Boxes are
    ``fish``, or named by the species of highest confidence. Boxes whose category begins with ``non_fish``, and those
    below ``min_confidence``, are left out and counted in the record. Frames of videos are taken at the annotations'
    frame rate, ``fps`` where those state none, and are encoded anew: their bytes are stored in the table.

    >>> FishTrack(fishtrack="s3://bucket/FishTrack23-Latest", splits="train").describe()  # doctest: +ELLIPSIS
    'fishtrack s3://bucket/FishTrack23-Latest, split train; annotated frames, fish; columns caption...
    """

    name: ClassVar[str] = "fishtrack"

    fishtrack: Root
    splits: Annotated[tuple[str, ...] | None, BeforeValidator(as_list)] = None
    frames: Literal["annotated", "all"] = "annotated"
    classes: Literal["fish", "species"] = "fish"
    non_fish: Literal["drop", "keep"] = "drop"
    min_confidence: Annotated[float, Field(ge=0, le=1)] = 0.0
    fps: Annotated[float, Field(gt=0, le=1000)] | None = None
    encode: Encoding = "jpeg"
    regions: Annotated[str | None, AfterValidator(located)] = None
    id_folders: Annotated[int, Field(ge=0, le=32)] = 1
    items_per_shard: Annotated[int, Field(ge=1)] = 1000

    _ranged: bool | None = PrivateAttr(default=None)

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> FishTrack:
        """The source of a recipe's mapping ``{fishtrack: folder, frames: annotated, columns: {...}, ...}``."""
        return checked(cls, spec, "source")

    @property
    def ranged(self) -> bool:  # type: ignore[override]
        """Whether every image is a file of its own: there is no video in the folder."""
        if self._ranged is None:
            root = absolute(self.fishtrack, self.storage_options)
            listed = iter_folder(root, self.storage_options, self.name)
            self._ranged = not any(is_video(file.uri) and self._wanted(root, file.uri) for file in listed)
        return self._ranged

    def own_fields(self) -> list[pa.Field]:
        """The columns ``boxes`` and ``frame``, and what the sequence tells, from its name to its frame rate."""
        return list(_FIELDS)

    def describe(self) -> str:
        """One line for the plan; reads nothing."""
        splits = f", split {', '.join(self.splits)}" if self.splits else ""
        columns = ", ".join([*self.columns.fields_by_name(), *(field.name for field in _FIELDS)])
        return f"fishtrack {self.fishtrack}{splits}; {self.frames} frames, {self.classes}; columns {columns}"

    def items(self) -> list[Item]:
        """Every frame that is wanted, sorted by id, and every annotation that belongs to none.

        Raises UsageError for a folder without sequences, a split that is not there, annotations that cannot be read or
        told apart, videos whose frame rate is not stated, and where OpenCV is missing for them. What is passed over is
        counted in warnings.
        """
        root = absolute(self.fishtrack, self.storage_options)
        layout = self._layout(root)
        if any(sequence.video for sequence in layout.sequences):
            require_opencv(self.name)
        regions = read_regions(self.regions, self.storage_options)
        passed = Passed(layout)
        items: list[Item] = []
        for sequence in layout.sequences:
            items += self._items(root, sequence, regions, passed)
        passed.warn(root)
        if not items:
            raise UsageError(
                f"fishtrack: no frame of the {len(layout.sequences)} sequences below {root!r} has a box that is kept; "
                "`frames: all` takes frames without, too."
            )
        items.sort(key=lambda item: item.id)
        for one, other in zip(items, items[1:], strict=False):
            if one.id == other.id:
                raise UsageError(f"fishtrack: {one.uri!r} and {other.uri!r} have the same id {one.id!r}; rename one.")
        return items

    def group(self, items: Sequence[Item]) -> list[Shard]:
        """Shards of at most ``items_per_shard`` files, in the order given; the frames of a video are one shard."""
        shards: list[Shard] = []
        for video, run in groupby(items, key=lambda item: (frame_place(item.uri) or ("",))[0]):
            frames = list(run)
            shards += [as_shard(frames)] if video else super().group(frames)
        return shards

    def read(self, shard: Shard) -> Iterator[Sample | Reject]:
        """The frames of a group in their order, and a Reject in the place of each that cannot be a sample.

        A video that cannot be opened is one Reject.
        """
        prefix = self.id_prefix.rstrip("/")
        place = frame_place(shard.items[0].uri) if shard.items else None
        if place is not None:
            found = self._read_video(shard, place[0], prefix)
        else:
            found = read_items(shard, prefix, lambda _: self.storage_options, self.max_bytes)
        for item in found:
            yield finished(item, self._finish)

    def _layout(self, root: str) -> Layout:
        listed = list_folder(root, self.storage_options, self.name)
        layout = find_sequences(file for file in listed if self._wanted(root, file.uri))
        there = {split_of(_folders(root, file.uri)) or "" for file in listed}
        for split in self.splits or ():
            if split.lower() not in there:
                known = ", ".join(sorted(there - {""})) or "none"
                raise UsageError(
                    f"fishtrack: {root!r} has no split {split!r}; it has {known}.{did_you_mean(split, there)}"
                )
        if not layout.sequences:
            raise UsageError(
                f"fishtrack: {root!r} holds no sequence: neither a folder of frames with a .csv, nor a video with one "
                "of its name; correct the path."
            )
        return layout

    def _wanted(self, root: str, uri: str) -> bool:
        if self.splits is None:
            return True
        return split_of(_folders(root, uri)) in [split.lower() for split in self.splits]

    def _items(self, root: str, sequence: Footage, regions: Mapping[str, str], passed: Passed) -> Iterator[Item]:
        annotations = read_annotations(sequence.annotations.uri, self.storage_options)
        passed.unknown += annotations.unknown
        passed.without_rows += not annotations.frames
        top = "/".join(last_folders(root, self.id_folders))
        inner = sequence.place[len(root) + 1 :]
        maker = Maker(self, sequence, self.id_of("/".join(part for part in (top, inner) if part)), passed)
        programme = programme_of(sequence.name)
        maker.facts = {
            "sequence": sequence.name,
            "programme": programme,
            "site": site_of(sequence.name),
            "region": region_of(programme, regions),
            "split": split_of(_folders(root, (sequence.video or sequence.frames[0]).uri)),
            "fps": annotations.fps or self.fps,
        }
        for place, message in annotations.bad:
            yield maker.bad(place, SampleError("bad_record", message))
        if sequence.video is None:
            yield from maker.frames(annotations.frames)
        else:
            yield from maker.video(annotations.frames)

    def _read_video(self, shard: Shard, uri: str, prefix: str) -> Iterator[Sample | Reject]:
        members = [json.loads(item.members) for item in shard.items]
        wanted = [at for at, known in enumerate(members) if BAD not in known]
        numbers = [members[at]["extra"]["frame"] for at in wanted]
        first = shard.items[0]
        try:
            with open_video(uri, self.storage_options, self.name) as video:
                fps = members[wanted[0]]["extra"]["fps"] if wanted else video.fps
                images = video.frames(numbers, fps)
                for item, known in zip(shard.items, members, strict=True):
                    key = item.id.removeprefix(f"{prefix}/")
                    image = SampleError(*known[BAD]) if BAD in known else next(images)
                    if isinstance(image, SampleError):
                        yield Reject(item.uri, 0, image.reason, image.message, key, item.id)
                        continue
                    data = encode(image, self.encode)
                    if len(data) > self.max_bytes:
                        message = f"frame {key!r} has more than max_bytes = {self.max_bytes} bytes"
                        yield Reject(item.uri, 0, "too_large", message, key, item.id)
                        continue
                    yield Sample(item.id, key, item.uri, 0, len(data), data, {"json": known["json"]}, known["extra"])
        except PassingError as error:  # the shard is to be read again another time
            yield Reject(shard.uri, 0, "unreadable_shard", error.message, "")
        except SampleError as error:
            message = f"{error.message}; {len(shard.items)} frames of it were wanted"
            yield Reject(first.uri, 0, error.reason, message, "")

    def _finish(self, sample: Sample) -> Sample:
        """The sample with its boxes on the image."""
        entries, record = sample.extra["boxes"], sample.members["json"]
        boxes, dropped = clip((Box(*entry) for entry in entries), image_size(sample.image))
        if entries and not boxes and self.frames == "annotated":
            raise SampleError("bad_record", f"none of its {len(entries)} boxes has an area on the image")
        members: dict[str, Any] = {"json": {**record, "boxes_dropped": dropped}}
        label = only_label(box.label for box in boxes)
        if label is not None:
            members["cls"] = label
        return replace(sample, members=members, extra={**sample.extra, "boxes": as_values(boxes)})


def _folders(root: str, uri: str) -> list[str]:
    """The folders of a file, from the root on."""
    return [posixpath.basename(root), *uri[len(root) + 1 :].split("/")[:-1]]
