"""The kind of step that finds a selection for one deployment by itself."""

from __future__ import annotations

import json
from typing import Any, ClassVar

from pydantic import Field

from datas3_ray import __version__
from datas3_ray.lake import Lake
from datas3_ray.lake.lake import RESULTS_TABLE
from datas3_ray.lake.schemas import fingerprint
from datas3_ray.lake.splits import content_marks
from datas3_ray.steps import Context, Names, Outcome, Step, splits_of

FOUND = "datas3:auto"
"""Key of the probes' table: what the last search looked at, the selections it made, and which is the best."""

PROBE = "tune_configs/vit_linear_probe.yaml"


class AutoStep(Step):
    """``auto: {from: POOL, query: ..., test: ..., column: ..., candidates: [...], config: FILE}``.

    Candidates are ``METHOD: {parameter: value or list}``; each is judged by a linear probe on one half of the query's
    labels, and the model of ``config`` is trained on the best one's selection.
    """

    kind: ClassVar[str] = "auto"
    source: str
    query: str
    test: str
    column: str
    candidates: tuple[dict[str, dict[str, Any]], ...] = ()
    probe: str | dict[str, Any] = PROBE
    config: str | dict[str, Any] = PROBE
    set: dict[str, Any] = {}
    seed: int = Field(0, ge=0)

    def reads(self) -> list[str]:
        """The pool, the query and the test table, and the selections that candidates read."""
        return [self.source, self.query, self.test, *self._read_by_candidates()]

    def stale(self, context: Context, changed: Names) -> Names:
        """As any step's; it also follows the pool's splits."""
        return super().stale(context, changed) | (changed & {splits_of(self.source)})

    def plan(self, context: Context) -> str:
        """How much there is to try, unless that has been found."""
        if self._is_current(context.lake):
            return "up to date"
        return f"{len(self.configured().selectors())} candidates on {self.source}, the best for {self.test}"

    def run(self, context: Context) -> Outcome:
        """Try, judge and train; what is there already is not done again."""
        from rich.console import Console
        from rich.table import Table

        from datas3_ray.auto import run_auto

        lake = context.lake
        before = self._versions(lake)
        found = run_auto(
            lake,
            self.configured(),
            name=self.name,
            storage=f"{context.output}/tune",
            progress=None if context.progress else lambda progress: None,
        )
        skipped = self._versions(lake) == before
        if not self._is_current(lake):
            selections = {one.label: one.selection for one in found.candidates}
            about = {"mark": self._mark(lake), "selections": selections, "best": found.winner.label}
            lake.table(self._probes).dataset.update_config({FOUND: json.dumps(about)})
        if context.progress:
            table = Table("candidate", "rows", "probe on the query's other half", title=f"{self.name}: best first")
            for one in found.candidates:
                table.add_row(one.label, f"{one.rows:,}", f"{one.score:.4f}")
            Console().print(table)
        winner = found.winner
        text = f"{winner.label} of {len(found.candidates)} candidates: {winner.rows} rows, selection {winner.selection}"
        return Outcome(("up to date: " if skipped else "") + text, skipped=skipped)

    @property
    def _probes(self) -> str:
        return f"{self.name}.probes"

    def _versions(self, lake: Lake) -> list[int]:
        """Of the tables that trials are added to."""
        return [lake.table(name).version if lake.exists(name) else 0 for name in (RESULTS_TABLE, self._probes)]

    def _is_current(self, lake: Lake) -> bool:
        """Whether :meth:`run` would find everything done: the halves, the selections, the probes, the final trials."""
        from datas3_ray.training.sweep import Deployment, sweep_is_done

        ask = f"{self.name}.ask"
        if not all(map(lake.exists, (*self.reads(), ask, f"{self.name}.judge", self._probes))):
            return False
        about = json.loads(lake.table(self._probes).dataset.config().get(FOUND, "{}"))
        if about.get("mark") != self._mark(lake):
            return False
        asked, found = self.configured(), about["selections"]
        for label, selector in asked.selectors().items():
            query = ask if selector.needs_query else None
            # A candidate of which every probe failed has no score, and was not kept.
            if label in found and not selector.is_current(lake, self.source, found[label], query=query):
                return False
        best = Deployment(self.name, self.test, self.query, {"auto": found[about["best"]]})
        return sweep_is_done(lake, asked.final, name=self.name, deployments={self.name: best})

    def _mark(self, lake: Lake) -> str:
        """Changes when the search could end otherwise, although its selections are what they were."""
        asked = self.configured().model_dump(mode="json")
        tables = content_marks([lake.table(self.query), lake.table(self.test)])
        return fingerprint({"asked": asked, "code": __version__, "tables": tables})

    def _read_by_candidates(self) -> list[str]:
        named: list[list[str]] = [selector.read_selections() for selector in self.configured().selectors().values()]
        return list(dict.fromkeys(name for names in named for name in names))

    def configured(self) -> Any:
        """The :class:`datas3_ray.auto.AutoConfig` of this step; a UsageError says what cannot be meant."""
        from datas3_ray.auto import AutoConfig
        from datas3_ray.recipe import find_file
        from datas3_ray.training.config import load_sweep_config

        def read(source: str | dict[str, Any], changes: dict[str, Any]) -> Any:
            return load_sweep_config(source if isinstance(source, dict) else find_file(source), changes)

        return AutoConfig(
            pool=self.source,
            query=self.query,
            test=self.test,
            column=self.column,
            candidates=self.candidates,
            probe=read(self.probe, {}),
            final=read(self.config, self.set),
            seed=self.seed,
        )
