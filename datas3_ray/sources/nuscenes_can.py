"""Messages of the CAN bus of nuScenes: the values that a car sent, and which was sent when a picture was taken."""

from __future__ import annotations

import logging
import math
from bisect import bisect_left
from typing import Literal

from datas3_ray.errors import UsageError
from datas3_ray.sources.base import SampleError
from datas3_ray.sources.json_stream import read_list
from datas3_ray.sources.remote import Options
from datas3_ray.sources.storage import list_folder

logger = logging.getLogger(__name__)

Match = Literal["nearest", "linear"]
Steering = Literal["steeranglefeedback", "vehicle_monitor"]

SPEED_WITHIN = 1_000_000
"""Microseconds between a frame and the message of the car's speed, beyond which the frame has none."""


class Messages:
    """Numbers of one scene by their times in microseconds, in any order.

    >>> messages = Messages([(1000, 0.5), (3000, 1.5)])
    >>> messages.at(1600, "nearest", within=600), messages.at(1600, "linear", within=600)
    (0.5, 0.8)
    """

    def __init__(self, entries: list[tuple[int, float]]) -> None:
        entries = sorted(entries, key=lambda entry: entry[0])
        self.times = [time for time, _ in entries]
        self.values = [value for _, value in entries]

    def nearest(self, time: int) -> int | None:
        """The position of the message nearest in time, the earlier one of two; None where there is none."""
        if not self.times:
            return None
        after = bisect_left(self.times, time)
        if after == 0:
            return 0
        if after == len(self.times) or time - self.times[after - 1] <= self.times[after] - time:
            return after - 1
        return after

    def value_near(self, time: int, within: int) -> float | None:
        """The value of the message nearest in time; None where that is further away than ``within``."""
        nearest = self.nearest(time)
        if nearest is None or abs(self.times[nearest] - time) > within:
            return None
        return self.values[nearest]

    def at(self, time: int, match: Match, within: float) -> float:
        """The value at a time: that of the nearest message, or on the line between the two around it.

        Raises SampleError with the reason no_match before the first and after the last message, and where the nearest
        is further away than ``within`` microseconds.
        """
        nearest = self.nearest(time)
        if nearest is None:
            raise SampleError("no_match", "there is no message of the steering")
        for end, is_outside in (("first", time < self.times[0]), ("last", time > self.times[-1])):
            if is_outside:
                away = abs(time - (self.times[0] if end == "first" else self.times[-1])) / 1000
                side = "before the first" if end == "first" else "after the last"
                raise SampleError("no_match", f"the frame at {time} is {away:g} ms {side} message of the steering")
        gap = abs(self.times[nearest] - time)
        if gap > within:
            message = f"the message of the steering nearest to the frame at {time} is {gap / 1000:g} ms away"
            raise SampleError("no_match", f"{message}, more than tolerance_ms = {within / 1000:g}")
        if match == "nearest" or not gap:
            return self.values[nearest]
        after = bisect_left(self.times, time)
        before, share = after - 1, (time - self.times[after - 1]) / (self.times[after] - self.times[after - 1])
        return self.values[before] + share * (self.values[after] - self.values[before])


class CanBus:
    """The files of the folder ``can_bus``, by scene and message; both ``scene-0001_`` and ``scene_0001_`` are read.

    Raises UsageError where the folder is not there or has no file of the steering.
    """

    def __init__(self, folder: str, steering: Steering, storage_options: Options) -> None:
        self._options = storage_options
        self._steering = steering
        what = "nuscenes: can_bus (an archive of its own, to be unpacked beside the tables)"
        self._files = {file.uri.rpartition("/")[2]: file.uri for file in list_folder(folder, storage_options, what)}
        if not any(name.endswith(f"_{steering}.json") for name in self._files):
            raise UsageError(
                f"nuscenes: {folder!r} has no file of the steering, such as scene-0001_{steering}.json; correct the "
                "path, or `steering:`."
            )

    def steering(self, scene: str) -> Messages | None:
        """The steering wheel's angle in radians, positive to the left; None where the scene has no messages."""
        if self._steering == "steeranglefeedback":
            return self._messages(scene, "steeranglefeedback", "value")
        degrees = self._messages(scene, "vehicle_monitor", "steering")
        if degrees is not None:
            degrees.values = [math.radians(value) for value in degrees.values]
        return degrees

    def speed(self, scene: str) -> Messages | None:
        """The car's speed in km/h; None where the scene has no messages."""
        return self._messages(scene, "vehicle_monitor", "vehicle_speed")

    def _messages(self, scene: str, message: str, key: str) -> Messages | None:
        names = (f"{scene}_{message}.json", f"{scene.replace('-', '_')}_{message}.json")
        uri = next((self._files[name] for name in names if name in self._files), None)
        if uri is None:
            return None
        entries = []
        odd = 0
        for entry in read_list(uri, None, self._options, "nuscenes"):
            time = entry.get("utime") if isinstance(entry, dict) else None
            value = _number(entry.get(key)) if isinstance(entry, dict) else None
            if isinstance(time, int) and not isinstance(time, bool) and 0 <= time < 2**63 and value is not None:
                entries.append((time, value))
            else:
                odd += 1
        if odd:
            logger.warning("nuscenes: %d messages of %s are left out: they have no utime or no %s", odd, uri, key)
        return Messages(entries) if entries else None


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:  # a whole number beyond every float
        return None
    return number if math.isfinite(number) else None
