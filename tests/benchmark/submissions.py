"""Reading submissions and changing them, as someone with an editor could."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from datas3_ray.benchmark.verify import Check

CLASSES = ("ant", "bee", "cow")
NOW = datetime(2026, 1, 2, 3, 4, tzinfo=timezone.utc)
IDS = "selections/some/ids.jsonl"
Members = dict[str, bytes]


def rows(count: int) -> pa.Table:
    rng = np.random.default_rng(0)
    y = np.arange(count) % 3
    x = (1.5 * np.eye(3, 6)[y] + rng.normal(size=(count, 6))).astype(np.float32)
    return pa.table(
        {
            "id": [f"p{i:04d}" for i in range(count)],
            "label": [CLASSES[code] for code in y],
            "part": [("pool", "pool", "pool", "test", "query")[i // 3 % 5] for i in range(count)],
            "lite": pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), 6),
        }
    )


def failing(checks: list[Check]) -> dict[str, str]:
    return {check.name: check.sentence for check in checks if check.holds is False}


def read(path: str | Path) -> Members:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(path: Path, members: Members) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def manifest_of(members: Members, edit: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads(members["manifest.json"])
    edit(manifest)
    members["manifest.json"] = json.dumps(manifest).encode()


def put(members: Members, name: str, data: bytes, *, hashed: bool = True) -> None:
    """Change a member; ``hashed``: and the manifest, so that it matches."""
    members[name] = data
    if hashed:
        known = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        manifest_of(members, lambda manifest: manifest["members"].update({name: known}))


def put_trials(members: Members, edit: Callable[[list[dict[str, Any]]], Any]) -> None:
    trials = [json.loads(line) for line in members["trials.jsonl"].splitlines()]
    edit(trials)
    put(members, "trials.jsonl", "".join(f"{json.dumps(trial)}\n" for trial in trials).encode())


def raise_claim(members: Members) -> None:
    manifest_of(members, lambda manifest: manifest["cells"][0].update({"score": 0.999}))
