"""A tiny FishTrack23 folder, of frames and of videos, for ``test_contract.py``; see ``formats.py``."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tiny.formats import Built, Expected, png


def fishtrack(root: Path) -> Any:
    """Two sequences: 5 frames of which 3 have rows, one past the end and a line that is none; 3 whose box is one."""
    expected = {}
    top = root / "FishTrack23"
    for name, count in (("SEFSC-SeaMap-1", 5), ("PIFSC-MOUSS-2-Cam1", 3)):
        folder = top / "Train" / name
        folder.mkdir(parents=True)
        for number in range(count):
            (folder / f"f{number}.png").write_bytes(png(number))
    rows = [f"{n},f{n}.png,{n},1,1,4,4,1,-1,snapper,0.9\n" for n in range(3)]
    first = "# metadata,fps: 10\n" + "".join(rows) + "7,,5,1,1,4,4,1,-1,snapper,0.9\nno row\n"
    (top / "Train/SEFSC-SeaMap-1/annotations.viame.csv").write_text(first)
    second = "0,,0,1,1,4,4,1,-1,snapper,0.9\n0,,1,1,one,4,4,1,-1,snapper,0.9\n0,,2,50,1,60,4,1,-1,snapper,0.9\n"
    (top / "Train/PIFSC-MOUSS-2-Cam1/PIFSC-MOUSS-2-Cam1.csv").write_text(second)
    for number in range(3):
        record = {"species": ["snapper"], "tracks": [number], "boxes_dropped": 0, "rows": 1}
        expected[f"FishTrack23/Train/SEFSC-SeaMap-1/f{number}"] = Expected(png(number), None, "fish", record)
    expected["FishTrack23/Train/PIFSC-MOUSS-2-Cam1/f0"] = Expected(png(0), None, "fish", {"tracks": [0]})
    spec = {"fishtrack": str(top), "items_per_shard": 2}
    return Built(spec, expected, ["bad_record", "bad_record", "bad_record", "no_frame"])


def fishtrack_video(root: Path) -> Any:
    """A video of ten frames a second, annotated at five, and frames beside it."""
    import cv2

    top = root / "FishTrack23"
    (top / "Test/SEFSC-SeaMap-1").mkdir(parents=True)
    (top / "Test/SEFSC-SeaMap-1/0.png").write_bytes(png(0))
    (top / "Test/SEFSC-SeaMap-1/0.csv").write_text("0,,0,1,1,4,4,1,-1\n")
    writer = cv2.VideoWriter(str(top / "Test/CDFW-LakeCam-1.avi"), cv2.VideoWriter.fourcc(*"FFV1"), 10.0, (32, 16))
    for number in range(8):
        writer.write(np.ascontiguousarray(picture(number)[:, :, ::-1]))
    writer.release()
    rows = [f"0,00:00:00.{2 * n}00000,{n},1,1,9,9,1,-1,trout,1\n" for n in (0, 1, 3, 4)]  # 4 is past the end
    (top / "Test/CDFW-LakeCam-1.csv").write_text("#meta fps=5\n" + "".join(rows))
    expected = {"FishTrack23/Test/SEFSC-SeaMap-1/0": Expected(png(0), None, "fish", None)}
    for number in (0, 1, 3):
        out = io.BytesIO()
        Image.fromarray(picture(2 * number)).save(out, "PNG")
        record = {"time": f"00:00:00.{2 * number}00000", "rows": 1}
        expected[f"FishTrack23/Test/CDFW-LakeCam-1/{number:09d}"] = Expected(out.getvalue(), None, "fish", record)
    return Built({"fishtrack": str(top), "encode": "png"}, expected, ["no_frame"])


def picture(number: int) -> np.ndarray:
    """A frame of a video, another one for every number; one colour, since codecs keep colours at half the size."""
    return np.full((16, 32, 3), (number * 20, 200 - number * 20, 90), np.uint8)


BUILDERS: dict[str, Callable[[Path], Any]] = {"fishtrack": fishtrack}
if importlib.util.find_spec("cv2") is not None:
    BUILDERS["fishtrack_video"] = fishtrack_video
