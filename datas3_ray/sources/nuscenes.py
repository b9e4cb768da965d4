"""nuScenes: frames of a car's camera, with the angle of its steering wheel from the CAN bus as the target."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, NamedTuple

import pyarrow as pa
from pydantic import Field

from datas3_ray.errors import UsageError, checked
from datas3_ray.sources.base import FileSource, Item, Reject, Sample, SampleError, Shard
from datas3_ray.sources.below import absolute, below, folder_of, last_folders, stem
from datas3_ray.sources.files import BAD, mark, read_items, unique_keys
from datas3_ray.sources.nuscenes_can import SPEED_WITHIN, CanBus, Match, Messages, Steering
from datas3_ray.sources.nuscenes_tables import Frame, Scene, Tables
from datas3_ray.sources.storage import File, Files, Root, list_folder

logger = logging.getLogger(__name__)

FIELDS = (
    pa.field("target", pa.float64()),
    pa.field("location", pa.string()),
    pa.field("scene", pa.string()),
    pa.field("timestamp", pa.int64()),
    pa.field("speed", pa.float64()),
    pa.field("key_frame", pa.bool_()),
)
"""The columns that are filled besides those of a recipe."""


class NuScenes(Files, FileSource):
    """The frames of one camera: the folder has ``v1.0-trainval/`` (or another ``version``), ``samples/``, ``sweeps/``
    and ``can_bus/``.

    Of each scene's frames in the order of time, every ``rate``-th is taken, keyframes and, unless ``sweeps: false``,
    those in between alike. ``target`` is the steering wheel's angle in radians at the frame's time: that of the
    ``nearest`` message, or ``linear`` between two; the nearest may be ``tolerance_ms`` away. A frame without it is a
    Reject. ``steering: vehicle_monitor`` takes the angle from messages that come twice a second only.

    >>> NuScenes(nuscenes="/data/nuscenes", rate=1).describe()[:75]
    'nuscenes /data/nuscenes (v1.0-trainval, CAM_FRONT, every frame, steering an'
    """

    name: ClassVar[str] = "nuscenes"

    nuscenes: Root
    version: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "v1.0-trainval"
    channel: Annotated[str, Field(min_length=1)] = "CAM_FRONT"
    rate: Annotated[int, Field(ge=1)] = 2
    sweeps: bool = True
    steering: Steering = "steeranglefeedback"
    match: Match = "nearest"
    tolerance_ms: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 50
    id_folders: Annotated[int, Field(ge=0, le=32)] = 1
    items_per_shard: Annotated[int, Field(ge=1)] = 1000

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> NuScenes:
        """The source of a recipe's mapping ``{nuscenes: folder, rate: 2, match: nearest, ...}``."""
        return checked(cls, spec, "source")

    def own_fields(self) -> list[pa.Field]:
        """The columns of FIELDS."""
        return list(FIELDS)

    def describe(self) -> str:
        """One line for the plan; reads nothing."""
        names = ", ".join([*self.columns.fields_by_name(), *(field.name for field in FIELDS)])
        frames = "keyframe" if not self.sweeps else "frame"
        every = f"every {frames}" if self.rate == 1 else f"1 {frames} in {self.rate}"
        about = f"{self.version}, {self.channel}, {every}, steering angle {self.match} within {self.tolerance_ms:g} ms"
        return f"nuscenes {self.nuscenes} ({about}); columns {names}"

    def items(self) -> list[Item]:
        """The frames that are taken, sorted by id; one without steering or with a bad entry is read as a Reject.

        Raises UsageError for a table or folder that is missing or is not what it should be, and where none of the
        frames' files is there.
        """
        root = absolute(self.nuscenes, self.storage_options)
        tables = Tables(f"{root}/{self.version}", self.channel, self.storage_options)
        can = CanBus(f"{root}/can_bus", self.steering, self.storage_options)
        taken = list(self._taken(can, tables))
        if not taken and not tables.bad:
            raise UsageError(f"nuscenes: the tables in {root + '/' + self.version!r} have no frame of {self.channel}.")
        items = _Items(root, self._prefix(root), self.storage_options).items(taken)
        for token, fault in tables.bad:
            uri = f"{root}/{self.version}/sample_data.json#{token}"
            text = json.dumps({BAD: [fault.reason, fault.message]})
            items.append(Item(self._prefix(root) + f"sample_data#{token}", uri, 0, mark(text), text))
        return _unique(items)

    def read(self, shard: Shard) -> Iterator[Sample | Reject]:
        """The frames of a group in their order, and a Reject in the place of each that cannot be a sample."""
        yield from read_items(shard, self.id_of("").rstrip("/"), lambda _: self.storage_options, self.max_bytes)

    def _prefix(self, root: str) -> str:
        parts = [self.id_prefix.rstrip("/"), *last_folders(root, self.id_folders)]
        return "".join(f"{part}/" for part in parts if part)

    def _taken(self, can: CanBus, tables: Tables) -> Iterator[_Taken]:
        for scene in sorted(tables.scenes.values(), key=lambda scene: scene.name):
            frames = sorted(frame for frame in scene.frames if self.sweeps or frame.key_frame)
            if not frames:
                continue
            angles, speeds = can.steering(scene.name), can.speed(scene.name)
            for frame in frames[:: self.rate]:
                yield self._match(scene, frame, angles, speeds)

    def _match(self, scene: Scene, frame: Frame, angles: Messages | None, speeds: Messages | None) -> _Taken:
        extra = {
            "target": None,
            "location": scene.location,
            "scene": scene.name,
            "timestamp": frame.timestamp,
            "speed": speeds.value_near(frame.timestamp, SPEED_WITHIN) if speeds else None,
            "key_frame": frame.key_frame,
        }
        fault = None
        try:
            if angles is None:
                message = f"{scene.name!r} has no messages {self.steering} in can_bus/"
                raise SampleError("no_can", message)
            extra["target"] = angles.at(frame.timestamp, self.match, self.tolerance_ms * 1000)
        except SampleError as error:
            fault = error
        record = {"token": frame.token, "sample_token": frame.sample_token, "channel": self.channel, **scene.log}
        return _Taken(frame, record, extra, fault)


class _Taken(NamedTuple):
    """A frame that is a row, or a Reject with its fault."""

    frame: Frame
    record: dict[str, Any]
    extra: dict[str, Any]
    fault: SampleError | None


class _Items:
    """Frames to items, with what the folders say of their files."""

    def __init__(self, root: str, prefix: str, storage_options: Any) -> None:
        self._root, self._prefix, self._options = root, prefix, storage_options
        self._listings: dict[str, dict[str, File]] = {}

    def items(self, taken: list[_Taken]) -> list[Item]:
        """An item for each. Raises UsageError where no file is there."""
        uris: list[str | SampleError] = [self._uri(one.frame) for one in taken]
        start = len(self._root.rstrip("/")) + 1
        paths = sorted({uri[start:] for uri in uris if isinstance(uri, str)})
        keys = dict(zip(paths, unique_keys(paths, stem), strict=True))
        items = []
        there = 0
        for one, place in zip(taken, uris, strict=True):
            uri, key, file, fault = f"{self._root}/", f"sample_data#{one.frame.token}", None, one.fault
            if isinstance(place, SampleError):
                fault = place
            else:
                uri, key, file = place, keys[place[start:]], self._file(place)
            members: dict[str, Any] = {"json": one.record, "extra": one.extra}
            if fault is not None:
                members = {BAD: [fault.reason, fault.message]}
            text = json.dumps(members, separators=(",", ":"), ensure_ascii=False)
            fingerprint = mark(file.fingerprint if file else "missing", text)
            items.append(Item(self._prefix + key, uri, file.size if file else 0, fingerprint, text))
            there += file is not None
        if taken and not there:
            raise UsageError(
                f"nuscenes: none of the {len(items)} frames is below {self._root!r}, such as {items[0].uri!r}; "
                "correct the path."
            )
        return items

    def _uri(self, frame: Frame) -> str | SampleError:
        try:
            return below(self._root, frame.filename)
        except SampleError as error:
            return error

    def _file(self, uri: str) -> File | None:
        """What is known of a file: nothing where it is not there, or its folder cannot be listed."""
        folder = folder_of(uri)
        if folder not in self._listings:
            self._listings[folder] = {}
            try:
                found = list_folder(folder, self._options, "nuscenes")
            except UsageError as error:  # reading the file itself tells why
                logger.warning("%s", error)
            else:
                self._listings[folder] = {file.uri: file for file in found}
        return self._listings[folder].get(uri)


def _unique(items: list[Item]) -> list[Item]:
    """The items sorted by id; a file that several entries name is a row once, and a Reject each further time."""
    unique: dict[str, Item] = {}
    for item in items:
        if item.id not in unique:
            unique[item.id] = item
            continue
        count = 2
        while f"{item.id}#{count}" in unique:
            count += 1
        text = json.dumps({BAD: ["duplicate_key", f"another entry of sample_data.json names {item.uri!r}, too"]})
        unique[f"{item.id}#{count}"] = Item(f"{item.id}#{count}", item.uri, 0, mark(text), text)
    return [unique[id] for id in sorted(unique)]
