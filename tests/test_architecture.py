"""The house: imports point one way, and looking at the command's help loads nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "datas3_ray"
FLOORS = {
    "kernels": 0,
    "errors": 1,
    "texts": 1,
    "runtime": 1,
    "retry": 1,
    "lake": 2,
    "sources": 2,
    "encoders": 3,
    "sampling": 3,
    "exchange": 3,
    "clustering": 3,
    "cells": 4,
    "ingest_shards": 4,
    "ingest_ids": 4,
    "ingest_plan": 4,
    "ingest_output": 4,
    "ingest_worker": 4,
    "embed_plan": 4,
    "embed_worker": 4,
    "ingest": 5,
    "embed": 5,
    "selectors": 5,
    "training": 5,
    "benchmark": 5,
    "auto": 6,
    "report": 6,
    "steps": 7,
    "steps_auto": 7,
    "steps_benchmark": 7,
    "steps_combine": 7,
    "steps_ingest": 7,
    "steps_lake": 7,
    "steps_scores": 7,
    "step_kinds": 7,
    "recipe": 8,
    "cli_benchmark": 9,
    "cli_lake": 9,
    "cli_scores": 9,
    "cli": 9,
    "__main__": 10,
    "__init__": 10,
}
# What may be imported inside a function although it is higher: the user's short cuts on a lake's handle, and a step's
# look-up of files.
SHORT_CUTS = {
    ("lake", "ingest"),
    ("steps", "recipe"),
    ("steps_auto", "recipe"),
    ("steps_benchmark", "recipe"),
    ("encoders", "sources"),
}


def room(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imports(path: Path) -> list[tuple[str, bool]]:
    """Rooms of ours that a file imports at run time, and whether at the top of the file."""
    tree = ast.parse(path.read_text())
    found = []
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only or not isinstance(node, ast.ImportFrom) or not node.module:
            continue
        if node.module.startswith("datas3_ray."):
            found.append((node.module.split(".")[1], node in tree.body))
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    here = room(path)
    assert here in FLOORS, f"{here} has no floor in the house"
    for other, at_top in imports(path):
        if other == here or (not at_top and (here, other) in SHORT_CUTS):
            continue
        assert FLOORS[other] <= FLOORS[here], f"{path.name} in {here} imports {other}, which is above it"


def test_kernels_import_nothing_of_ours_but_kernels() -> None:
    for path in (PACKAGE / "kernels").glob("*.py"):
        assert {other for other, _ in imports(path)} <= {"kernels"}


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from datas3_ray import cli; "
        "print(sorted(set(sys.modules) & {'torch', 'ray', 'lance', 'lancedb', 'pyarrow', 'timm', 'pandas'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
