"""What is read from a selection equals what numpy finds in the whole of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from datas3_ray import Lake, Selection
from datas3_ray.report import labels as labels_module
from datas3_ray.report import overlap as overlap_module
from datas3_ray.report.labels import label_mix
from datas3_ray.report.overlap import overlap
from datas3_ray.report.profile import BINS, profile, sample_ids
from datas3_ray.report.sampling import First, blocks, hash_ids

IDS = [f"row/{i:04d}" for i in range(1000)]


def save(lake: Lake, name: str, columns: dict[str, Any], parts: int = 1) -> Selection:
    """A selection of the table ``pool``, written in so many pieces."""
    rows = pa.table(columns)
    kept = int(np.sum(rows.column("keep").to_numpy(zero_copy_only=False)))
    lineage = {"method": "m", "table": "pool", "fingerprint": name, "counts": {"kept": kept}}
    for place in np.array_split(np.arange(rows.num_rows), parts):
        mode = "overwrite" if not lake.exists(name) else "append"
        lake.write(name, rows.take(pa.array(place)), kind="selection", lineage=lineage, mode=mode)
    return lake.selection(name)


@pytest.fixture
def empty(tmp_path: Path) -> Lake:
    return Lake(tmp_path / "lake")


def test_counts_and_histogram_are_exact(empty: Lake) -> None:
    rng = np.random.default_rng(0)
    score, keep = rng.normal(size=1000), rng.random(1000) < 0.3
    score[::100] = np.nan
    found = profile(save(empty, "s", {"id": IDS, "keep": keep, "score": score}, parts=3), samples=5, pairs=2, seed=0)
    assert (found.kept, found.dropped) == (int(keep.sum()), int((~keep).sum()))
    h = found.histogram
    assert h is not None and len(h.kept) == BINS
    finite = np.isfinite(score)
    assert h.missing == 10 and h.beyond == 0
    assert (h.kept.sum(), h.dropped.sum()) == ((keep & finite).sum(), (~keep & finite).sum())
    assert h.kept.tolist() == np.histogram(score[keep & finite], h.edges)[0].tolist()


def test_a_long_tail_does_not_squeeze_the_histogram(empty: Lake) -> None:
    score = np.linspace(0, 1, 1000)
    score[-2:] = 1e6
    found = profile(save(empty, "s", {"id": IDS, "keep": score > 0.5, "score": score}), samples=1, pairs=1, seed=0)
    assert found.histogram is not None
    assert found.histogram.edges[-1] < 10
    assert found.histogram.beyond >= 2
    assert found.histogram.kept.sum() + found.histogram.dropped.sum() == 1000


@pytest.mark.parametrize("score", [[0.5] * 1000, [0.0] * 999 + [1.0]])
def test_scores_that_are_nearly_all_equal_show_their_whole_range(empty: Lake, score: list[float]) -> None:
    keep = np.arange(1000) % 2 == 0
    found = profile(save(empty, "s", {"id": IDS, "keep": keep, "score": score}), samples=1, pairs=1, seed=0)
    h = found.histogram
    assert h is not None
    assert (h.edges[0], h.edges[-1]) == (min(score), max(score))
    assert (h.kept.sum(), h.dropped.sum(), h.beyond) == (500, 500, 0)


def test_scores_as_far_apart_as_numbers_can_be_have_a_histogram(empty: Lake) -> None:
    score = np.where(np.arange(1000) % 4 == 0, np.finfo(np.float64).max, np.finfo(np.float64).min)
    found = profile(save(empty, "s", {"id": IDS, "keep": score > 0, "score": score}), samples=1, pairs=1, seed=0)
    h = found.histogram
    assert h is not None and np.isfinite(h.edges).all() and h.beyond == 1000
    assert (h.kept.sum(), h.kept[-1], h.dropped.sum(), h.dropped[0]) == (250, 250, 750, 750)


def test_no_score_no_histogram(empty: Lake) -> None:
    keep = [True] * 1000
    nothing = pa.nulls(1000, pa.float64())
    assert profile(save(empty, "a", {"id": IDS, "keep": keep}), samples=1, pairs=1, seed=0).histogram is None
    assert (
        profile(save(empty, "b", {"id": IDS, "keep": keep, "score": nothing}), samples=1, pairs=1, seed=0).histogram
        is None
    )


def test_samples_depend_on_ids_and_seed_alone(empty: Lake) -> None:
    keep = np.arange(1000) < 600
    shuffled = np.random.default_rng(1).permutation(1000)
    one = profile(save(empty, "a", {"id": IDS, "keep": keep}), samples=8, pairs=1, seed=3)
    rows = {"id": [IDS[i] for i in shuffled], "keep": keep[shuffled]}
    two = profile(save(empty, "b", rows, parts=5), samples=8, pairs=1, seed=3)
    other = profile(empty.selection("a"), samples=8, pairs=1, seed=4)
    for got, same, different in (
        (one.kept_sample, two.kept_sample, other.kept_sample),
        (one.dropped_sample, two.dropped_sample, other.dropped_sample),
    ):
        ids = got.column("id").to_pylist()
        assert len(set(ids)) == 8
        assert ids == same.column("id").to_pylist() != different.column("id").to_pylist()
    assert all(int(i.split("/")[1]) < 600 for i in one.kept_sample.column("id").to_pylist())


def test_a_sample_larger_than_the_rows_is_all_of_them(empty: Lake) -> None:
    selection = save(empty, "s", {"id": IDS[:5], "keep": [True] * 5})
    found = profile(selection, samples=24, pairs=1, seed=0)
    assert sorted(found.kept_sample.column("id").to_pylist()) == IDS[:5]
    assert found.dropped_sample.num_rows == 0
    assert sorted(sample_ids(selection.table, 9, 0)) == IDS[:5]


def test_pairs_are_the_extremes_and_the_neighbours_of_the_cut(empty: Lake) -> None:
    rng = np.random.default_rng(2)
    similarity = rng.permutation(np.linspace(0.5, 1.0, 1000)).astype(np.float32)
    partner: list[str | None] = [IDS[0]] * 1000
    partner[7] = None
    keep = similarity <= 0.9
    keep[7] = True
    columns = {"id": IDS, "keep": keep, "max_similarity": similarity, "duplicate_of": partner}
    pairs = profile(save(empty, "s", columns, parts=2), samples=1, pairs=4, seed=0).pairs
    assert pairs is not None
    usable = np.arange(1000) != 7
    removed, kept = np.sort(similarity[~keep & usable]), np.sort(similarity[keep & usable])
    assert pairs.highest.column("max_similarity").to_pylist() == removed[::-1][:4].tolist()
    assert pairs.just_removed.column("max_similarity").to_pylist() == removed[:4].tolist()
    assert pairs.just_kept.column("max_similarity").to_pylist() == kept[::-1][:4].tolist()
    assert pairs.cut == (kept[-1], removed[0])


def test_a_removed_row_is_shown_once(empty: Lake) -> None:
    columns = {
        "id": IDS[:3],
        "keep": [True, False, False],
        "max_similarity": [0.0, 0.98, 0.99],
        "duplicate_of": [None, IDS[0], IDS[0]],
    }
    pairs = profile(save(empty, "s", columns), samples=1, pairs=6, seed=0).pairs
    assert pairs is not None
    assert pairs.highest.column("id").to_pylist() == [IDS[2], IDS[1]]
    assert pairs.just_removed.num_rows == 0 and pairs.just_kept.num_rows == 0
    assert pairs.cut is None


def test_label_counts_are_exact_in_any_number_of_blocks(empty: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    label = [None if i % 10 == 0 else "" if i % 10 == 1 else f"label {i % 7}" for i in range(1000)]
    empty.write("pool", pa.table({"id": IDS, "label": label}), kind="image")
    eligible = np.arange(1000) % 3 != 0
    keep = np.arange(1000) % 4 == 0
    ids = [i for i, ok in zip(IDS, eligible, strict=True) if ok]
    selection = save(empty, "s", {"id": [*ids, "gone"], "keep": [*keep[eligible], True]}, parts=2)
    whole = label_mix(selection, empty.table("pool"), top=3)
    monkeypatch.setattr(labels_module, "BLOCK_ROWS", 100)
    monkeypatch.setattr(labels_module, "JOIN_ROWS", 64)
    pieces = label_mix(selection, empty.table("pool"), top=3)
    assert whole is not None and whole == pieces
    assert whole.gone == 1
    assert (whole.labels, whole.labels_kept) == (7, 7)
    found = {row.label: (row.eligible, row.kept) for row in whole.rows}
    for name, (before, after) in list(found.items())[:3]:
        mine = np.array([text == name for text in label])
        assert (before, after) == ((mine & eligible).sum(), (mine & eligible & keep).sum())
    assert [row.label for row in whole.rows if row.special] == ["4 other labels", "unlabelled"]
    assert sum(before for before, _ in found.values()) == eligible.sum()
    assert sum(after for _, after in found.values()) == (eligible & keep).sum()


def test_no_labels_is_none(empty: Lake) -> None:
    empty.write("pool", pa.table({"id": IDS, "label": pa.nulls(1000, pa.string())}), kind="image")
    empty.write("bare", pa.table({"id": IDS}), kind="image")
    selection = save(empty, "s", {"id": IDS, "keep": [True] * 1000})
    assert label_mix(selection, empty.table("pool")) is None
    assert label_mix(selection, empty.table("bare")) is None


def test_overlap_equals_sets_in_any_number_of_buckets(empty: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    keeps = [rng.random(1000) < share for share in (1.0, 0.5, 0.1, 0.0)]
    selections = [save(empty, f"s{i}", {"id": IDS, "keep": keep}) for i, keep in enumerate(keeps)]
    found = overlap("pool", selections)
    monkeypatch.setattr(overlap_module, "BUCKET_ROWS", 100)
    assert (overlap("pool", selections).both == found.both).all()
    for i, a in enumerate(keeps):
        for j, b in enumerate(keeps):
            assert found.both[i, j] == (a & b).sum()
    assert found.jaccard(1, 2) == (keeps[1] & keeps[2]).sum() / (keeps[1] | keeps[2]).sum()
    assert found.containment(1, 0) == 1.0
    assert np.isnan(found.containment(3, 0)) and np.isnan(found.jaccard(3, 3))


def test_first_rows_do_not_depend_on_the_batches() -> None:
    rng = np.random.default_rng(6)
    rows = pa.table({"id": IDS, "value": rng.integers(0, 20, 1000)})
    order = [("value", "descending"), ("id", "ascending")]
    expected = rows.sort_by(order).slice(0, 37)
    for size in (1, 7, 333, 1000):
        first = First(37, order)
        for batch in rows.to_batches(max_chunksize=size):
            first.add(pa.Table.from_batches([batch]))
        held = first.rows()
        assert held is not None and held.to_pydict() == expected.to_pydict()


def test_blocks_lose_nothing() -> None:
    batches = pa.table({"id": IDS}).to_batches(max_chunksize=7)
    found = list(blocks(batches, 100))
    assert all(100 <= block.num_rows < 107 for block in found[:-1])
    assert pa.concat_tables(found).column("id").to_pylist() == IDS


def test_hashes_do_not_depend_on_chunks() -> None:
    whole = hash_ids(pa.array(IDS))
    assert len(set(whole.tolist())) == 1000
    assert (hash_ids(pa.chunked_array([IDS[:3], [], IDS[3:]])) == whole).all()
    assert (hash_ids(pa.array(IDS).slice(10, 5)) == whole[10:15]).all()
