"""Rows of a cluster brought together."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from datas3_ray.errors import Datas3Error
from datas3_ray.lake.view import View
from datas3_ray.runtime import gather
from datas3_ray.selectors.grouping import Dealing, deal, load_group


@pytest.mark.parametrize("ids", [["a", "b"], ["a", "b", "x"], ["a", "b", "c", "d"], []])
def test_rows_that_are_not_those_that_were_clustered_are_not_compared(lake, make_pool, ids) -> None:
    make_pool(lake, "pool", ["a", "b", "c"], np.eye(3))
    view = View(lake.table("pool"), "vec")

    def dealt(names: list[str]):
        part = pa.table(
            {
                "id": pa.array(names, pa.string()),
                "cluster": pa.array([0] * len(names), pa.int32()),
                "key": pa.array(np.arange(len(names), dtype=float)),
            }
        )
        return gather(deal(view, [part], Dealing.plan(np.array([3]), 10), vectors=True)[0])

    assert load_group(dealt(["a", "b", "c"])).matrix().tolist() == np.eye(3).tolist()
    with pytest.raises(Datas3Error, match="has other rows than its clustering"):
        dealt(ids)
