"""DataCompBasic: each rule at its edge, and the definition applied to random rows."""

from __future__ import annotations

import numpy as np
import pytest

from datas3_ray.errors import UsageError
from datas3_ray.selectors import DataCompBasic

GOOD = {"caption": "a dog in a park", "width": 300, "height": 200, "language": "en"}


def pool(lake, make_pool, rows, fragments=1):
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    make_pool(lake, "pool", [f"{i:03}" for i in range(len(rows))], np.ones((len(rows), 2)), fragments, **columns)
    return lake


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        ({}, None),
        ({"caption": None}, "caption"),
        ({"caption": "two words"}, "words"),
        ({"caption": " two\u3000 \twords\n"}, "words"),
        ({"caption": "a b c"}, "characters"),
        ({"caption": "a b cc"}, None),
        ({"caption": ""}, "words"),
        ({"width": 199}, "side"),
        ({"height": 199}, "side"),
        ({"width": 600}, None),
        ({"width": 601}, "aspect"),
        ({"height": 901}, "aspect"),
        ({"width": None}, "size"),
        ({"height": 0}, "size"),
        ({"language": "de"}, "language"),
        ({"language": None}, "language"),
        ({"language": "EN"}, None),
        ({"caption": "one", "width": 10}, "words"),
    ],
)
def test_each_rule(lake, make_pool, change, failed) -> None:
    pool(lake, make_pool, [GOOD | change, GOOD])
    selection = DataCompBasic(language_column="language").select(lake, "pool")
    assert selection.to_arrow(["keep", "failed"]).to_pylist() == [
        {"keep": failed is None, "failed": failed},
        {"keep": True, "failed": None},
    ]
    assert selection.lineage()["report"] == {"failed": {failed: 1} if failed else {}}


@pytest.mark.parametrize("fragments", [1, 5])
def test_equals_the_definition(lake, make_pool, fragments) -> None:
    rng = np.random.default_rng(0)
    rows = [
        {
            "text": " ".join("abcd"[: rng.integers(1, 5)] for _ in range(rng.integers(0, 6))),
            "w": float(rng.integers(100, 900)),
            "h": float(rng.integers(100, 900)),
        }
        for _ in range(200)
    ]
    rows[7]["w"] = float("nan")
    pool(lake, make_pool, rows, fragments)
    selector = DataCompBasic(caption="text", width="w", height="h")
    kept = {
        f"{i:03}"
        for i, row in enumerate(rows)
        if len(row["text"].split()) > 2
        and len(row["text"]) > 5
        and min(row["w"], row["h"]) >= 200
        and max(row["w"], row["h"]) / min(row["w"], row["h"]) <= 3.0
        and row["w"] == row["w"]
    }
    assert 20 < len(kept) < 180
    selection = selector.select(lake, "pool")
    assert set(selection.ids().to_pylist()) == kept
    assert sum(selection.lineage()["report"]["failed"].values()) == 200 - len(kept)


def test_rules_can_be_left_out_and_changed(lake, make_pool) -> None:
    pool(lake, make_pool, [GOOD | {"caption": None}, GOOD | {"width": 50}, GOOD | {"caption": "one two"}])
    assert len(DataCompBasic(caption=None, width=None, height=None).select(lake, "pool")) == 3
    assert DataCompBasic(caption=None).select(lake, "pool").ids().to_pylist() == ["000", "002"]
    assert DataCompBasic(min_words=2, min_side=50, max_aspect=4).select(lake, "pool").ids().to_pylist() == [
        "001",
        "002",
    ]


def test_a_quotient_that_is_the_limit_passes(lake, make_pool) -> None:
    pool(lake, make_pool, [GOOD | {"width": 230, "height": 200}, GOOD | {"width": 231, "height": 200}])
    assert DataCompBasic(max_aspect=1.15).select(lake, "pool").ids().to_pylist() == ["000"]


def test_mistakes(lake, make_pool) -> None:
    pool(lake, make_pool, [GOOD])
    for parameters, sentence in (
        ({"caption": "captions"}, "no column 'captions'.*Did you mean 'caption'"),
        ({"caption": "width"}, "column 'width' of table 'pool' is int64; texts are needed"),
        ({"height": "caption"}, "column 'caption' of table 'pool' is string; a column of numbers"),
        ({"height": None}, "width and height are given together"),
        ({"max_aspect": 0.5}, "max_aspect = 0.5 is not allowed"),
    ):
        with pytest.raises(UsageError, match=sentence):
            DataCompBasic(**parameters).select(lake, "pool")
