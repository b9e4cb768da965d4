"""Which JPEG decoder is fastest, gives Pillow's pixels and refuses what Pillow refuses; and what fitting saves.

    python benchmarks/decode.py [--folder PHOTOS] [--seconds 1.0] [--sizes 128,512,2048]

Pillow, torchvision, OpenCV and simplejpeg (each where it is installed) decode the same JPEGs to an RGB image as the
encoders take it (``PIL.Image``) and to a bare array, on one and on two threads. The decoders take turns, several times,
and each keeps its best time (the processor's on one thread, the clock's on two), so that other work on the machine
falls on all of them. *same* is whether every pixel is Pillow's. *damage* is how many of the damaged copies (cut, with
bytes changed, with a hole) are treated as Pillow treats them: refused by both, or decoded to the same pixels. Pillow's
time is that of ``decode_image``: it includes the limit on pixels, EXIF and what else the others would still have to do.
Images are generated; ``--folder`` takes JPEGs of yours instead. There is no floor: the answer decides which decoder
``datas3_ray.sources.decode`` uses.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datas3_ray.sources import ImageError, decode_image

ROUNDS = 20


@dataclass(frozen=True)
class Decoder:
    """``decode`` gives an RGB ``PIL.Image`` or raises, ``array`` a (height, width, 3) array."""

    name: str
    decode: Callable[[bytes], Image.Image]
    array: Callable[[bytes], Any] | None = None


def decoders() -> list[Decoder]:
    """Those that are installed, Pillow first."""
    found = [Decoder("pillow", lambda data: decode_image(data).image)]
    for make in (torchvision, opencv, simplejpeg):
        try:
            found.append(make())
        except ImportError as error:
            print(f"left out: {error}", file=sys.stderr)
    return found


def torchvision() -> Decoder:
    """torchvision.io, on one thread of its own."""
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    torch.set_num_threads(1)

    def array(data: bytes) -> Any:
        tensor = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
        return tensor.permute(1, 2, 0).numpy()

    return Decoder("torchvision", lambda data: Image.fromarray(array(data)), array)


def opencv() -> Decoder:
    """cv2.imdecode, which gives None where others raise."""
    import cv2

    cv2.setNumThreads(1)
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION

    def array(data: bytes) -> Any:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        if pixels is None:
            raise ValueError("cv2 gave nothing")
        return pixels

    return Decoder("opencv", lambda data: Image.fromarray(array(data)), array)


def simplejpeg() -> Decoder:
    """simplejpeg with the exact transform and upsampling."""
    import simplejpeg

    def array(data: bytes) -> Any:
        return simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False)

    return Decoder("simplejpeg", lambda data: Image.fromarray(array(data)), array)


def generated(count: int, size: int) -> list[bytes]:
    """Soft light, shapes with hard edges and sensor noise: as many bytes a pixel as a photograph has."""
    rng = np.random.default_rng(size)
    images = []
    for _ in range(count):
        soft = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        image = soft.resize((size, size * 3 // 4), Image.Resampling.BICUBIC)
        for _ in range(12):
            box = Image.new(
                "RGB", tuple(rng.integers(size // 32, size // 4, 2)), tuple(rng.integers(0, 256, 3).tolist())
            )
            image.paste(box, tuple(rng.integers(0, size * 3 // 4, 2).tolist()))
        noisy = np.asarray(image) + rng.normal(0, 5, (size * 3 // 4, size, 3))
        buffer = io.BytesIO()
        Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=88)
        images.append(buffer.getvalue())
    return images


def damaged(images: list[bytes], copies: int) -> list[bytes]:
    """Cut, with some bytes changed, or with a hole of zeros."""
    rng = np.random.default_rng(0)
    spoilt = []
    for n in range(copies):
        data = bytearray(images[n % len(images)])
        at = int(rng.integers(20, len(data) - 20))
        if n % 3 == 0:
            del data[at:]
        elif n % 3 == 1:
            for place in rng.integers(2, len(data), 4):
                data[place] = int(rng.integers(0, 256))
        else:
            data[at : at + 64] = bytes(min(64, len(data) - at))
        spoilt.append(bytes(data))
    return spoilt


def outcome(decode: Callable[[bytes], Image.Image], data: bytes) -> bytes | None:
    """The pixels, or None where it refuses."""
    try:
        return decode(data).tobytes()
    except (ImageError, ValueError, RuntimeError, OSError):
        return None


def best_times(
    jobs: dict[str, Callable[[bytes], Any]], images: list[bytes], threads: int, seconds: float
) -> dict[str, float]:
    """Seconds an image, the best of some rounds in which the jobs take turns; of the processor, on one thread."""
    clock = time.process_time if threads == 1 else time.perf_counter
    best = dict.fromkeys(jobs, float("inf"))
    repeat = {name: _repeats(job, images, seconds / ROUNDS * threads) for name, job in jobs.items()}
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(ROUNDS):
            for name, job in jobs.items():
                work = images * repeat[name]
                started = clock()
                _exhaust(pool.map(job, work) if threads > 1 else map(job, work))
                best[name] = min(best[name], (clock() - started) / len(work))
    return best


def _repeats(job: Callable[[bytes], Any], images: list[bytes], seconds: float) -> int:
    started = time.perf_counter()
    _exhaust(map(job, images))
    return max(1, round(seconds / (time.perf_counter() - started)))


def _exhaust(results: Iterable[Any]) -> None:
    for _ in results:
        pass


def speed_table(label: str, images: list[bytes], seconds: float) -> None:
    """One row a decoder: milliseconds an image and how many times as fast as Pillow."""
    known = decoders()
    jobs: dict[str, Callable[[bytes], Any]] = {one.name: one.decode for one in known}
    jobs |= {f"{one.name}, array": one.array for one in known if one.array}
    single, double = (best_times(jobs, images, threads, seconds) for threads in (1, 2))
    reference = [outcome(known[0].decode, data) for data in images]
    spoilt = damaged(images, 60)
    expected = [outcome(known[0].decode, data) for data in spoilt]
    mean = sum(map(len, images)) // len(images)
    print(f"\n{label}, {len(images)} JPEGs of {mean:,} bytes")
    print(f"{'decoder':<20}{'1 thread':>11}{'':>8}{'2 threads':>11}{'':>8}{'same':>7}{'damage':>9}")
    for name in jobs:
        same = damage = ""
        if "array" not in name:
            decode = jobs[name]
            same = "yes" if [outcome(decode, data) for data in images] == reference else "no"
            agreed = sum(outcome(decode, data) == wanted for data, wanted in zip(spoilt, expected, strict=True))
            damage = f"{agreed}/{len(spoilt)}"
        rows = [f"{times[name] * 1e3:>8.3f} ms{times['pillow'] / times[name]:>7.2f}x" for times in (single, double)]
        print(f"{name:<20}{rows[0]}{rows[1]}{same:>7}{damage:>9}")


def fit_table(label: str, images: list[bytes], sides: tuple[int, ...], seconds: float) -> None:
    """What ``fit`` saves, and how far the scaled image is from the whole one scaled down to the same size."""
    jobs: dict[str, Callable[[bytes], Any]] = {"whole": decode_image}
    jobs |= {f"fit {side}": partial(decode_image, fit=side) for side in sides}
    single, double = (best_times(jobs, images, threads, seconds) for threads in (1, 2))
    print(f"\n{label}: Pillow with and without scaling in the DCT")
    print(f"{'':<20}{'1 thread':>11}{'':>8}{'2 threads':>11}{'':>8}{'size':>12}{'difference':>12}")
    for name, job in jobs.items():
        image = job(images[0]).image
        whole = decode_image(images[0]).image.resize(image.size, Image.Resampling.BOX)
        apart = np.abs(np.asarray(whole).astype(int) - np.asarray(image)).mean()
        rows = [f"{times[name] * 1e3:>8.3f} ms{times['whole'] / times[name]:>7.2f}x" for times in (single, double)]
        print(f"{name:<20}{rows[0]}{rows[1]}{image.width:>6} x {image.height:<5}{apart:>9.2f}")


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="decode the .jpg files in this folder instead of generated ones")
    parser.add_argument("--sizes", default="128,512,2048", help="widths in pixels of the generated images")
    parser.add_argument("--seconds", type=float, default=1.0, help="time for each decoder and number of threads")
    parser.add_argument("--fit", default="64,224", help="sides to fit")
    options = parser.parse_args()
    sides = tuple(int(side) for side in options.fit.split(","))
    if options.folder:
        files = sorted(options.folder.glob("*.jp*g"))[:200]
        if not files:
            parser.error(f"there are no .jpg files in {options.folder}")
        sets = {str(options.folder): [file.read_bytes() for file in files]}
    else:
        sizes = [int(size) for size in options.sizes.split(",")]
        sets = {f"{size} x {size * 3 // 4}": generated(max(2, min(16, 4096 // size)), size) for size in sizes}
    for label, images in sets.items():
        speed_table(label, images, options.seconds)
        fit_table(label, images, sides, options.seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
