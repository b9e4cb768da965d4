"""Ingest: shards to rows with vectors, as one Ray Data stream, exactly once.

Each shard goes to one actor, which reads it, decodes and encodes its images and writes Lance fragments; only their
metadata comes back. The driver commits the fragments of several shards at a time, together with their ledger rows.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from datas3_ray.errors import Datas3Error
from datas3_ray.ingest_ids import repeated_rows
from datas3_ray.ingest_plan import IngestConfig, Plan, check_whole, parse_config, plan_ingest
from datas3_ray.lake.lease import Lease
from datas3_ray.lake.ledger import Ledger, ShardEntry, quarantine_name
from datas3_ray.lake.optimize import compact_small
from datas3_ray.lake.storage import dataset_uri
from datas3_ray.runtime import cluster_cpus, cluster_gpus, ensure_ray
from datas3_ray.sources import Item, Shard

if TYPE_CHECKING:
    from datas3_ray.lake import Lake

__all__ = ["IngestConfig", "IngestSummary", "Plan", "ingest", "parse_config", "plan_ingest"]

_RAISED = re.compile(r"([\w.]*(?:Error|Exception|Exit|Interrupt)): (.+)")


@dataclass
class IngestSummary:
    """What an ingest did, and what the table holds now."""

    table: str
    shards: int = 0
    """Shards put into the table by this run."""
    skipped: int = 0
    """Shards, or files of a source of files, that were there already."""
    changed: list[str] = field(default_factory=list)
    """Shards or files whose content is no longer what was ingested; their rows are left as they are."""
    replaced: int = 0
    """Shards of this run whose rows took the place of others."""
    unread: list[str] = field(default_factory=list)
    """Shards that could not be read, each with the reason; nothing of them is in the table."""
    recovered: int = 0
    """Commits of a killed run that this run finished."""
    rows: int = 0
    rejects: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    def sentence(self) -> str:
        """The summary for a person."""
        speed = f", {(self.rows + self.rejects) / self.seconds:.0f} rows/s" if self.shards and self.seconds else ""
        text = f"{self.rows} rows and {self.rejects} rejects from {self.shards} shards{speed}"
        if self.reasons:
            text += " (" + ", ".join(f"{reason} {count}" for reason, count in sorted(self.reasons.items())) + ")"
        if self.skipped:
            text += f"; {self.skipped} were there already"
        if self.replaced:
            text += f"; {self.replaced} shards replaced earlier content"
        if self.changed:
            text += (
                f"; {len(self.changed)} changed since they were ingested and are left as they were "
                f"({self.changed[0]} for one; --replace takes them anew)"
            )
        return text + "."


def ingest(lake: Lake, name: str, config: IngestConfig, *, progress: bool = True) -> IngestSummary:
    """Bring the shards of a source into the image table ``name``, each exactly once.

    Shards that are in the table already are not read again, so running it a second time does nothing, and running it
    after a crash finishes what is missing.

    Raises
    ------
    UsageError
        See :func:`plan_ingest`.
    Datas3Error
        When another run is filling the table, when a worker fails for a reason that is not the data's, with
        ``on_error="fail"`` at the first reject, and at the end when shards could not be read. What was committed
        stays in each case.
    """
    started = time.perf_counter()
    ledger = Ledger(lake, name)
    known = ledger.commits()  # before the plan: what comes later is another run's, or makes a new plan
    plan = plan_ingest(lake, name, config)
    if plan.todo or ledger.prepared().num_rows:
        with Lease(lake, name, ledger.name) as lease:
            recovered = ledger.recover()
            now = ledger.commits()
            if now != known:  # what another run brought in meanwhile is not brought in again
                plan = plan_ingest(lake, name, config)
            run = _Run(lake, plan, ledger, lease, now, progress)
            run.summary.recovered = recovered
            if plan.todo:
                run.ingest()
        summary = run.summary
    else:
        summary = IngestSummary(name, skipped=plan.skipped, changed=plan.changed)
    summary.seconds = time.perf_counter() - started
    if summary.unread:
        raise Datas3Error(_unread(summary))
    return summary


def _unread(summary: IngestSummary) -> str:
    count = len(summary.unread)
    return (
        f"ingest of table '{summary.table}': {count} shards could not be read and nothing of them is in the table: "
        f"{summary.unread[0]}. The rest is in: {summary.sentence()} Run the same command again to try them anew."
    )


class _Run:
    """One ingest: takes the workers' results as they come and commits several at a time."""

    def __init__(self, lake: Lake, plan: Plan, ledger: Ledger, lease: Lease, known: set[str], progress: bool) -> None:
        self.lake, self.plan, self.ledger, self.lease = lake, plan, ledger, lease
        self.known, self.progress = known, progress
        self.summary = IngestSummary(plan.table, skipped=plan.skipped, changed=plan.changed)
        self.reasons: Counter[str] = Counter()
        self.waiting: list[dict[str, Any]] = []
        self.last = time.monotonic()

    def ingest(self) -> None:
        ensure_ray()
        with _Bar(len(self.plan.todo), self.progress) as bar:
            for result in _stream(self.lake, self.plan):
                if result["error"]:
                    self._commit()
                    raise Datas3Error(result["error"])
                bar.advance(result["entry"])
                if result["unread"]:
                    self.summary.unread.append(result["unread"])
                    continue
                self.reasons.update(result["reasons"])
                self.waiting.append(result)
                full = len(self.waiting) >= self.plan.config.commit_shards
                if full or time.monotonic() - self.last >= self.plan.config.commit_seconds:
                    self._commit()
            self._commit()
        self.summary.reasons = dict(self.reasons)
        if self.plan.config.compact and self.summary.rows:
            compact_small(self.lake, self.plan.table)

    def _commit(self) -> None:
        self.last = time.monotonic()
        if not self.waiting:
            return
        self.lease.check()
        check_whole(self.lake, self.plan.table, self.ledger)
        schema = pa.ipc.read_schema(pa.py_buffer(bytes.fromhex(self.waiting[0]["schema"])))
        entries = [ShardEntry(**result["entry"]) for result in self.waiting]
        items = {shard.uri: [(item.id, item.fingerprint) for item in shard.items] for shard in self.plan.todo}
        config, replacing = self.plan.config_fingerprint, self.plan.replacing
        done = self.ledger.commit(entries, schema, config, items, replacing, self.known)
        self.waiting.clear()
        for entry in done:
            self.summary.shards += 1
            self.summary.rows += entry.rows
            self.summary.rejects += entry.rejects
            self.summary.replaced += entry.shard in self.plan.replacing


def _stream(lake: Lake, plan: Plan) -> Iterator[dict[str, Any]]:
    """The Ray Data stream: shard descriptions in, one result a shard out, in the order they finish."""
    import ray

    from datas3_ray.ingest_output import Target

    gpus = cluster_gpus()
    workers = plan.config.workers or min(len(plan.todo), gpus or cluster_cpus())
    resources: dict[str, Any] = {"num_gpus": 1} if gpus else {"num_cpus": 1}
    threads = max(1, cluster_cpus() // max(1, gpus)) if gpus else 1
    target = Target(
        dataset_uri(lake.uri, plan.table),
        dataset_uri(lake.uri, quarantine_name(plan.table)),
        lake.exists(plan.table),
        lake.options,
    )
    worker = {
        "source": plan.source,
        "encoders": plan.encoders,
        "config": plan.config,
        "target": target,
        "stores_bytes": plan.stores_bytes,
        "threads": threads,
    }
    repeated = repeated_rows(lake, plan)
    items = [{"shard": json.dumps(asdict(shard)), "repeated": repeated.get(shard.uri, b"")} for shard in plan.todo]
    stream = ray.data.from_items(items, override_num_blocks=min(len(items), 4096)).map_batches(
        _Actor,
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(items))),
        fn_constructor_kwargs=worker,
        **resources,
    )
    try:
        for row in stream.iter_rows():
            yield json.loads(row["result"])
    except ray.exceptions.RayError as error:
        raise Datas3Error(f"ingest of table '{plan.table}' stopped: {_root_cause(error)}") from error


def _root_cause(error: BaseException) -> str:
    """The worker's own message: Ray wraps it in several exceptions and appends advice of its own."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    raised = [match for match in map(_RAISED.match, lines) if match and "UserCodeException" not in match.group(1)]
    return raised[-1].group(2) if raised else (lines[-1] if lines else type(error).__name__)


class _Actor:
    """Ray's face of :class:`ShardWorker`: a batch is one shard, the answer one row of JSON."""

    def __init__(self, **worker: Any) -> None:
        from datas3_ray.ingest_worker import ShardWorker

        self.worker = ShardWorker(**worker)

    def __call__(self, batch: pa.Table) -> pa.Table:
        given = zip(batch.column("shard").to_pylist(), batch.column("repeated").to_pylist(), strict=True)
        results = [self.worker.work(_shard(text), repeated) for text, repeated in given]
        return pa.table({"result": [json.dumps(result) for result in results]})


def _shard(text: str) -> Shard:
    described = json.loads(text)
    return Shard(**{**described, "items": tuple(Item(**item) for item in described["items"])})


class _Bar:
    """One line: shards done, images per second, rejects."""

    def __init__(self, shards: int, show: bool) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.images = self.rejects = 0
        self.started = time.perf_counter()
        self.progress = Progress(
            TextColumn("ingest"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("shards, {task.fields[images]} images, {task.fields[speed]:.0f} images/s"),
            TextColumn("{task.fields[rejects]} rejects"),
            TimeRemainingColumn(),
            disable=not show,
        )
        self.task = self.progress.add_task("ingest", total=shards, images=0, speed=0.0, rejects=0)

    def advance(self, entry: dict[str, Any] | None) -> None:
        """One more shard is done; None where it could not be read."""
        self.images += entry["samples"] if entry else 0
        self.rejects += entry["rejects"] if entry else 0
        speed = self.images / (time.perf_counter() - self.started)
        self.progress.update(self.task, advance=1, images=self.images, speed=speed, rejects=self.rejects)

    def __enter__(self) -> _Bar:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()
