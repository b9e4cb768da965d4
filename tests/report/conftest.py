"""Lakes as a page finds them: pictures in a tar, selections of them, and results."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from datas3_ray import Lake
from datas3_ray.lake.schemas import QUARANTINE, RESULTS, vector_field

CREATED = datetime(2026, 1, 2, 3, 4, tzinfo=timezone.utc)
ROWS = 60


def _png(seed: int, size: tuple[int, int] = (40, 30)) -> bytes:
    rng = np.random.default_rng(seed)
    out = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (4, 4, 3), np.uint8)).resize(size).save(out, "PNG")
    return out.getvalue()


def _image_rows(folder: Path, count: int = ROWS, **changes: Callable[[int], Any]) -> pa.Table:
    """Rows of images that are members of a tar, as an ingest leaves them."""
    folder.mkdir(parents=True, exist_ok=True)
    shard = folder / "00000.tar"
    with tarfile.open(shard, "w") as tar:
        for i in range(count):
            info = tarfile.TarInfo(f"{i:03d}.png")
            data = _png(i)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    with tarfile.open(shard) as tar:
        places = [(member.offset_data, member.size) for member in tar]
    rows = [
        {
            "id": f"00000/{i:03d}",
            "uri": str(shard),
            "offset": offset,
            "length": length,
            "caption": f"picture {i}",
            "label": None if i % 10 == 9 else ("zebra", "lion", "hare")[i % 3],
            **{name: change(i) for name, change in changes.items()},
        }
        for i, (offset, length) in enumerate(places)
    ]
    table = pa.Table.from_pylist(rows)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(2 * count, np.float32)), 2)
    identity = {"family": "timm", "model": "tf_efficientnet_lite0", "preprocessing": {"size": [128, 128]}}
    return table.append_column(vector_field("lite", 2, identity), vectors)


def _select(lake: Lake, name: str, keep: np.ndarray, minutes: int = 0, **lineage: Any) -> None:
    """A selection of the pool's first rows, as a method leaves it."""
    columns = lineage.pop("columns", {})
    ids = lake.table("pool").to_arrow(["id"]).column("id").to_pylist()[: len(keep)]
    kept = int(keep.sum())
    counts = {"eligible": len(keep), "kept": kept, "dropped": len(keep) - kept, "invalid": 2, "held_out": 5}
    record = {
        "method": "random",
        "parameters": {"size": 0.5, "seed": 0},
        "table": "pool",
        "within": None,
        "query": None,
        "inputs": {"pool": lake.table("pool").version},
        "born": lake.table("pool").born,
        "counts": counts,
        "code_version": "0.1.0",
        "seconds": 1.25,
        "created": (CREATED + timedelta(minutes=minutes)).isoformat(),
        "fingerprint": f"mark-{name}",
        "report": {"effective_sample_size": 12.5},
        **lineage,
    }
    lake.write(name, pa.table({"id": ids, "keep": keep, **columns}), kind="selection", lineage=record)


def _trial(deployment: str, method: str, test: float, size: int, **changes: Any) -> dict[str, Any]:
    return {
        "trial": f"{deployment}-{method}",
        "run": "probe",
        "deployment": deployment,
        "method": method,
        "selection": method,
        "selection_fingerprint": method,
        "model": "vit_linear_probe",
        "vector": "lite",
        "hyperparameters": json.dumps({"batch_size": 32, "learning_rate": 0.01}),
        "seed": 0,
        "metric": "accuracy",
        "higher_is_better": True,
        "validation": 0.5,
        "test": test,
        "best": True,
        "subset_size": size,
        "pool_size": 60,
        "train_rows": size,
        "missing_classes": 0,
        "test_rows": 100,
        "seconds": 1.0,
        "checkpoint": "",
        "lineage": "{}",
        "created": CREATED,
        **changes,
    }


@pytest.fixture
def image_rows() -> Callable[..., pa.Table]:
    """``image_rows(folder, count=60, **changes)``: rows of images that are members of a tar in ``folder``."""
    return _image_rows


@pytest.fixture
def select() -> Callable[..., None]:
    """``select(lake, name, keep, minutes=0, **lineage)``: a selection of the pool's first rows."""
    return _select


@pytest.fixture
def trial() -> Callable[..., dict[str, Any]]:
    """``trial(deployment, method, test, size, **changes)``: one row of the results."""
    return _trial


@pytest.fixture
def pool(tmp_path: Path) -> Lake:
    """A lake with one table of pictures."""
    lake = Lake(tmp_path / "lake")
    lake.write("pool", _image_rows(tmp_path / "data"), kind="image")
    return lake


@pytest.fixture
def full(pool: Lake) -> Lake:
    """A lake with all there can be."""
    place = np.arange(ROWS)
    reasons = ["truncated_image"] * 3 + ["bad_json"]
    rejects = [{"uri": "a.tar", "offset": i, "reason": reason, "error": "cut"} for i, reason in enumerate(reasons)]
    pool.write("pool.quarantine", pa.Table.from_pylist(rejects, schema=QUARANTINE), kind="quarantine")
    _select(pool, "half", place % 2 == 0, minutes=1, columns={"score": place / ROWS})
    similarity = (place / ROWS).astype(np.float32)
    partner = [None, *("00000/000" for _ in range(ROWS - 1))]
    _select(
        pool,
        "dedup",
        similarity <= 0.75,
        minutes=2,
        method="semdedup",
        parameters={"column": "lite", "clusters": 2, "eps": 0.25, "size": None},
        columns={"score": 1 - similarity, "max_similarity": similarity, "duplicate_of": pa.array(partner, pa.string())},
    )
    trials = [
        _trial("north", "everything", 0.7, 60),
        _trial("north", "half", 0.8125, 30),
        _trial("south", "everything", 0.6, 60),
        _trial("south", "half", 0.55, 30),
    ]
    pool.write("results", pa.Table.from_pylist(trials, schema=RESULTS), kind="results")
    return pool
