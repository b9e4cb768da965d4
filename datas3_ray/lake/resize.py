"""A finished selection cut at another size."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from datas3_ray.errors import UsageError
from datas3_ray.kernels.ranking import resolve_size
from datas3_ray.lake.aligned import aligned_refs, write_aligned
from datas3_ray.lake.cut import apply_cut, find_cut
from datas3_ray.lake.schemas import fingerprint
from datas3_ray.runtime import ensure_ray

if TYPE_CHECKING:
    from datas3_ray.lake.selection import Selection


def resize(selection: Selection, size: int | float, name: str | None) -> Selection:
    """See :meth:`datas3_ray.lake.selection.Selection.resize`."""
    started = time.perf_counter()
    lineage = selection.lineage()
    if not lineage.get("resizable"):
        raise UsageError(
            f"selection '{selection.name}' of method {selection.method} has no ranking to cut at another size; "
            "run the method again with the size you want."
        )
    eligible = lineage["counts"]["eligible"]
    count = resolve_size(size, eligible)
    _require_ranked(selection, min(count, eligible))
    name = name or f"{selection.name}-{count}"
    mark = fingerprint({"resize": selection.fingerprint, "size": count})
    if selection.lake.exists(name):
        existing = selection.lake.selection(name)
        if existing.fingerprint == mark:
            return existing
        raise UsageError(
            f"selection '{name}' exists and is not '{selection.name}' at {count} rows; choose another name."
        )
    ensure_ray()
    fragment_ids, parts = aligned_refs(selection.table)
    cut = find_cut(parts, min(count, eligible))

    def new_lineage(tallies: list[dict[str, int]]) -> dict[str, Any]:
        kept = sum(tally["kept"] for tally in tallies)
        counts = lineage["counts"] | {
            "kept": kept,
            "dropped": eligible - kept,
            "shortfall": max(0, count - eligible),
        }
        return lineage | {
            "fingerprint": mark,
            "resized_from": selection.name,
            "inputs": {**lineage["inputs"], selection.name: selection.table.version},
            "size": count,
            "counts": counts,
            "seconds": round(time.perf_counter() - started, 3),
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }

    write_aligned(
        selection.lake,
        name,
        parts,
        kind="selection",
        fragment_ids=fragment_ids,
        lineage=new_lineage,
        make=_recut,
        args=(cut,),
    )
    return selection.lake.selection(name)


def _require_ranked(selection: Selection, count: int) -> None:
    """Some methods order only the rows that they keep: such a ranking can be cut shorter, not longer."""
    ranked = (selection.lineage().get("report") or {}).get("ranked")
    if ranked is not None and count > ranked:
        raise UsageError(
            f"selection '{selection.name}' of method {selection.method} ranks its first {ranked} rows only; "
            f"run the method again for {count}."
        )


def _recut(part: pa.Table, cut: Any) -> pa.Table:
    return apply_cut(part.drop_columns(["keep"]), cut)
