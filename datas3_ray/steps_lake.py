"""The kinds of step that keep tables: embed, optimize, index. Each does nothing where nothing is to be done."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from datas3_ray.embed import EmbedConfig, Phase, embed, plan_embed
from datas3_ray.embed import parse_config as parse_embed
from datas3_ray.errors import UsageError, checked
from datas3_ray.lake import Table
from datas3_ray.lake.indexes import Kind, build_indexes
from datas3_ray.lake.optimize import OptimizeConfig, optimize_lake
from datas3_ray.lake.staged import field_ids, file_of
from datas3_ray.steps import Context, Names, Outcome, Step, column_of, vectors_of


class EmbedStep(Step):
    """``embed: {from: pool, encoders: {dino: {...}}}``: add vector columns to an image table that is there."""

    kind: ClassVar[str] = "embed"
    source: str
    config: EmbedConfig

    def reads(self) -> list[str]:
        """The table that gets the columns."""
        return [self.source]

    def widens(self) -> list[str]:
        """The same table."""
        return [self.source]

    def stale(self, context: Context, changed: Names) -> Names:
        """Scores are none of its business."""
        return changed & {self.source}

    def changes(self, context: Context, because: Names) -> Names:
        """The table's vector columns, and its rows where fragments came without a column that is there."""
        lake = context.lake
        if because or not lake.exists(self.source):
            return {self.name, vectors_of(self.source)}
        plan = plan_embed(lake, self.source, self.config)
        found = {vectors_of(self.source)} if any(phase.add for phase in plan.phases) else set()
        table = lake.table(self.source)
        filled = any(fills(table, phase, retry=self.config.retry_failed) for phase in plan.phases)
        return {self.name} | found | ({self.source} if filled else set())

    def plan(self, context: Context) -> str:
        """How many fragments lack vectors."""
        if not context.lake.exists(self.source):
            return f"add {', '.join(self.config.encoders)} to {self.source}"
        return plan_embed(context.lake, self.source, self.config).describe()

    def run(self, context: Context) -> Outcome:
        """Encode what is missing."""
        summary = embed(context.lake, self.source, self.config, progress=context.progress)
        done = bool(summary.vectors or summary.reused)
        return Outcome(summary.sentence(), skipped=not done)


def fills(table: Table, phase: Phase, *, retry: bool) -> bool:
    """Whether a phase of an embed gives vectors to rows of a column that is there, which is a change of the table.

    Fragments that are only looked through, since a compaction wrote their files, count as complete.
    """
    if phase.add:
        return False
    ids = field_ids(table)
    files = [
        file_of(fragment.metadata, ids[alias])
        for fragment in table.dataset.get_fragments()
        if fragment.fragment_id in phase.fragments
        for alias in phase.columns
    ]
    return bool(files) and (retry or None in files)


class OptimizeStep(Step):
    """``optimize: {tables: [pool], keep_days: 7}``: join small fragments, let unreferenced old versions go."""

    kind: ClassVar[str] = "optimize"
    tables: tuple[str, ...] = ()
    target_rows: int = Field(default=1 << 20, ge=1)
    target_bytes: int = Field(default=256 << 20, ge=1)
    prune: bool = True
    keep_days: float = Field(default=7.0, ge=0)

    def reads(self) -> list[str]:
        """The tables, where they are named."""
        return list(self.tables)

    def plan(self, context: Context) -> str:
        """What would be joined and removed."""
        reports = self._optimize(context, dry_run=True)
        if not any(report.rewritten_rows or report.pruned for report in reports):
            return "up to date"
        return "; ".join(f"{report.table}: {report.sentence()}" for report in reports if report.rewritten_rows) or (
            f"{sum(len(report.pruned) for report in reports)} old versions would go"
        )

    def run(self, context: Context) -> Outcome:
        """Do it."""
        reports = self._optimize(context, dry_run=False)
        worked = [report for report in reports if report.rewritten_rows or report.pruned]
        text = " ".join(f"{report.table}: {report.sentence()}" for report in worked)
        return Outcome(text or "up to date", skipped=not worked)

    def _optimize(self, context: Context, *, dry_run: bool) -> list[Any]:
        config = OptimizeConfig(
            target_rows=self.target_rows, target_bytes=self.target_bytes, prune=self.prune, keep_days=self.keep_days
        )
        there = [name for name in self.tables if context.lake.exists(name)] if self.tables else None
        return optimize_lake(context.lake, there, config, dry_run=dry_run) if there != [] else []


class IndexStep(Step):
    """``index: {from: pool, columns: [dino, label], kind: auto}``: build indexes or bring them up to date."""

    kind: ClassVar[str] = "index"
    source: str
    columns: tuple[str, ...] = ()
    index: Kind = "auto"
    every: bool = False

    def reads(self) -> list[str]:
        """The table."""
        return [self.source]

    def stale(self, context: Context, changed: Names) -> Names:
        """Of scores that change only those count that it indexes."""
        return changed & {self.source, *(column_of(self.source, column) for column in self.columns)}

    def plan(self, context: Context) -> str:
        """Which indexes would be built."""
        if not context.lake.exists(self.source):
            return f"index {', '.join(self.columns) or self.source}"
        work = [report for report in self._build(context, dry_run=True) if report.action in ("built", "updated")]
        return " ".join(report.sentence() for report in work) or "up to date"

    def run(self, context: Context) -> Outcome:
        """Build what is missing."""
        reports = self._build(context, dry_run=False)
        skipped = all(report.action in ("up to date", "none") for report in reports)
        return Outcome(" ".join(report.sentence() for report in reports), skipped=skipped)

    def _build(self, context: Context, *, dry_run: bool) -> list[Any]:
        columns = list(self.columns) or None
        return build_indexes(context.lake, self.source, columns, self.index, every=self.every, dry_run=dry_run)


def make_embed(name: str, body: dict[str, Any], kind: type[Step]) -> Step:
    """An embed step from its mapping: ``from`` and the keys of :class:`datas3_ray.embed.EmbedConfig`."""
    source = _from(body)
    return EmbedStep(name=name, source=source, config=parse_embed(body))


def make_index(name: str, body: dict[str, Any], kind: type[Step]) -> Step:
    """An index step from its mapping: ``from``, ``columns``, ``kind`` and ``all``."""
    source = _from(body)
    if body.get("columns") and body.get("all"):
        raise UsageError("'columns' and 'all' exclude each other.")
    if body.get("kind", "auto") != "auto" and not body.get("columns"):
        raise UsageError(f"kind: {body['kind']} needs 'columns' to be of that kind.")
    known = {"kind": "index", "all": "every"}
    values = {known.get(key, key): value for key, value in body.items()}
    return checked(IndexStep, values, filled={"name": name, "source": source})


def _from(body: dict[str, Any]) -> str:
    source = body.pop("from", None)
    if not isinstance(source, str):
        raise UsageError("the key 'from' is missing; it names the image table to work on.")
    return source
