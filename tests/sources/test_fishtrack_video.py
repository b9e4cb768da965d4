"""FishTrack23's videos: which frames are taken at the annotations' frame rate, and videos that are none."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from worlds.fishtrack import build

from datas3_ray.errors import UsageError
from datas3_ray.ingest import IngestConfig, ingest
from datas3_ray.sources import Reject, Sample, SampleError, decode_image, parse_source
from datas3_ray.sources.fetch import fetch_images
from datas3_ray.sources.video import frames_at, open_video, source_frame

cv2 = pytest.importorskip("cv2")


def grey(number: int) -> int:
    """What every pixel of a frame has."""
    return min(10 * number, 250)


def video(path: Path, count: int = 20, fps: float = 10.0, codec: str = "FFV1") -> None:
    """A video whose frames tell their numbers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fourcc = cv2.VideoWriter.fourcc(*codec) if codec else 0
    writer = cv2.VideoWriter(str(path), fourcc, fps, (32, 16))
    assert writer.isOpened()
    for number in range(count):
        writer.write(np.full((16, 32, 3), grey(number), np.uint8))
    writer.release()


def rows(*numbers: int, fps: str = "# metadata,fps: 5") -> str:
    return f"{fps}\n" + "".join(f"{n},00:00:00.000000,{n},20,-4,50,9,1,-1,trout,1\n" for n in numbers)


def clip(root: Path, text: str, name: str = "SEFSC-SeaMap-1", count: int = 20, **more: Any) -> Path:
    """A video with annotations of its name."""
    folder = root / "FishTrack23/Train"
    video(folder / f"{name}.avi", count, **more)
    (folder / f"{name}.csv").write_text(text)
    return folder / f"{name}.avi"


def source_of(root: Path, **options: Any) -> Any:
    return parse_source({"fishtrack": str(root / "FishTrack23"), "encode": "png", **options})


def read(root: Path, **options: Any) -> dict[str, Any]:
    source = source_of(root, **options)
    items = [item for shard in source.shards() for item in source.read(shard)]
    return {item.key.rpartition("/")[2] or item.uri.rpartition("#")[2]: item for item in items}


def value(item: Any) -> int:
    """The number that a frame tells."""
    assert isinstance(item, Sample), item
    return round(float(np.asarray(Image.open(io.BytesIO(item.image)).convert("L")).mean()) / 10)


def test_frames_are_those_at_the_rate_of_the_annotations(tmp_path: Path) -> None:
    clip(tmp_path, rows(0, 1, 7, 9))
    found = read(tmp_path)
    assert {int(name): value(item) for name, item in found.items()} == {0: 0, 1: 2, 7: 14, 9: 18}
    item = found["000000007"]
    assert item.id == "FishTrack23/Train/SEFSC-SeaMap-1/000000007"
    assert item.uri == str(tmp_path / "FishTrack23/Train/SEFSC-SeaMap-1.avi#frame=7")
    assert item.extra == {
        "boxes": [{"label": "fish", "x": 20.0, "y": 0.0, "w": 12.0, "h": 9.0}],
        "sequence": "SEFSC-SeaMap-1",
        "programme": "SEFSC-SeaMap",
        "site": "SEFSC-SeaMap-1",
        "region": "gulf_of_mexico",
        "frame": 7,
        "split": "train",
        "fps": 5.0,
    }
    assert item.members["cls"] == "fish" and item.members["json"]["time"] == "00:00:00.000000"


def test_times_do_not_decide_which_frame_it_is(tmp_path: Path) -> None:
    clip(tmp_path, "#meta fps=5\n0,0:9:0.000,3,1,1,9,9,1,-1\n0,,4,1,1,9,9,1,-1\n")
    assert {int(name): value(item) for name, item in read(tmp_path).items()} == {3: 6, 4: 8}


@pytest.mark.parametrize(
    ("fps", "video_fps", "expected"),
    [
        (10, 10, [0, 1, 2, 3]),
        (5, 30, [0, 6, 12, 18]),
        (10, 25, [0, 3, 5, 8]),
        (10, 29.97, [0, 3, 6, 9]),
        (20, 10, [0, 1, 1, 2]),
    ],
)
def test_the_nearest_frame_in_time(fps: float, video_fps: float, expected: list[int]) -> None:
    assert [source_frame(number, fps, video_fps) for number in range(4)] == expected


@pytest.mark.parametrize(
    ("frames", "fps", "video_fps"), [(20, 5, 10), (21, 5, 10), (300, 10, 29.97), (7, 20, 10), (0, 5, 10)]
)
def test_every_frame_is_counted_that_can_be_read(frames: int, fps: float, video_fps: float) -> None:
    brute = sum(source_frame(number, fps, video_fps) < frames for number in range(1000))
    assert frames_at(frames, fps, video_fps) == brute


def test_frames_past_the_end(tmp_path: Path) -> None:
    clip(tmp_path, rows(9, 10))
    found = read(tmp_path)
    assert value(found["000000009"]) == 18
    past = found["000000010"]
    assert past.reason == "no_frame"
    assert "frame 10 is past the end of" in past.error and "20 frames have 10 a second" in past.error
    assert past.uri.endswith(".avi#frame=10")


def test_all_frames_of_a_video(tmp_path: Path) -> None:
    clip(tmp_path, rows(3, 10))
    found = read(tmp_path, frames="all")
    assert [value(item) for item in list(found.values())[:10]] == list(range(0, 20, 2))
    assert [len(item.extra["boxes"]) for item in list(found.values())[:10]] == [0, 0, 0, 1, 0, 0, 0, 0, 0, 0]
    assert len(found) == 11 and found["000000010"].reason == "no_frame"


def test_frames_are_counted_where_the_header_only_guesses(tmp_path: Path) -> None:
    video(tmp_path / "a.mpg", 50, 25.0, "mpg2")
    with open_video(str(tmp_path / "a.mpg")) as opened:
        assert opened.promised != 50 and opened.count() == 50


def test_a_rate_that_nobody_states(tmp_path: Path) -> None:
    clip(tmp_path, rows(1, fps="# no rate"))
    with pytest.raises(UsageError, match="SEFSC-SeaMap-1.csv' does not state the frames per second.*`fps:`"):
        read(tmp_path)
    found = read(tmp_path, fps=2.5)["000000001"]
    assert (value(found), found.extra["fps"]) == (4, 2.5)
    clip(tmp_path, rows(1))
    assert value(read(tmp_path, fps=2.5)["000000001"]) == 2


def test_the_export_of_one_sequence(tmp_path: Path) -> None:
    folder = tmp_path / "FishTrack23/CDFW-LakeCam-1"
    video(folder / "original.avi")
    (folder / "annotations.viame.csv").write_text(rows(1))
    (found,) = read(tmp_path).values()
    assert (found.id, found.extra["sequence"]) == ("FishTrack23/CDFW-LakeCam-1/000000001", "CDFW-LakeCam-1")
    assert found.extra["split"] is None
    video(folder / "second.avi")
    with pytest.raises(UsageError, match="has 2 videos, and .*annotations.viame.csv' may be of any"):
        read(tmp_path)
    (folder / "second.avi").unlink()
    (folder / "0.png").write_bytes(b"")
    with pytest.raises(UsageError, match="has images and the video .*original.avi'"):
        read(tmp_path)


def test_dive_coco_of_a_video(tmp_path: Path) -> None:
    folder = tmp_path / "FishTrack23/CDFW-LakeCam-1"
    video(folder / "a.avi")
    (folder / "annotations.coco.json").write_text(
        '{"videos": [{"id": 1, "fps": 5}], "categories": [{"id": 1, "name": "trout"}], "images": '
        '[{"id": 4, "video_id": 1, "frame_index": 6}, {"id": 5, "video_id": 1, "file_name": "x.png"}], '
        '"annotations": [{"id": 1, "image_id": 4, "category_id": 1, "bbox": [1, 1, 5, 5]}, '
        '{"id": 2, "image_id": 5, "category_id": 1, "bbox": [1, 1, 5, 5]}]}'
    )
    found = read(tmp_path)
    assert value(found["000000006"]) == 12
    assert found["CDFW-LakeCam-1#image=x.png"].reason == "bad_record"


def test_videos_whose_annotations_are_of_another(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clip(tmp_path, rows(1))
    video(tmp_path / "FishTrack23/Train/SEFSC-SeaMap-2.avi")
    (tmp_path / "FishTrack23/Train/SEFSC-SeaMap-3.csv").write_text(rows(1))
    assert list(read(tmp_path)) == ["000000001"]
    texts = [record.getMessage() for record in caplog.records]
    assert any("1 sequences have no annotations" in text and "SeaMap-2.avi" in text for text in texts)
    assert any("1 files of annotations have neither" in text and "SeaMap-3.csv" in text for text in texts)


def test_frames_and_video_of_one_sequence_are_not_taken_twice(tmp_path: Path) -> None:
    clip(tmp_path, rows(1))
    folder = tmp_path / "FishTrack23/Train/SEFSC-SeaMap-1"
    folder.mkdir()
    (folder / "0.png").write_bytes(b"")
    (folder / "annotations.viame.csv").write_text(rows(0))
    with pytest.raises(UsageError, match="the sequence .*SEFSC-SeaMap-1' is there twice"):
        read(tmp_path)


LIST = b"ffconcat version 1.0\nfile SEFSC-SeaMap-2.avi\n"  # FFmpeg would open the file that it names


@pytest.mark.parametrize("data", [b"", LIST, b"RIFF....AVI " + b"\0" * 600, b"<html>" * 200])
@pytest.mark.parametrize("policy", ["annotated", "all"])
def test_what_is_no_video_is_one_reject(tmp_path: Path, data: bytes, policy: str) -> None:
    path = clip(tmp_path, rows(0, 1, 2))
    clip(tmp_path, rows(4), name="SEFSC-SeaMap-2")
    path.write_bytes(data)
    source = source_of(tmp_path, frames=policy)
    found = [item for shard in source.shards() for item in source.read(shard)]
    (reject,) = [item for item in found if isinstance(item, Reject)]
    assert reject.reason == "not_a_video" and "SEFSC-SeaMap-1.avi" in reject.error
    assert len(found) == (2 if policy == "annotated" else 11)
    if policy == "annotated":
        assert reject.error.endswith("; 3 frames of it were wanted")
        assert reject.uri == source.items()[0].uri


def test_a_video_that_is_gone_and_one_that_breaks_off(tmp_path: Path) -> None:
    path = clip(tmp_path, rows(0, 4, 9), codec="")
    source = source_of(tmp_path)
    (shard,) = source.shards()
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    found = list(source.read(shard))
    assert isinstance(found[0], Sample)
    assert [item.reason for item in found[2:]] == ["decode_error"]
    assert "of 20 frames could be decoded" in found[2].error
    path.unlink()
    (gone,) = source.read(shard)
    assert (gone.reason, gone.key) == ("unreadable_file", "")


def test_a_line_that_is_wrong_is_the_fault_of_its_frame(tmp_path: Path) -> None:
    clip(tmp_path, rows(0, 2) + "0,,1,1,1,9,9,1,-1,trout,1\n0,,1,1,1,nine,9,1,-1,trout,1\nno row\n")
    found = read(tmp_path)
    assert found["000000001"].reason == "bad_record" and "'nine' is no number" in found["000000001"].error
    assert [value(found[f"00000000{number}"]) for number in (0, 2)] == [0, 4]
    assert found["SEFSC-SeaMap-1#line=6"].reason == "bad_record"


def test_a_video_is_one_shard_and_frames_are_not_found_by_range(tmp_path: Path) -> None:
    clip(tmp_path, rows(0, 1, 2, 3))
    clip(tmp_path, rows(0, 1), name="SEFSC-SeaMap-2")
    folder = tmp_path / "FishTrack23/Train/SEFSC-SeaMap-0"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (32, 16)).save(folder / f"{number}.png")
    (folder / "a.csv").write_text(rows(0, 1, 2))
    source = source_of(tmp_path, items_per_shard=2)
    shards = source.shards()
    assert [len(shard.items) for shard in shards] == [2, 1, 4, 2]
    assert not source.ranged and source_of(tmp_path).ranged is False
    (sample, *_) = source.read(shards[2])
    (image,) = fetch_images(pa.table({"uri": [sample.uri], "offset": [0], "length": [sample.length]}))
    assert isinstance(image, SampleError) and "a frame of a video" in image.message and "store: bytes" in image.message
    assert source_of(tmp_path, splits="train").ranged is False


def test_an_ingest_stores_the_bytes_and_takes_changed_frames_anew(lake: Any, tmp_path: Path) -> None:
    clip(tmp_path, rows(0, 1, 2))
    broken = clip(tmp_path, rows(3, 4), name="SEFSC-SeaMap-2")
    whole = broken.read_bytes()
    broken.write_bytes(b"gone")
    spec = {"fishtrack": str(tmp_path / "FishTrack23"), "encode": "png"}
    first = ingest(lake, "pool", IngestConfig(source=spec, encoders={}), progress=False)
    assert (first.rows, first.rejects, first.reasons) == (3, 1, {"not_a_video": 1})
    assert ingest(lake, "pool", IngestConfig(source=spec, encoders={}), progress=False).skipped == 5
    broken.write_bytes(whole)
    (tmp_path / "FishTrack23/Train/SEFSC-SeaMap-1.csv").write_text(rows(0, 1) + "0,,2,1,1,3,3,1,-1\n")
    second = ingest(lake, "pool", IngestConfig(source=spec, encoders={}, replace=True), progress=False)
    assert (second.rows, second.rejects, second.skipped) == (3, 0, 2)
    table = lake.table("pool").to_arrow().sort_by("id")
    shown = [decode_image(image).image.getpixel((0, 0))[0] for image in table.column("image").to_pylist()]
    assert shown == [grey(0), grey(2), grey(4), grey(6), grey(8)]
    assert table.column("boxes").to_pylist()[2] == [{"label": "fish", "x": 1.0, "y": 1.0, "w": 2.0, "h": 2.0}]
    assert table.column("frame").to_pylist() == [0, 1, 2, 3, 4]
    assert lake.table("pool.quarantine").to_arrow().num_rows == 0


def test_the_world_may_have_videos(tmp_path: Path) -> None:
    build(tmp_path, images=28, videos=True)
    source = parse_source({"fishtrack": str(tmp_path / "FishTrack23-Latest")})
    found = [item for shard in source.shards() for item in source.read(shard)]
    of_videos = [item for item in found if isinstance(item, Sample) and ".avi#frame=" in item.uri]
    assert len(of_videos) == 16 and all(item.image.startswith(b"\xff\xd8") for item in of_videos)
    assert all((decode_image(item.image).width, len(item.extra["boxes"]) > 0) == (64, True) for item in of_videos)


def test_opencv_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip(tmp_path, rows(0))
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(UsageError, match=r"OpenCV, which is not installed; pip install 'datas3-ray\[detection\]'"):
        read(tmp_path)


def test_frames_come_without_opencv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(tmp_path, images=28)
    monkeypatch.setitem(sys.modules, "cv2", None)
    source = parse_source({"fishtrack": str(tmp_path / "FishTrack23-Latest")})
    assert sum(isinstance(item, Sample) for shard in source.shards() for item in source.read(shard)) == 28


def test_remote_videos_are_copied_and_the_copy_goes_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = clip(tmp_path, rows(0, 9))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    memory = fsspec.filesystem("memory")
    try:
        memory.put(str(path), "/fishy/a.avi")
        with open_video("memory://fishy/a.avi") as opened:
            assert len(list((tmp_path / "tmp").iterdir())) == 1
            assert opened.promised == 20
            images = list(opened.frames([0, 4, 4, 9], 5))
        assert [int(image.mean()) for image in images] == [grey(0), grey(8), grey(8), grey(18)]  # type: ignore[union-attr]
        assert not list((tmp_path / "tmp").iterdir())
    finally:
        memory.rm("/fishy", recursive=True)
