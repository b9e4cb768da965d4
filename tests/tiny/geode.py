"""A tiny GeoDE, for ``test_contract.py``; see ``formats.py``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiny.formats import Built, Expected, png


def geode(root: Path) -> Any:
    """Four images, a row whose file is missing, one without a file and one that leads out."""
    lines = ["file_path,object,region,ip_country,batch"]
    expected = {}
    for number, country in enumerate(("Nigeria", "South Africa", "Indonesia", "Malaysia")):
        label = ("stove", "tree")[number % 2]
        path = f"{number}.{label}/{country.replace(' ', '_')}_{label}_{number}"
        file = root / "geode/images" / f"{path}.png"
        file.parent.mkdir(parents=True)
        file.write_bytes(png(number))
        region = "Africa" if number < 2 else "SouthEastAsia"
        lines.append(f"{path}.png,{label},{region},{country},b{number}")
        expected[f"geode/{path}"] = Expected(png(number), None, label, {"batch": f"b{number}"})
    lines += ["gone.png,stove,Africa,Nigeria,b", ",stove,Africa,Nigeria,b", "../index.png,stove,Africa,Nigeria,b"]
    (root / "geode/index.csv").write_text("\n".join(lines) + "\n")
    spec = {"geode": str(root / "geode"), "items_per_shard": 3}
    return Built(spec, expected, ["bad_record", "bad_record", "unreadable_file"])


BUILDERS: dict[str, Callable[[Path], Any]] = {"geode": geode}
