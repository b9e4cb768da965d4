"""Kill everything an ingest is made of, at random moments, and compare what it leaves with a clean run.

    python benchmarks/chaos.py [--kills 50] [--seed N] [--shards 24] [--rows 60]

Two Ray nodes of one CPU each run on this machine. Again and again an ingest of the same shards is started into a new
lake, and SIGKILL ends, at seeded random moments, the driver, an actor, another worker process, or the raylet of the
second node with all its workers. A killed driver is started again, a killed node comes back. When the ingest has
finished, its table must equal the table of an undisturbed run byte for byte in ids and vectors, its ledger must hold
every shard once as done, and rows and rejects must add up.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

from datas3_ray import Lake
from datas3_ray.lake.ledger import Ledger
from datas3_ray.sources.synthetic import World, generate

DRIVER = """
import json, sys
from datas3_ray import Lake
from datas3_ray.ingest import ingest, parse_config
ingest(Lake(sys.argv[1]), "pool", parse_config(json.loads(sys.argv[2])), progress=False)
"""
VICTIMS = ("driver", "actor", "worker", "raylet")


def main() -> int:
    """Kill, resume, compare; exit status 1 when a table differs from the clean one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--shards", type=int, default=24)
    parser.add_argument("--rows", type=int, default=60, help="images in a shard")
    options = parser.parse_args()
    print(f"seed {options.seed}, {options.kills} kills, {options.shards} shards of {options.rows} images", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        return Chaos(Path(folder), options).run()


class Nodes:
    """A head of one CPU that nothing kills, and a second node that comes and goes."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        self.second = self.cluster.add_node(num_cpus=1)

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def raylet(self) -> int:
        """Process id of the second node's raylet."""
        return int(self.second.all_processes["raylet"][0].process.pid)

    def come_back(self) -> None:
        """Clear away what is left of the killed node and start another."""
        self.cluster.remove_node(self.second, allow_graceful=False)
        self.second = self.cluster.add_node(num_cpus=1)

    def workers(self, actors: bool) -> list[psutil.Process]:
        """Ray's worker processes on both nodes: those that hold an actor of the ingest, or the others."""
        found = []
        for node in self.cluster.list_all_nodes():
            raylet = node.all_processes.get("raylet")
            if not raylet or raylet[0].process.poll() is not None:
                continue
            for process in psutil.Process(raylet[0].process.pid).children(recursive=True):
                try:
                    title = " ".join(process.cmdline())
                except psutil.Error:
                    continue
                # A node's agents are its children too, and it ends with them.
                if title.startswith("ray::") and "Agent" not in title and ("MapWorker" in title) == actors:
                    found.append(process)
        return found


class Chaos:
    """One lake after another, until there were enough kills."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.folder = folder
        self.options = options
        self.random = random.Random(options.seed)
        self.killed: Counter[str] = Counter()
        self.stopped = 0
        self.settings = {
            "source": {"webdataset": str(folder / "data" / "*.tar"), "columns": {"site": "json.site"}},
            "encoders": {
                "tiny": {"timm": "test_resnet", "weights": "random", "image_size": 64, "precision": "float32"}
            },
            "commit_shards": 2,
        }

    def run(self) -> int:
        """Returns the exit status."""
        shards, rows = self.options.shards, self.options.rows
        generate(self.folder / "data", World(images=shards * rows, shards=shards))
        self.nodes = Nodes()
        try:
            os.environ["RAY_ADDRESS"] = self.nodes.address
            clean = Lake(self.folder / "clean")
            if self.start(clean).wait() != 0:
                raise SystemExit(f"the clean run failed: {self.log()[-800:]}")
            self.expected = content(clean)
            lakes = 0
            while self.killed.total() < self.options.kills:
                lakes += 1
                trouble = self.one_lake(Lake(self.folder / f"lake{lakes}"))
                if trouble:
                    print(f"lake {lakes}: {trouble}; seed {self.options.seed}")
                    return 1
                print(f"lake {lakes}: equal to the clean run; killed so far: {dict(self.killed)}", flush=True)
        finally:
            self.nodes.cluster.shutdown()
        print(
            f"{self.killed.total()} kills, {lakes} lakes, all equal to the clean run: {len(self.expected[0])} rows; "
            f"{self.stopped} ingests gave up with a sentence and were started again"
        )
        return 0

    def one_lake(self, lake: Lake) -> str:
        """Ingest under fire to the end; what is wrong with the table, or an empty string."""
        starts = calm = 0
        while True:
            starts += 1
            before = self.killed.total()
            code = self.one_driver(lake)
            if code == 0:
                break
            # Ray itself gives up at times when what it runs on is killed, or was just before; then one starts again.
            self.stopped += code > 0
            calm = 0 if self.killed.total() > before else calm + 1
            if starts > 50 or calm > 2:
                return f"the ingest ended with status {code}: {self.log()[-800:]}"
        states = Counter(Ledger(lake, "pool").rows().column("state").to_pylist())
        if states != {"done": self.options.shards}:
            return f"the ledger holds {dict(states)} of {self.options.shards} shards"
        if content(lake) != self.expected:
            return "the table differs from the clean run's"
        return ""

    def one_driver(self, lake: Lake) -> int:
        """Start an ingest and kill parts of it until it has ended; its exit status."""
        process = self.start(lake)
        self.wait_for_start(process, lake)
        while process.poll() is None and self.killed.total() < self.options.kills:
            # Some come while the ingest starts, most while shards are read and committed.
            moment = time.monotonic() + self.random.random() * 8
            while process.poll() is None and time.monotonic() < moment:
                time.sleep(0.005)
            if process.poll() is None:
                self.kill(self.random.choice(VICTIMS), process)
        try:
            return process.wait(timeout=300)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            print(f"an ingest hung: {self.log()[-800:]}")
            return -1

    def start(self, lake: Lake) -> subprocess.Popen[bytes]:
        """An ingest into the lake, in a process of its own."""
        command = [sys.executable, "-c", DRIVER, lake.uri, json.dumps(self.settings)]
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def wait_for_start(self, process: subprocess.Popen[bytes], lake: Lake) -> None:
        """Half of the drivers are left alone until the first actor is there, the others are not."""
        if self.random.random() < 0.5:
            while process.poll() is None and not self.nodes.workers(actors=True):
                time.sleep(0.02)

    def kill(self, victim: str, driver: subprocess.Popen[bytes]) -> None:
        """SIGKILL to one process of the kind, if there is one now."""
        if victim == "driver":
            driver.send_signal(signal.SIGKILL)
            driver.wait()
        elif victim == "raylet":
            with contextlib.suppress(ProcessLookupError):  # a node that misses heartbeats has ended by itself
                os.kill(self.nodes.raylet(), signal.SIGKILL)
            time.sleep(self.random.random())
            self.nodes.come_back()
        else:
            processes = self.nodes.workers(actors=victim == "actor")
            if not processes:
                return
            try:
                self.random.choice(processes).kill()
            except psutil.NoSuchProcess:
                return
        self.killed[victim] += 1

    def log(self) -> str:
        """What the drivers said."""
        return (self.folder / "log").read_text(errors="replace")


def content(lake: Lake) -> tuple[list[str], Any]:
    """Ids in order and the bytes of their vectors."""
    table = lake.table("pool").to_arrow(["id", "tiny"]).sort_by("id")
    return table.column("id").to_pylist(), table.column("tiny").combine_chunks().flatten().to_numpy().tobytes()


if __name__ == "__main__":
    sys.exit(main())
