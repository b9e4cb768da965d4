"""The shard ledger: what an ingest has put into a table, and the commits that keep table and ledger in step.

Data, quarantine and ledger are three tables, and a crash may come between any two commits. So a commit is first
*prepared*: the ledger gets a row for each shard with the fragments that the workers wrote. Then the quarantine and
the data are committed under the same commit id, and last the ledger rows become *done*. Whatever was prepared and
not finished is finished by the next run, which sees from the transactions which of the commits already happened.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, NamedTuple

import pyarrow as pa

from datas3_ray.errors import Datas3Error, UsageError
from datas3_ray.lake.lake import Lake
from datas3_ray.lake.lease import LEASE
from datas3_ray.lake.schemas import LEDGER, QUARANTINE, with_kind
from datas3_ray.lake.storage import KEPT, commit, create_dataset, dataset_uri
from datas3_ray.retry import with_backoff

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


class Entered(NamedTuple):
    """The content of a file that is in the table, and the commit that brought it."""

    fingerprint: str
    commit: str


@dataclass(frozen=True)
class Replacement:
    """Which rows of the image and of the quarantine table a shard's new content replaces, as SQL predicates."""

    rows: str
    rejects: str


class Ledger:
    """The ledger of one image table."""

    def __init__(self, lake: Lake, table: str) -> None:
        self.lake = lake
        self.table = table
        self.name = ledger_name(table)

    def rows(self, columns: list[str] | None = None, filter: str = "true") -> pa.Table:
        """Ledger rows, one a shard; empty before the first ingest."""
        if not self.lake.exists(self.name):
            return LEDGER.empty_table().select(columns or LEDGER.names)
        return self.lake.table(self.name).to_arrow(columns, filter=f"shard != '{LEASE}' AND ({filter})")

    def shards(self) -> dict[str, str]:
        """Shards in the table (or prepared for it) and their fingerprints."""
        rows = self.rows(["shard", "fingerprint"]).to_pydict()
        return dict(zip(rows["shard"], rows["fingerprint"], strict=True))

    def items(self) -> dict[str, Entered]:
        """Row ids of the files in the table (or prepared for it) and the latest content of each."""
        rows = self.rows(["items", "commit", "created"], "items IS NOT NULL").sort_by("created")
        found: dict[str, Entered] = {}
        for batch in rows.to_batches():
            for commit_id, files in zip(batch.column("commit").to_pylist(), batch.column("items"), strict=True):
                ids, marks = files.values.flatten()
                entered = (Entered(mark, commit_id) for mark in marks.to_pylist())
                found.update(zip(ids.to_pylist(), entered, strict=True))
        return found

    def commits(self) -> set[str]:
        """Ids of every commit that has rows in the ledger."""
        return set(self.rows(["commit"]).column("commit").to_pylist())

    def check_config(self, config: str) -> None:
        """Raise a UsageError when the table was ingested with other encoders or columns."""
        others = {text.partition("/")[0] for text in self._configs()} - {config}
        if others:
            raise UsageError(
                f"table '{self.table}' was ingested with other encoders or columns than these; "
                "ingest into a table of another name, or drop this one first."
            )

    def has_config(self, config: str) -> bool:
        """Whether shards were ingested with these encoders and columns."""
        return any(text.partition("/")[0] == config for text in self._configs())

    def check_mapping(self, config: str) -> None:
        """Raise a UsageError when this source's columns came from other places; ``config`` ends with /source/mapping.

        Shards of earlier versions have no such end, and fit any mapping.
        """
        source = config.rpartition("/")[0]
        others = {text for text in self._configs() if text.rpartition("/")[0] == source} - {config}
        if others:
            raise UsageError(
                f"table '{self.table}' was ingested with columns that are mapped otherwise than these; ingest into a "
                "table of another name, drop this one first, or give another data set an `id_prefix:` of its own."
            )

    def _configs(self) -> set[str]:
        return set(self.rows(["config"]).column("config").to_pylist())

    def commit(
        self,
        entries: list[ShardEntry],
        schema: pa.Schema,
        config: str,
        items: dict[str, list[tuple[str, str]]] | None = None,
        replacing: dict[str, Replacement] | None = None,
        known: Collection[str] = (),
    ) -> list[ShardEntry]:
        """Put the shards' rows into the table, once; returns those that another run had not put there meanwhile.

        ``items`` has the (row id, fingerprint) of each file of shards that are lists of files; ``replacing`` says of
        shards that changed which rows go when the new ones come, in the same transaction. ``known`` are the commits
        that were there when the shards were chosen.

        Raises
        ------
        Datas3Error
            When a shard's rows and rejects do not add up to what was read from it; nothing is committed then. And when
            a shard was entered by nobody: neither by this run nor, with this content, by another since it was chosen.
        """
        for entry in entries:
            if entry.rows + entry.rejects != entry.samples:
                raise Datas3Error(
                    f"shard {entry.shard}: {entry.samples} samples were read but {entry.rows} rows and "
                    f"{entry.rejects} rejects came out; nothing of it is committed."
                )
        items, replacing = items or {}, replacing or {}
        self._create(schema)
        commit_id = uuid.uuid4().hex
        now = datetime.now(timezone.utc)
        rows = []
        for entry in entries:
            replaced = replacing.get(entry.shard)
            files = [{"id": name, "fingerprint": mark} for name, mark in items.get(entry.shard, [])]
            rows.append(
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
                    "items": files or None,
                    "replaces": replaced.rows if replaced else None,
                    "replaces_rejects": replaced.rejects if replaced else None,
                    "seconds": entry.seconds,
                    "commit": commit_id,
                    "state": PREPARED,
                    "created": now,
                }
            )
        claimed = self._claim(pa.Table.from_pylist(rows, LEDGER), commit_id)
        if claimed:
            self._finish(commit_id, retried=False)
        self._check_entered([entry for entry in entries if entry.shard not in claimed], known)
        return [entry for entry in entries if entry.shard in claimed]

    def _check_entered(self, entries: list[ShardEntry], known: Collection[str]) -> None:
        if not entries:
            return
        rows = self.rows(["shard", "fingerprint", "commit"]).to_pylist()
        there = {row["shard"]: row["fingerprint"] for row in rows if row["commit"] not in known}
        lost = [entry.shard for entry in entries if there.get(entry.shard) != entry.fingerprint]
        if lost:
            raise Datas3Error(
                f"ingest of table '{self.table}': {len(lost)} shards were read and could not be entered into the "
                f"ledger, such as {lost[0]}; nothing of them is in the table. Run the same command again."
            )

    def recover(self) -> int:
        """Finish every commit that a killed run had prepared; returns how many there were."""
        commits = dict.fromkeys(self.prepared().column("commit").to_pylist())
        for commit_id in commits:
            self._finish(commit_id, retried=True)
        return len(commits)

    def prepared(self) -> pa.Table:
        """Ledger rows of commits that were begun and not finished."""
        return self.rows(filter=f"state = '{PREPARED}'")

    def _create(self, schema: pa.Schema) -> None:
        """The empty tables, so that every later commit is an append."""
        for name, empty, kind in (
            (self.name, LEDGER, "ledger"),
            (quarantine_name(self.table), QUARANTINE, "quarantine"),
            (self.table, schema, "image"),
        ):
            if not self.lake.exists(name):
                create_dataset(dataset_uri(self.lake.uri, name), with_kind(empty, kind), self.lake.options)
        quarantine = self.lake.table(quarantine_name(self.table))
        missing = [field for field in QUARANTINE if field.name not in quarantine.schema.names]
        if missing:  # of an earlier version; the columns are last, as in what the workers write
            quarantine.dataset.add_columns(pa.schema(missing))

    def _claim(self, rows: pa.Table, commit_id: str) -> set[str]:
        """Enter the shards into the ledger; of two runs that enter the same one, it becomes one's.

        A shard that is there already is entered anew only where its earlier content is to be replaced.
        """

        def attempt() -> Any:
            # Safe to repeat: what an attempt entered without getting an answer carries this commit's id.
            merge = self.lake.table(self.name).dataset.merge_insert("shard").when_not_matched_insert_all()
            merge = merge.when_matched_update_all(
                f"source.replaces IS NOT NULL AND target.state = '{DONE}' AND target.fingerprint != source.fingerprint"
            )
            return merge.execute(rows)

        with_backoff(attempt, f"entering shards into the ledger of table '{self.table}'", after=KEPT)
        return set(self.rows(["shard"], f"commit = '{commit_id}'").column("shard").to_pylist())

    def _finish(self, commit_id: str, *, retried: bool) -> None:
        rows = self.rows(filter=f"commit = '{commit_id}'")
        for column, predicates, name, kind in (
            ("quarantine_fragments", "replaces_rejects", quarantine_name(self.table), "quarantine"),
            ("fragments", "replaces", self.table, "image"),
        ):
            fragments = [text for texts in rows.column(column).to_pylist() for text in json.loads(texts)]
            replaced = [f"({text})" for text in rows.column(predicates).to_pylist() if text]
            if fragments or replaced:
                target = self.lake.table(name)
                commit(
                    dataset_uri(self.lake.uri, name),
                    fragments,
                    with_kind(target.schema, kind),
                    mode="append",
                    commit_id=commit_id,
                    retried=retried,
                    replaces=" OR ".join(replaced) or None,
                    options=self.lake.options,
                )
        with_backoff(
            lambda: self.lake.table(self.name).dataset.update({"state": f"'{DONE}'"}, where=f"commit = '{commit_id}'"),
            f"marking shards as done in the ledger of table '{self.table}'",
            after=KEPT,
        )
