"""A finished selection cut at another size."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from datas3_ray.errors import UsageError
from datas3_ray.kernels.ranking import read_size, resolve_size
from datas3_ray.lake.aligned import aligned_refs, write_aligned
from datas3_ray.lake.cut import apply_cut, find_cut
from datas3_ray.lake.schemas import fingerprint
from datas3_ray.lake.splits import content_marks, held_out_ids, splits_of
from datas3_ray.lake.storage import TableExists
from datas3_ray.lake.view import Fragment, View, Within, rows_with
from datas3_ray.runtime import ensure_ray

if TYPE_CHECKING:
    from datas3_ray.lake.selection import Selection


@dataclass
class _Rows:
    """The rows to choose from, and what of them goes into the lineage.

    ``aligned`` are the pool's fragment ids and a part for each, None where all rows of the selection are still there.
    ``marks`` tell these rows from those that the selection was made of; there are none where they are the same.
    """

    aligned: tuple[list[int], list[Any]] | None
    counts: dict[str, int]
    inputs: dict[str, int]
    marks: dict[str, int | str]
    born: str | None


def resize(selection: Selection, size: int | float | str, name: str | None) -> Selection:
    """See :meth:`datas3_ray.lake.selection.Selection.resize`."""
    started = time.perf_counter()
    lineage = selection.lineage()
    if not lineage.get("resizable"):
        raise UsageError(
            f"selection '{selection.name}' of method {selection.method} has no ranking to cut at another size; "
            "run the method again with the size you want."
        )
    size = checked_size(size)
    rows = _rows(selection)
    eligible = rows.counts["eligible"]
    count = resolve_size(size, eligible)
    _require_ranked(selection, min(count, eligible))
    name = name or f"{selection.name}-{count}"
    mark = fingerprint({"resize": selection.fingerprint, "size": count, **({"of": rows.marks} if rows.marks else {})})
    if selection.lake.exists(name):
        existing = selection.lake.selection(name)
        if existing.fingerprint == mark:
            return existing
        raise UsageError(
            f"selection '{name}' exists and is not '{selection.name}' at {count} rows; choose another name."
        )
    ensure_ray()
    fragment_ids, parts = rows.aligned or aligned_refs(selection.table)
    cut = find_cut(parts, min(count, eligible))

    def new_lineage(tallies: list[dict[str, int]]) -> dict[str, Any]:
        kept = sum(tally["kept"] for tally in tallies)
        counts = rows.counts | {
            "kept": kept,
            "dropped": eligible - kept,
            "shortfall": max(0, count - eligible),
        }
        return lineage | {
            "fingerprint": mark,
            "born": rows.born,
            "marks": rows.marks or lineage.get("marks", {}),
            "resized_from": selection.name,
            "inputs": {**lineage["inputs"], **rows.inputs, selection.name: selection.table.version},
            "size": count,
            "counts": counts,
            "seconds": round(time.perf_counter() - started, 3),
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }

    try:
        write_aligned(
            selection.lake,
            name,
            parts,
            kind="selection",
            fragment_ids=fragment_ids,
            lineage=new_lineage,
            make=_recut,
            args=(cut,),
            mode="create",
        )
    except TableExists:  # another program took the name meanwhile: it is judged as any that is taken
        return resize(selection, size, name)
    return selection.lake.selection(name)


def checked_size(size: Any) -> int | float:
    """A size as people write it; a UsageError where it is none."""
    try:
        return read_size(size)
    except ValueError as error:
        raise UsageError(f"size = {size!r} is not allowed: {error}.") from None


def _rows(selection: Selection) -> _Rows:
    """All rows of the selection; without those that were deleted or set aside by a split since it was made."""
    lineage, lake = selection.lineage(), selection.lake
    same = _Rows(None, lineage["counts"], {}, {}, lineage.get("born"))
    if not lake.exists(lineage["table"]):
        return same
    pool = lake.image_table(lineage["table"])
    tables = [pool, *splits_of(lake, pool.name)]
    now, then = content_marks(tables), lineage.get("marks", {})
    if all(then.get(name) == mark for name, mark in now.items()):
        return same
    ensure_ray()
    view = View(pool, held_out=held_out_ids(tables[1:]))
    mapped = view.map(_still_there, selection.within(pool))
    counts = mapped.counts()
    inputs = {table.name: table.version for table in tables}
    known = {**vars(counts), "eligible": counts.eligible}
    return _Rows((view.fragment_ids, mapped.parts), known, inputs, now, pool.born)


def _still_there(fragment: Fragment, source: Within) -> pa.Table:
    """The selection's rows of those that a fragment has now, in its order."""
    ids = fragment.ids()
    rows = rows_with(source, fragment.fragment, ids, fragment.options)
    place = pc.index_in(ids, value_set=rows.column("id").combine_chunks())
    fragment.counts.outside += place.null_count
    return rows.take(place.drop_null())


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
