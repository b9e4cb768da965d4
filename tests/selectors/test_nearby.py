"""Nearby: within a distance of the query's places, and of its classes."""

from __future__ import annotations

import numpy as np
import pytest

from datas3_ray.errors import UsageError
from datas3_ray.selectors import Nearby

# One degree of latitude is 111.195 km.
POOL = {
    "at": (0.0, 36.0, "zebra"),
    "near": (0.8, 36.0, "zebra"),
    "near-absent": (0.8, 36.0, "tapir"),
    "near-nameless": (0.8, 36.0, None),
    "far": (1.0, 36.0, "zebra"),
    "second": (-20.3, 25.0, "lion"),
    "nowhere": (None, 36.0, "zebra"),
    "nan": (float("nan"), 36.0, "zebra"),
    "impossible": (91.0, 36.0, "zebra"),
}


@pytest.fixture
def tables(lake, make_pool):
    def columns(rows):
        latitude, longitude, label = zip(*rows, strict=True)
        return {"latitude": list(latitude), "longitude": list(longitude), "label": list(label)}

    make_pool(lake, "pool", list(POOL), np.ones((len(POOL), 2)), fragments=3, **columns(POOL.values()))
    query = [(0.0, 36.0, "zebra"), (-20.0, 25.0, "lion"), (-20.0, 25.0, "empty"), (None, None, "zebra")]
    make_pool(lake, "query", list("abcd"), np.ones((4, 2)), **columns(query))


def test_rows_within_the_distance(lake, tables) -> None:
    selection = Nearby(km=100).select(lake, "pool", query="query", name="near")
    assert set(selection.ids().to_pylist()) == {"at", "near", "near-absent", "near-nameless", "second"}
    lineage = selection.lineage()
    assert lineage["counts"]["invalid"] == 3 and lineage["counts"]["eligible"] == 6
    assert lineage["report"] == {"places": 2, "queries_without_place": 1}
    km = dict(zip(*(selection.to_arrow().column(name).to_pylist() for name in ("id", "km")), strict=True))
    assert (
        km["at"] == 0.0
        and km["near"] == pytest.approx(88.956, abs=1e-3)
        and km["far"] == pytest.approx(111.195, abs=1e-3)
    )


def test_classes_that_the_query_lacks_are_dropped(lake, tables) -> None:
    selection = Nearby(km=100, label="label").select(lake, "pool", query="query", name="near")
    assert set(selection.ids().to_pylist()) == {"at", "near", "second"}
    assert selection.lineage()["report"]["classes"] == 3


def test_the_distance_itself_is_inside(lake, tables) -> None:
    selection = Nearby(km=0).select(lake, "pool", query="query", name="near")
    assert selection.ids().to_pylist() == ["at"]


def test_what_cannot_be_meant_is_one_sentence(lake, tables, make_pool) -> None:
    with pytest.raises(UsageError, match="no column 'lat'"):
        Nearby(km=1, latitude="lat").select(lake, "pool", query="query")
    with pytest.raises(UsageError, match="column 'label' of table 'pool' is string, not degrees"):
        Nearby(km=1, latitude="label").select(lake, "pool", query="query")
    with pytest.raises(UsageError, match="km = -1"):
        Nearby(km=-1)
    make_pool(lake, "lost", ["a"], np.ones((1, 2)), latitude=[float("nan")], longitude=[1.0], label=["x"])
    with pytest.raises(UsageError, match="no row of query table 'lost' has coordinates"):
        Nearby(km=1).select(lake, "pool", query="lost")
