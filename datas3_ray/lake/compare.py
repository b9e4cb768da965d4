"""Two selections side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc

from datas3_ray.errors import UsageError

if TYPE_CHECKING:
    from datas3_ray.lake.lake import Lake


def compare(lake: Lake, first: str, second: str) -> dict[str, Any]:
    """Counts of what two selections of one table keep together and apart, and the parameters in which they differ.

    Raises
    ------
    UsageError
        When the selections are of different tables.
    """
    a, b = lake.selection(first), lake.selection(second)
    lineage_a, lineage_b = a.lineage(), b.lineage()
    if lineage_a["table"] != lineage_b["table"]:
        raise UsageError(
            f"'{first}' is a selection of '{lineage_a['table']}' and '{second}' of '{lineage_b['table']}'; "
            "only selections of one table can be compared."
        )
    ids_a, ids_b = a.ids(), b.ids()
    both = int(pc.sum(pc.is_in(ids_a, value_set=ids_b)).as_py() or 0)
    union = len(ids_a) + len(ids_b) - both
    parameters_a, parameters_b = _settings(lineage_a), _settings(lineage_b)
    keys = [key for key in {**parameters_a, **parameters_b} if parameters_a.get(key) != parameters_b.get(key)]
    return {
        "first": len(ids_a),
        "second": len(ids_b),
        "both": both,
        "only_first": len(ids_a) - both,
        "only_second": len(ids_b) - both,
        "jaccard": both / union if union else 1.0,
        "differ_in": ", ".join(f"{key}: {parameters_a.get(key)} / {parameters_b.get(key)}" for key in keys) or None,
    }


def _settings(lineage: dict[str, Any]) -> dict[str, Any]:
    shared = {key: lineage.get(key) for key in ("method", "within", "query", "size")}
    return {**shared, **lineage["parameters"]}
