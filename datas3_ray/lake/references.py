"""Which old versions of a lake's tables something still refers to, and must therefore never be pruned."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc

from datas3_ray.errors import Datas3Error
from datas3_ray.lake.lease import holder
from datas3_ray.lake.ledger import PREPARED, ledger_name
from datas3_ray.lake.storage import dataset_uri, open_dataset

if TYPE_CHECKING:
    from datas3_ray.lake.lake import Lake
    from datas3_ray.lake.table import Table

Version = tuple[str, int]

EMBED_SUFFIX = ".embed"
"""Ending of the table in which an unfinished embed keeps its fragments."""


def referenced_versions(lake: Lake) -> dict[str, set[int]]:
    """Table name -> the versions of it that must stay readable.

    These are every table's newest version, tagged versions, and the versions that a lineage names as inputs: of
    selections, cluster assignments, centroids and splits, and of each row of a results table. A version that is kept
    has a lineage of its own, whose inputs are kept too. Inputs that are no longer there are passed over.
    """
    tables = lake.tables()
    kept: dict[str, set[int]] = {table.name: set() for table in tables}
    waiting: list[Version] = []
    for table in tables:
        tagged = [int(tag["version"]) for tag in table.dataset.tags.list().values()]
        waiting += [(table.name, version) for version in (table.version, *tagged)]
    while waiting:
        name, version = waiting.pop()
        if name not in kept or version in kept[name]:
            continue
        table_then = _opened(lake, name, version)
        if table_then is None:
            continue
        kept[name].add(version)
        waiting.extend(_inputs(table_then))
    return kept


def unfinished(lake: Lake, name: str) -> str | None:
    """Why the history of table ``name`` is still needed by a run that was cut short; None where no run was.

    A killed ingest finds out from the table's transactions which of its commits happened, and a killed embed has
    written files that no version refers to yet.
    """
    table = name.removesuffix(".quarantine")
    ledger = ledger_name(table)
    columns = set(lake.table(ledger).schema.names) if lake.exists(ledger) else set()
    if columns >= {"shard", "config", "commit", "created", "state"}:
        running = holder(lake, ledger)
        if running:
            return f"an ingest into '{table}' is under way ({running})"
        states = lake.table(ledger).to_arrow(["state"]).column("state")
        if pc.any(pc.equal(states, PREPARED)).as_py():
            return f"an ingest into '{table}' was cut short; run it again first"
    return unfinished_embed(lake, name)


def unfinished_embed(lake: Lake, name: str) -> str | None:
    """Why the fragments of table ``name`` should stay as they are: an embed has finished some of them."""
    staged = f"{name}{EMBED_SUFFIX}"
    if lake.exists(staged) and lake.table(staged).count_rows():
        return f"an embed of '{name}' was cut short or is under way; run it to its end first"
    return None


def pending_fragments(lake: Lake) -> Iterator[tuple[str, str]]:
    """Table and fragment metadata (JSON) of what cut-short ingests and embeds wrote and will still commit."""
    for ledger in lake.tables("ledger"):
        rows = ledger.to_arrow()
        if ledger.name.endswith(EMBED_SUFFIX):
            yield from ((ledger.name.removesuffix(EMBED_SUFFIX), text) for text in rows.column("metadata").to_pylist())
            continue
        if "state" not in rows.schema.names:
            continue
        table = ledger.name.removesuffix(".ledger")
        rows = rows.filter(pc.equal(rows.column("state"), PREPARED))
        for column, target in (("fragments", table), ("quarantine_fragments", f"{table}.quarantine")):
            for texts in rows.column(column).to_pylist():
                yield from ((target, text) for text in json.loads(texts or "[]"))


def _opened(lake: Lake, name: str, version: int) -> Table | None:
    from datas3_ray.lake.table import Table

    try:
        dataset = open_dataset(dataset_uri(lake.uri, name), version, lake.options)
    except Datas3Error:
        return None
    return Table(name, dataset, lake.options) if dataset is not None else None


def _inputs(table: Table) -> Iterator[Version]:
    yield from _versions(table.lineage())
    if table.kind == "results":
        texts: dict[str, None] = dict.fromkeys(table.to_arrow(["lineage"]).column("lineage").to_pylist())
        for text in texts:
            yield from _versions(json.loads(text or "{}"))


def _versions(lineage: dict[str, Any]) -> Iterator[Version]:
    for name, version in (lineage.get("inputs") or {}).items():
        if isinstance(version, int) and not isinstance(version, bool):
            yield str(name), version
