"""Kill an ingest at random moments, resume it, and compare the table with one clean run.

    python benchmarks/kill_ingest.py [--kills 10] [--seed 0] [--shards 40] [--rows 60]

Draws shards of small images, ingests them once without disturbance, then again while SIGKILL ends the process at seeded
random moments, and at last lets it finish. Ids and vectors of the two tables must be equal byte for byte.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from datas3_ray import Lake
from datas3_ray.ingest import ingest, parse_config
from datas3_ray.lake.ledger import Ledger
from datas3_ray.sources.synthetic import World, generate

RUN = """
import json, sys
from datas3_ray import Lake
from datas3_ray.ingest import ingest, parse_config
ingest(Lake(sys.argv[1]), "pool", parse_config(json.loads(sys.argv[2])), progress=False)
"""


def main() -> int:
    """Kill, resume, compare; exit status 1 when the tables differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shards", type=int, default=60)
    parser.add_argument("--rows", type=int, default=60, help="images in a shard")
    options = parser.parse_args()
    print(f"seed {options.seed}, {options.kills} kills, {options.shards} shards of {options.rows} images")
    with tempfile.TemporaryDirectory() as folder:
        return run(Path(folder), options)


def run(folder: Path, options: argparse.Namespace) -> int:
    """See the module."""
    generate(folder / "data", World(images=options.shards * options.rows, shards=options.shards))
    settings = {
        "source": {"webdataset": str(folder / "data" / "*.tar"), "columns": {"site": "json.site"}},
        "encoders": {"tiny": {"timm": "test_resnet", "weights": "random", "image_size": 64}},
        "commit_shards": 2,
    }
    command = [sys.executable, "-c", RUN, str(folder / "killed"), json.dumps(settings)]
    moments = random.Random(options.seed)
    lake = Lake(folder / "killed")
    for number in range(options.kills):
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        # Half of the kills while the first shards are read or anything starts, half around later commits.
        before = Ledger(lake, "pool").rows().num_rows
        wanted = before + (0 if number % 2 else moments.randint(1, 4))
        while process.poll() is None and Ledger(lake, "pool").rows().num_rows < wanted:
            time.sleep(0.005)
        time.sleep(moments.random() * (12.0 if number % 2 else 0.3))
        finished = process.poll() is not None
        process.send_signal(signal.SIGKILL)
        process.wait()
        rows = Ledger(lake, "pool").rows()
        states = rows.column("state").to_pylist()
        what = "had finished" if finished else "killed"
        print(f"{number + 1}: {what} with {len(states)} shards in the ledger, {states.count('prepared')} prepared")
    config = parse_config(settings)
    last = ingest(lake, "pool", config, progress=False)
    print(f"last run: {last.sentence()} {last.recovered} commits finished that a kill had cut short")
    clean = Lake(folder / "clean")
    ingest(clean, "pool", config, progress=False)
    tables = [each.table("pool").to_arrow().sort_by("id") for each in (lake, clean)]
    equal = tables[0].equals(tables[1])
    print(f"{tables[0].num_rows} and {tables[1].num_rows} rows, equal: {equal}")
    return int(not equal)


if __name__ == "__main__":
    sys.exit(main())
