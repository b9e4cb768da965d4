"""The kinds of step that a recipe can have: each checks its parameters when parsed, says its plan, and runs."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import fsspec
from pydantic import BaseModel, ConfigDict, Field, field_validator

from datas3_ray import __version__
from datas3_ray.lake.lake import RESULTS_TABLE
from datas3_ray.lake.schemas import fingerprint
from datas3_ray.lake.splits import Split, has_its_rows, lacking_vectors, split_is_current, split_table
from datas3_ray.lake.storage import is_local
from datas3_ray.selectors import Selector

if TYPE_CHECKING:
    from datas3_ray.lake import Lake
    from datas3_ray.training.sweep import Deployment


Names = set[str]
"""Names of tables and selections, and what plans call parts of them."""


@dataclass
class Context:
    """Where a recipe runs."""

    lake: Lake
    output: str
    progress: bool = True
    replace: bool = False
    """Take shards and files anew that changed since they were ingested."""


@dataclass
class Outcome:
    """What a step did, for a person; ``skipped`` when nothing had changed since it last ran."""

    sentence: str
    skipped: bool = False
    details: dict[str, Any] = field(default_factory=dict)


def splits_of(table: str) -> str:
    """How a plan calls the rows that no selection of a table may have: another split makes every selection stale."""
    return f"the splits of {table}"


def ids_aside(table: str) -> str:
    """How a plan calls the ids of these rows, which stay when a split is made again for the values of its pool."""
    return f"the rows set aside from {table}"


def vectors_of(table: str) -> str:
    """How a plan calls the set of vector columns of a table."""
    return f"the vectors of {table}"


def scores_of(table: str) -> str:
    """How a plan calls the numbers that scorings wrote beside the rows of a table."""
    return f"the scores of {table}"


def column_of(table: str, column: str) -> str:
    """How a plan calls the values of one column."""
    return f"column {column} of {table}"


class Step(BaseModel):
    """A named step. Subclasses state their parameters as fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    kind: ClassVar[str]
    name: str

    def reads(self) -> list[str]:
        """Tables and selections that must be there before the step."""
        return []

    def makes(self) -> list[str]:
        """Tables and selections that are there after it: the one of its name."""
        return [self.name]

    def widens(self) -> list[str]:
        """Tables that have columns after it which they did not have before."""
        return []

    def mentions(self) -> set[str]:
        """Whatever could be a table that it looks at."""
        return set(self.reads())

    def stale(self, context: Context, changed: Names) -> Names:
        """Which of the things that earlier steps will have changed make this step run."""
        return changed & {*self.reads(), *map(scores_of, self.reads())}

    def changes(self, context: Context, because: Names) -> Names:
        """What will be other than it was once the step has run; ``because`` is the part of it that made it run."""
        return set(self.makes())

    def plan(self, context: Context) -> str:
        """What :meth:`run` would do; begins with "up to date" when it would do nothing."""
        raise NotImplementedError

    def run(self, context: Context) -> Outcome:
        """Do it."""
        raise NotImplementedError


class SplitStep(Step):
    """``split: {from: pool, where: ..., hash: ..., share: [...]}``: set rows aside, never to be selected."""

    kind: ClassVar[str] = "split"
    source: str
    split: Split

    def reads(self) -> list[str]:
        """The pool, and the table whose distribution is followed."""
        return [self.source, *([self.split.like] if self.split.like else [])]

    def widens(self) -> list[str]:
        """The split: it gets the vector columns that the pool got since."""
        return [self.name]

    def stale(self, context: Context, changed: Names) -> Names:
        """As any step's; it also follows the pool's vector columns."""
        return super().stale(context, changed) | (changed & {vectors_of(self.source)})

    def changes(self, context: Context, because: Names) -> Names:
        """The split and what is set aside, or only the split's vector columns."""
        return split_changes(context.lake, self.source, self.name, self.split, because)

    def plan(self, context: Context) -> str:
        """Whether the same split of the same version is there."""
        lake = context.lake
        if split_is_current(lake, self.source, self.name, self.split):
            return "up to date"
        if has_its_rows(lake, self.source, self.name, self.split):
            return f"add {', '.join(self._lacking(context))} to {self.name}"
        return f"set rows of {self.source} aside"

    def run(self, context: Context) -> Outcome:
        """Write the split's table, unless it is there; add the vector columns that the pool got since."""
        lake = context.lake
        if split_is_current(lake, self.source, self.name, self.split):
            return Outcome("up to date", skipped=True)
        lacking = self._lacking(context) if has_its_rows(lake, self.source, self.name, self.split) else []
        counts = split_table(lake, self.source, self.name, self.split, replace=True).lineage()["counts"]
        if lacking:
            return Outcome(f"{', '.join(lacking)} added to the {counts['kept']} rows set aside before")
        short = f", {counts['shortfall']} fewer than asked for" if counts["shortfall"] else ""
        return Outcome(f"{counts['kept']} rows of {self.source} set aside{short}")

    def _lacking(self, context: Context) -> list[str]:
        return lacking_vectors(context.lake.table(self.source), context.lake.table(self.name))


def split_changes(lake: Lake, source: str, name: str, split: Split, because: Names) -> Names:
    """What is other than before once a split is made for these reasons, or for being no longer current."""
    if because <= {vectors_of(source)} and has_its_rows(lake, source, name, split):
        return {vectors_of(name)}
    lineage = lake.table(name).lineage() if lake.exists(name) else {}
    # Another version of the pool does not draw other ids, unless it has other rows: a step that reads ids sees that.
    same = split.like is None and lineage.get("parameters") == split.model_dump(mode="json")
    return {name, splits_of(source)} | (set() if same and lineage.get("table") == source else {ids_aside(source)})


class SelectStep(Step):
    """``select: {from: pool, within: ..., query: ..., METHOD: {...}}``: choose rows of a pool."""

    kind: ClassVar[str] = "select"
    source: str
    selector: Selector
    within: str | None = None
    query: str | None = None

    def reads(self) -> list[str]:
        """The pool, the parent selection, the query, and the selections that the method itself reads."""
        named = (self.source, self.within, self.query, *self.selector.read_selections())
        return [name for name in named if name]

    def stale(self, context: Context, changed: Names) -> Names:
        """As any step's; it also follows the pool's splits."""
        return super().stale(context, changed) | (changed & {splits_of(self.source)})

    def mentions(self) -> set[str]:
        """Also what the method's parameters name: a selection or a table, it may be."""
        named = self.selector.model_dump().values()
        return {*self.reads(), *(value for value in named if isinstance(value, str))}

    def plan(self, context: Context) -> str:
        """Whether the same choice from the same versions is there; a UsageError says what cannot be chosen so."""
        lake = context.lake
        if all(lake.exists(name) for name in self.reads()):
            if self.selector.is_current(lake, self.source, self.name, within=self.within, query=self.query):
                return "up to date"
            query = lake.image_table(self.query) if self.query else None
            self.selector.check(lake, lake.image_table(self.source), query)
        return f"{self.selector.method} on {self.source}"

    def run(self, context: Context) -> Outcome:
        """Select, unless it is there."""
        asked = {"within": self.within, "query": self.query}
        skipped = self.selector.is_current(context.lake, self.source, self.name, **asked)
        selection = self.selector.select(context.lake, self.source, name=self.name, replace=True, **asked)
        counts = selection.lineage()["counts"]
        share = counts["kept"] / counts["eligible"] if counts["eligible"] else 0.0
        text = f"{counts['kept']} of {counts['eligible']} rows kept ({share:.1%})"
        for key, word in (("invalid", "without a usable value or vector"), ("shortfall", "fewer than asked for")):
            text += f", {counts[key]} {word}" if counts[key] else ""
        return Outcome(("up to date: " if skipped else "") + text, skipped=skipped)


class DeploymentSpec(BaseModel):
    """One deployment of a sweep: its test table, its query table, and selections of its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    test: str
    query: str | None = None
    selections: tuple[str, ...] = ()


class SweepStep(Step):
    """``sweep: {config: FILE, selections: [...], deployments: {NAME: {query: ..., test: ...}}}``.

    ``{deployment}`` in a selection's name stands for the deployment's; the leaderboard shows the name without it. A
    list of names stands for deployments with the tables ``NAME-query`` and ``NAME-test``, as their steps make them.
    """

    kind: ClassVar[str] = "sweep"
    config: str | dict[str, Any]
    set: dict[str, Any] = {}
    selections: tuple[str, ...] = ()
    deployments: dict[str, DeploymentSpec]

    @field_validator("deployments", mode="before")
    @classmethod
    def _listed(cls, deployments: Any) -> Any:
        if isinstance(deployments, list) and all(isinstance(name, str) for name in deployments):
            return {name: {"query": f"{name}-query", "test": f"{name}-test"} for name in deployments}
        return deployments

    def named_selections(self, deployment: str) -> dict[str, str]:
        """Label on the leaderboard -> name of the selection."""
        asked = (*self.selections, *self.deployments[deployment].selections)
        return {_label(name): name.replace("{deployment}", deployment) for name in asked}

    def reads(self) -> list[str]:
        """Every selection, test and query table."""
        names: list[str] = []
        for deployment, spec in self.deployments.items():
            names += [*self.named_selections(deployment).values(), spec.test, *([spec.query] if spec.query else [])]
        return list(dict.fromkeys(names))

    def stale(self, context: Context, changed: Names) -> Names:
        """As any step's, but for query tables that no trial is scored on."""
        from datas3_ray.training.results import scored_tables

        config, asked = self.configured(), self._deployments().values()
        scored = {table for one in asked for table in scored_tables(config, one)}
        read = scored.union(*(one.selections.values() for one in asked))
        return super().stale(context, changed) & {*read, *map(scores_of, scored)}

    def plan(self, context: Context) -> str:
        """How much there is to train, unless the same sweep is in the results."""
        from datas3_ray.training.sweep import sweep_is_done

        if all(context.lake.exists(name) for name in self.reads()) and sweep_is_done(
            context.lake, self.configured(), name=self.name, deployments=self._deployments()
        ):
            return "up to date"
        selections = {name for deployment in self.deployments for name in self.named_selections(deployment).values()}
        points = len(self.configured().points())
        return f"{points} grid points on {len(selections)} selections, {len(self.deployments)} deployments"

    def run(self, context: Context) -> Outcome:
        """Train, unless the same sweep is in the results."""
        from rich.console import Console

        from datas3_ray.benchmark.leaderboard import leaderboard
        from datas3_ray.benchmark.tables import table_for
        from datas3_ray.training.sweep import run_sweep

        before = context.lake.table(RESULTS_TABLE).version if context.lake.exists(RESULTS_TABLE) else 0
        rows = run_sweep(
            context.lake,
            self.configured(),
            name=self.name,
            deployments=self._deployments(),
            storage=f"{context.output}/tune",
            progress=None if context.progress else lambda done: None,
        )
        skipped = context.lake.table(RESULTS_TABLE).version == before
        if context.progress:
            console = Console()
            console.print(table_for(leaderboard(rows), console.width))
        return Outcome(f"{'up to date: ' if skipped else ''}{rows.num_rows} results", skipped=skipped)

    def configured(self) -> Any:
        """The :class:`datas3_ray.training.config.SweepConfig` of this step; a UsageError says what cannot be meant."""
        from datas3_ray.recipe import find_file
        from datas3_ray.training.config import load_sweep_config

        source = self.config if isinstance(self.config, dict) else find_file(self.config)
        return load_sweep_config(source, self.set)

    def _deployments(self) -> dict[str, Deployment]:
        from datas3_ray.training.sweep import Deployment

        return {
            name: Deployment(name, test=spec.test, query=spec.query, selections=self.named_selections(name))
            for name, spec in self.deployments.items()
        }


class ReportStep(Step):
    """``report: {}``: one self-contained page in the recipe's output folder."""

    kind: ClassVar[str] = "report"
    title: str | None = None
    selections: list[str] | None = None
    samples: int = Field(default=24, ge=0, le=500)
    paper: bool | str = True
    """Published rows on the leaderboard: whether to show them, or a file with their scores."""

    def reads(self) -> list[str]:
        """The selections it names."""
        return list(self.selections or [])

    def stale(self, context: Context, changed: Names) -> Names:
        """A page shows the whole lake."""
        return changed

    def plan(self, context: Context) -> str:
        """Where the page will be."""
        return "up to date" if self._is_current(context) else f"write {self._page(context)}"

    def run(self, context: Context) -> Outcome:
        """Write the page, unless nothing in the lake has changed since."""
        page = self._page(context)
        details = {"page": page}
        if self._is_current(context):
            return Outcome(f"up to date: {page}", skipped=True, details=details)
        if is_local(page):
            self._write(context, Path(page))
        else:
            with tempfile.TemporaryDirectory() as folder:
                made = self._write(context, Path(folder) / "page.html")
                with fsspec.open(page, "wb") as target:
                    target.write(made.read_bytes())
        with fsspec.open(self._mark(context), "w") as target:
            target.write(self._fingerprint(context))
        return Outcome(f"page written: {page}", details=details)

    def _write(self, context: Context, path: Path) -> Path:
        from datas3_ray.report import write_report

        return write_report(
            context.lake,
            path,
            title=self.title,
            selections=self.selections,
            samples=self.samples,
            paper=self._paper(),
        )

    def _paper(self) -> bool | Path:
        from datas3_ray.recipe import find_file

        return self.paper if isinstance(self.paper, bool) else Path(find_file(self.paper))

    def _page(self, context: Context) -> str:
        return f"{context.output}/{self.name}.html"

    def _mark(self, context: Context) -> str:
        """A small file beside the page that says what it was made from."""
        return f"{self._page(context)}.fingerprint"

    def _is_current(self, context: Context) -> bool:
        store, page = fsspec.core.url_to_fs(self._page(context))
        mark = f"{page}.fingerprint"
        if not store.exists(page) or not store.exists(mark):
            return False
        return bool(store.cat_file(mark).decode() == self._fingerprint(context))

    def _fingerprint(self, context: Context) -> str:
        # A lake that was deleted and made again has the same names and versions.
        tables = {t.name: [t.version, t.born, t.lineage().get("fingerprint")] for t in context.lake.tables()}
        paper = self._paper()
        figures = paper if isinstance(paper, bool) else paper.read_text(encoding="utf-8", errors="replace")
        step = {**self.model_dump(mode="json"), "paper": figures}
        return fingerprint({"tables": tables, "step": step, "code": __version__})


def _label(name: str) -> str:
    """A selection's name without the placeholder and the separator beside it."""
    name = re.sub(r"[-_.]\{deployment\}|\{deployment\}[-_.]?", "", name)
    return name or "{deployment}"
