"""A tiny iWildCam in both of its layouts, for ``test_contract.py``; see ``formats.py``."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiny.formats import Built, Expected, png

GPS = {"7": {"latitude": -1.5, "longitude": 36.25}, "71": {"latitude": -1.75, "longitude": 36.5}}


def iwildcam(root: Path) -> Any:
    """WILDS: three images, one whose file is missing, one whose category is another's, one that leads out."""
    home = root / "iwildcam_v2.0"
    (home / "train").mkdir(parents=True)
    (home / "categories.csv").write_text("y,category_id,name\n0,0,empty\n1,372,panthera pardus\n99999,5,homo sapiens\n")
    rows: list[list[Any]] = []
    expected = {}
    for number, (split, location, category) in enumerate([("train", 7, 0), ("val", 8, 372), ("id_test", 7, 372)]):
        (home / "train" / f"a{number}.png").write_bytes(png(number))
        rows.append([number, split, 3, location, 9, f"s{number}", int(category > 0), category, f"a{number}.png"])
        label = "panthera pardus" if category else "empty"
        expected[f"iwildcam_v2.0/a{number}"] = Expected(png(number), None, label, {"image_id": f"a{number}"})
    rows.append([3, "train", 3, 7, 9, "s3", 0, 0, "a3.png"])
    rows.append([4, "train", 3, 7, 9, "s4", 99999, 5, "a4.png"])
    rows.append([5, "train", 3, 7, 9, "s5", 0, 0, "../categories.png"])
    with open(home / "metadata.csv", "w", newline="") as file:
        writer = csv.writer(file)
        names = ("split", "location_remapped", "location", "sequence_remapped", "seq_id", "y", "category_id")
        writer.writerow(["", *names, "filename", "image_id", "datetime"])
        writer.writerows([*row, row[-1].removesuffix(".png"), "2014-05-01 06:30:00.000"] for row in rows)
    (root / "gps_locations.json").write_text(json.dumps(GPS))
    spec = {"iwildcam": str(home), "gps": str(root / "gps_locations.json"), "items_per_shard": 2}
    return Built(spec, expected, ["bad_record", "bad_record", "unreadable_file"])


def iwildcam_json(root: Path) -> Any:
    """COCO Camera Traps: a file of annotations, MegaDetector's, one image without annotation and one without a file."""
    home = root / "iwildcam2022"
    (home / "train").mkdir(parents=True)
    images: list[dict[str, Any]] = []
    expected = {}
    for number in range(3):
        (home / "train" / f"b{number}.png").write_bytes(png(number))
        shot = {"seq_id": "s", "frame_num": number + 1, "location": 7, "sub_location": 71 if number else None}
        images.append(
            {"id": f"b{number}", "file_name": f"b{number}.png", "datetime": "2014-05-01 06:30:00.000", **shot}
        )
        label = ["empty", "loxodonta africana", None][number]
        expected[f"iwildcam2022/b{number}"] = Expected(png(number), None, label, {"frame_num": number + 1})
    images += [{"id": "gone", "file_name": "gone.png"}, {"id": "strange", "file_name": "strange.png"}]
    annotations = [{"id": f"x{n}", "image_id": f"b{n}", "category_id": [0, 71][n]} for n in range(2)]
    annotations.append({"id": "x3", "image_id": "strange", "category_id": 72})
    categories = [{"id": 0, "name": "empty"}, {"id": 71, "name": "loxodonta africana"}]
    document = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
    (home / "iwildcam2022_train_annotations.json").write_text(json.dumps(document))
    seen = [{"category": "1", "conf": 0.5, "bbox": [0, 0, 1, 1]}]
    found = {"images": [{"file": "train/b1.png", "detections": seen}], "detection_categories": {"1": "animal"}}
    (home / "iwildcam2022_mdv4_detections.json").write_text(json.dumps(found))
    spec = {
        "iwildcam": str(home),
        "annotations": str(home / "*_annotations.json"),
        "images": str(home / "train"),
        "detections": str(home / "iwildcam2022_mdv4_detections.json"),
    }
    return Built(spec, expected, ["bad_record", "unreadable_file"])


BUILDERS: dict[str, Callable[[Path], Any]] = {"iwildcam": iwildcam, "iwildcam_json": iwildcam_json}
