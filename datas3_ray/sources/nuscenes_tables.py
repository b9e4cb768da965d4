"""The tables of nuScenes: which frames a camera took, in which scene and where."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from datas3_ray.errors import UsageError, did_you_mean
from datas3_ray.sources.base import SampleError
from datas3_ray.sources.json_stream import read_list
from datas3_ray.sources.remote import Options

logger = logging.getLogger(__name__)


class Frame(NamedTuple):
    """One picture; ``timestamp`` in microseconds since 1970."""

    timestamp: int
    filename: str
    key_frame: bool
    token: str
    sample_token: str


@dataclass
class Scene:
    """Some twenty seconds of one drive; ``location`` is None where its log is not there."""

    name: str
    location: str | None
    log: dict[str, Any]
    frames: list[Frame] = field(default_factory=list)


class BadFrame(NamedTuple):
    """An entry of the camera that is no frame, and why."""

    token: str
    fault: SampleError


class Tables:
    """The frames of one channel by their scenes, from the tables in a folder such as ``v1.0-trainval``.

    The channel of a frame is that of its sensor, whatever its file is called. ``sample_data.json`` is read as a stream,
    of which only the channel's entries are kept. What is wrong with an entry of the camera is in ``bad``; other entries
    that cannot be used are counted in a warning. Raises UsageError for a table that is missing or no list, and for a
    channel that no camera has.
    """

    def __init__(self, folder: str, channel: str, storage_options: Options) -> None:
        self._folder, self._options = folder, storage_options
        self.bad: list[BadFrame] = []
        self.scenes = self._scenes()
        sensors = self._sensors(channel)
        scene_of = {
            str(entry["token"]): entry.get("scene_token") for entry in self._table("sample") if _has(entry, "token")
        }
        self._read_frames(sensors, scene_of)

    def _table(self, name: str) -> Iterator[Any]:
        uri = f"{self._folder}/{name}.json"
        try:
            yield from read_list(uri, None, self._options, "nuscenes")
        except UsageError as error:
            hint = (
                "; `version:` names the folder of the tables, such as v1.0-mini" if "is not there" in str(error) else ""
            )
            raise UsageError(f"{str(error).rstrip('.')}{hint}.") from None

    def _scenes(self) -> dict[str, Scene]:
        logs = {str(entry["token"]): entry for entry in self._table("log") if _has(entry, "token", "location")}
        scenes: dict[str, Scene] = {}
        left_out = 0
        for entry in self._table("scene"):
            if not _has(entry, "token", "name"):
                left_out += 1
                continue
            log = logs.get(str(entry.get("log_token")), {})
            known = {name: log.get(name) for name in ("logfile", "vehicle", "date_captured")}
            known["description"] = entry.get("description")
            kept = {name: value for name, value in known.items() if isinstance(value, str)}
            scenes[entry["token"]] = Scene(entry["name"], log.get("location"), kept)
        if left_out:
            logger.warning("nuscenes: %d entries of scene.json have no token or name and are left out", left_out)
        return scenes

    def _sensors(self, channel: str) -> dict[str, bool]:
        """Whether a calibrated sensor, by its token, is of the channel."""
        sensors = [entry for entry in self._table("sensor") if _has(entry, "token", "channel")]
        cameras = sorted({entry["channel"] for entry in sensors if entry.get("modality", "camera") == "camera"})
        if channel not in cameras:
            raise UsageError(
                f"nuscenes: channel: there is no camera {channel!r}, but {', '.join(cameras) or 'none'}."
                f"{did_you_mean(channel, cameras)}"
            )
        wanted = {entry["token"] for entry in sensors if entry["channel"] == channel}
        known = {entry["token"] for entry in sensors}
        return {
            entry["token"]: entry["sensor_token"] in wanted
            for entry in self._table("calibrated_sensor")
            if _has(entry, "token", "sensor_token") and entry["sensor_token"] in known
        }

    def _read_frames(self, sensors: dict[str, bool], scene_of: dict[str, Any]) -> None:
        strange = 0
        for number, entry in enumerate(self._table("sample_data")):
            sensor = entry.get("calibrated_sensor_token") if isinstance(entry, dict) else None
            ours = sensors.get(sensor) if isinstance(sensor, str) else None
            strange += ours is None
            if ours:
                try:
                    self._add(entry, scene_of)
                except SampleError as error:
                    self.bad.append(BadFrame(str(entry.get("token") or f"entry-{number}"), error))
        if strange:
            logger.warning(
                "nuscenes: %d entries of sample_data.json are left out: they are of sensors that are not listed",
                strange,
            )

    def _add(self, entry: dict[str, Any], scene_of: dict[str, Any]) -> None:
        token, time = entry.get("token"), entry.get("timestamp")
        for name in ("token", "filename", "sample_token"):
            if not isinstance(entry.get(name), str) or not entry[name]:
                raise SampleError("bad_record", f"the sample_data {token!r} has no {name}")
        if isinstance(time, bool) or not isinstance(time, int) or not 0 <= time < 2**63:
            raise SampleError("bad_record", f"the timestamp of the sample_data {token!r} is {time!r}, no microseconds")
        if not isinstance(entry.get("is_key_frame"), bool):
            raise SampleError("bad_record", f"the sample_data {token!r} does not say whether it is a keyframe")
        scene = self.scenes.get(str(scene_of.get(entry["sample_token"])))
        if scene is None:
            raise SampleError("bad_record", f"the sample_data {token!r} is of no scene that is listed")
        if scene.location is None:
            raise SampleError(
                "bad_record", f"the log of the scene {scene.name!r}, and with it its place, is not listed"
            )
        frame = Frame(time, entry["filename"], entry["is_key_frame"], entry["token"], entry["sample_token"])
        scene.frames.append(frame)


def _has(entry: Any, *names: str) -> bool:
    """Whether an entry is an object with some text under each of the names."""
    return isinstance(entry, dict) and all(isinstance(entry.get(name), str) and entry[name] for name in names)
