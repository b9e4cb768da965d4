"""The kind of step that finds a selection for one deployment by itself."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from datas3_ray.steps import Context, Names, Outcome, Step, splits_of

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
        """The pool, the query and the test table."""
        return [self.source, self.query, self.test]

    def stale(self, context: Context, changed: Names) -> Names:
        """As any step's; it also follows the pool's splits."""
        return super().stale(context, changed) | (changed & {splits_of(self.source)})

    def plan(self, context: Context) -> str:
        """How much there is to try."""
        return f"{len(self.configured().selectors())} candidates on {self.source}, the best for {self.test}"

    def run(self, context: Context) -> Outcome:
        """Try, judge and train; what is there already is not done again."""
        from rich.console import Console
        from rich.table import Table

        from datas3_ray.auto import run_auto
        from datas3_ray.lake.lake import RESULTS_TABLE

        lake = context.lake
        before = lake.table(RESULTS_TABLE).version if lake.exists(RESULTS_TABLE) else 0
        found = run_auto(
            lake,
            self.configured(),
            name=self.name,
            storage=f"{context.output}/tune",
            progress=None if context.progress else lambda progress: None,
        )
        skipped = lake.table(RESULTS_TABLE).version == before
        if context.progress:
            table = Table("candidate", "rows", "probe on the query's other half", title=f"{self.name}: best first")
            for one in found.candidates:
                table.add_row(one.label, f"{one.rows:,}", f"{one.score:.4f}")
            Console().print(table)
        winner = found.winner
        text = f"{winner.label} of {len(found.candidates)} candidates: {winner.rows} rows, selection {winner.selection}"
        return Outcome(("up to date: " if skipped else "") + text, skipped=skipped)

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
