"""A small nuScenes in its own layout: a road whose bend is the steering angle, driven in four places.

Each place has its own light and its own way of driving. One scene has no CAN bus messages (its frames are rejects), the
steering of another begins late (so are its first frames), the file of a third is spelled ``scene_0001``, and a file of
the lidar has the camera's channel in its name. A frame in two is taken by default, which gives some ``images`` rows.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

LOCATIONS = ("boston-seaport", "singapore-hollandvillage", "singapore-onenorth", "singapore-queenstown")
SCENES = (
    ("scene-0001", "scene-0002", "scene-0003", "scene-0004", "scene-0005"),
    ("scene-0101", "scene-0102", "scene-0103"),
    ("scene-0161", "scene-0201", "scene-0202", "scene-0203"),
    ("scene-0301", "scene-0302", "scene-0303", "scene-0304"),
)
"""The scenes of each location."""

NO_CAN = "scene-0161"
LATE = "scene-0102"
UNDERSCORE = "scene-0002"
_SWEEPS = 5  # between two keyframes
_STEP = 83_333  # microseconds between two frames
_LATE = 400_000  # microseconds of a scene that have no steering
_WIDEST = 2.0  # radians at most


def steering(location: int, scene: int, seconds: float) -> float:
    """The angle of the steering wheel in radians: each place has its own habits."""
    swing, pace = (0.7, 1.2, 1.0, 1.4)[location], (0.31, 0.47, 0.4, 0.53)[location]
    lean = (0.1, -0.3, 0.3, -0.1)[location]
    angle = lean + swing * math.sin(2 * math.pi * pace * seconds + 1.7 * scene) + 0.2 * math.sin(5 * seconds + scene)
    return max(-_WIDEST, min(_WIDEST, angle))


def build(root: Path, *, images: int = 400, size: int = 36, seed: int = 0) -> None:
    """Write ``root/nuscenes/``; images are ``size`` pixels high and 16:9, so 64 x 36."""
    top = Path(root) / "nuscenes"
    scenes = [(place, name) for place, names in enumerate(SCENES) for name in names]
    keyframes = max(2, round((2 * images / (len(scenes) - 1) - 1) / (_SWEEPS + 1)) + 1)
    world = _World(top, keyframes, size, np.random.default_rng(seed))
    for number, (place, name) in enumerate(scenes):
        world.scene(number, place, name)
    world.finish()


class _World:
    def __init__(self, top: Path, keyframes: int, size: int, rng: np.random.Generator) -> None:
        self._top, self._keyframes, self._size, self._rng = top, keyframes, size, rng
        self._tables: dict[str, list[dict[str, Any]]] = {
            name: [] for name in ("log", "scene", "sample", "sample_data", "ego_pose", "calibrated_sensor", "sensor")
        }
        for kind in ("samples", "sweeps"):
            for channel in ("CAM_FRONT", "LIDAR_TOP"):
                (top / kind / channel).mkdir(parents=True)
        (top / "can_bus").mkdir()
        (top / "maps").mkdir()
        for channel, modality in (("CAM_FRONT", "camera"), ("LIDAR_TOP", "lidar")):
            self._add("sensor", {"token": self._token(), "channel": channel, "modality": modality})

    def scene(self, number: int, place: int, name: str) -> None:
        car = "n008" if place == 0 else "n015"
        logfile = f"{car}-2018-07-{number + 1:02d}-11-07-57+0800"
        log = {"token": self._token(), "logfile": logfile, "vehicle": car, "date_captured": f"2018-07-{number + 1:02d}"}
        self._add("log", {**log, "location": LOCATIONS[place]})
        begin = 1_530_000_000_000_000 + number * 100_000_000
        frames = (self._keyframes - 1) * (_SWEEPS + 1) + 1
        samples = [self._token() for _ in range(self._keyframes)]
        scene = self._token()
        story = {"description": f"Turns in {LOCATIONS[place]}", "nbr_samples": self._keyframes}
        ends = {"first_sample_token": samples[0], "last_sample_token": samples[-1]}
        self._add("scene", {"token": scene, "name": name, "log_token": log["token"], **story, **ends})
        for at, token in enumerate(samples):
            time = begin + at * (_SWEEPS + 1) * _STEP
            self._add("sample", {"token": token, "timestamp": time, "scene_token": scene, **_links(samples, at)})
        for sensor in self._tables["sensor"]:
            mounted = {"token": self._token(), "sensor_token": sensor["token"], "camera_intrinsic": []}
            self._add("calibrated_sensor", {**mounted, "translation": [0.0] * 3, "rotation": [1.0, 0.0, 0.0, 0.0]})
            self._frames(sensor["channel"], mounted["token"], logfile, (number, place), begin, frames, samples)
        self._can(number, place, name, begin, frames * _STEP)

    def _frames(
        self,
        channel: str,
        sensor: str,
        logfile: str,
        where: tuple[int, int],
        begin: int,
        frames: int,
        samples: list[str],
    ) -> None:
        tokens = [self._token() for _ in range(frames)]
        for at, token in enumerate(tokens):
            time = begin + at * _STEP
            key = at % (_SWEEPS + 1) == 0
            camera = channel == "CAM_FRONT"
            told = "CAM_FRONT" if not camera and where[0] == 0 and at == 1 else channel
            ending = "jpg" if camera else "pcd.bin"
            filename = f"{'samples' if key else 'sweeps'}/{channel}/{logfile}__{told}__{time}.{ending}"
            if camera:
                angle = steering(where[1], where[0], (time - begin) / 1e6)
                self._draw(self._top / filename, angle, where[1])
            else:
                (self._top / filename).write_bytes(b"points")
            pose = self._token()
            self._add(
                "ego_pose", {"token": pose, "timestamp": time, "translation": [0.0] * 3, "rotation": [1.0, 0, 0, 0]}
            )
            sides = {"width": self._size * 16 // 9, "height": self._size} if camera else {"width": 0, "height": 0}
            follows = samples[-(-at // (_SWEEPS + 1))]
            entry = {"token": token, "sample_token": follows, "ego_pose_token": pose, "calibrated_sensor_token": sensor}
            entry |= {"filename": filename, "fileformat": ending.split(".")[0], **sides, "timestamp": time}
            self._add("sample_data", {**entry, "is_key_frame": key, **_links(tokens, at)})

    def _can(self, number: int, place: int, name: str, begin: int, length: int) -> None:
        if name == NO_CAN:
            return
        first = begin + (_LATE if name == LATE else -5_000)
        times = range(first, begin + length + 20_000, 10_000)
        values = [{"utime": time, "value": steering(place, number, (time - begin) / 1e6)} for time in times]
        spelled = name.replace("-", "_") if name == UNDERSCORE else name
        (self._top / "can_bus" / f"{spelled}_steeranglefeedback.json").write_text(json.dumps(values))
        times = range(begin - 100_000, begin + length + 500_000, 500_000)
        monitor = [
            {
                "utime": time,
                "steering": math.degrees(steering(place, number, (time - begin) / 1e6)),
                "vehicle_speed": round(20.0 + 5 * place + (time - begin) / 1e6, 3),
                "brake": 0,
            }
            for time in times
        ]
        (self._top / "can_bus" / f"{spelled}_vehicle_monitor.json").write_text(json.dumps(monitor))

    def _draw(self, path: Path, angle: float, place: int) -> None:
        """A road from the middle below, bent as far as the wheel is turned, under the light of the place."""
        high, wide = self._size, self._size * 16 // 9
        ground = ((60, 110, 60), (120, 100, 60), (70, 90, 120), (105, 70, 100))[place]
        image = Image.new("RGB", (wide, high), ground)
        pen = ImageDraw.Draw(image)
        start = wide / 2 + self._rng.uniform(-1.5, 1.5)
        far = np.linspace(0.0, 1.0, 9)
        # The wheel turned to the left, which is positive, leads to the left.
        points = [(start - angle / _WIDEST * 0.45 * wide * step**2, high * (1 - step)) for step in far.tolist()]
        pen.line(points, fill=(225, 225, 215), width=max(2, high // 7))
        noisy = np.asarray(image, np.int16) + self._rng.integers(-12, 13, (high, wide, 3), dtype=np.int16)
        Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(path, "JPEG", quality=88)

    def finish(self) -> None:
        folder = self._top / "v1.0-trainval"
        folder.mkdir()
        # The entries of a table are in no order.
        self._rng.shuffle(self._tables["sample_data"])
        for name in ("category", "attribute", "visibility", "instance", "sample_annotation", "map"):
            self._tables[name] = []
        for name, entries in self._tables.items():
            (folder / f"{name}.json").write_text(json.dumps(entries))

    def _add(self, table: str, entry: dict[str, Any]) -> None:
        self._tables[table].append(entry)

    def _token(self) -> str:
        return self._rng.bytes(16).hex()


def _links(tokens: list[str], at: int) -> dict[str, str]:
    """The entry's neighbours; empty at the ends."""
    return {"prev": tokens[at - 1] if at else "", "next": tokens[at + 1] if at + 1 < len(tokens) else ""}
