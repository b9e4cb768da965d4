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
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from datas3_ray.encoders import EncoderConfig, parse_encoder
from datas3_ray.errors import Datas3Error, UsageError, checked
from datas3_ray.lake.lake import check_name
from datas3_ray.lake.ledger import Ledger, ShardEntry, quarantine_name
from datas3_ray.lake.schemas import fingerprint
from datas3_ray.lake.storage import dataset_uri, is_local
from datas3_ray.runtime import cluster_cpus, cluster_gpus, ensure_ray
from datas3_ray.sources import Shard, Source, parse_source

if TYPE_CHECKING:
    from datas3_ray.lake import Lake


_RAISED = re.compile(r"([\w.]*(?:Error|Exception|Exit|Interrupt)): (.+)")


class IngestConfig(BaseModel):
    """How images come into a table.

    ``source`` and ``encoders`` are written as in a recipe: ``{"webdataset": "shards/*.tar", "columns": {...}}`` and
    ``{"lite": {"timm": "tf_efficientnet_lite0", ...}}``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: dict[str, Any]
    encoders: dict[str, dict[str, Any]]
    on_error: Literal["quarantine", "fail"] = "quarantine"
    store: Literal["uri", "bytes"] = "uri"
    workers: int | None = Field(default=None, ge=1)
    commit_shards: int = Field(default=64, ge=1)
    commit_seconds: float = Field(default=60.0, gt=0)
    max_pixels: int = Field(default=100_000_000, ge=1)


def parse_config(values: dict[str, Any]) -> IngestConfig:
    """A configuration from a recipe's mapping; a UsageError names the first key or value that cannot be meant."""
    return checked(IngestConfig, values, "ingest")


@dataclass
class IngestSummary:
    """What an ingest did, and what the table holds now."""

    table: str
    shards: int = 0
    """Shards put into the table by this run."""
    skipped: int = 0
    """Shards that were there already."""
    changed: list[str] = field(default_factory=list)
    """Shards whose content is no longer what was ingested; their rows are left as they are."""
    recovered: int = 0
    """Commits of a killed run that this run finished."""
    rows: int = 0
    rejects: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    def sentence(self) -> str:
        """The summary for a person."""
        speed = f", {(self.rows + self.rejects) / self.seconds:.0f} images/s" if self.shards and self.seconds else ""
        text = f"{self.rows} rows and {self.rejects} rejects from {self.shards} shards{speed}"
        if self.reasons:
            text += " (" + ", ".join(f"{reason} {count}" for reason, count in sorted(self.reasons.items())) + ")"
        if self.skipped:
            text += f"; {self.skipped} shards were there already"
        if self.changed:
            text += f"; {len(self.changed)} shards changed since they were ingested and are left as they were"
        return text + "."


@dataclass(frozen=True)
class Plan:
    """What an ingest would do, worked out before any work starts."""

    table: str
    source: Source
    encoders: dict[str, EncoderConfig]
    config: IngestConfig
    config_fingerprint: str
    todo: list[Shard]
    skipped: list[Shard]
    changed: list[Shard]

    def describe(self) -> str:
        """One line for a dry run."""
        size = sum(shard.size for shard in self.todo) / 1e6
        return f"{len(self.todo)} shards to ingest ({size:.1f} MB), {len(self.skipped)} there already"


def plan_ingest(lake: Lake, name: str, config: IngestConfig) -> Plan:
    """Validate everything that can be validated without work: names, patterns, encoders, earlier ingests.

    Raises
    ------
    UsageError
        For a pattern that matches nothing, an unknown encoder or missing weights, encoders or columns other than
        those the table was ingested with. The lake is left as it was.
    """
    check_name(name)
    if not config.encoders:
        raise UsageError("an ingest needs at least one encoder, such as {lite: {timm: tf_efficientnet_lite0}}.")
    source = parse_source(config.source)
    encoders = {alias: parse_encoder(alias, spec) for alias, spec in config.encoders.items()}
    clash = set(encoders) & set(source.columns.fields_by_name())
    if clash:
        raise UsageError(f"'{sorted(clash)[0]}' names both an encoder and a column; rename one of them.")
    for encoder in encoders.values():
        encoder.validate_available()
    shards = source.shards()
    identity = fingerprint(
        {
            "encoders": {alias: encoder.fingerprint() for alias, encoder in encoders.items()},
            "columns": [(f.name, str(f.type)) for f in source.columns.fields()],
            "store": config.store,
        }
    )
    ledger = Ledger(lake, name)
    ledger.check_config(identity)
    if lake.exists(name) and not lake.exists(ledger.name):
        raise UsageError(f"table '{name}' was not made by an ingest and cannot take shards; choose another name.")
    there = ledger.shards()
    return Plan(
        name,
        source,
        encoders,
        config,
        identity,
        todo=[shard for shard in shards if shard.uri not in there],
        skipped=[shard for shard in shards if shard.uri in there],
        changed=[shard for shard in shards if there.get(shard.uri, shard.fingerprint) != shard.fingerprint],
    )


def ingest(lake: Lake, name: str, config: IngestConfig, *, progress: bool = True) -> IngestSummary:
    """Bring the shards of a source into the image table ``name``, each exactly once.

    Shards that are in the table already are not read again, so running it a second time does nothing, and running it
    after a crash finishes what is missing.

    Raises
    ------
    UsageError
        See :func:`plan_ingest`.
    Datas3Error
        When a worker fails for a reason that is not the data's, or with ``on_error="fail"`` at the first reject. What
        was committed before stays.
    """
    started = time.perf_counter()
    plan = plan_ingest(lake, name, config)
    ledger = Ledger(lake, name)
    summary = IngestSummary(name, skipped=len(plan.skipped), changed=[shard.uri for shard in plan.changed])
    summary.recovered = ledger.recover()
    if plan.todo:
        _run(lake, plan, ledger, summary, progress)
    summary.seconds = time.perf_counter() - started
    return summary


def _run(lake: Lake, plan: Plan, ledger: Ledger, summary: IngestSummary, progress: bool) -> None:
    ensure_ray()
    if is_local(lake.uri):
        Path(lake.uri).mkdir(parents=True, exist_ok=True)
    waiting: list[dict[str, Any]] = []
    last = time.monotonic()

    def commit_waiting() -> None:
        nonlocal last
        if waiting:
            schema = pa.ipc.read_schema(pa.py_buffer(bytes.fromhex(waiting[0]["schema"])))
            entries = [ShardEntry(**result["entry"]) for result in waiting]
            for entry in ledger.commit(entries, schema, plan.config_fingerprint):
                summary.shards += 1
                summary.rows += entry.rows
                summary.rejects += entry.rejects
            waiting.clear()
        last = time.monotonic()

    reasons: Counter[str] = Counter()
    bar = _Bar(len(plan.todo), progress)
    with bar:
        for result in _stream(lake, plan):
            if result["error"]:
                commit_waiting()
                raise Datas3Error(result["error"])
            reasons.update(result["reasons"])
            waiting.append(result)
            bar.advance(result["entry"])
            if len(waiting) >= plan.config.commit_shards or time.monotonic() - last >= plan.config.commit_seconds:
                commit_waiting()
        commit_waiting()
    summary.reasons = dict(reasons)


def _stream(lake: Lake, plan: Plan) -> Iterator[dict[str, Any]]:
    """The Ray Data stream: shard descriptions in, one result a shard out, in the order they finish."""
    import ray

    gpus = cluster_gpus()
    workers = plan.config.workers or min(len(plan.todo), gpus or cluster_cpus())
    resources: dict[str, Any] = {"num_gpus": 1} if gpus else {"num_cpus": 1}
    threads = max(1, cluster_cpus() // max(1, gpus)) if gpus else 1
    worker = {
        "source": plan.source,
        "encoders": plan.encoders,
        "config": plan.config,
        "uri": dataset_uri(lake.uri, plan.table),
        "quarantine_uri": dataset_uri(lake.uri, quarantine_name(plan.table)),
        "append": lake.exists(plan.table),
        "options": lake.options,
        "threads": threads,
    }
    items = [asdict(shard) for shard in plan.todo]
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
        results = [self.worker.work(Shard(**row)) for row in batch.to_pylist()]
        return pa.table({"result": [json.dumps(result) for result in results]})


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

    def advance(self, entry: dict[str, Any]) -> None:
        self.images += entry["samples"]
        self.rejects += entry["rejects"]
        speed = self.images / (time.perf_counter() - self.started)
        self.progress.update(self.task, advance=1, images=self.images, speed=speed, rejects=self.rejects)

    def __enter__(self) -> _Bar:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()
