"""Embed: another encoder's vectors for an image table that is there, without touching what it holds.

One task a fragment in a pool of actors; each writes only the new column's data file. Finished fragments are written
down as they come, so that a killed run loses the fragments it was at, and one commit makes the column visible. Rows
whose image cannot be had or decoded now get no vector and are counted, never dropped.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from datas3_ray.embed_plan import EmbedConfig, EmbedPlan, Phase, lacking_fragments, parse_config, plan_embed
from datas3_ray.embed_worker import EmbedWorker, Settings, Task
from datas3_ray.errors import Datas3Error, UsageError
from datas3_ray.lake.staged import Finished, Stage, commit_columns, field_ids, file_of, mark_of
from datas3_ray.runtime import cluster_cpus, cluster_gpus, ensure_ray

if TYPE_CHECKING:
    from datas3_ray.lake import Lake, Table

ATTEMPTS = 5


@dataclass
class EmbedSummary:
    """What an embed did."""

    table: str
    columns: list[str] = field(default_factory=list)
    fragments: int = 0
    """Fragments encoded by this run."""
    reused: int = 0
    """Fragments that a run that was cut short had finished."""
    images: int = 0
    """Rows of these fragments."""
    vectors: int = 0
    nulls: int = 0
    """Rows of these fragments that are without a vector still."""
    reasons: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    def sentence(self) -> str:
        """The summary for a person."""
        if not self.vectors and not self.reused and not self.nulls:
            return f"{', '.join(self.columns)} of {self.table} is up to date."
        speed = f", {self.vectors / self.seconds:.0f} images/s" if self.fragments and self.seconds else ""
        text = f"{self.vectors} vectors in {', '.join(self.columns)} from {self.fragments} fragments{speed}"
        if self.reused:
            text += f"; {self.reused} fragments were finished before"
        if self.nulls:
            reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(self.reasons.items()))
            text += f"; {self.nulls} rows without a vector" + (f" ({reasons})" if reasons else "")
        return text + "."


def embed(lake: Lake, name: str, config: EmbedConfig, *, progress: bool = True) -> EmbedSummary:
    """Give the image table ``name`` the vector columns of these encoders, or the vectors that they lack.

    Running it again does nothing; after a crash it does what is missing; after rows were ingested it encodes these.
    Nothing else of the table changes, and its indexes stay valid.

    Raises
    ------
    UsageError
        See :func:`plan_embed`; also when a column of this name was made by another encoder.
    Datas3Error
        When a worker fails for a reason that is not the data's. What was finished before is used by the next run.
    """
    started = time.perf_counter()
    plan = plan_embed(lake, name, config)
    summary = EmbedSummary(name, list(config.encoders))
    for phase in plan.phases:
        _Run(lake, plan, phase, config, summary).run(progress)
    summary.seconds = time.perf_counter() - started
    return summary


class _Run:
    """One phase: takes the workers' fragments as they come, writes them down, commits them all."""

    def __init__(self, lake: Lake, plan: EmbedPlan, phase: Phase, config: EmbedConfig, summary: EmbedSummary) -> None:
        self.lake, self.plan, self.phase, self.config, self.summary = lake, plan, phase, config, summary
        self.stage = Stage(lake, plan.table)
        self.known = self.stage.known()
        self.commit_id = uuid.uuid4().hex
        self.actors: list[Any] = []
        self.own: set[str] = set()

    def run(self, progress: bool) -> None:
        """Work and commit, again where the table was changed by another program meanwhile."""
        try:
            for _ in range(ATTEMPTS):
                table = self.lake.table(self.plan.table)
                self._check(table)
                finished = self._finished(table, progress)
                try:
                    commit_columns(table, finished.values(), self.commit_id, self._report(finished))
                except OSError as error:
                    if "conflict" not in str(error).lower():
                        raise
                    continue
                self._account(finished)
                return
        finally:
            self._release()
        raise Datas3Error(
            f"table '{self.plan.table}' was changed by another program each of the {ATTEMPTS} times that the new "
            "vectors were to be committed; run the same command again, the work is not lost."
        )

    def _check(self, table: Table) -> None:
        there = [alias for alias in self.phase.columns if alias in table.schema.names]
        if self.phase.add and there:
            raise Datas3Error(f"another run added column '{there[0]}' to table '{table.name}' meanwhile; run it again.")
        for alias in there:
            if self.known["encoders"].get(alias) != self.phase.encoders[alias].fingerprint():
                self._check_identity(table, alias)

    def _check_identity(self, table: Table, alias: str) -> None:
        """Compare with the encoder as it loads: what a field keeps of it is known only then."""
        import ray

        self._engage(1)
        before, now = table.encoder(alias), ray.get(self.actors[0].identities.remote())[alias]
        differ = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        if before.get("weights_sha256") and before.get("weights_sha256") == now.get("weights_sha256"):
            differ = [key for key in differ if key != "weights"]
        if differ:
            key = differ[0]
            raise UsageError(
                f"column '{alias}' of table '{table.name}' was made by another encoder: its {key} is "
                f"{before.get(key)!r}, and that of this one {now.get(key)!r}; choose another name for it."
            )

    def _finished(self, table: Table, progress: bool) -> dict[str, Finished]:
        """Every fragment of the phase at this version, by mark: those written down, and the others worked on now."""
        marks = {number: mark_of(table, metadata, self.phase.made) for number, metadata in self._wanted(table).items()}
        staged = self.stage.finished()
        finished = {mark: staged[mark] for mark in marks.values() if mark in staged}
        todo = {number: mark for number, mark in marks.items() if mark not in finished}
        if not todo:
            return finished
        self._engage(len(todo))
        rows = {f.fragment_id: f.count_rows() for f in table.dataset.get_fragments() if f.fragment_id in todo}
        unwritten: dict[str, Finished] = {}
        last = time.monotonic()
        tasks = [Task(table.version, number, self.phase.columns, self.phase.add) for number in todo]
        with _Bar(self.phase.columns, sum(rows.values()), progress) as bar:
            try:
                for one in self._work(tasks):
                    mark = todo[one.fragment]
                    finished[mark] = unwritten[mark] = one
                    self.own.add(mark)
                    bar.advance(rows[one.fragment])
                    if time.monotonic() - last >= self.config.record_seconds:
                        self.stage.record(unwritten)
                        unwritten, last = {}, time.monotonic()
            finally:
                self.stage.record(unwritten)
        return finished

    def _wanted(self, table: Table) -> dict[int, Any]:
        fragments = {fragment.fragment_id: fragment.metadata for fragment in table.dataset.get_fragments()}
        if self.phase.add:
            return fragments
        (alias,) = self.phase.columns
        known = self.known["missing"].get(alias, {})
        return {
            number: fragments[number] for number in lacking_fragments(table, alias, known, self.config.retry_failed)
        }

    # -- actors ------------------------------------------------------------------------------------------------------

    def _engage(self, tasks: int) -> None:
        """Actors as an ingest has them: one a GPU where there are any, else one a CPU."""
        ensure_ray()
        import ray

        gpus = cluster_gpus()
        count = min(self.config.workers or gpus or cluster_cpus(), tasks)
        threads = max(1, cluster_cpus() // gpus) if gpus else 1
        resources: dict[str, Any] = {"num_gpus": 1, "num_cpus": 0} if gpus else {"num_cpus": 1}
        table = self.lake.table(self.plan.table)
        settings = Settings(
            table.name,
            table.uri,
            self.lake.options,
            self.config.storage_options,
            self.config.max_pixels,
            self.config.decode_seconds,
            threads,
        )
        actor = ray.remote(EmbedWorker).options(max_restarts=3, max_task_retries=3, **resources)
        self.actors += [actor.remote(self.phase.encoders, settings) for _ in range(count - len(self.actors))]

    def _work(self, tasks: list[Task]) -> Iterator[Finished]:
        """The tasks' results in the order they finish; a free actor takes the next task."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        waiting = list(reversed(tasks))
        running: dict[Any, Any] = {}
        for actor in self.actors:
            if waiting:
                running[actor.work.remote(waiting.pop())] = actor
        while running:
            (done,), _ = ray.wait(list(running), num_returns=1)
            actor = running.pop(done)
            try:
                result = ray.get(done)
            except RayTaskError as error:
                cause = error.cause
                if isinstance(cause, Datas3Error):
                    raise cause from error
                raise Datas3Error(f"embedding table '{self.plan.table}' stopped: {cause}") from error
            except RayError as error:
                reason = str(error).strip().splitlines()[0]
                raise Datas3Error(f"embedding table '{self.plan.table}' stopped: {reason}") from error
            if waiting:
                running[actor.work.remote(waiting.pop())] = actor
            yield result

    def _release(self) -> None:
        import ray

        for actor in self.actors:
            ray.kill(actor)
        self.actors = []

    # -- afterwards --------------------------------------------------------------------------------------------------

    def _report(self, finished: Mapping[str, Finished]) -> dict[str, Any]:
        vectors: Counter[str] = Counter()
        nulls: Counter[str] = Counter()
        reasons: Counter[str] = Counter()
        for one in finished.values():
            vectors.update(one.account["vectors"])
            nulls.update(one.account["nulls"])
            reasons.update(one.account["reasons"])
        return {"vectors": dict(vectors), "nulls": dict(nulls), "reasons": dict(reasons)}

    def _account(self, finished: Mapping[str, Finished]) -> None:
        """Clear what was written down, and keep how many vectors each data file misses."""
        report = self._report(finished)
        mine = [one for mark, one in finished.items() if mark in self.own]
        summary = self.summary
        summary.fragments += len(mine)
        summary.reused += len(finished) - len(mine)
        summary.images += sum(one.account["rows"] for one in mine)
        summary.vectors += sum(sum(one.account["vectors"].values()) for one in mine)
        summary.nulls += sum(report["nulls"].values())
        summary.reasons = dict(Counter(summary.reasons) + Counter(report["reasons"]))
        table = self.lake.table(self.plan.table)
        ids = field_ids(table)
        metadata = {fragment.fragment_id: fragment.metadata for fragment in table.dataset.get_fragments()}
        missing = {alias: dict(files) for alias, files in self.known["missing"].items()}
        for one in finished.values():
            for alias in self.phase.columns:
                # A file that only a compaction knows now is looked at again by the next run.
                before = metadata.get(one.fragment)
                path = file_of(before, ids[alias]) if before is not None else None
                if path is not None:
                    missing.setdefault(alias, {})[path] = one.account["nulls"].get(alias, 0)
        there = {file.path for one in metadata.values() for file in one.files}
        missing = {alias: {p: n for p, n in files.items() if p in there} for alias, files in missing.items()}
        fingerprints = {alias: encoder.fingerprint() for alias, encoder in self.phase.encoders.items()}
        self.stage.clear(table.name, {**self.known["encoders"], **fingerprints}, missing, report)


class _Bar:
    """One line: images done, images per second."""

    def __init__(self, columns: tuple[str, ...], images: int, show: bool) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.done = 0
        self.started = time.perf_counter()
        self.progress = Progress(
            TextColumn("embed " + ", ".join(columns)),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("images, {task.fields[speed]:.0f} images/s"),
            TimeRemainingColumn(),
            disable=not show,
        )
        self.task = self.progress.add_task("embed", total=images, speed=0.0)

    def advance(self, images: int) -> None:
        self.done += images
        speed = self.done / (time.perf_counter() - self.started)
        self.progress.update(self.task, advance=images, speed=speed)

    def __enter__(self) -> _Bar:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()


__all__ = ["EmbedConfig", "EmbedPlan", "EmbedSummary", "embed", "parse_config", "plan_embed"]
