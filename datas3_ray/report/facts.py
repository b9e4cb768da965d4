"""What a lake holds: its image tables, what was rejected and why, and the encoders behind its vectors."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from datas3_ray.lake import Lake, Table
from datas3_ray.lake.ledger import quarantine_name
from datas3_ray.lake.storage import public_text, public_uri
from datas3_ray.sources.base import REASONS

EXAMPLES = 2


@dataclass(frozen=True)
class Reject:
    """One reason for quarantine: how many rows, and the first few of them."""

    reason: str
    meaning: str
    rows: int
    examples: list[tuple[str, str]] = field(default_factory=list)
    """(where, error) pairs."""


@dataclass(frozen=True)
class Encoder:
    """A vector column and what made it; ``identity`` is empty where vectors came from elsewhere."""

    table: str
    column: str
    dimensions: int
    dtype: str
    identity: dict[str, Any]

    @property
    def name(self) -> str:
        """The model and its family, as far as they are recorded."""
        model = str(self.identity.get("model") or self.identity.get("name") or "")
        family = str(self.identity.get("family") or "")
        return f"{model} ({family})" if model and family else model or family or "not recorded"


@dataclass(frozen=True)
class ImageTable:
    """One image table and its quarantine."""

    name: str
    rows: int
    version: int
    rejected: int
    rejects: list[Reject]
    encoders: list[Encoder]
    origin: str
    """How the table came to be, in a few words: a split's parent, or nothing."""


def image_tables(lake: Lake) -> list[ImageTable]:
    """Every image table of the lake, largest first."""
    found = [_image_table(lake, table) for table in lake.tables("image")]
    return sorted(found, key=lambda table: (-table.rows, table.name))


def _image_table(lake: Lake, table: Table) -> ImageTable:
    rejects = _rejects(lake, table.name)
    lineage = table.lineage()
    split = lineage.get("method") == "split"
    return ImageTable(
        name=table.name,
        rows=table.count_rows(),
        version=table.version,
        rejected=sum(reject.rows for reject in rejects),
        rejects=rejects,
        encoders=[
            Encoder(table.name, column, size, str(table.schema.field(column).type.value_type), table.encoder(column))
            for column, size in table.vector_columns().items()
        ],
        origin=f"set aside from {lineage.get('table')}" if split else "",
    )


def _rejects(lake: Lake, name: str) -> list[Reject]:
    """Quarantined rows by reason, most frequent first."""
    quarantine = quarantine_name(name)
    if not lake.exists(quarantine):
        return []
    table = lake.table(quarantine)
    rows: Counter[str] = Counter()
    examples: dict[str, list[tuple[str, str]]] = {}
    columns = [column for column in ("uri", "offset", "reason", "error") if column in table.schema.names]
    for batch in table.dataset.scanner(columns=columns, scan_in_order=True).to_batches():
        reasons = pc.fill_null(batch.column("reason").cast(pa.string()), "not recorded")
        for entry in pc.value_counts(reasons).to_pylist():
            rows[entry["values"]] += entry["counts"]
            held = examples.setdefault(entry["values"], [])
            if len(held) < EXAMPLES:
                these = batch.filter(pc.equal(reasons, entry["values"])).slice(0, EXAMPLES - len(held))
                held.extend((_where(row), public_text(str(row.get("error") or ""))) for row in these.to_pylist())
    ranked = sorted(rows.items(), key=lambda item: (-item[1], item[0]))
    return [Reject(reason, REASONS.get(reason, ""), n, examples[reason]) for reason, n in ranked]


def _where(row: dict[str, Any]) -> str:
    where = public_uri(str(row.get("uri") or "unknown place"))
    return where if row.get("offset") is None else f"{where} at byte {row['offset']:,}"


def pretty(value: Any) -> str:
    """Any value as indented JSON with sorted keys."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, default=str)
