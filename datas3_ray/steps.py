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
from datas3_ray.ingest import IngestConfig, ingest, plan_ingest
from datas3_ray.lake.lake import RESULTS_TABLE
from datas3_ray.lake.schemas import fingerprint
from datas3_ray.lake.splits import Split, split_is_current, split_table
from datas3_ray.lake.storage import is_local
from datas3_ray.selectors import Selector

if TYPE_CHECKING:
    from datas3_ray.lake import Lake
    from datas3_ray.training.sweep import Deployment


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

    def stale(self, changed: set[str]) -> str | None:
        """One of the changed tables that this step reads, or None."""
        return min(changed & set(self.reads()), default=None)

    def plan(self, context: Context) -> str:
        """What :meth:`run` would do; begins with "up to date" when it would do nothing."""
        raise NotImplementedError

    def run(self, context: Context) -> Outcome:
        """Do it."""
        raise NotImplementedError


class SyntheticStep(Step):
    """``synthetic: {folder: data, images: 2400, seed: 0}``: draw the camera-trap world as WebDataset shards."""

    kind: ClassVar[str] = "synthetic"
    folder: str
    images: int = Field(default=2400, ge=100)
    seed: int = Field(default=0, ge=0)

    def plan(self, context: Context) -> str:
        """Whether the world is there."""
        return "up to date" if self._is_there() else f"draw {self.images} images into {self.folder}"

    def run(self, context: Context) -> Outcome:
        """Draw the shards, unless they are there."""
        from datas3_ray.sources.synthetic import generate

        skipped = self._is_there()
        summary = generate(self.folder, self._world())
        text = f"{summary.images} images and {summary.corrupt} broken files in {self.folder}"
        return Outcome(("up to date: " if skipped else "") + text, skipped=skipped)

    def _world(self) -> Any:
        from datas3_ray.sources.synthetic import World

        return World(images=self.images, seed=self.seed)

    def _is_there(self) -> bool:
        from datas3_ray.sources.synthetic import is_complete

        return is_complete(Path(self.folder), self._world())


class IngestStep(Step):
    """``ingest: {source: ..., encoders: ...}``: bring a source's shards into the table of the step's name."""

    kind: ClassVar[str] = "ingest"
    config: IngestConfig

    def plan(self, context: Context) -> str:
        """How many shards are missing."""
        plan = plan_ingest(context.lake, self.name, self._config(context))
        return plan.describe() if plan.todo else f"up to date ({plan.describe()})"

    def run(self, context: Context) -> Outcome:
        """Ingest what is missing."""
        summary = ingest(context.lake, self.name, self._config(context), progress=context.progress)
        return Outcome(summary.sentence(), skipped=not summary.shards)

    def _config(self, context: Context) -> IngestConfig:
        return self.config.model_copy(update={"replace": True}) if context.replace else self.config


class SplitStep(Step):
    """``split: {from: pool, where: ..., hash: ..., share: [...]}``: set rows aside, never to be selected."""

    kind: ClassVar[str] = "split"
    source: str
    split: Split

    def reads(self) -> list[str]:
        """The pool, and the table whose distribution is followed."""
        return [self.source, *([self.split.like] if self.split.like else [])]

    def plan(self, context: Context) -> str:
        """Whether the same split of the same version is there."""
        current = split_is_current(context.lake, self.source, self.name, self.split)
        return "up to date" if current else f"set rows of {self.source} aside"

    def run(self, context: Context) -> Outcome:
        """Write the split's table, unless it is there."""
        if split_is_current(context.lake, self.source, self.name, self.split):
            return Outcome("up to date", skipped=True)
        counts = split_table(context.lake, self.source, self.name, self.split, replace=True).lineage()["counts"]
        short = f", {counts['shortfall']} fewer than asked for" if counts["shortfall"] else ""
        return Outcome(f"{counts['kept']} rows of {self.source} set aside{short}")


class SelectStep(Step):
    """``select: {from: pool, within: ..., query: ..., METHOD: {...}}``: choose rows of a pool."""

    kind: ClassVar[str] = "select"
    source: str
    selector: Selector
    within: str | None = None
    query: str | None = None

    def reads(self) -> list[str]:
        """The pool, the parent selection and the query."""
        return [name for name in (self.source, self.within, self.query) if name]

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

    def stale(self, changed: set[str]) -> str | None:
        """A page shows the whole lake."""
        return min(changed, default=None)

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
