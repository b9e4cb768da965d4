"""MatchLabel: the classes that the deployment has, and no others."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from datas3_ray.runtime import remote
from datas3_ray.selectors.base import Inputs, Outcome, Selector
from datas3_ray.selectors.group_cut import group_sizes
from datas3_ray.selectors.labels import absent, classed, query_labels, require_labels

if TYPE_CHECKING:
    from datas3_ray.lake import Lake, Table


class MatchLabel(Selector):
    """Keep every row whose label some row of the query has (DataS3, Match-Label).

    Parameters
    ----------
    label : str
        Column of the labels, in the table and in the query: texts or whole numbers, compared as texts.

    Notes
    -----
    A row without a label is invalid. There is no score, and nothing is drawn. The report says how many classes the
    query has, and which of them the pool lacks.

    >>> MatchLabel().label
    'label'
    """

    method: ClassVar[str] = "match_label"
    needs_query: ClassVar[bool] = True

    label: str = "label"

    def check(self, lake: Lake, table: Table, query: Table | None) -> None:
        """Both tables must have labels."""
        assert query is not None
        require_labels(table, self.label)
        require_labels(query, self.label)

    def choose(self, inputs: Inputs) -> Outcome:
        """Each fragment compares its labels with the query's."""
        import ray

        assert inputs.query is not None
        counts, unlabelled = query_labels(inputs.query, self.label)
        classes = list(counts)
        mapped = inputs.view.map(classed, self.label, ray.put(pa.array(classes, pa.string())))
        sizes = group_sizes(mapped.parts, len(classes))
        report = {"classes": len(classes), "unlabelled_queries": unlabelled, **absent(classes, sizes)}
        match = remote(_match)
        mapped.parts = [match.remote(part) for part in mapped.parts]
        return Outcome(mapped, report=report)


def _match(part: pa.Table) -> pa.Table:
    keep = pc.greater_equal(part.column("group"), 0)
    return pa.table({"id": part.column("id"), "keep": keep, "score": pa.nulls(part.num_rows, pa.float64())})
