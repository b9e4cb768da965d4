"""Small tables of pictures whose class and number can be seen, for the tests of models of images."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from datas3_ray import Lake

CLASSES = ("ant", "bee", "cow")


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def picture(code: int, rng: np.random.Generator, side: int = 40) -> np.ndarray:
    """Noise in which one of the three colours is strong: the class."""
    pixels = rng.integers(0, 80, (side, side + 8, 3))
    pixels[:, :, code] += 120
    return pixels


def rows(count: int, prefix: str, seed: int, **columns: Any) -> pa.Table:
    """Pictures as stored bytes with ``label``, one of CLASSES in turn, and ``number``, the red colour's strength."""
    rng = np.random.default_rng(seed)
    pictures = [picture(number % 3, rng) for number in range(count)]
    glow = rng.uniform(0, 40, count)
    pictures = [np.clip(one + np.array([add, 0, 0]), 0, 255) for one, add in zip(pictures, glow, strict=True)]
    return pa.table(
        {
            "id": [f"{prefix}{number:04d}" for number in range(count)],
            "label": [CLASSES[number % 3] for number in range(count)],
            "number": [float(one[:, :, 0].mean()) for one in pictures],
            "image": pa.array([png(one) for one in pictures], pa.large_binary()),
            **columns,
        }
    )


def select(lake: Lake, name: str, keep: np.ndarray, table: str = "pool", **columns: Any) -> None:
    """A selection made by hand, with columns of its own."""
    pool = lake.table(table)
    ids = pool.to_arrow(["id"]).column("id")
    lineage = {
        "method": "handmade",
        "table": table,
        "inputs": {table: pool.version},
        "counts": {"kept": int(keep.sum())},
        "fingerprint": name,
    }
    lake.write(name, pa.table({"id": ids, "keep": pa.array(keep), **columns}), kind="selection", lineage=lineage)
