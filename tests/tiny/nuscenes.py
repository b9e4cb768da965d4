"""A tiny nuScenes, for ``test_contract.py``; see ``formats.py``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiny.formats import Built, Expected, png


def write_tables(top: Path, frames: list[dict[str, Any]], scenes: tuple[str, ...] = ("scene-0001",)) -> None:
    """The tables of some scenes, one sample each (``sample-<scene>``), and of the frames given.

    A frame has a ``filename`` and ``timestamp``, and perhaps a ``scene``, a ``sensor`` (``camera``, ``back`` or
    ``lidar``) and anything else that an entry of ``sample_data.json`` has.
    """
    sensors = [("camera", "CAM_FRONT", "camera"), ("back", "CAM_BACK", "camera"), ("lidar", "LIDAR_TOP", "lidar")]
    entries = []
    for number, frame in enumerate(frames):
        frame = {"token": f"frame-{number}", "is_key_frame": frame["filename"].startswith("samples/"), **frame}
        frame.setdefault("sample_token", f"sample-{frame.pop('scene', scenes[0])}")
        frame["calibrated_sensor_token"] = f"mounted-{frame.pop('sensor', 'camera')}"
        entries.append(frame)
    log = {"vehicle": "n015", "date_captured": "2018-07-18", "logfile": "n015-2018"}
    tables: dict[str, list[dict[str, Any]]] = {
        "sensor": [{"token": token, "channel": channel, "modality": kind} for token, channel, kind in sensors],
        "calibrated_sensor": [{"token": f"mounted-{token}", "sensor_token": token} for token, _, _ in sensors],
        "log": [{"token": f"log-{name}", "location": "singapore-onenorth", **log} for name in scenes],
        "scene": [{"token": f"token-{name}", "name": name, "log_token": f"log-{name}"} for name in scenes],
        "sample": [{"token": f"sample-{name}", "scene_token": f"token-{name}", "timestamp": 1} for name in scenes],
        "sample_data": entries,
    }
    (top / "v1.0-trainval").mkdir(parents=True, exist_ok=True)
    (top / "can_bus").mkdir(exist_ok=True)
    for name, rows in tables.items():
        (top / "v1.0-trainval" / f"{name}.json").write_text(json.dumps(rows))


def write_can(top: Path, messages: list[tuple[int, float]], scene: str = "scene-0001") -> None:
    """The steering of a scene: times in microseconds and radians."""
    values = [{"utime": time, "value": value} for time, value in messages]
    (top / "can_bus").mkdir(parents=True, exist_ok=True)
    (top / "can_bus" / f"{scene}_steeranglefeedback.json").write_text(json.dumps(values))


def write_image(top: Path, filename: str, index: int = 0) -> None:
    (top / filename).parent.mkdir(parents=True, exist_ok=True)
    (top / filename).write_bytes(png(index))


def nuscenes(root: Path) -> Any:
    top = root / "drive"
    frames = []
    expected = {}
    for number in range(5):
        kind = "sweeps" if number % 2 else "samples"
        filename = f"{kind}/CAM_FRONT/log__CAM_FRONT__{number}.png"
        frames.append({"filename": filename, "timestamp": 1_000_000 + 10_000 * number})
        if number < 4:
            write_image(top, filename, number)
            record = {"token": f"frame-{number}", "logfile": "n015-2018"}
            wanted = Expected(png(number), None, None, record)
            expected[f"drive/{filename.removesuffix('.png')}"] = wanted
    frames.append({"filename": "samples/CAM_FRONT/later.png", "timestamp": 9_000_000})
    write_image(top, "samples/CAM_FRONT/later.png")
    frames.append({"filename": "../outside.png", "timestamp": 1_000_001})
    frames.append({"filename": "samples/CAM_FRONT/other.png", "timestamp": 5, "scene": "scene-0161"})
    write_image(top, "samples/CAM_FRONT/other.png")
    write_tables(top, frames, ("scene-0001", "scene-0161"))
    write_can(top, [(1_000_000 + 5_000 * number, 0.25 * number) for number in range(20)])
    spec = {"nuscenes": str(top), "rate": 1, "items_per_shard": 3}
    return Built(spec, expected, ["bad_record", "no_can", "no_match", "unreadable_file"])


BUILDERS: dict[str, Callable[[Path], Any]] = {"nuscenes": nuscenes}
