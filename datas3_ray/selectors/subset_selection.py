"""SubsetSelection: the base of methods of your own, which asks for one function."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from datas3_ray.errors import UsageError
from datas3_ray.kernels.similarity import normalize
from datas3_ray.lake.schemas import matrix
from datas3_ray.lake.view import Fragment
from datas3_ray.selectors.base import Inputs, Outcome, Selector, Size, score_table

if TYPE_CHECKING:
    from datas3_ray.lake import Lake, Table


@dataclass(frozen=True)
class Rows:
    """Some rows of a table: ``ids`` (n), ``vectors`` float32 (n, d) of unit length, and the columns asked for.

    ``vectors`` is None where the method has no ``column``; ``rows["width"]`` is a column as a numpy array.
    """

    ids: pa.Array
    vectors: np.ndarray | None
    table: pa.Table

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, column: str) -> np.ndarray:
        return self.table.column(column).to_numpy()


class SubsetSelection(Selector):
    """A method in ten lines: give each row a score, and the ``size`` rows of highest score are kept, ties by id.

    A subclass states its parameters as fields, as any selector does, and implements :meth:`score`. With a field
    ``column`` its rows come with the vectors of that column, and rows without a usable one are set aside and counted;
    ``reads`` names further columns. With ``needs_query`` the query comes along. ``method``, the name in a selection's
    lineage, is the class's in lower case with underscores unless it is given.

    >>> class NearestToMean(SubsetSelection):
    ...     needs_query = True
    ...     column: str
    ...     def score(self, rows, query):
    ...         return rows.vectors @ query.vectors.mean(axis=0)
    >>> NearestToMean(column="clip", size=0.25).method
    'nearest_to_mean'
    """

    reads: ClassVar[tuple[str, ...]] = ()

    size: Size

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        if "method" not in cls.__dict__:
            cls.method = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", cls.__name__).lower()

    def score(self, rows: Rows, query: Rows | None) -> Any:
        """One number a row, higher for what is kept first; called in parallel, for some thousand rows at a time.

        It must not depend on which rows come together. Scores are compared as float32.
        """
        raise NotImplementedError

    def check(self, lake: Lake, table: Table, query: Table | None) -> None:
        """The columns must be there, and the function."""
        super().check(lake, table, query)
        if type(self).score is SubsetSelection.score:
            raise UsageError(f"{self.method}: {type(self).__name__} does not implement score(rows, query).")
        for column in self.reads:
            table.require_column(column)

    def choose(self, inputs: Inputs) -> Outcome:
        """Each fragment scores its rows."""
        import ray

        query = None
        if inputs.query is not None:
            present = [name for name in self.reads if name in inputs.query.schema.names]
            column = self.vector()
            query = _rows(inputs.query.to_arrow(["id", *([column] if column else []), *present]), column)
        mapped = inputs.view.map(_scored, self, ray.put(query))
        return Outcome(mapped, size=self.size, resizable=True)


def _rows(table: pa.Table, column: str | None) -> Rows:
    vectors = None
    if column is not None:
        vectors, valid = normalize(matrix(table.column(column)))
        if not valid.all():
            vectors, table = vectors[valid], table.filter(pa.array(valid))
    return Rows(table.column("id").combine_chunks(), vectors, table)


def _scored(fragment: Fragment, asked: SubsetSelection, query: Rows | None) -> pa.Table:
    ids, scores = [pa.array([], pa.string())], [np.empty(0)]
    for batch in fragment.batches(asked.reads):
        rows = _rows(batch, asked.vector())
        ids.append(rows.ids)
        try:
            given = asked.score(rows, query)
        except Exception as error:  # whatever the user's code raises
            raise UsageError(f"{asked.method}: score failed: {type(error).__name__}: {error}.") from error
        scores.append(_checked(asked, rows, given))
    return score_table(pa.chunked_array(ids, pa.string()), np.concatenate(scores))


def _checked(asked: SubsetSelection, rows: Rows, given: Any) -> np.ndarray:
    found = np.asarray(given, np.float64)
    if found.shape != (len(rows),):
        raise UsageError(
            f"{asked.method}: score gave shape {found.shape} for {len(rows)} rows; one number a row is asked."
        )
    with np.errstate(over="ignore"):
        scores = found.astype(np.float32).astype(np.float64)
    if not np.isfinite(scores).all():
        place = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise UsageError(
            f"{asked.method}: the score of row '{rows.ids[place]}' is {found[place]}, not a finite float32."
        )
    return scores


__all__ = ["Rows", "SubsetSelection"]
