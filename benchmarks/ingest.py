"""Speed of the whole ingest against a bare loop, and its memory against the number of rows.

    python benchmarks/ingest.py [pipeline] [trivial] [vectors] [memory]

``pipeline`` and ``trivial``: images/s of an ingest, writing and commits included and start-up of the actors apart,
against a bare loop over the same images in one process pool with the same decoder, the same encoder and as many
processes. ``trivial`` has an encoder that costs next to nothing, so that decoding bounds it. ``vectors``: rows/s of
bringing ready vectors in, against ``lance.write_dataset`` of the same Arrow data from one process. ``memory``: peak
resident memory of the driver and of its workers at 20,000, 200,000 and 2,000,000 rows of ready vectors, each in a
process of its own. Shares must reach the floors in floors.yaml. Timings need an idle machine.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import yaml
from PIL import Image

FLOORS = yaml.safe_load((Path(__file__).parent / "floors.yaml").read_text())["ingest"]
ENCODERS = {
    "pipeline": {"timm": "tf_efficientnet_lite0", "weights": "random", "image_size": 224, "batch_size": 64},
    "trivial": {"timm": "test_resnet", "weights": "random", "image_size": 32, "batch_size": 64},
}
WHAT = ("pipeline", "trivial", "vectors", "memory")


def main() -> int:
    """Measure what is asked for; exit status 1 where a share is below its floor."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=WHAT, metavar="|".join(WHAT))
    parser.add_argument("--images", type=int, default=2400, help="images of the pipeline")
    parser.add_argument("--edge", type=int, default=512, help="their longest side in pixels")
    parser.add_argument("--rows", type=int, default=200_000, help="ready vectors")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        return memory_of(Path(options.memory_of))
    unknown = set(options.what) - set(WHAT)
    if unknown:
        parser.error(f"unknown benchmark {unknown.pop()!r}; they are {', '.join(WHAT)}")
    with tempfile.TemporaryDirectory() as folder:
        passed = [run(name, Path(folder) / name, options) for name in options.what]
    return int(not all(passed))


def run(name: str, folder: Path, options: argparse.Namespace) -> bool:
    """One benchmark; whether its share reached the floor."""
    folder.mkdir()
    if name == "vectors":
        return vectors(folder, options)
    if name == "memory":
        return memory(folder)
    return pipeline(name, folder, options)


# -- images ----------------------------------------------------------------------------------------------------------


def write_shards(folder: Path, images: int, edge: int, shards: int = 24) -> list[str]:
    """Tars of JPEGs with some detail."""
    rng = np.random.default_rng(0)
    encoded = []
    for _ in range(64):
        small = Image.fromarray(rng.integers(0, 255, (edge * 3 // 32, edge // 8, 3), dtype=np.uint8))
        out = BytesIO()
        small.resize((edge, edge * 3 // 4), Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
        encoded.append(out.getvalue())
    paths = []
    for shard in range(shards):
        paths.append(str(folder / f"{shard:05}.tar"))
        with tarfile.open(paths[-1], "w") as tar:
            for number in range(images // shards):
                member = tarfile.TarInfo(f"{number:06}.jpg")
                data = encoded[(shard + number) % len(encoded)]
                member.size = len(data)
                tar.addfile(member, BytesIO(data))
    return paths


_ENCODER: Any = None


def start_bare(spec: dict[str, Any]) -> None:
    """Load the encoder in a process of the pool, on one thread as an actor has."""
    global _ENCODER
    import torch

    from datas3_ray.encoders import parse_encoder

    torch.set_num_threads(1)
    _ENCODER = parse_encoder("bench", spec).build()
    _ENCODER.encode([_ENCODER.prepare(Image.new("RGB", (64, 64)))])


def bare(path: str) -> int:
    """The bare loop over one shard: read, decode, prepare, encode; the vectors go nowhere."""
    from datas3_ray.sources import decode_image

    count, batch = 0, []
    with tarfile.open(path) as tar:
        for member in tar:
            file = tar.extractfile(member)
            assert file is not None
            batch.append(_ENCODER.prepare(decode_image(file.read()).image))
            count += 1
            if len(batch) == 64:
                _ENCODER.encode(batch)
                batch = []
    if batch:
        _ENCODER.encode(batch)
    return count


def pipeline(name: str, folder: Path, options: argparse.Namespace) -> bool:
    """An ingest against the bare loop, and where the time goes."""
    spec = ENCODERS[name]
    paths = write_shards(folder, options.images, options.edge)
    cores = len(os.sched_getaffinity(0))
    loops, ingests, starts = [], [], []
    for repeat in range(options.repeats):
        with multiprocessing.get_context("spawn").Pool(cores, start_bare, (spec,)) as pool:
            pool.map(abs, range(cores * 8), chunksize=1)  # every process has its encoder
            time.sleep(1)
            started = time.perf_counter()
            images = sum(pool.imap_unordered(bare, paths))
            loops.append(images / (time.perf_counter() - started))
        rate, start = timed_ingest(folder / f"lake{repeat}", {"webdataset": paths}, {"bench": spec})
        ingests.append(rate)
        starts.append(start)
    stages(paths[0], spec, folder)
    share = max(ingests) / max(loops)
    print(
        f"{name}: ingest {max(ingests):.0f} images/s (all runs {_list(ingests)}), bare loop {max(loops):.0f} "
        f"({_list(loops)}): {share:.2f}, floor {FLOORS[name]:.2f}; actors start in {min(starts):.1f} s; {cores} cores"
    )
    return bool(share >= FLOORS[name])


def timed_ingest(lake_uri: Path, source: dict[str, Any], encoders: dict[str, Any] | None) -> tuple[float, float]:
    """Rows/s from the first shard's start to the last commit, and seconds until that start."""
    import datas3_ray.ingest as module
    from datas3_ray import Lake
    from datas3_ray.runtime import ensure_ray

    ensure_ray()
    begins: list[float] = []
    real = module._stream

    def watched(*arguments: Any) -> Any:
        for result in real(*arguments):
            begins.append(time.perf_counter() - result["entry"]["seconds"])
            yield result

    module._stream = watched
    try:
        called = time.perf_counter()
        config = module.parse_config({"source": source, "encoders": encoders, "compact": False})
        summary = module.ingest(Lake(lake_uri), "pool", config, progress=False)
        ended = time.perf_counter()
    finally:
        module._stream = real
    assert summary.rejects == 0, summary.sentence()
    return summary.rows / (ended - min(begins)), min(begins) - called


def stages(path: str, spec: dict[str, Any], folder: Path) -> None:
    """Seconds for 1,000 images on one thread: read, decode and prepare; encode; write."""
    from datas3_ray.lake.schemas import vector_field
    from datas3_ray.lake.storage import write_fragments
    from datas3_ray.sources import Sample, decode_image, parse_source

    start_bare(spec)
    source = parse_source({"webdataset": path})
    seconds = dict.fromkeys(("read", "decode", "prepare", "encode", "write"), 0.0)

    def timed(stage: str, work: Any) -> Any:
        started = time.perf_counter()
        result = work()
        seconds[stage] += time.perf_counter() - started
        return result

    samples = [s for s in timed("read", lambda: list(source.read(source.shards()[0]))) if isinstance(s, Sample)]
    images = timed("decode", lambda: [decode_image(sample.image).image for sample in samples])
    inputs = timed("prepare", lambda: [_ENCODER.prepare(image) for image in images])
    made = timed("encode", lambda: [_ENCODER.encode(inputs[at : at + 64]) for at in range(0, len(inputs), 64)])
    matrix = np.concatenate(made)
    field = vector_field("bench", matrix.shape[1])
    column = pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), matrix.shape[1])
    rows = pa.table({"id": [sample.id for sample in samples], "bench": column.cast(field.type)})
    timed("write", lambda: write_fragments(rows, str(folder / "stages.lance"), append=False))
    each = {stage: 1000 * value / len(samples) for stage, value in seconds.items()}
    bound = max(each, key=lambda stage: each[stage])
    print("  seconds for 1,000 images on one thread: " + ", ".join(f"{k} {v:.2f}" for k, v in each.items()), end="")
    print(f"; {bound} bounds")


# -- ready vectors -----------------------------------------------------------------------------------------------------


def write_vectors(folder: Path, rows: int, dim: int, shards: int) -> str:
    """Shards of .npy vectors with their ids beside them."""
    rng = np.random.default_rng(0)
    for shard in range(shards):
        count = rows // shards
        np.save(folder / f"{shard:05}.npy", rng.standard_normal((count, dim), dtype=np.float32))
    return str(folder / "*.npy")


def vectors(folder: Path, options: argparse.Namespace) -> bool:
    """Bringing ready vectors in, against one process that writes the same Arrow data."""
    import lance

    dim, shards = 512, 8
    pattern = write_vectors(folder, options.rows, dim, shards)
    source = {"vectors": pattern, "column": "clip"}
    plain, ours = [], []
    for repeat in range(options.repeats):
        rate, _ = timed_ingest(folder / f"lake{repeat}", source, None)
        ours.append(rate)
        from datas3_ray import Lake

        data = Lake(folder / f"lake{repeat}").table("pool").to_arrow()
        started = time.perf_counter()
        lance.write_dataset(data, str(folder / f"plain{repeat}.lance"))
        plain.append(data.num_rows / (time.perf_counter() - started))
        del data
    share = max(ours) / max(plain)
    print(
        f"vectors: ingest {max(ours):,.0f} rows/s of {dim} dimensions ({_list(ours)}), lance.write_dataset "
        f"{max(plain):,.0f} ({_list(plain)}): {share:.2f}, floor {FLOORS['vectors']:.2f}"
    )
    return bool(share >= FLOORS["vectors"])


# -- memory ------------------------------------------------------------------------------------------------------------


def memory(folder: Path) -> bool:
    """Peak memory at three sizes; it must not grow from the second to the third."""
    peaks = {}
    for rows in (20_000, 200_000, 2_000_000):
        here = folder / str(rows)
        here.mkdir()
        write_vectors(here, rows, 64, rows // 10_000)
        command = [sys.executable, __file__, "--memory-of", str(here)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks[rows] = json.loads(done.stdout.splitlines()[-1])
        megabytes = {name: f"{value / 1e6:.0f} MB" for name, value in peaks[rows].items()}
        print(f"memory: {rows:>9,} rows: driver {megabytes['driver']}, largest worker {megabytes['worker']}")
    growth = max(peaks[2_000_000][name] / peaks[200_000][name] for name in ("driver", "worker"))
    print(f"memory: from 200,000 to 2,000,000 rows x {growth:.3f}, at most {FLOORS['memory_growth']:.2f}")
    return bool(growth <= FLOORS["memory_growth"])


def memory_of(folder: Path) -> int:
    """Ingest the folder's vectors and print the peaks."""
    from datas3_ray import Lake
    from datas3_ray.ingest import ingest, parse_config
    from datas3_ray.runtime import ensure_ray

    ensure_ray()
    peaks = {"driver": 0, "worker": 0}
    done = threading.Event()

    def watch() -> None:
        me = psutil.Process()
        while not done.wait(0.02):
            peaks["driver"] = max(peaks["driver"], private(me))
            for process in me.children(recursive=True):
                try:
                    if "MapWorker" in " ".join(process.cmdline()):
                        peaks["worker"] = max(peaks["worker"], private(process))
                except psutil.Error:
                    continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    config = parse_config({"source": {"vectors": str(folder / "*.npy"), "column": "clip"}})
    ingest(Lake(folder / "lake"), "pool", config, progress=False)
    done.set()
    watcher.join()
    print(json.dumps(peaks))
    return 0


def private(process: psutil.Process) -> int:
    """Resident memory that is not a file's or shared: pages of mapped shards are the system's to take back."""
    info = process.memory_info()
    return int(info.rss - info.shared)


def _list(values: list[float]) -> str:
    return ", ".join(f"{value:,.0f}" for value in values)


if __name__ == "__main__":
    sys.exit(main())
