"""The shard ledger: what an ingest has put into a table, and the commits that keep table and ledger in step.

Data, quarantine and ledger are three tables, and a crash may come between any two commits. So a commit is first
*prepared*: the ledger gets a row for each shard with the fragments that the workers wrote. Then the quarantine and
the data are committed under the same commit id, and last the ledger rows become *done*. Whatever was prepared and
not finished is finished by the next run, which sees from the transactions which of the commits already happened.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from datetime import datetime, timezone

import pyarrow as pa
import pyarrow.compute as pc

from datas3_ray.errors import Datas3Error, UsageError
from datas3_ray.lake.lake import Lake
from datas3_ray.lake.schemas import LEDGER, QUARANTINE, with_kind
from datas3_ray.lake.storage import commit, dataset_uri

PREPARED, DONE = "prepared", "done"


def quarantine_name(table: str) -> str:
    """Name of the table that holds what could not be ingested into ``table``."""
    return f"{table}.quarantine"


def ledger_name(table: str) -> str:
    """Name of the table that says which shards are in ``table``."""
    return f"{table}.ledger"


@dataclass(frozen=True)
class ShardEntry:
    """What one shard became: fragments that a worker wrote and nobody refers to yet."""

    shard: str
    fingerprint: str
    size: int
    samples: int
    rows: int
    rejects: int
    fragments: list[str]
    quarantine_fragments: list[str]
    seconds: float


class Ledger:
    """The ledger of one image table."""

    def __init__(self, lake: Lake, table: str) -> None:
        self.lake = lake
        self.table = table
        self.name = ledger_name(table)

    def rows(self) -> pa.Table:
        """Every ledger row; empty before the first ingest."""
        return self.lake.table(self.name).to_arrow() if self.lake.exists(self.name) else LEDGER.empty_table()

    def shards(self) -> dict[str, str]:
        """Shards in the table (or prepared for it) and their fingerprints."""
        rows = self.rows().select(["shard", "fingerprint"]).to_pydict()
        return dict(zip(rows["shard"], rows["fingerprint"], strict=True))

    def check_config(self, config: str) -> None:
        """Raise a UsageError when the table was ingested with other encoders or columns."""
        others = set(self.rows().column("config").to_pylist()) - {config}
        if others:
            raise UsageError(
                f"table '{self.table}' was ingested with other encoders or columns than these; "
                "ingest into a table of another name, or drop this one first."
            )

    def commit(self, entries: list[ShardEntry], schema: pa.Schema, config: str) -> list[ShardEntry]:
        """Put the shards' rows into the table, once; returns those that another run had not put there meanwhile.

        Raises
        ------
        Datas3Error
            When a shard's rows and rejects do not add up to what was read from it. Nothing is committed then.
        """
        for entry in entries:
            if entry.rows + entry.rejects != entry.samples:
                raise Datas3Error(
                    f"shard {entry.shard}: {entry.samples} samples were read but {entry.rows} rows and "
                    f"{entry.rejects} rejects came out; nothing of it is committed."
                )
        there = self.shards()
        entries = [entry for entry in entries if entry.shard not in there]
        if not entries:
            return []
        self._create(schema)
        commit_id = uuid.uuid4().hex
        now = datetime.now(timezone.utc)
        rows = [
            {
                "shard": entry.shard,
                "config": config,
                "fingerprint": entry.fingerprint,
                "size": entry.size,
                "samples": entry.samples,
                "rows": entry.rows,
                "rejects": entry.rejects,
                "fragments": json.dumps(entry.fragments),
                "quarantine_fragments": json.dumps(entry.quarantine_fragments),
                "seconds": entry.seconds,
                "commit": commit_id,
                "state": PREPARED,
                "created": now,
            }
            for entry in entries
        ]
        self.lake.write(self.name, pa.Table.from_pylist(rows, LEDGER), kind="ledger", mode="append")
        self._finish(commit_id, retried=False)
        return entries

    def recover(self) -> int:
        """Finish every commit that a killed run had prepared; returns how many there were."""
        rows = self.rows()
        prepared = rows.filter(pc.equal(rows.column("state"), PREPARED))
        commits = list(dict.fromkeys(prepared.column("commit").to_pylist()))
        for commit_id in commits:
            self._finish(commit_id, retried=True)
        return len(commits)

    def _create(self, schema: pa.Schema) -> None:
        """The empty image and quarantine tables, so that every later commit is an append."""
        for name, empty, kind in (
            (quarantine_name(self.table), QUARANTINE, "quarantine"),
            (self.table, schema, "image"),
        ):
            if not self.lake.exists(name):
                self.lake.write(name, empty.empty_table(), kind=kind)

    def _finish(self, commit_id: str, *, retried: bool) -> None:
        rows = self.rows()
        rows = rows.filter(pc.equal(rows.column("commit"), commit_id))
        for column, name, kind in (
            ("quarantine_fragments", quarantine_name(self.table), "quarantine"),
            ("fragments", self.table, "image"),
        ):
            fragments = [text for texts in rows.column(column).to_pylist() for text in json.loads(texts)]
            if fragments:
                target = self.lake.table(name)
                commit(
                    dataset_uri(self.lake.uri, name),
                    fragments,
                    with_kind(target.schema, kind),
                    overwrite=False,
                    commit_id=commit_id,
                    retried=retried,
                    options=self.lake.options,
                )
        self.lake.table(self.name).dataset.update({"state": f"'{DONE}'"}, where=f"commit = '{commit_id}'")
