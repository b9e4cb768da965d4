"""Speed of training against what it is made of; floors in floors.yaml.

    python benchmarks/training.py [images] [probe] [overhead] [--images 2048] [--size 64] [--rounds 3]

``images``: images a second of training a network from a lake's rows (members of a tar file, read by byte ranges) over
the same network, augmentation and batch size fed by torch's ``DataLoader`` from a folder of the same JPEGs, with as
many workers as there are CPUs. The two take turns, and each keeps its best epoch. Once the lake's images are decoded
anew every epoch, which the floor is held against, and once they are kept decoded in memory.

``probe``: seconds of a whole sweep of the linear probe, nine grid points on 100,000 vectors of 512 dimensions, from the
table to its rows in the results; 10 epochs a point.

``overhead``: seconds of a trial beyond its training: of a probe on few rows, and of a network that two Ray Train
workers train, beside the same epochs by one worker in the trial's process.
"""

from __future__ import annotations

import argparse
import io
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import yaml
from PIL import Image

from datas3_ray import Lake
from datas3_ray.selectors import Everything
from datas3_ray.training.config import SweepConfig
from datas3_ray.training.image_rows import read_image_rows
from datas3_ray.training.loader import CROP_AREA, CROP_RATIO, Loader, LoaderSettings
from datas3_ray.training.pixels import cpus, margin
from datas3_ray.training.sweep import Deployment, SweepProgress, run_sweep

FLOORS = yaml.safe_load((Path(__file__).parent / "floors.yaml").read_text())["training"]


def jpegs(count: int, width: int = 160, height: int = 120) -> list[bytes]:
    """Pictures as camera traps send them after scaling, with some detail."""
    rng = np.random.default_rng(0)
    encoded = []
    for _ in range(count):
        soft = Image.fromarray(rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8))
        out = io.BytesIO()
        soft.resize((width, height), Image.Resampling.BICUBIC).save(out, "JPEG", quality=88)
        encoded.append(out.getvalue())
    return encoded


def lake_of(encoded: list[bytes], folder: Path) -> Lake:
    """A lake whose rows are members of one tar file."""
    shard = folder / "shard.tar"
    with tarfile.open(shard, "w") as tar:
        for number, data in enumerate(encoded):
            info = tarfile.TarInfo(f"{number:06d}.jpg")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    with tarfile.open(shard) as tar:
        members = tar.getmembers()
    lake = Lake(folder / "lake")
    lake.add(
        "pool",
        pa.table(
            {
                "id": [member.name for member in members],
                "uri": [str(shard)] * len(members),
                "offset": [member.offset_data for member in members],
                "length": [member.size for member in members],
            }
        ),
    )
    return lake


class Folder(torch.utils.data.Dataset):
    """JPEGs of a folder, scaled, cut and mirrored by torchvision as :class:`Loader` does it."""

    def __init__(self, folder: Path, size: int) -> None:
        from torchvision import transforms

        self.paths = sorted(folder.glob("*.jpg"))
        self.transform = transforms.Compose(
            [
                transforms.Resize(margin(size)),
                transforms.CenterCrop(margin(size)),
                transforms.RandomResizedCrop(size, scale=CROP_AREA, ratio=CROP_RATIO),
                transforms.RandomHorizontalFlip(),
                transforms.PILToTensor(),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, place: int) -> torch.Tensor:
        with Image.open(self.paths[place]) as image:
            return self.transform(image.convert("RGB"))


@dataclass
class Network:
    """A small network that is trained on whatever images come."""

    device: str
    module: Any
    optimizer: Any

    @staticmethod
    def made(device: str) -> Network:
        from torchvision.models import resnet18

        torch.manual_seed(0)
        module = resnet18(num_classes=10).to(device, memory_format=torch.channels_last)
        return Network(device, module, torch.optim.SGD(module.parameters(), lr=0.01))

    def epoch(self, batches: Iterable[torch.Tensor]) -> float:
        """Images a second, of an epoch."""
        started, seen = time.perf_counter(), 0
        for images in batches:
            seen += len(images)
            pixels = images.to(self.device, memory_format=torch.channels_last, non_blocking=True).float() / 255
            with torch.autocast("cuda", torch.bfloat16, enabled=self.device != "cpu"):
                loss = self.module(pixels).float().square().mean()
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
        if self.device != "cpu":
            torch.cuda.synchronize()
        return seen / (time.perf_counter() - started)


def images(count: int = 2048, size: int = 64, batch: int = 64, rounds: int = 3) -> bool:
    """Measure and print; whether the floor holds."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    encoded = jpegs(count)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "folder"
        folder.mkdir()
        for number, data in enumerate(encoded):
            (folder / f"{number:06d}.jpg").write_bytes(data)
        rows, _ = read_image_rows(lake_of(encoded, Path(name)).table("pool"), None, ())
        settings = {"size": size, "batch_size": batch, "augment": "crop"}
        started = time.perf_counter()
        streamed = Loader(rows, LoaderSettings(**settings, cache_bytes=0))
        first = time.perf_counter() - started
        kept = Loader(rows, LoaderSettings(**settings, cache_bytes=1 << 34))
        # Threads of the epoch and workers of the DataLoader share the CPUs with the network in both.
        theirs = torch.utils.data.DataLoader(
            Folder(folder, size), batch, shuffle=True, num_workers=cpus(), persistent_workers=True
        )
        network = Network.made(device)
        contestants: dict[str, Callable[[int], Iterable[torch.Tensor]]] = {
            "DataLoader": lambda number: theirs,
            "streamed": lambda number: (part.images for part in streamed.epoch(number)),
            "in memory": lambda number: (part.images for part in kept.epoch(number)),
        }
        best = dict.fromkeys(contestants, 0.0)
        for number in range(1, rounds + 2):
            for contestant, batches in contestants.items():
                rate = network.epoch(batches(number))
                if number > 1:  # the first epoch starts workers and warms caches
                    best[contestant] = max(best[contestant], rate)
    ratio = best["streamed"] / best["DataLoader"]
    print(f"{device}, {cpus()} CPUs, {count} JPEGs of 160 x 120, {size} px, batches of {batch}, resnet18")
    for contestant, rate in best.items():
        print(f"  {contestant:<12}{rate:>9.0f} images/s  {rate / best['DataLoader']:.2f}")
    print(f"  reading every image once before: {first:.2f} s ({count / first:.0f} images/s)")
    holds = ratio >= FLOORS["images"]
    print(f"images {ratio:.2f} (at least {FLOORS['images']}){'' if holds else '  MISSED'}")
    return holds


def rows_of_classes(count: int, dimensions: int, seed: int, prefix: str) -> pa.Table:
    """Ten classes as noisy directions."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 10, count)
    x = 0.1 * np.random.default_rng(0).normal(size=(10, dimensions)).astype(np.float32)[y]
    x += rng.normal(size=x.shape).astype(np.float32)
    return pa.table(
        {
            "id": [f"{prefix}{number:07d}" for number in range(count)],
            "label": [f"class {code}" for code in y],
            "vec": pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), dimensions),
        }
    )


def sweep(lake: Lake, name: str, **settings: Any) -> tuple[float, pa.Table]:
    """Wall seconds of a sweep of everything in ``pool`` for the deployment ``test``, and its results."""
    deployments = {"here": Deployment("here", "test", None, {"everything": "everything"})}
    with tempfile.TemporaryDirectory() as storage:
        started = time.perf_counter()
        found = run_sweep(
            lake, SweepConfig(**settings), name=name, deployments=deployments, storage=storage, progress=_quiet
        )
        return time.perf_counter() - started, found


def _quiet(progress: SweepProgress) -> None:
    pass


def probe(count: int = 100_000) -> bool:
    """All nine points of the default grid."""
    with tempfile.TemporaryDirectory() as name:
        lake = Lake(Path(name) / "lake")
        lake.add("pool", rows_of_classes(count, 512, 1, "p"))
        lake.add("test", rows_of_classes(2_000, 512, 2, "t"))
        Everything().select(lake, "pool", name="everything")
        sweep(lake, "warm", column="vec", epochs=1, grid={"batch_size": 1024, "lr": 0.1})
        seconds, found = sweep(lake, "nine", column="vec", epochs=10)
    trained = sum(found.column("seconds").to_pylist())
    holds = seconds <= FLOORS["probe_seconds"]
    print(f"probe {seconds:.1f} s (at most {FLOORS['probe_seconds']}){'' if holds else '  MISSED'}")
    print(f"  nine trials on {count} x 512, 10 epochs each, {trained:.1f} s of training in all")
    return holds


def overhead() -> bool:
    """Of a probe, and of two Ray Train workers."""
    with tempfile.TemporaryDirectory() as name:
        lake = Lake(Path(name) / "lake")
        lake.add("pool", rows_of_classes(300, 16, 1, "p").append_column("image", _pictures(300)))
        lake.add("test", rows_of_classes(50, 16, 2, "t").append_column("image", _pictures(50)))
        Everything().select(lake, "pool", name="everything")
        grid = {"batch_size": 32, "lr": [0.1 / 2**step for step in range(20)]}
        sweep(lake, "warm", column="vec", epochs=1, grid={"batch_size": 64, "lr": 1.0})
        seconds, found = sweep(lake, "probes", column="vec", epochs=1, max_concurrent=1, grid=grid)
        of_probe = (seconds - sum(found.column("seconds").to_pylist())) / len(grid["lr"])
        network = {
            "model": "vit_lora",
            "options": {"architecture": "test_vit", "image_size": 32},
            "grid": {"batch_size": 32, "lr": [0.01, 0.001, 0.0001]},
            "epochs": 1,
            "max_concurrent": 1,
        }
        sweep(lake, "warm-network", **(network | {"seed": 1}))
        alone, _ = sweep(lake, "one", **network)
        together, _ = sweep(lake, "two", **network, workers=2)
        of_gang = (together - alone) / 3
    holds = True
    for what, value in (("overhead_probe", of_probe), ("overhead_ray_train", of_gang)):
        held = value <= FLOORS[what]
        holds &= held
        print(f"{what} {value:.2f} s a trial (at most {FLOORS[what]}){'' if held else '  MISSED'}")
    return holds


def _pictures(count: int) -> pa.Array:
    return pa.array(jpegs(count, 32, 32), pa.large_binary())


JOBS = {"images": images, "probe": probe, "overhead": overhead}


def main() -> int:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", nargs="*", metavar="JOB", help="images, probe, overhead; all of them by default")
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    unknown = set(options.jobs) - set(JOBS)
    if unknown:
        parser.error(f"there is no job {', '.join(sorted(unknown))}; there are: {', '.join(JOBS)}")
    held = []
    for name in options.jobs or JOBS:
        sizes = (options.images, options.size, 64, options.rounds) if name == "images" else ()
        held.append(JOBS[name](*sizes))
    return int(not all(held))


if __name__ == "__main__":
    sys.exit(main())
