"""Union, intersection and difference of selections of one pool, as a selection of its own."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datas3_ray import __version__
from datas3_ray.errors import UsageError, did_you_mean
from datas3_ray.lake.aligned import write_aligned
from datas3_ray.lake.lake import check_own_name
from datas3_ray.lake.schemas import fingerprint
from datas3_ray.lake.splits import content_marks, held_out_ids, splits_of
from datas3_ray.lake.storage import TableExists
from datas3_ray.lake.view import Fragment, View, Within, rows_with
from datas3_ray.runtime import ensure_ray

if TYPE_CHECKING:
    from datas3_ray.lake.lake import Lake
    from datas3_ray.lake.selection import Selection
    from datas3_ray.lake.table import Table

Operation = Literal["union", "intersect", "minus"]
OPERATIONS: tuple[str, ...] = get_args(Operation)
METHOD = "combine"


def combine(
    lake: Lake, operation: Operation, names: Sequence[str], name: str | None = None, *, replace: bool = False
) -> Selection:
    """A selection that keeps what a logic over other selections of the same table keeps.

    ==========  ==============================================  =============================================
    operation   eligible rows                                   kept rows
    ==========  ==============================================  =============================================
    union       eligible in any of them                         kept by any of them
    intersect   eligible in all of them                         kept by all of them
    minus       eligible in the first                           kept by the first and by none of the others
    ==========  ==============================================  =============================================

    The score is that of the first selection, and 1 where it has none; ``kept_by`` is how many of the selections keep
    the row. There is no ranking to cut at another size. Rows that a split has set aside since are left out.

    Parameters
    ----------
    lake : Lake
    operation : {"union", "intersect", "minus"}
    names : sequence of str
        Two selections or more.
    name : str, optional
        Name of the new selection; ``TABLE-OPERATION-FINGERPRINT`` by default.
    replace : bool
        Replace a selection of this name that was made otherwise. One made in just this way is returned as it is.

    Raises
    ------
    UsageError
        For an unknown operation or selection, fewer than two selections, one that is named twice, selections of
        different tables, or a name that is taken.

    >>> combine(lake, "intersect", ["clip30", "near-imagenet"], name="both")  # doctest: +SKIP
    Selection('both', method='combine', kept=1200)
    """
    started = time.perf_counter()
    selections, pool = _inputs(lake, operation, names)
    splits = splits_of(lake, pool.name)
    mark = _mark(operation, selections, pool, splits)
    name = name or f"{pool.name}-{operation}-{mark[:8]}"
    check_own_name(name)
    there = lake.exists(name)
    if there:
        existing = lake.table(name)
        if existing.kind != "selection":
            raise UsageError(f"'{name}' is a table of kind {existing.kind} already; choose another name.")
        if existing.lineage().get("fingerprint") == mark:
            return lake.selection(name)
        if not replace:
            raise UsageError(
                f"selection '{name}' exists and was made otherwise or from other versions; "
                "choose another name, or pass replace=True."
            )
        if name in names:
            raise UsageError(f"selection '{name}' cannot be replaced by a combination of itself; choose another name.")
    ensure_ray()
    view = View(pool, held_out=held_out_ids(splits))
    mapped = view.map(_combined, operation, [selection.within(pool) for selection in selections])

    def lineage(tallies: list[dict[str, int]]) -> dict[str, Any]:
        counts = mapped.counts()
        kept = sum(tally["kept"] for tally in tallies)
        return {
            "method": METHOD,
            "parameters": {operation: [selection.name for selection in selections]},
            "table": pool.name,
            "born": pool.born,
            "within": None,
            "query": None,
            "inputs": {table.name: table.version for table in (pool, *(s.table for s in selections))},
            "fingerprint": mark,
            "resizable": False,
            "size": None,
            "counts": {
                **vars(counts),
                "eligible": counts.eligible,
                "kept": kept,
                "dropped": counts.eligible - kept,
                "shortfall": 0,
            },
            "report": {"kept": {selection.name: len(selection) for selection in selections}},
            "code_version": __version__,
            "seconds": round(time.perf_counter() - started, 3),
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }

    try:
        write_aligned(
            lake,
            name,
            mapped.parts,
            kind="selection",
            fragment_ids=view.fragment_ids,
            lineage=lineage,
            mode="overwrite" if there else "create",
        )
    except TableExists:  # another program took the name meanwhile: it is judged as any that is taken
        return combine(lake, operation, names, name, replace=replace)
    return lake.selection(name)


def is_current(lake: Lake, operation: Operation, names: Sequence[str], name: str) -> bool:
    """Whether the selection ``name`` is there and :func:`combine` with the same arguments would do nothing."""
    if not all(lake.exists(wanted) for wanted in (name, *names)):
        return False
    selections, pool = _inputs(lake, operation, names)
    mark = _mark(operation, selections, pool, splits_of(lake, pool.name))
    return bool(lake.table(name).lineage().get("fingerprint") == mark)


def check(operation: str, names: Sequence[str]) -> None:
    """Raise a UsageError for what cannot be meant whatever the lake holds."""
    if isinstance(names, str):
        raise UsageError(f"{operation} takes a list of selections, such as [a, b], not '{names}'.")
    if operation not in OPERATIONS:
        raise UsageError(
            f"there is no operation '{operation}' on selections; there are: {', '.join(OPERATIONS)}."
            + did_you_mean(operation, OPERATIONS)
        )
    if len(names) < 2:
        raise UsageError(f"{operation} needs two selections or more, got {', '.join(names) or 'none'}.")
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise UsageError(f"{operation} names '{repeated[0]}' more than once; leave the repetition out.")


@dataclass(frozen=True)
class _Rows:
    """One selection's answers for some ids: whether it has each row, whether it keeps it, its score or NaN."""

    there: np.ndarray
    keep: np.ndarray
    score: np.ndarray


def _inputs(lake: Lake, operation: str, names: Sequence[str]) -> tuple[list[Selection], Table]:
    check(operation, names)
    selections = [lake.selection(name) for name in names]
    tables = [str(selection.lineage()["table"]) for selection in selections]
    for selection, table in zip(selections, tables, strict=True):
        if table != tables[0]:
            raise UsageError(
                f"selection '{selections[0].name}' was made from table '{tables[0]}' and '{selection.name}' from "
                f"'{table}'; {operation} takes selections of one table."
            )
    return selections, lake.image_table(tables[0])


def _mark(operation: str, selections: list[Selection], pool: Table, splits: list[Table]) -> str:
    return fingerprint(
        {
            "method": METHOD,
            "operation": operation,
            "selections": [[selection.name, selection.fingerprint] for selection in selections],
            "table": [pool.name, pool.content_mark],
            "held_out": content_marks(splits),
        }
    )


def _combined(fragment: Fragment, operation: str, sources: list[Within]) -> pa.Table:
    """The eligible rows of one fragment, in its own order."""
    ids = fragment.ids()
    found = [_look_up(fragment, source, ids) for source in sources]
    there = np.stack([rows.there for rows in found])
    keep = np.stack([rows.keep for rows in found])
    eligible = {"union": there.any(0), "intersect": there.all(0), "minus": there[0]}[operation]
    kept = {"union": keep.any(0), "intersect": keep.all(0), "minus": keep[0] & ~keep[1:].any(0)}[operation]
    fragment.counts.outside += int((~eligible).sum())
    score = np.where(np.isnan(found[0].score), 1.0, found[0].score)
    return pa.table(
        {
            "id": ids.filter(pa.array(eligible)),
            "keep": kept[eligible],
            "score": score[eligible],
            "kept_by": keep.sum(0)[eligible].astype(np.int32),
        }
    )


def _look_up(fragment: Fragment, source: Within, ids: pa.Array) -> _Rows:
    rows = rows_with(source, fragment.fragment, ids, fragment.options, ["id", "keep", "score"])
    place = pc.index_in(ids, value_set=rows.column("id").combine_chunks()).fill_null(-1).to_numpy()
    there = place >= 0
    keep = np.zeros(len(ids), bool)
    score = np.full(len(ids), np.nan)
    if there.any():
        keep[there] = rows.column("keep").to_numpy()[place[there]]
        score[there] = rows.column("score").cast(pa.float64()).to_numpy()[place[there]]
    return _Rows(there, keep, score)
