"""nuScenes: which frames are taken, and which steering angle each has; hand-computed."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny.nuscenes import write_can, write_image, write_tables
from worlds import nuscenes as world

from datas3_ray.errors import UsageError
from datas3_ray.sources import FileSource, Reject, Sample, SampleError, decode_image, parse_source
from datas3_ray.sources.nuscenes_can import Messages

SECOND = 1_000_000


def read(top: Path, **options: Any) -> list[Sample | Reject]:
    source = parse_source({"nuscenes": str(top), "rate": 1, **options})
    return [item for shard in source.shards() for item in source.read(shard)]


def told(items: Sequence[Sample | Reject]) -> list[str]:
    """Reasons, or the files' names, sorted."""
    names = [item.reason if isinstance(item, Reject) else item.id.rpartition("/")[2] for item in items]
    return sorted(names)


def frame(name: str, timestamp: int, **more: Any) -> dict[str, Any]:
    return {"filename": name, "timestamp": timestamp, **more}


def drive(top: Path, times: Sequence[int], **more: Any) -> list[dict[str, Any]]:
    """Frames at these times, keyframes and sweeps in turn: the files' names run against the time."""
    frames = []
    for number, time in enumerate(times):
        kind = "sweeps" if number % 2 else "samples"
        name = f"{kind}/CAM_FRONT/{chr(ord('z') - number)}{number}.png"
        write_image(top, name, number)
        frames.append(frame(name, time, **more))
    return frames


def values(items: Sequence[Sample | Reject], column: str = "target") -> dict[int, Any]:
    rows = [item for item in items if isinstance(item, Sample)]
    return {row.extra["timestamp"]: row.extra[column] for row in sorted(rows, key=lambda row: row.extra["timestamp"])}


MESSAGES = [(SECOND, 0.5), (SECOND + 10_000, 1.5), (SECOND + 20_000, -0.5), (SECOND + 120_000, 3.5)]


def test_nearest_and_linear_by_hand(tmp_path: Path) -> None:
    times = [SECOND + after for after in (0, 4_000, 5_000, 6_000, 17_500, 60_000)]
    write_tables(tmp_path, drive(tmp_path, times))
    write_can(tmp_path, MESSAGES)
    assert values(read(tmp_path)) == dict(zip(times, [0.5, 0.5, 0.5, 1.5, -0.5, -0.5], strict=True))
    linear = values(read(tmp_path, match="linear"))
    # 0.5 + 0.4 x 1; the middle; 0.5 + 0.6 x 1; 1.5 - 0.75 x 2; -0.5 + 0.4 x 4
    assert list(linear.values()) == pytest.approx([0.5, 0.9, 1.0, 1.1, 0.0, 1.1])


def test_gaps_beyond_the_tolerance(tmp_path: Path) -> None:
    times = [SECOND + after for after in (69_000, 70_000, 70_001, 71_000)]  # 70 ms is 50 from either side
    write_tables(tmp_path, drive(tmp_path, times))
    write_can(tmp_path, MESSAGES)
    assert list(values(read(tmp_path)).values()) == [-0.5, -0.5, 3.5, 3.5]
    for match in ("nearest", "linear"):
        items = read(tmp_path, match=match, tolerance_ms=49.9995)
        assert list(values(items)) == [times[0], times[2], times[3]]
        (reject,) = [item for item in items if isinstance(item, Reject)]
        assert reject.reason == "no_match"
        assert "is 50 ms away, more than tolerance_ms = 49.9995" in reject.error
    assert told(read(tmp_path, tolerance_ms=10)) == ["no_match"] * 4


@pytest.mark.parametrize("match", ["nearest", "linear"])
def test_frames_outside_of_the_messages(tmp_path: Path, match: str) -> None:
    times = [SECOND - 1, SECOND, SECOND + 120_000, SECOND + 120_001]
    write_tables(tmp_path, drive(tmp_path, times))
    write_can(tmp_path, MESSAGES)
    items = read(tmp_path, match=match)
    assert values(items) == {SECOND: 0.5, SECOND + 120_000: 3.5}
    errors = sorted(item.error for item in items if isinstance(item, Reject) and item.reason == "no_match")
    assert len(errors) == 2 and "0.001 ms after the last" in errors[0] + errors[1]
    assert "0.001 ms before the first" in errors[0] + errors[1]


def test_steering_that_begins_late(tmp_path: Path) -> None:
    times = [SECOND + 100_000 * number for number in range(6)]
    write_tables(tmp_path, drive(tmp_path, times))
    write_can(tmp_path, [(SECOND + 250_000 + 10_000 * number, number / 10) for number in range(40)])
    items = read(tmp_path)
    assert list(values(items)) == times[3:] and list(values(items).values()) == [0.5, 1.5, 2.5]
    assert Counter(item.reason for item in items if isinstance(item, Reject)) == {"no_match": 3}


def test_messages_in_any_order_and_at_one_time() -> None:
    messages = Messages([(30, 3.0), (10, 1.0), (20, 2.0), (20, 5.0)])
    assert [messages.at(time, "linear", 10) for time in (10, 15, 20, 25, 30)] == [1.0, 1.5, 2.0, 4.0, 3.0]
    assert messages.at(15, "nearest", 5) == 1.0  # of two equally near the earlier
    for match in ("nearest", "linear"):
        with pytest.raises(SampleError, match="no message"):
            Messages([]).at(10, match, 10)  # type: ignore[arg-type]
    assert Messages([]).value_near(10, 10) is None


def test_random_times_against_a_search_of_all() -> None:
    rng = np.random.default_rng(0)
    times = np.unique(rng.integers(0, 10_000, 60))
    angles = rng.normal(size=len(times))
    messages = Messages(list(zip(times.tolist(), angles.tolist(), strict=True)))
    for time in rng.integers(int(times[0]), int(times[-1]) + 1, 300).tolist():
        gaps = np.abs(times - time)
        if gaps.min() > 80:
            with pytest.raises(SampleError):
                messages.at(time, "linear", 80)
            continue
        assert messages.at(time, "nearest", 80) == angles[np.argmin(gaps)]
        assert messages.at(time, "linear", 80) == pytest.approx(np.interp(time, times, angles))


def test_scenes_without_can(tmp_path: Path) -> None:
    frames = drive(tmp_path, [SECOND + 1000 * number for number in range(6)])
    for number, one in enumerate(frames):
        one["scene"] = "scene-0161" if number % 2 else "scene-0001"
    write_tables(tmp_path, frames, ("scene-0001", "scene-0161"))
    write_can(tmp_path, MESSAGES)
    items = read(tmp_path)
    assert told(items) == ["no_can"] * 3 + ["v4", "x2", "z0"]
    assert all(
        "'scene-0161' has no messages steeranglefeedback" in one.error for one in items if isinstance(one, Reject)
    )
    # A file without a message that can be used is none.
    write_can(tmp_path, [], "scene-0161")
    assert told(read(tmp_path)) == ["no_can"] * 3 + ["v4", "x2", "z0"]
    write_can(tmp_path, MESSAGES, "scene-0161")
    assert len(values(read(tmp_path))) == 6


def test_the_other_spelling_of_a_scene(tmp_path: Path) -> None:
    write_tables(tmp_path, drive(tmp_path, [SECOND]))
    write_can(tmp_path, MESSAGES, "scene_0001")
    assert values(read(tmp_path)) == {SECOND: 0.5}


def test_odd_messages_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_tables(tmp_path, drive(tmp_path, [SECOND + 4_000]))
    odd: list[Any] = [7, {"utime": 1.5, "value": 1}, {"utime": True, "value": 1}, {"utime": SECOND + 4000}]
    odd.append({"utime": -1, "value": 1})
    odd += [{"utime": SECOND + 4000, "value": value} for value in ("1", True, None)]
    good = [{"utime": time, "value": value} for time, value in MESSAGES]
    (tmp_path / "can_bus/scene-0001_steeranglefeedback.json").write_text(json.dumps([*odd, *good]))
    with caplog.at_level(logging.WARNING):
        assert values(read(tmp_path)) == {SECOND + 4_000: 0.5}
    assert "8 messages of" in caplog.text


def write_monitor(top: Path, entries: Sequence[tuple[int, float, float]]) -> None:
    rows = [{"utime": time, "steering": degrees, "vehicle_speed": speed} for time, degrees, speed in entries]
    (top / "can_bus/scene-0001_vehicle_monitor.json").write_text(json.dumps(rows))


def test_speed_is_that_nearest_in_time(tmp_path: Path) -> None:
    times = [SECOND, SECOND + 249_000, SECOND + 251_000, 3 * SECOND, 3 * SECOND + 1]
    write_tables(tmp_path, drive(tmp_path, times))
    write_can(tmp_path, [(SECOND + 10_000 * number, 0.0) for number in range(300)])
    assert list(values(read(tmp_path), "speed").values()) == [None] * 5
    write_monitor(tmp_path, [(SECOND - 200_000, 0, 10), (SECOND + 700_000, 0, 30), (2 * SECOND, 0, 40)])
    # The last frame is more than a second from any message.
    assert list(values(read(tmp_path), "speed").values()) == [10.0, 10.0, 30.0, 40.0, None]


def test_steering_of_the_vehicle_monitor_is_in_degrees(tmp_path: Path) -> None:
    write_tables(tmp_path, drive(tmp_path, [SECOND, SECOND + 125_000]))
    write_monitor(tmp_path, [(SECOND, 180, 1), (SECOND + 500_000, -90, 2)])
    with pytest.raises(UsageError, match="no file of the steering, such as scene-0001_steeranglefeedback.json"):
        read(tmp_path)
    items = read(tmp_path, steering="vehicle_monitor", match="linear", tolerance_ms=250)
    assert list(values(items).values()) == pytest.approx([math.pi, 0.625 * math.pi])
    assert told(read(tmp_path, steering="vehicle_monitor")) == ["no_match", "z0"]


def test_every_second_frame_of_keyframes_and_sweeps_together(tmp_path: Path) -> None:
    times = [SECOND + 10_000 * number for number in (5, 2, 7, 0, 4, 1, 6, 3)]
    frames = drive(tmp_path, times)
    write_tables(tmp_path, frames)
    write_can(tmp_path, [(SECOND + 1_000 * number, number / 10) for number in range(80)])
    by_time = sorted(times)
    assert list(values(read(tmp_path))) == by_time
    assert list(values(read(tmp_path, rate=2))) == by_time[::2]
    assert list(values(read(tmp_path, rate=3))) == by_time[::3]
    # Both kinds are among them: the keyframes are at 5, 7, 4 and 6 hundredths of a second.
    assert values(read(tmp_path, rate=2), "key_frame") == dict(
        zip(by_time[::2], [False, False, True, True], strict=True)
    )
    keys = [time for time in by_time if time in times[::2]]
    assert list(values(read(tmp_path, sweeps=False))) == keys
    assert list(values(read(tmp_path, sweeps=False, rate=2))) == keys[::2]
    source = parse_source({"nuscenes": str(tmp_path)})
    assert list(values([item for shard in source.shards() for item in source.read(shard)])) == by_time[::2]


def test_each_scene_is_counted_by_itself(tmp_path: Path) -> None:
    frames = drive(tmp_path, [SECOND + 1_000 * number for number in range(6)])
    for number, one in enumerate(frames):
        one["scene"] = ("scene-0001", "scene-0002")[number % 2]
    write_tables(tmp_path, frames, ("scene-0001", "scene-0002"))
    for scene in ("scene-0001", "scene-0002"):
        write_can(tmp_path, MESSAGES, scene)
    # 0, 2, 4 and 1, 3, 5 thousandths: the first and third of each.
    assert [time - SECOND for time in values(read(tmp_path, rate=2))] == [0, 1_000, 4_000, 5_000]


def test_the_channel_is_that_of_the_sensor_and_not_of_the_file(tmp_path: Path) -> None:
    names = {
        "samples/CAM_FRONT/log__CAM_FRONT__1.png": "back",
        "samples/CAM_BACK/log__CAM_BACK__2.png": "camera",
        "samples/LIDAR_TOP/log__CAM_FRONT__3.png": "lidar",
        "samples/CAM_FRONT/log__CAM_FRONT__4.png": "camera",
    }
    frames = [frame(name, SECOND + at, sensor=sensor) for at, (name, sensor) in enumerate(names.items())]
    for name in names:
        write_image(tmp_path, name)
    write_tables(tmp_path, frames)
    write_can(tmp_path, MESSAGES)
    assert told(read(tmp_path)) == ["log__CAM_BACK__2", "log__CAM_FRONT__4"]
    assert told(read(tmp_path, channel="CAM_BACK")) == ["log__CAM_FRONT__1"]
    with pytest.raises(UsageError, match="there is no camera 'CAM_FRNT', but CAM_BACK, CAM_FRONT.*'CAM_FRONT'?"):
        read(tmp_path, channel="CAM_FRNT")
    with pytest.raises(UsageError, match="there is no camera 'LIDAR_TOP'"):
        read(tmp_path, channel="LIDAR_TOP")


def test_a_whole_row(tmp_path: Path) -> None:
    write_tables(tmp_path / "drive", drive(tmp_path / "drive", [SECOND]))
    write_can(tmp_path / "drive", MESSAGES)
    (sample,) = read(tmp_path / "drive")
    assert isinstance(sample, Sample)
    assert sample.id == "drive/samples/CAM_FRONT/z0"
    assert sample.extra == {
        "target": 0.5,
        "location": "singapore-onenorth",
        "scene": "scene-0001",
        "timestamp": SECOND,
        "speed": None,
        "key_frame": True,
    }
    assert sample.members == {
        "json": {
            "token": "frame-0",
            "sample_token": "sample-scene-0001",
            "channel": "CAM_FRONT",
            "logfile": "n015-2018",
            "vehicle": "n015",
            "date_captured": "2018-07-18",
        }
    }


def test_entries_that_are_no_frames(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    frames = drive(tmp_path, [SECOND])
    frames.append(frame("samples/CAM_FRONT/a.png", "now"))  # type: ignore[arg-type]
    frames.append(frame("samples/CAM_FRONT/b.png", -1))
    frames.append(frame("samples/CAM_FRONT/c.png", SECOND, sample_token="unknown"))
    frames.append(frame("samples/CAM_FRONT/d.png", SECOND, is_key_frame="yes"))
    frames.append(frame("samples/CAM_FRONT/e.png", SECOND, scene="scene-0002"))
    frames.append(frame("samples/CAM_FRONT/f.png", SECOND, sensor="unknown"))
    frames.append(frame("../out.png", SECOND))
    frames.append(frame("/etc/passwd", SECOND))
    write_tables(tmp_path, frames, ("scene-0001", "scene-0002"))
    logs = json.loads((tmp_path / "v1.0-trainval/log.json").read_text())
    (tmp_path / "v1.0-trainval/log.json").write_text(json.dumps(logs[:1]))
    write_can(tmp_path, MESSAGES)
    with caplog.at_level(logging.WARNING):
        items = read(tmp_path)
    assert told(items) == ["bad_record"] * 7 + ["z0"]
    assert "1 entries of sample_data.json are left out" in caplog.text
    assert len({item.key for item in items}) == 8
    assert all(item.error and "\n" not in item.error for item in items if isinstance(item, Reject))


def test_files_that_are_missing_or_named_twice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    frames = drive(tmp_path, [SECOND, SECOND + 1])
    frames.append(frame("samples/CAM_FRONT/gone.png", SECOND + 2))
    frames.append(frame("sweeps/NOWHERE/gone.png", SECOND + 3))
    frames.append(frame("samples/CAM_FRONT/z0.png", SECOND + 4))
    frames.append(frame("samples/CAM_FRONT/z0.jpg", SECOND + 5))
    write_image(tmp_path, "samples/CAM_FRONT/z0.jpg")
    write_tables(tmp_path, frames)
    write_can(tmp_path, MESSAGES)
    assert told(read(tmp_path)) == ["duplicate_key", "unreadable_file", "unreadable_file", "y1", "z0.jpg", "z0.png"]


def test_what_has_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="log.json' is not there; `version:` names the folder"):
        read(tmp_path)
    write_tables(tmp_path, [frame("samples/CAM_FRONT/1.png", SECOND)])
    (tmp_path / "can_bus").rmdir()
    with pytest.raises(UsageError, match="can_bus .*does not exist"):
        read(tmp_path)
    write_can(tmp_path, MESSAGES)
    with pytest.raises(UsageError, match="none of the 1 frames is below"):
        read(tmp_path)
    (tmp_path / "v1.0-trainval/sample_data.json").write_text("[]")
    with pytest.raises(UsageError, match="have no frame of CAM_FRONT"):
        read(tmp_path)
    (tmp_path / "v1.0-trainval/sample_data.json").write_text("[{")
    with pytest.raises(UsageError, match="is not JSON, or breaks off"):
        read(tmp_path)
    with pytest.raises(UsageError, match="version"):
        read(tmp_path, version="../v1.0-mini")
    with pytest.raises(UsageError, match="'target' is a column that this source fills itself"):
        read(tmp_path, columns={"target": "row.token"})


def test_only_what_changed_has_another_fingerprint(tmp_path: Path) -> None:
    write_tables(tmp_path, drive(tmp_path, [SECOND, SECOND + 10_000]))
    write_can(tmp_path, MESSAGES)

    def marks(**options: Any) -> list[str]:
        source = parse_source({"nuscenes": str(tmp_path), "rate": 1, **options})
        assert isinstance(source, FileSource)
        return [item.fingerprint for item in source.items()]

    before = marks()
    assert marks() == before == marks(match="linear")  # where there is a message both give its value
    write_can(tmp_path, [(SECOND, 0.5), (SECOND + 10_000, 9.0)])
    assert [one == other for one, other in zip(before, marks(), strict=True)] == [True, False]


def test_the_world_can_be_learned(tmp_path: Path) -> None:
    world.build(tmp_path)
    source = parse_source({"nuscenes": str(tmp_path / "nuscenes")})
    items = [item for shard in source.shards() for item in source.read(shard)]
    rejects = Counter(item.reason for item in items if isinstance(item, Reject))
    assert rejects == {"no_can": 28, "no_match": 3}
    rows = [item for item in items if isinstance(item, Sample)]
    assert Counter(row.extra["location"] for row in rows) == {
        "boston-seaport": 140,
        "singapore-hollandvillage": 81,
        "singapore-onenorth": 84,
        "singapore-queenstown": 112,
    }
    assert {row.extra["scene"] for row in rows} == {name for names in world.SCENES for name in names} - {world.NO_CAN}
    assert 0 < sum(row.extra["key_frame"] for row in rows) < len(rows) / 2
    assert all(row.extra["speed"] is not None for row in rows)
    # The angle can be read off the pixels, by as little as least squares.
    images = [decode_image(row.image).image for row in rows]
    assert {image.size for image in images} == {(64, 36)}
    bright = np.stack([np.asarray(image.convert("L"), float) > 170 for image in images])
    sides = (bright * np.arange(64)).sum(2) / np.maximum(bright.sum(2), 1)
    features = np.column_stack([sides[:, 4:20], np.ones(len(rows))])
    angles = np.array([row.extra["target"] for row in rows])
    order = np.random.default_rng(0).permutation(len(rows))
    train, test = order[:300], order[300:]
    weights = np.linalg.lstsq(features[train], angles[train], rcond=None)[0]
    assert np.mean((features[test] @ weights - angles[test]) ** 2) < 0.2 * np.var(angles[test])


def test_the_world_is_the_same_each_time(tmp_path: Path) -> None:
    found = []
    for name in ("a", "b"):
        world.build(tmp_path / name, images=40, size=18, seed=5)
        top = tmp_path / name
        found.append({str(path.relative_to(top)): path.read_bytes() for path in top.rglob("*") if path.is_file()})
    assert found[0] == found[1] and len(found[0]) > 100
