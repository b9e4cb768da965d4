"""How long a large data set's metadata take: no image is read.

    python benchmarks/metadata.py [--rows 1000000]

A synthetic iWildCam in the WILDS layout: seconds to plan its ingest (every row an item, grouped into shards) and to
resolve its four deployments (query, test, and the expert's rows within 100 km), and the largest memory of any process.
The rows get into the lake without images in between, which is not counted. Exit status 1 where a floor is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pyarrow as pa
import yaml

from datas3_ray import Lake
from datas3_ray.benchmark.deployments import find_deployment, names
from datas3_ray.lake.splits import split_table
from datas3_ray.sources import parse_source

FLOORS = yaml.safe_load((Path(__file__).parent / "floors.yaml").read_text())["metadata"]
HELD_OUT = ("val", "test", "id_val", "id_test")
# Latitudes and longitudes of the regions' middles; a sixth of the cameras has no coordinates.
MIDDLES = {"central": (15.0, -88.0), "east": (0.0, 37.0), "south": (-24.0, 25.0), "asia": (10.0, 105.0)}


def write_world(root: Path, rows: int) -> None:
    """metadata.csv, categories.csv and gps_locations.json of 400 cameras and 182 species."""
    draw = random.Random(0)
    cameras = {}
    for camera in range(400):
        latitude, longitude = MIDDLES[list(MIDDLES)[camera % 4]]
        if camera % 6:
            cameras[str(camera)] = {
                "latitude": latitude + draw.uniform(-3, 3),
                "longitude": longitude + draw.uniform(-3, 3),
            }
    (root / "gps_locations.json").write_text(json.dumps(cameras))
    folder = root / "iwildcam_v2.0"
    (folder / "train").mkdir(parents=True)
    lines = [f"{y},{3 * y + 1},species {y}" for y in range(182)]
    (folder / "categories.csv").write_text("\n".join(["y,category_id,name", *lines, "99999,9999,never"]) + "\n")
    with open(folder / "metadata.csv", "w") as file:
        file.write(
            ",split,location_remapped,location,sequence_remapped,seq_id,y,category_id,datetime,filename,image_id\n"
        )
        for row in range(rows):
            camera, y = draw.randrange(400), draw.randrange(182)
            split = "train" if draw.random() < 0.65 else HELD_OUT[draw.randrange(4)]
            image = f"{row:08x}-21bc-11ea-a13a-137349068a90"
            file.write(
                f"{row},{split},{camera},{camera},{row // 3},seq-{row // 3:08x},{y},{3 * y + 1},"
                f"2013-06-05 05:44:19.{row % 1000:03d},{image}.jpg,{image}\n"
            )


def table_of(items: list) -> pa.Table:
    """The columns that deployments look at, and a vector, since a table has one."""
    columns: dict[str, list] = {name: [] for name in ("latitude", "longitude", "sequence", "label")}
    for item in items:
        members = json.loads(item.members)
        for name in ("latitude", "longitude", "sequence"):
            columns[name].append(members["extra"].get(name))
        columns["label"].append(members["json"].get("label"))
    types = {"latitude": pa.float64(), "longitude": pa.float64(), "sequence": pa.string(), "label": pa.string()}
    ids = pa.array([item.id for item in items])
    ones = pa.FixedSizeListArray.from_arrays(pa.array([1.0] * (2 * len(items)), pa.float32()), 2)
    arrays = {name: pa.array(values, types[name]) for name, values in columns.items()}
    return pa.table({"id": ids, **arrays, "vec": ones})


class Peak:
    """The largest resident memory of this process and its children, sampled."""

    def __init__(self) -> None:
        self.bytes, self.ended = 0, threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        me = psutil.Process(os.getpid())
        while not self.ended.wait(0.2):
            for process in [me, *me.children(recursive=True)]:
                try:
                    if not process.name().startswith(("raylet", "gcs_server")):
                        memory = process.memory_info()
                        self.bytes = max(self.bytes, memory.rss - getattr(memory, "shared", 0))
                except psutil.Error:
                    continue


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    peak = Peak()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_world(root, rows)
        lake = Lake(root / "lake")
        planned = 0.0
        for name, splits in (("pool", ["train"]), ("heldout", list(HELD_OUT))):
            started = time.perf_counter()
            source = parse_source(
                {
                    "iwildcam": str(root / "iwildcam_v2.0"),
                    "gps": str(root / "gps_locations.json"),
                    "splits": splits,
                    "check_files": False,
                }
            )
            items = source.items()  # type: ignore[attr-defined]
            shards = len(source.group(items))  # type: ignore[attr-defined]
            planned += time.perf_counter() - started
            print(f"{name}: {len(items):,} items in {shards:,} shards")
            for start in range(0, len(items), 100_000):
                lake.add(name, table_of(items[start : start + 100_000]))
            del items
        in_planning = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        from datas3_ray.runtime import ensure_ray

        ensure_ray()
        started = time.perf_counter()
        found = [find_deployment(of) for of in names("iwildcam")]
        for one in found:
            test = f"{one.name}-test"
            kept = [
                split_table(lake, "heldout", name, split).count_rows()
                for name, split in ((test, one.test_split()), (f"{one.name}-query", one.query_split(test)))
            ]
            expert = one.expert_selector().select(lake, "pool", query=test, name=f"{one.name}-expert")
            print(f"{one.name}: test {kept[0]:,}, query {kept[1]:,}, expert {len(expert):,}")
        resolved = time.perf_counter() - started
        peak.ended.set()
    gigabytes = max(peak.bytes, in_planning) / 1e9
    seconds = planned + resolved
    holds = seconds <= FLOORS["seconds"] and gigabytes <= FLOORS["gigabytes"]
    print(f"metadata of {rows:,} images: plan {planned:.1f} s, four deployments {resolved:.1f} s")
    print(f"  together {seconds:.1f} s (at most {FLOORS['seconds']})")
    print(f"  largest process {gigabytes:.2f} GB (at most {FLOORS['gigabytes']}){'' if holds else '  MISSED'}")
    return 0 if holds or rows != 1_000_000 else 1


if __name__ == "__main__":
    sys.exit(main())
