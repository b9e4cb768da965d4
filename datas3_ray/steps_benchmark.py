"""The kinds of step that make a benchmark's deployments: their query and test tables, and the expert's selection."""

from __future__ import annotations

from typing import Any, ClassVar

from datas3_ray.benchmark.deployments import Deployment, find_deployment
from datas3_ray.lake.splits import Split, split_is_current, split_table
from datas3_ray.selectors import Selector
from datas3_ray.steps import Context, Names, Outcome, SelectStep, Step, scores_of, split_changes, vectors_of


class _OfDeployment(Step):
    """What both kinds say: which deployment is meant, and which rows there are."""

    of: str
    source: str
    file: str | None = None
    set: dict[str, Any] = {}

    def found(self) -> Deployment:
        """The deployment, with what the recipe sets; a UsageError says what cannot be meant."""
        from datas3_ray.recipe import find_file

        return find_deployment(self.of, self.set, find_file(self.file) if self.file is not None else None)

    def check(self) -> None:
        """A UsageError for a deployment, split or expert that cannot be meant, as soon as the recipe is read."""
        found = self.found()
        found.test_split()
        found.query_split("test")
        found.expert_selector()


class DeploymentStep(_OfDeployment):
    """``deployment: {of: geode/nigeria, from: TABLE}``: set the query and the test of a deployment aside.

    Makes the tables ``NAME-query`` and ``NAME-test``, NAME being the step's.
    """

    kind: ClassVar[str] = "deployment"

    def reads(self) -> list[str]:
        """The table whose rows are set aside."""
        return [self.source]

    def makes(self) -> list[str]:
        """The two tables."""
        return [f"{self.name}-test", f"{self.name}-query"]

    def widens(self) -> list[str]:
        """They get the vector columns that the table got since."""
        return self.makes()

    def stale(self, context: Context, changed: Names) -> Names:
        """As a split's."""
        return super().stale(context, changed) | (changed & {vectors_of(self.source)})

    def changes(self, context: Context, because: Names) -> Names:
        """As of two splits, of which the second follows the first."""
        found: Names = set()
        for name, split in self._splits():
            follows = found & {split.like, scores_of(str(split.like))}
            if because or follows or not split_is_current(context.lake, self.source, name, split):
                found |= split_changes(context.lake, self.source, name, split, because | follows)
        return found

    def plan(self, context: Context) -> str:
        """Whether both are there."""
        current = all(split_is_current(context.lake, self.source, name, split) for name, split in self._splits())
        return "up to date" if current else f"set query and test of {self.of} aside"

    def run(self, context: Context) -> Outcome:
        """The test first, whose labels the query's follow."""
        said, skipped = [], True
        for name, split in self._splits():
            skipped &= split_is_current(context.lake, self.source, name, split)
            counts = split_table(context.lake, self.source, name, split, replace=True).lineage()["counts"]
            short = f" ({counts['shortfall']} fewer than asked for)" if counts["shortfall"] else ""
            said.append(f"{name.removeprefix(self.name + '-')} {counts['kept']}{short}")
        text = f"{', '.join(said)} rows of {self.source} set aside"
        return Outcome(f"up to date: {text}" if skipped else text, skipped=skipped)

    def _splits(self) -> list[tuple[str, Split]]:
        found = self.found()
        test, query = self.makes()
        return [(test, found.test_split()), (query, found.query_split(test))]


class ExpertStep(_OfDeployment):
    """``expert: {of: geode/nigeria, from: POOL, deployment: nigeria}``: what the deployment's expert would choose.

    ``deployment`` is the name of the deployment's step, ``of`` without the data set by default.
    """

    kind: ClassVar[str] = "expert"
    deployment: str | None = None

    def reads(self) -> list[str]:
        """The pool, and the test table where the expert looks at it."""
        return self._step().reads()

    def stale(self, context: Context, changed: Names) -> Names:
        """As any selection's."""
        return self._step().stale(context, changed)

    def mentions(self) -> Names:
        """As any selection's."""
        return self._step().mentions()

    def plan(self, context: Context) -> str:
        """As any selection's."""
        return self._step().plan(context)

    def run(self, context: Context) -> Outcome:
        """Select, unless it is there."""
        return self._step().run(context)

    def _step(self) -> SelectStep:
        selector: Selector = self.found().expert_selector()
        test = f"{self.deployment or self.of.partition('/')[2]}-test" if selector.needs_query else None
        return SelectStep(name=self.name, source=self.source, selector=selector, query=test)
