"""Importance resampling: weights average to 1, and the draw follows the query."""

from __future__ import annotations

import numpy as np
import pytest

from datas3_ray.selectors import ImportanceResampling


@pytest.fixture
def two_blobs(lake, make_pool):
    """800 rows near one axis and 200 near the other; the query comes from the small blob alone."""
    rng = np.random.default_rng(0)
    centres = np.repeat(np.eye(4)[:2], [800, 200], axis=0)
    vectors = centres + 0.1 * rng.normal(size=(1000, 4))
    blob = ["big"] * 800 + ["small"] * 200
    make_pool(lake, "pool", [f"{i:04}" for i in range(1000)], vectors, fragments=3, blob=blob)
    make_pool(lake, "query", [f"q{i}" for i in range(100)], np.eye(4)[1] + 0.1 * rng.normal(size=(100, 4)))
    return lake


def share_small(lake, selection) -> float:
    blob = dict(zip(*lake.table("pool").to_arrow(["id", "blob"]).to_pydict().values(), strict=True))
    return float(np.mean([blob[name] == "small" for name in selection.ids().to_pylist()]))


def test_follows_the_query_and_reports_how_well(two_blobs) -> None:
    selector = ImportanceResampling(column="vec", clusters=2, children=4, size=100, pseudo_count=1.0)
    selection = selector.select(two_blobs, "pool", query="query")
    assert share_small(two_blobs, selection) > 0.9
    report = selection.lineage()["report"]
    assert report["mean_weight"] == pytest.approx(1.0, abs=1e-9)
    assert 100 < report["effective_sample_size"] < 300
    assert report["kl_reduction"] > 0.5
    weights = selection.to_arrow().column("weight").to_numpy()
    assert weights.mean() == pytest.approx(1.0, abs=1e-9)


def test_a_large_pseudo_count_is_random(two_blobs) -> None:
    selector = ImportanceResampling(column="vec", clusters=2, children=4, size=200, pseudo_count=1e12)
    selection = selector.select(two_blobs, "pool", query="query")
    assert share_small(two_blobs, selection) == pytest.approx(0.2, abs=0.08)
    assert selection.to_arrow().column("weight").to_numpy() == pytest.approx(np.ones(1000), abs=1e-6)


def test_inclusion_of_a_single_draw_follows_the_weights(two_blobs) -> None:
    """Over the scores of many seeds the row on top is in the small blob as often as its share of the weight says."""
    from datas3_ray.kernels.hashing import gumbel, hash64, id_words

    selector = ImportanceResampling(column="vec", clusters=2, children=1, size=1, pseudo_count=50.0)
    table = selector.select(two_blobs, "pool", query="query").to_arrow()
    weights, words = table.column("weight").to_numpy(), id_words(table.column("id"))
    small = np.array([int(name) >= 800 for name in table.column("id").to_pylist()])
    expected = weights[small].sum() / weights.sum()
    tops = [
        small[np.argmax(np.log(weights) + gumbel(hash64(words, seed=seed, stream="importance")))]
        for seed in range(2000)
    ]
    assert np.mean(tops) == pytest.approx(expected, abs=0.04)


def test_larger_draws_with_the_same_seed_contain_smaller_ones(two_blobs) -> None:
    draws = [
        set(
            ImportanceResampling(column="vec", clusters=2, size=size)
            .select(two_blobs, "pool", query="query")
            .ids()
            .to_pylist()
        )
        for size in (50, 200)
    ]
    assert draws[0] < draws[1]
