"""Narrow tables with one row for each eligible row of an image table, aligned to its fragments.

Selections and cluster assignments are written this way: a task writes the rows of each fragment, the driver commits
them all at once, and the lineage says which rows belong to which fragment, so that a later step reads only its part.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from datas3_ray.lake.lake import Lake, check_name
from datas3_ray.lake.schemas import ID, with_kind
from datas3_ray.lake.storage import Mode, StorageOptions, commit, dataset_uri, open_dataset, write_fragments
from datas3_ray.lake.table import Table
from datas3_ray.lake.view import aligned_part
from datas3_ray.runtime import gather, remote

PARTS = "parts"
_OF_NOTHING = {"selection": pa.schema([ID, ("keep", pa.bool_())])}
"""What every table of a kind has, for one that was made of a table without rows."""


def write_aligned(
    lake: Lake,
    name: str,
    parts: list[Any],
    *,
    kind: str,
    fragment_ids: list[int],
    lineage: Callable[[list[dict[str, int]]], dict[str, Any]],
    make: Callable[..., pa.Table] | None = None,
    args: tuple[Any, ...] = (),
    mode: Mode = "overwrite",
) -> Table:
    """Write every part, or ``make(part, *args)`` of it, as the table ``name``, in one commit.

    ``lineage`` gets the tallies of all parts (``rows``, and ``kept`` where there is a ``keep`` column) and gives what
    the table's metadata will say. The table appears whole, or not at all; where it is there that was to be ``create``d,
    a TableExists is raised.
    """
    check_name(name)
    uri = dataset_uri(lake.uri, name)
    task = remote(_write).options(num_returns=2, num_cpus=1)
    pairs = [task.remote(make, uri, lake.options, part, *args) for part in parts]
    written = gather(pair[0] for pair in pairs)
    tallies = gather(pair[1] for pair in pairs)
    fragments: list[str] = []
    positions: list[tuple[int, list[int]]] = []
    for fragment_id, (_, texts) in zip(fragment_ids, written, strict=True):
        positions.append((fragment_id, list(range(len(fragments), len(fragments) + len(texts)))))
        fragments.extend(texts)
    found = written[0][0] if written else _OF_NOTHING.get(kind, pa.schema([ID]))
    schema = with_kind(found, kind, {**lineage(tallies), PARTS: positions})
    commit(uri, fragments, schema, mode=mode, commit_id=uuid.uuid4().hex, options=lake.options)
    return lake.table(name)


def part_positions(lineage: dict[str, Any]) -> dict[int, list[int]]:
    """Fragment id of the source table -> positions of the aligned table's fragments."""
    return dict(lineage.get(PARTS, []))


def aligned_refs(table: Table) -> tuple[list[int], list[Any]]:
    """The source's fragment ids, and a reference to each fragment's rows of an aligned table."""
    read = remote(_read).options(num_cpus=1)
    positions = part_positions(table.lineage())
    return list(positions), [read.remote(table.uri, table.version, mine, table.options) for mine in positions.values()]


def _read(uri: str, version: int, positions: list[int], options: StorageOptions | None) -> pa.Table:
    return aligned_part(open_dataset(uri, version, options), positions, None)


def _write(
    make: Callable[..., pa.Table] | None, uri: str, options: StorageOptions | None, part: Any, *args: Any
) -> tuple[tuple[pa.Schema, list[str]], dict[str, int]]:
    import pyarrow.compute as pc

    rows = make(part, *args) if make is not None else part
    rows = rows.set_column(0, ID, rows.column("id").cast(pa.string()))
    tally = {"rows": rows.num_rows}
    if "keep" in rows.schema.names:
        tally["kept"] = pc.sum(rows.column("keep")).as_py() or 0
    return (rows.schema, write_fragments(rows, uri, append=False, options=options)), tally
