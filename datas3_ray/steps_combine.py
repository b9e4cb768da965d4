"""The kind of step that combines selections: union, intersect, minus."""

from __future__ import annotations

from typing import Any, ClassVar

from datas3_ray.errors import UsageError, did_you_mean
from datas3_ray.lake.algebra import OPERATIONS, Operation, check, combine, is_current
from datas3_ray.steps import Context, Names, Outcome, Step, scores_of, splits_of


class CombineStep(Step):
    """``combine: {union: [a, b]}``, ``{intersect: [a, b]}`` or ``{minus: [a, b]}``: a logic over selections."""

    kind: ClassVar[str] = "combine"
    operation: Operation
    selections: tuple[str, ...]

    def reads(self) -> list[str]:
        """The selections."""
        return list(self.selections)

    def stale(self, context: Context, changed: Names) -> Names:
        """As any step's; it also follows the pool that the selections were made from, and its splits."""
        there = [context.lake.table(name) for name in self.selections if context.lake.exists(name)]
        pools = {table.lineage().get("table", "") for table in there}
        followed = {what for pool in pools for what in (pool, scores_of(pool), splits_of(pool))}
        return super().stale(context, changed) | (changed & followed)

    def plan(self, context: Context) -> str:
        """Whether the same combination of the same versions is there."""
        if is_current(context.lake, self.operation, self.selections, self.name):
            return "up to date"
        return f"{self.operation} of {', '.join(self.selections)}"

    def run(self, context: Context) -> Outcome:
        """Combine, unless it is there."""
        skipped = is_current(context.lake, self.operation, self.selections, self.name)
        selection = combine(context.lake, self.operation, self.selections, self.name, replace=True)
        counts = selection.lineage()["counts"]
        share = counts["kept"] / counts["eligible"] if counts["eligible"] else 0.0
        text = f"{counts['kept']} of {counts['eligible']} rows kept ({share:.1%})"
        return Outcome(("up to date: " if skipped else "") + text, skipped=skipped)


def make_combine(name: str, body: dict[str, Any], kind: type[Step]) -> Step:
    """A combine step from its mapping: one operation and a list of selections."""
    odd = next((key for key in body if key not in OPERATIONS), None)
    if odd is not None:
        raise UsageError(f"unknown key '{odd}'; it takes: {', '.join(OPERATIONS)}.{did_you_mean(odd, OPERATIONS)}")
    if len(body) != 1:
        raise UsageError(f"exactly one of {', '.join(OPERATIONS)} is needed, got {', '.join(body) or 'none'}.")
    operation, names = next(iter(body.items()))
    if not isinstance(names, list) or not all(isinstance(one, str) for one in names):
        raise UsageError(f"'{operation}' takes a list of selections such as [a, b], got {names!r}.")
    check(operation, names)
    return CombineStep(name=name, operation=operation, selections=tuple(names))
