"""Expert: the subset that somebody who knows the deployment would write down as a predicate."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from datas3_ray.errors import UsageError, engine_reason
from datas3_ray.lake.storage import open_dataset
from datas3_ray.lake.view import Fragment
from datas3_ray.selectors.base import Inputs, Outcome, Selector

if TYPE_CHECKING:
    from datas3_ray.lake import Lake, Table


class Expert(Selector):
    """Keep the rows that match a SQL predicate over the table's columns (the knowledge-driven subsets of DataS3).

    Parameters
    ----------
    where : str
        As LanceDB takes it: ``region = 'Africa' AND width >= 200``.

    >>> Expert("region = 'Africa'").where
    "region = 'Africa'"
    """

    method: ClassVar[str] = "expert"

    where: str = Field(min_length=1)

    def __init__(self, where: str | None = None, /, **parameters: Any) -> None:
        if where is not None and "where" in parameters:
            raise UsageError("expert: the predicate 'where' is given twice.")
        super().__init__(**({"where": where} if where is not None else {}), **parameters)

    def check(self, lake: Lake, table: Table, query: Table | None) -> None:
        """The predicate must parse and name columns that are there."""
        with _one_sentence(self.where, table.name):
            table.dataset.scanner(columns=["id"], filter=self.where, limit=1).to_table()

    def choose(self, inputs: Inputs) -> Outcome:
        """Each fragment answers the predicate itself; there is no score."""
        return Outcome(inputs.view.map(_match, self.where, inputs.table.name))


@contextmanager
def _one_sentence(where: str, table: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError) as error:
        raise UsageError(f"where = {where!r} does not work on table '{table}': {engine_reason(error)}") from None


def _match(fragment: Fragment, where: str, table: str) -> pa.Table:
    ids = fragment.ids()
    dataset = open_dataset(fragment.uri, fragment.version, fragment.options)
    with _one_sentence(where, table):  # a value that it fails on may be in one fragment only
        matching = dataset.get_fragment(fragment.fragment).to_table(columns=["id"], filter=where).column("id")
    keep = pc.is_in(ids, value_set=matching.combine_chunks())
    return pa.table({"id": ids, "keep": keep, "score": pa.nulls(len(ids), pa.float64())})
