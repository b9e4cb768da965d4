"""Speed of an encoder against its bare model on the same device and precision, and of decoding and preparing images.

    python benchmarks/encode.py [--model tf_efficientnet_lite0] [--size 224] [--batch 256]

``encode`` takes prepared uint8 images and gives float32 vectors, so it pays for copies to the device, normalisation and
copies back, which the bare model does not. Its share of the bare model must reach the floor in floors.yaml.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image

from datas3_ray.encoders import parse_encoder
from datas3_ray.sources import decode_image


def jpegs(count: int, size: int) -> list[bytes]:
    """Images with some detail, as JPEG."""
    rng = np.random.default_rng(0)
    encoded = []
    for _ in range(count):
        small = Image.fromarray(rng.integers(0, 255, (size // 8, size // 8, 3), dtype=np.uint8))
        out = io.BytesIO()
        small.resize((size, size), Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
        encoded.append(out.getvalue())
    return encoded


def rate(count: int, work, repeats: int = 3) -> float:
    """Things a second, the best of some runs."""
    best = 0.0
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        best = max(best, count / (time.perf_counter() - started))
    return best


def main() -> int:
    """Measure, print, compare with the floor."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tf_efficientnet_lite0")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--images", type=int, default=0, help="0: 16 batches on a GPU, 2 on a CPU")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    spec = {"timm": options.model, "weights": "random", "image_size": options.size, "batch_size": options.batch}
    encoder = parse_encoder("bench", spec).build()
    encoded = jpegs(32, 512)
    images = [decode_image(data).image for data in encoded]
    decode = rate(len(encoded), lambda: [decode_image(data) for data in encoded])
    prepare = rate(len(images), lambda: [encoder.prepare(image) for image in images])
    count = options.images or options.batch * (16 if device == "cuda" else 2)
    prepared = [encoder.prepare(images[i % len(images)]) for i in range(count)]
    whole = rate(count, lambda: encoder.encode(prepared))
    bare = rate(count, lambda: bare_model(encoder, prepared[: options.batch], count))
    floor = yaml.safe_load((Path(__file__).parent / "floors.yaml").read_text())["encode"][device]
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{name}, {options.model} at {options.size} px, batches of {options.batch}, {encoder.identity['precision']}")
    print(f"decode  {decode:>9.0f} images/s on one thread (512 px JPEG)")
    print(f"prepare {prepare:>9.0f} images/s on one thread")
    print(f"encode  {whole:>9.0f} images/s, {whole / bare:.2f} of the bare model's {bare:.0f} (floor {floor:.2f})")
    return int(whole / bare < floor)


def bare_model(encoder, prepared: list[np.ndarray], count: int) -> None:
    """The model alone: one batch that is on the device already, again and again, nothing copied back."""
    batch = torch.from_numpy(np.stack(prepared)).to(encoder.runtime.device)
    with encoder.runtime.running():
        for _ in range(count // len(prepared)):
            encoder.forward(batch)


if __name__ == "__main__":
    sys.exit(main())
