"""The kind of step that gives a pool training-based scores: score."""

from __future__ import annotations

from typing import Any, ClassVar

from datas3_ray.errors import UsageError
from datas3_ray.steps import Context, Names, Outcome, Step, column_of, ids_aside, scores_of
from datas3_ray.training.score_plan import ScoreConfig, parse_config, plan_scores


class ScoreStep(Step):
    """``score: {table: pool, column: lite, scores: [el2n, forgetting], epochs: 10}``: scores as columns of a table."""

    kind: ClassVar[str] = "score"
    table: str
    config: ScoreConfig

    def reads(self) -> list[str]:
        """The table that gets the columns."""
        return [self.table]

    def widens(self) -> list[str]:
        """The same table."""
        return [self.table]

    def stale(self, context: Context, changed: Names) -> Names:
        """Other scores do not count, and of the splits only which rows they set aside."""
        return changed & {self.table, ids_aside(self.table)}

    def changes(self, context: Context, because: Names) -> Names:
        """The scores that are there and get other values; new columns make nothing stale."""
        lake = context.lake
        there = lake.table(self.table).schema.names if lake.exists(self.table) else []
        replaced = [column for column in self.config.columns.values() if column in there]
        if not because and there:
            replaced = list(plan_scores(lake, self.table, self.config).replaced)
        if not replaced:
            return {self.name}
        return {self.name, scores_of(self.table), *(column_of(self.table, column) for column in replaced)}

    def plan(self, context: Context) -> str:
        """Which columns are missing or were made otherwise."""
        if not context.lake.exists(self.table):
            return f"add {', '.join(self.config.columns.values())} to {self.table}"
        return plan_scores(context.lake, self.table, self.config).describe()

    def run(self, context: Context) -> Outcome:
        """Train the proxies and write the columns, unless they are up to date."""
        from datas3_ray.training.score_run import score_table

        summary = score_table(context.lake, self.table, self.config)
        return Outcome(summary.sentence(), skipped=summary.accuracy is None)


def make_score(name: str, body: dict[str, Any], kind: type[Step]) -> ScoreStep:
    """A score step from its mapping: ``table`` and the keys of :class:`ScoreConfig`."""
    table = body.pop("table", None)
    if not isinstance(table, str):
        raise UsageError("the key 'table' is missing; it names the image table to score.")
    return ScoreStep(name=name, table=table, config=parse_config(body))
