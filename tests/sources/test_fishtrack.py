"""FishTrack23: sequences, VIAME's CSV and DIVE's COCO, what is kept of them, and what the names tell."""

from __future__ import annotations

import io
import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from worlds.fishtrack import build

from datas3_ray.errors import UsageError
from datas3_ray.sources import Reject, Sample, parse_source
from datas3_ray.sources.fish_annotations import Named, read_annotations

SIZE = (100, 50)


def picture(width: int = SIZE[0], height: int = SIZE[1]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def frames(root: Path, place: str = "Train/SEFSC-SeaMap-1", count: int = 4) -> Path:
    """A sequence's folder with frames ``f0.png``, ``f1.png``, ..."""
    folder = root / "FishTrack23" / place
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"f{number}.png").write_bytes(picture())
    return folder


def sequence(root: Path, *rows: str, place: str = "Train/SEFSC-SeaMap-1", count: int = 4) -> Path:
    """A sequence's folder with its annotations."""
    folder = frames(root, place, count)
    (folder / "annotations.viame.csv").write_text("".join(row + "\n" for row in rows))
    return folder


def read(root: Path, **options: Any) -> dict[str, Any]:
    """What comes out, by the last part of the id; ``#`` begins what belongs to no frame."""
    source = parse_source({"fishtrack": str(root / "FishTrack23"), **options})
    items = [item for shard in source.shards() for item in source.read(shard)]
    assert len({item.key for item in items}) == len(items)
    return {item.key.rpartition("/")[2].rpartition("#")[2]: item for item in items}


def labels(item: Any) -> list[str]:
    return [box["label"] for box in item.extra["boxes"]]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage().partition(": ")[2] for record in caplog.records]


# ----------------------------------------------------------------------------------------------- boxes and classes


def test_corners_become_boxes_that_are_clipped_to_the_image(tmp_path: Path) -> None:
    rows = [
        "0,f0.png,0,10,20,40,30,1,-1,trout,1",
        "1,f0.png,0,90.5,-5,130,15.5,1,-1,trout,1",
        "2,f0.png,0,5,5,5,9,1,-1,trout,1",
        "3,f0.png,0,nan,5,5,9,1,-1,trout,1",
        "4,f0.png,0,200,5,205,9,1,-1,trout,1",
    ]
    sequence(tmp_path, *rows)
    found = read(tmp_path)["f0"]
    assert found.extra["boxes"] == [
        {"label": "fish", "x": 10.0, "y": 20.0, "w": 30.0, "h": 10.0},
        {"label": "fish", "x": 90.5, "y": 0.0, "w": 9.5, "h": 15.5},
    ]
    assert found.members["json"]["boxes_dropped"] == 3
    assert found.members["cls"] == "fish"
    assert found.image == picture()
    assert found.id == "FishTrack23/Train/SEFSC-SeaMap-1/f0"


def test_a_frame_whose_boxes_are_all_off_the_image_is_no_row_without_boxes(tmp_path: Path) -> None:
    sequence(tmp_path, "0,,0,200,5,205,9,1,-1,trout,1", "0,,1,1,5,9,9,1,-1,trout,1")
    found = read(tmp_path)
    assert isinstance(found["f0"], Reject) and found["f0"].reason == "bad_record"
    assert "none of its 1 boxes has an area on the image" in found["f0"].error
    every = read(tmp_path, frames="all")["f0"]
    assert (every.extra["boxes"], every.members["json"]["boxes_dropped"]) == ([], 1)


def test_species_of_highest_confidence_up_to_the_first_token(tmp_path: Path) -> None:
    rows = [
        "0,,0,1,1,9,9,1,-1,trout,0.3,bass,0.6,(kp) head 3 4,(atr) perch 0.9",
        "1,,1,1,1,9,9,1,-1,trout,0.5,bass,0.5,(poly) 1 1 9 9 1 9",
        "2,,2,1,1,9,9,1,-1,+kp head 3 4,bass,1",
        '3,,3,1,1,9,9,1,-1,trout,0.3,,,"(note) two, or (kp) more",bass,1',
        "4,,4,1,1,9,9,1,-1",
        "5,,5,1,1,9,9,1,-1,trout",
        "6,,6,1,1,9,9,1,-1,,,",
        "7,,7,1,1,9,9,1,-1,trout,nan,bass,0.1,(trk-atr) a b,(hole) 1 1 2 2 1 2",
    ]
    sequence(tmp_path, *rows, count=8)
    found = read(tmp_path, classes="species")
    species = ["bass", "trout", "fish", "trout", "fish", "trout", "fish", "bass"]
    assert [labels(found[f"f{number}"]) for number in range(8)] == [[name] for name in species]
    assert [found[f"f{number}"].members["json"]["species"] for number in (0, 2)] == [["bass"], []]
    assert [labels(item) for item in read(tmp_path).values()] == [["fish"]] * 8


def test_the_label_is_the_only_class(tmp_path: Path) -> None:
    rows = ["0,,0,1,1,9,9,1,-1,trout,1", "1,,0,1,1,9,9,1,-1,bass,1", "2,,1,1,1,9,9,1,-1,bass,1"]
    sequence(tmp_path, *rows)
    found = read(tmp_path, classes="species", frames="all")
    assert [item.members.get("cls") for item in found.values()] == [None, "bass", None, None]
    assert found["f0"].members["json"]["tracks"] == [0, 1]


def test_what_is_no_fish_is_dropped_and_counted_or_kept_by_its_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [
        "0,,0,1,1,9,9,1,-1,trout,1",
        "1,,0,1,1,9,9,1,-1,non_fish_crab,1",
        "2,,1,1,1,9,9,1,-1,non_fish,0.9,trout,0.1",
        "3,,2,1,1,9,9,1,-1,non_fish,0.1,trout,0.9",
    ]
    sequence(tmp_path, *rows)
    with caplog.at_level(logging.WARNING):
        found = read(tmp_path)
    assert {name: labels(item) for name, item in found.items()} == {"f0": ["fish"], "f2": ["fish"]}
    assert found["f0"].members["json"]["boxes_non_fish"] == 1
    assert warnings(caplog) == ["1 frames with rows are left out: none of their boxes is kept"]
    kept = read(tmp_path, non_fish="keep")
    assert {name: labels(item) for name, item in kept.items()} == {
        "f0": ["fish", "non_fish_crab"],
        "f1": ["non_fish"],
        "f2": ["fish"],
    }
    every = read(tmp_path, frames="all")["f1"]
    assert (every.extra["boxes"], every.members["json"]["boxes_non_fish"]) == ([], 1)


def test_boxes_below_the_confidence_are_left_out_and_those_that_state_none_stay(tmp_path: Path) -> None:
    rows = [f"{at},,0,1,1,9,9,{sure},-1,trout,1" for at, sure in enumerate(("0.4", "0.5", "-1", ""))]
    sequence(tmp_path, *rows)
    found = read(tmp_path, min_confidence=0.5)["f0"]
    assert (found.members["json"]["tracks"], found.members["json"]["boxes_unsure"]) == ([1, 2, 3], 1)
    assert len(read(tmp_path)["f0"].extra["boxes"]) == 4


def test_labels_txt_changes_nothing(tmp_path: Path) -> None:
    sequence(tmp_path, "0,,0,1,1,9,9,1,-1,trout,1")
    before = read(tmp_path)
    (tmp_path / "FishTrack23/Train/labels.txt").write_text("fish trout bass\n")
    assert read(tmp_path) == before


# ----------------------------------------------------------------------------------------------- frames and policies


def test_both_policies_of_frames(tmp_path: Path) -> None:
    sequence(tmp_path, "0,,1,1,1,9,9,1,-1,trout,1", "0,,3,1,1,9,9,1,-1,trout,1")
    assert sorted(read(tmp_path)) == ["f1", "f3"]
    every = read(tmp_path, frames="all")
    assert {name: len(item.extra["boxes"]) for name, item in every.items()} == {"f0": 0, "f1": 1, "f2": 0, "f3": 1}
    assert [item.extra["frame"] for item in every.values()] == [0, 1, 2, 3]


def test_the_name_of_a_frame_wins_over_its_number(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = ["0,f2.png,0,1,1,9,9,1,-1", "1,f3.png,3,1,1,9,9,1,-1", "2,/home/them/f1.jpg,1,1,1,9,9,1,-1"]
    sequence(tmp_path, *rows)
    with caplog.at_level(logging.WARNING):
        found = read(tmp_path)
    assert {name: item.members["json"]["tracks"] for name, item in found.items()} == {"f1": [2], "f2": [0], "f3": [1]}
    assert found["f2"].extra["frame"] == 2
    assert warnings(caplog) == [
        "1 frames have rows whose number is another than that of the image they name: the name is taken"
    ]


def test_an_image_that_is_not_there_is_not_taken_for_another(tmp_path: Path) -> None:
    sequence(tmp_path, "0,f0.png,0,1,1,9,9,1,-1", "1,gone.png,1,1,1,9,9,1,-1", "2,gone.png,1,1,1,9,9,1,-1")
    found = read(tmp_path)
    assert sorted(found) == ["f0", "frame=1"]
    assert found["frame=1"].reason == "no_frame"
    assert "'gone.png', which is not among the 4" in found["frame=1"].error
    assert "2 rows are of it" in found["frame=1"].error


def test_renamed_images_are_counted_where_none_of_the_names_is_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sequence(tmp_path, "0,a00001.jpg,1,1,1,9,9,1,-1", "1,a00002.jpg,2,1,1,9,9,1,-1")
    with caplog.at_level(logging.WARNING):
        assert sorted(read(tmp_path)) == ["f1", "f2"]
    assert len(warnings(caplog)) == 1 and "the frame numbers count the sorted images" in warnings(caplog)[0]


def test_times_and_empty_names_count_the_sorted_listing(tmp_path: Path) -> None:
    sequence(tmp_path, "0,00:00:00.200000,1,1,1,9,9,1,-1,trout,1", "1,0:1:0.000,2,1,1,9,9,1,-1", "2,,3,1,1,9,9,1,-1")
    found = read(tmp_path)
    times = {name: item.members["json"].get("time") for name, item in found.items()}
    assert times == {"f1": "00:00:00.200000", "f2": "0:1:0.000", "f3": None}


def test_one_frame_past_the_end_is_a_reject_for_its_rows(tmp_path: Path) -> None:
    sequence(tmp_path, "0,,3,1,1,9,9,1,-1", "0,,4,1,1,9,9,1,-1", "1,,4,1,1,9,9,1,-1")
    found = read(tmp_path)
    assert sorted(found) == ["f3", "frame=4"]
    past = found["frame=4"]
    assert (past.reason, past.key) == ("no_frame", "FishTrack23/Train/SEFSC-SeaMap-1#frame=4")
    assert past.uri.endswith("annotations.viame.csv#frame=4")
    assert "is of frame 4" in past.error and "has 4; 2 rows are of it" in past.error


def test_lines_that_cannot_be_parsed_end_nothing(tmp_path: Path) -> None:
    rows = [
        "no row",
        "0,,0,1,1,9,9,1,-1,trout,1",
        '0,,1,1,1,9,9,1,-1,"trout,1',  # a quote that is never closed
        "0,,2,1,one,9,9,1,-1,trout,1",
        "1,,2,1,1,9,9,1,-1,trout,1",
        "0,,3,1,1,9",
        "0,,-1,1,1,9,9,1,-1",
        "0,,1.5,1,1,9,9,1,-1",
        "0,,99999999999999999999,1,1,9,9,1,-1",
        "",
        "0,,4,1,1,9,9,1,-1,trout,much",
        "0,,5,1,1,9,9,1,-1,trout,1",
    ]
    sequence(tmp_path, *rows, count=6)
    found = read(tmp_path)
    reasons = {name: item.reason if isinstance(item, Reject) else "" for name, item in found.items()}
    assert reasons == {
        "line=1": "bad_record",
        "f0": "",
        "f1": "",
        "f2": "bad_record",
        "f3": "bad_record",
        "line=7": "bad_record",
        "line=8": "bad_record",
        "line=9": "bad_record",
        "f4": "bad_record",
        "f5": "",
    }
    assert "line 4 of" in found["f2"].error and "column 5 'one' is no number" in found["f2"].error
    assert "6 columns; there are at least 9" in found["f3"].error
    assert "its third column '-1' is no frame number" in found["line=7"].error


def test_a_line_without_end_and_bytes_that_are_no_text(tmp_path: Path) -> None:
    folder = sequence(tmp_path)
    lines = [b"x" * 3_000_000, b"0,\xff\xfe.png,1,1,1,9,9,1,-1", b"\0,\0,2", b"0,,3,1,1,9,9,1,-1"]
    (folder / "annotations.viame.csv").write_bytes(b"\n".join(lines))
    found = read(tmp_path)
    assert isinstance(found["f3"], Sample) and "more than" in found["line=1"].error
    assert all("\n" not in item.error for item in found.values() if isinstance(item, Reject))


@pytest.mark.parametrize(
    ("comment", "fps"),
    [
        ('# metadata,fps: 10,"exported_by: ""dive:python"""', 10.0),
        ("#meta fps=5", 5.0),
        ("# metadata,fps: 29.97,x", 29.97),
        ("# 1: Detection or Track-id,2: Video or Image Identifier", None),
        ("#meta fps=0", None),
    ],
)
def test_comments_and_frame_rates(tmp_path: Path, comment: str, fps: float | None) -> None:
    sequence(tmp_path, "# 1: Detection or Track-id", comment, "0,,0,1,1,9,9,1,-1", "  # the end")
    found = read(tmp_path)
    assert list(found) == ["f0"] and found["f0"].extra["fps"] == fps
    assert read(tmp_path, fps=7)["f0"].extra["fps"] == (fps or 7.0)


def test_a_file_with_a_mark_at_its_begin_and_windows_lines(tmp_path: Path) -> None:
    folder = sequence(tmp_path)
    text = b"\xef\xbb\xbf0,f0.png,0,1,1,9,9,1,-1,trout,1\r\n1,f0.png,0,1,1,9,9,1,-1\r\n"
    (folder / "annotations.viame.csv").write_bytes(text)
    assert read(tmp_path)["f0"].members["json"]["tracks"] == [0, 1]


# ----------------------------------------------------------------------------------------------- layouts


def test_sequences_without_annotations_and_annotations_without_frames(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sequence(tmp_path, "0,,0,1,1,9,9,1,-1")
    frames(tmp_path, "Train/CDFW-LakeCam-1")
    (tmp_path / "FishTrack23/Train/PIFSC-MOUSS-9.csv").write_text("0,,0,1,1,9,9,1,-1\n")
    sequence(tmp_path, "# no rows", place="Train/IFREMER-DropCam-1")
    for policy, count in (("annotated", 1), ("all", 8)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert len(list(_ids(tmp_path, frames=policy))) == count
        first, second, third = warnings(caplog)
        assert first.startswith("1 sequences have no annotations and are left out, such as") and "LakeCam-1" in first
        assert second.startswith("1 files of annotations have neither frames") and "PIFSC-MOUSS-9.csv" in second
        assert third == "1 files of annotations have no rows"


def _ids(root: Path, **options: Any) -> list[str]:
    return [item.id for item in parse_source({"fishtrack": str(root / "FishTrack23"), **options}).items()]  # type: ignore[attr-defined]


def test_the_folder_may_be_the_set_a_split_or_one_sequence(tmp_path: Path) -> None:
    sequence(tmp_path, "0,,0,1,1,9,9,1,-1")
    for place, id, split in (
        ("FishTrack23", "FishTrack23/Train/SEFSC-SeaMap-1/f0", "train"),
        ("FishTrack23/Train", "Train/SEFSC-SeaMap-1/f0", "train"),
        ("FishTrack23/Train/SEFSC-SeaMap-1", "SEFSC-SeaMap-1/f0", None),
    ):
        source = parse_source({"fishtrack": str(tmp_path / place)})
        (found,) = [item for shard in source.shards() for item in source.read(shard)]
        assert isinstance(found, Sample)
        assert (found.id, found.extra["split"], found.extra["sequence"]) == (id, split, "SEFSC-SeaMap-1")


def test_two_files_of_annotations(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = sequence(tmp_path, "1,,0,1,1,9,9,1,-1")
    (folder / "SEFSC-SeaMap-1.csv").write_text("2,,0,1,1,9,9,1,-1\n")
    (folder / "annotations.coco.json").write_text("{}")
    with caplog.at_level(logging.WARNING):
        assert read(tmp_path)["f0"].members["json"]["tracks"] == [1]
    assert "2 files of annotations are left out: their sequences have others" in warnings(caplog)[0]
    (folder / "annotations.viame.csv").rename(folder / "other.csv")
    assert read(tmp_path)["f0"].members["json"]["tracks"] == [2]
    (folder / "SEFSC-SeaMap-1.csv").rename(folder / "another.csv")
    with pytest.raises(UsageError, match=r"has 2 files of annotations, 'another.csv' and 'other.csv'; keep one"):
        read(tmp_path)


def test_a_csv_beside_the_folder_of_its_name(tmp_path: Path) -> None:
    frames(tmp_path)
    (tmp_path / "FishTrack23/Train/SEFSC-SeaMap-1.csv").write_text("0,,2,1,1,9,9,1,-1\n")
    assert list(read(tmp_path)) == ["f2"]


def test_splits_are_folders_and_can_be_chosen(tmp_path: Path) -> None:
    for split in ("Train", "Test", "Sample"):
        sequence(tmp_path, "0,,0,1,1,9,9,1,-1", place=f"{split}/SEFSC-SeaMap-{split}")
    source = parse_source({"fishtrack": str(tmp_path / "FishTrack23"), "splits": ["test", "Train"]})
    found = [item for shard in source.shards() for item in source.read(shard)]
    assert [item.extra["split"] for item in found if isinstance(item, Sample)] == ["test", "train"]
    with pytest.raises(UsageError, match="has no split 'tset'; it has sample, test, train. Did you mean 'test'"):
        read(tmp_path, splits="tset")


def test_what_is_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        read(tmp_path)
    frames(tmp_path)
    with pytest.raises(UsageError, match="holds no sequence"):
        read(tmp_path)
    sequence(tmp_path, "# nothing")
    with pytest.raises(UsageError, match="no frame of the 1 sequences .* `frames: all`"):
        read(tmp_path)


# ----------------------------------------------------------------------------------------------- names


def test_programmes_sites_and_regions(tmp_path: Path) -> None:
    names = {
        "PIFSC-MOUSS-20160914_231502-Cam1": ("PIFSC-MOUSS", "PIFSC-MOUSS-20160914_231502", "pacific"),
        "PIFSC-MOUSS-20160914_231502-Cam2": ("PIFSC-MOUSS", "PIFSC-MOUSS-20160914_231502", "pacific"),
        "CDFW-LakeCam-Shasta_1": ("CDFW-LakeCam", "CDFW-LakeCam-Shasta_1", "pnw_freshwater_lakes"),
        "CDFW-20210413_Almanor": ("CDFW-2021", "CDFW-20210413_Almanor", "pnw_freshwater_lakes"),
        "IFREMER-DropCam-7": ("IFREMER-DropCam", "IFREMER-DropCam-7", "east_atlantic"),
        "SEFSC-SeaMap-762001-Camp": ("SEFSC-SeaMap", "SEFSC-SeaMap-762001-Camp", "gulf_of_mexico"),
        "NWFSC-Trawl-1": ("NWFSC-Trawl", "NWFSC-Trawl-1", None),
    }
    for name in names:
        sequence(tmp_path, "0,,0,1,1,9,9,1,-1", place=f"Train/{name}", count=1)
    source = parse_source({"fishtrack": str(tmp_path / "FishTrack23")})
    found = {}
    for shard in source.shards():
        for item in source.read(shard):
            assert isinstance(item, Sample)
            found[item.extra["sequence"]] = tuple(item.extra[name] for name in ("programme", "site", "region"))
    assert found == names


def test_another_map_of_regions(tmp_path: Path) -> None:
    sequence(tmp_path, "0,,0,1,1,9,9,1,-1")
    (tmp_path / "mine.yaml").write_text("SEFSC: east\nSEFSC-SeaMap: west\n")
    assert read(tmp_path, regions=str(tmp_path / "mine.yaml"))["f0"].extra["region"] == "west"
    for text in ("[1]", "", "SEFSC: 3", "a: [", "{}"):
        (tmp_path / "mine.yaml").write_text(text)
        with pytest.raises(UsageError, match="fishtrack: regions: .*mine.yaml"):
            read(tmp_path, regions=str(tmp_path / "mine.yaml"))
    with pytest.raises(UsageError, match="fishtrack: regions: .*gone.yaml' is not there"):
        read(tmp_path, regions=str(tmp_path / "gone.yaml"))


# ----------------------------------------------------------------------------------------------- DIVE's COCO


def dive(folder: Path, annotations: list[dict[str, Any]], **more: Any) -> None:
    document = {
        "info": {"dive_version": 1},
        "videos": [{"id": 1, "name": "SEFSC-SeaMap-1", "fps": 5}],
        "images": [
            {"id": 11, "file_name": "f0.png", "frame_index": 0, "video_id": 1},
            {"id": 12, "file_name": None, "frame_index": 1, "video_id": 1},
            {"id": 13, "file_name": "f2.png", "video_id": 1},
            {"id": 14, "video_id": 1},
            {"id": 15, "frame_index": 9, "video_id": 1},
        ],
        "categories": [{"id": 1, "name": "trout"}, {"id": 7, "name": "non_fish_crab"}],
        "annotations": annotations,
        **more,
    }
    (folder / "annotations.coco.json").write_text(json.dumps(document))


def note(image_id: int, bbox: Any = (1, 2, 3, 4), category_id: Any = 1, **more: Any) -> dict[str, Any]:
    return {"id": 5, "image_id": image_id, "category_id": category_id, "bbox": bbox, **more}


def test_dive_coco_has_frames_tracks_and_scores(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = frames(tmp_path)
    annotations = [
        note(11, (90, 40, 30, 5.5), track_id=4, score=0.9, prob=[1.0], keypoints=[{"xy": [1, 2]}], dive_x=1),
        note(11, track_id=5, score=0.2),
        note(11, category_id=7, track_id=6),
        note(11, iscrowd=1),
        note(11, []),
        note(12, track_id=8),
        note(13, "wide"),
        note(14),
        note(15),
        note(99),
        note(11, category_id=3),
    ]
    dive(folder, annotations)
    with caplog.at_level(logging.WARNING):
        found = read(tmp_path, min_confidence=0.5, classes="species")
    assert found["f0"].extra["boxes"] == [{"label": "trout", "x": 90.0, "y": 40.0, "w": 10.0, "h": 5.5}]
    record = found["f0"].members["json"]
    assert (record["tracks"], record["boxes_unsure"], record["boxes_non_fish"], record["boxes_crowd"]) == ([4], 1, 1, 1)
    assert record["boxes_dropped"] == 1
    assert found["f1"].members["json"]["tracks"] == [8]
    assert (found["f0"].extra["fps"], found["f1"].extra["frame"]) == (5.0, 1)
    rejects = {name: item.reason for name, item in found.items() if isinstance(item, Reject)}
    assert rejects == {"f2": "bad_record", "annotation=7": "bad_record", "frame=9": "no_frame"}
    assert "the bbox 'wide' is not four numbers" in found["f2"].error
    assert warnings(caplog) == [
        "2 annotations are left out: they are of images or categories that their file does not list"
    ]


def test_kwcoco_that_is_none_or_of_several_videos(tmp_path: Path) -> None:
    folder = frames(tmp_path)
    dive(folder, [note(1)], images=[{"id": 1, "frame_index": 0, "video_id": 1}, {"id": 2, "video_id": 2}])
    with pytest.raises(UsageError, match="is of 2 videos; export the annotations of each sequence by itself"):
        read(tmp_path)
    dive(folder, [note(1)], images=[{"id": 1, "frame_index": 0}, {"id": 1, "frame_index": 1}])
    with pytest.raises(UsageError, match="two images have the id 1"):
        read(tmp_path)
    (folder / "annotations.coco.json").rename(folder / "data.kwcoco.json")
    for text in ("{", "[]", '{"images": [3]}', '{"images": []}'):
        (folder / "data.kwcoco.json").write_text(text)
        with pytest.raises(UsageError, match="fishtrack: .*data.kwcoco.json"):
            read(tmp_path)


def test_kwcoco_without_videos_has_no_frame_rate(tmp_path: Path) -> None:
    folder = frames(tmp_path)
    document = {"images": [{"id": 1, "file_name": "f3.png"}], "categories": [], "annotations": [note(1)]}
    document["annotations"] = [{"image_id": 1, "bbox": [1, 1, 3, 3]}]
    (folder / "my.kwcoco.json").write_text(json.dumps(document))
    found = read(tmp_path, classes="species")["f3"]
    assert (labels(found), found.extra["fps"]) == (["fish"], None)


# ----------------------------------------------------------------------------------------------- as a source


def test_only_what_changed_has_another_fingerprint(tmp_path: Path) -> None:
    folder = sequence(tmp_path, "0,,0,1,1,9,9,1,-1", "0,,1,1,1,9,9,1,-1")
    source = parse_source({"fishtrack": str(tmp_path / "FishTrack23")})
    before = source.items()  # type: ignore[attr-defined]
    (folder / "annotations.viame.csv").write_text("0,,0,1,1,9,9,1,-1\n0,,1,1,1,8,8,1,-1\n0,,2,1,1,8,8,1,-1\n")
    after = source.items()  # type: ignore[attr-defined]
    assert [one.fingerprint == other.fingerprint for one, other in zip(before, after, strict=False)] == [True, False]
    assert len(after) == 3


def test_names_in_annotations_are_never_paths(tmp_path: Path) -> None:
    (tmp_path / "FishTrack23").mkdir()
    (tmp_path / "FishTrack23/secret.png").write_bytes(b"secret")
    sequence(tmp_path, "0,../../secret.png,0,1,1,9,9,1,-1", "1,f1.png,1,1,1,9,9,1,-1")
    found = read(tmp_path)
    assert sorted(found) == ["f1", "frame=0"] and found["frame=0"].reason == "no_frame"


@pytest.mark.parametrize("name", ["boxes", "Site", "region", "fps"])
def test_own_columns_cannot_be_mapped(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=f"columns: '{name}' is a column that this source fills itself"):
        parse_source({"fishtrack": str(tmp_path), "columns": {name: "row.x"}})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("frames", "some"),
        ("classes", "whale"),
        ("non_fish", True),
        ("min_confidence", 2),
        ("fps", 0),
        ("encode", "gif"),
    ],
)
def test_values_that_cannot_be_meant(tmp_path: Path, option: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"source: {option} = "):
        parse_source({"fishtrack": str(tmp_path), option: value})


def test_annotations_by_themselves(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("#meta fps=5\n0,a.png,3,1,2,4,8,0.5,-1,trout,1\nx\n")
    found = read_annotations(str(tmp_path / "a.csv"))
    (mark,) = found.frames[Named("a.png", 3)].marks
    assert (mark.box, mark.species, mark.confidence, mark.track) == ((1, 2, 3, 6), "trout", 0.5, 0)
    assert (found.fps, [place for place, _ in found.bad]) == (5.0, ["line=3"])
    with pytest.raises(UsageError, match="gone.csv' is not there"):
        read_annotations(str(tmp_path / "gone.csv"))


# ----------------------------------------------------------------------------------------------- the world


def test_the_world_has_every_region_and_trap(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    build(tmp_path)
    source = parse_source({"fishtrack": str(tmp_path / "FishTrack23-Latest")})
    assert source.ranged
    with caplog.at_level(logging.WARNING):
        found = [item for shard in source.shards() for item in source.read(shard)]
    rows = [item for item in found if isinstance(item, Sample)]
    counts = Counter((item.extra["region"], item.extra["split"]) for item in rows)
    regions = ("pnw_freshwater_lakes", "pacific", "east_atlantic", "gulf_of_mexico")
    assert counts == {(region, split): n for region in regions for split, n in (("train", 40), ("test", 30))}
    assert all(item.extra["boxes"] and item.members["cls"] == "fish" for item in rows)
    assert Counter(item.reason for item in found if isinstance(item, Reject)) == {"no_frame": 24, "bad_record": 1}
    assert len({item.extra["site"] for item in rows}) == 20
    assert len({item.extra["sequence"] for item in rows}) == 28
    assert len(warnings(caplog)) == 1 and "SEFSC-SeaMap-unlabelled" in warnings(caplog)[0]
    again = tmp_path / "again"
    build(again)
    ids = {item.id for item in rows}
    other = parse_source({"fishtrack": str(again / "FishTrack23-Latest")})
    assert ids == {item.id for shard in other.shards() for item in other.read(shard) if isinstance(item, Sample)}
