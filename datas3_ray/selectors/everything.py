"""Everything: the whole pool, the reference of every leaderboard."""

from __future__ import annotations

from typing import ClassVar

import pyarrow as pa

from datas3_ray.lake.view import Fragment
from datas3_ray.selectors.base import Inputs, Outcome, Selector


class Everything(Selector):
    """Keep every eligible row.

    >>> Everything().method
    'everything'
    """

    method: ClassVar[str] = "everything"

    def choose(self, inputs: Inputs) -> Outcome:
        """Every part keeps all of its rows; there is no score."""
        return Outcome(inputs.view.map(_all))


def _all(fragment: Fragment) -> pa.Table:
    ids = fragment.ids()
    return pa.table(
        {"id": ids, "keep": pa.repeat(pa.scalar(True), len(ids)), "score": pa.nulls(len(ids), pa.float64())}
    )
