"""A tiny Auto Arborist in its two forms, for ``test_contract.py``; see ``formats.py``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiny.formats import Built, Expected, png
from worlds.tfrecords import example, framed


def tree(idx: str, image: bytes, prefix: str = "", **more: Any) -> dict[str, list[Any]]:
    """The features of a record, in the spelling of the data card, or with the ``prefix`` of the README."""
    features: dict[str, list[Any]] = {
        "tree/tree_locations_idx" if prefix else "tree/idx": [idx.encode()],
        "tree/id": [f"id {idx}".encode()],
        "tree/city": [b"Los Angeles"],
        "tree/latitude": [1.5],
        "tree/longitude": [-2.25],
        "tree/genus/label": [325],
        "tree/genus/genus": [b"Ziziphus"],
        f"{prefix}streetlevel/encoded": [image],
        f"{prefix}streetlevel/capturetime": [b"July 2019"],
        f"{prefix}streetlevel/center/x": [3],
        f"{prefix}streetlevel/center/y": [4],
        f"{prefix}aerial/encoded": [b"from above"],
    }
    return {**features, **more}


def auto_arborist(root: Path) -> Any:
    folder = root / "release" / "tfrecords" / "los_angeles"
    folder.mkdir(parents=True)
    expected = {}
    for part, split in enumerate(("train", "test")):
        trees = [tree(f"{split}-{row}", png(row), "image/" if part else "") for row in range(2)]
        trees.append(tree("bare", b""))
        records = [framed(example(one)) for one in trees]
        (folder / f"{split}-00000-of-00001").write_bytes(b"".join(records))
        for row in range(2):
            record = {"tree_id": f"id {split}-{row}", "center": {"x": 3, "y": 4}, "tree_city": "Los Angeles"}
            wanted = Expected(png(row), None, "ziziphus", record)
            expected[f"release/los_angeles/{split}-{row}"] = wanted
    return Built({"auto_arborist": str(root / "release")}, expected, ["no_image", "no_image"])


def auto_arborist_images(root: Path) -> Any:
    top = root / "trees"
    (top / "tree_locations").mkdir(parents=True)
    expected = {}
    for city, name in (("new_york", "NewYork"), ("surrey", "Surrey")):
        (top / "photos" / city / "train").mkdir(parents=True)
        lines = ["IDX,SHAPE_LNG,SHAPE_LAT,GENUS,TAXONOMY_ID,OWNER"]
        for row in range(3):
            lines.append(f"t{row},-1.5,2.5,Acer,7,town")
            if row < 2:
                (top / "photos" / city / "train" / f"t{row}.png").write_bytes(png(row))
                expected[f"trees/{city}/t{row}"] = Expected(png(row), None, "acer", {"owner": "town"})
        (top / "tree_locations" / f"{name}Trees_train.csv").write_text("\n".join(lines) + "\n")
    spec = {"auto_arborist": str(top), "images": "photos", "file": "{city}/{split}/{idx}.png", "items_per_shard": 2}
    return Built(spec, expected, ["unreadable_file", "unreadable_file"])


BUILDERS: dict[str, Callable[[Path], Any]] = {
    "auto_arborist": auto_arborist,
    "auto_arborist_images": auto_arborist_images,
}
