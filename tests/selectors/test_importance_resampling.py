"""Importance resampling: weights average to 1, and the draw follows the query."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from datas3_ray.errors import UsageError
from datas3_ray.kernels.hashing import gumbel, hash64, id_words
from datas3_ray.kernels.ngrams import NgramHasher, bucket_log_ratio
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


ANIMALS = ["a red fox in the snow", "two grey foxes, asleep", "a brown bear", "bears and foxes in a wood"]
STREETS = ["a red car on a wet road", "two buses at a stop", "a grey bridge", "cars, buses and a tram", "an empty road"]


@pytest.fixture
def captions(lake, make_pool):
    """40 captions of animals among 100 of streets; the query is about animals."""
    rng = np.random.default_rng(1)
    texts = [f"{ANIMALS[i % 4]} {i % 7}" for i in range(40)] + [f"{STREETS[i % 5]} {i % 9}" for i in range(100)]
    texts = [texts[i] for i in rng.permutation(140)]
    make_pool(lake, "pool", [f"{i:03}" for i in range(140)], np.ones((140, 2)), fragments=3, caption=texts)
    make_pool(
        lake, "query", [f"q{i}" for i in range(12)], np.ones((12, 2)), caption=[ANIMALS[i % 4] for i in range(12)]
    )
    return lake, texts


def test_ngram_weights_are_the_papers(captions) -> None:
    lake, texts = captions
    selector = ImportanceResampling(column="caption", features="ngrams", size=30, seed=5, buckets=500, smoothing=0.5)
    table = selector.select(lake, "pool", query="query").to_arrow()
    hasher = NgramHasher(2, 500)
    ratio = bucket_log_ratio(hasher.count(ANIMALS * 3), hasher.count(texts), 0.5)
    expected = hasher.log_weights(texts, ratio)
    np.testing.assert_allclose(table.column("log_weight").to_numpy(), expected, atol=1e-9)
    noise = gumbel(hash64(id_words([f"{i:03}" for i in range(140)]), seed=5, stream="importance"))
    np.testing.assert_allclose(table.column("score").to_numpy(), expected + noise, atol=1e-9)
    kept = [texts[int(name)] for name in table.filter(table.column("keep")).column("id").to_pylist()]
    assert len(kept) == 30
    assert sum("fox" in text or "bear" in text for text in kept) > 25


def test_ngrams_give_the_same_for_any_partitions_and_cut_at_another_size(captions, make_pool) -> None:
    lake, texts = captions
    make_pool(
        lake, "again", [f"{i:03}" for i in range(139, -1, -1)], np.ones((140, 2)), fragments=6, caption=texts[::-1]
    )
    selector = ImportanceResampling(column="caption", features="ngrams", size=30)
    one, two = (selector.select(lake, table, query="query") for table in ("pool", "again"))
    assert sorted(one.ids().to_pylist()) == sorted(two.ids().to_pylist())
    smaller = ImportanceResampling(column="caption", features="ngrams", size=11).select(lake, "pool", query="query")
    assert one.resize(11).ids().to_pylist() == smaller.ids().to_pylist()


def test_rows_without_a_word_are_invalid_and_counted(lake, make_pool) -> None:
    texts = ["a fox", None, "", "  ", "a car", "..."]
    make_pool(lake, "pool", list("abcdef"), np.ones((6, 2)), fragments=2, caption=pa.array(texts, pa.string()))
    make_pool(lake, "query", ["q"], np.ones((1, 2)), caption=["a fox"])
    selection = ImportanceResampling(column="caption", features="ngrams", size=9).select(lake, "pool", query="query")
    counts = selection.lineage()["counts"]
    assert (counts["invalid"], counts["eligible"], counts["kept"], counts["shortfall"]) == (3, 3, 3, 6)
    assert sorted(selection.ids().to_pylist()) == ["a", "e", "f"]


def test_ngrams_need_text_on_both_sides(captions, make_pool) -> None:
    lake, _ = captions
    make_pool(lake, "mute", ["m"], np.ones((1, 2)))
    make_pool(lake, "blank", ["m"], np.ones((1, 2)), caption=[""])
    selector = ImportanceResampling(column="caption", features="ngrams", size=3)
    with pytest.raises(UsageError, match="table 'mute' has no column 'caption'"):
        selector.select(lake, "pool", query="mute")
    with pytest.raises(UsageError, match="query table 'blank' has no word in column 'caption'"):
        selector.select(lake, "pool", query="blank")
    with pytest.raises(UsageError, match="column 'vec' of table 'pool' holds .* need text"):
        ImportanceResampling(column="vec", features="ngrams", size=3).select(lake, "pool", query="query")


def captions_of(folder: Path) -> list[str]:
    texts = []
    for shard in sorted(folder.glob("*.tar"))[:2]:
        with tarfile.open(fileobj=io.BytesIO(shard.read_bytes())) as archive:
            for member in archive:
                file = archive.extractfile(member) if member.name.endswith(".txt") else None
                if file is not None:
                    texts.append(file.read().decode())
    return texts


@pytest.mark.parametrize("buckets", [10_000, 997])
def test_ngrams_agree_with_the_papers_own_package(real_data, lake, make_pool, tmp_path, buckets) -> None:
    """The log-weights of the emoji captions for a query of clip-art captions, next to those of `data-selection`."""
    package = pytest.importorskip("data_selection", reason="the package data-selection is not installed")
    raw, target = captions_of(real_data / "emoji-google"), captions_of(real_data / "clipart")[:300]
    assert len(raw) > 300 and len(target) == 300
    ids = [f"{i:05}" for i in range(len(raw))]
    make_pool(lake, "pool", ids, np.ones((len(raw), 2)), fragments=3, caption=raw)
    make_pool(lake, "query", [f"q{i}" for i in range(300)], np.ones((300, 2)), caption=target)
    selector = ImportanceResampling(column="caption", features="ngrams", size=50, buckets=buckets)
    ours = selector.select(lake, "pool", query="query").to_arrow()
    theirs = package.HashedNgramDSIR(
        ["raw"],
        ["target"],
        str(tmp_path / "cache"),
        raw_load_dataset_fn=lambda _: raw,
        raw_parse_example_fn=lambda text: text,
        target_load_dataset_fn=lambda _: target,
        target_parse_example_fn=lambda text: text,
        num_proc=1,
        num_buckets=buckets,
    )
    theirs.fit_importance_estimator(num_tokens_to_fit="all")
    expected = {name: theirs.importance_estimator(theirs.featurizer(text)) for name, text in zip(ids, raw, strict=True)}
    assert ours.num_rows == len(raw)
    found = dict(zip(ours.column("id").to_pylist(), ours.column("log_weight").to_pylist(), strict=True))
    np.testing.assert_allclose([found[name] for name in ids], [expected[name] for name in ids], atol=1e-6)
