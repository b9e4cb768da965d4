"""ClipScore: cosines of two columns, thresholds and exact sizes."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from datas3_ray.errors import UsageError
from datas3_ray.selectors import ClipScore


def vectors(rows) -> pa.Array:
    matrix = np.ascontiguousarray(rows, np.float32)
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), matrix.shape[1])


@pytest.mark.parametrize("fragments", [1, 4])
def test_scores_are_cosines(lake, make_pool, fragments) -> None:
    rng = np.random.default_rng(1)
    image, text = rng.normal(size=(2, 90, 7)).astype(np.float32)
    ids = [f"{i:02}" for i in rng.permutation(90)]
    make_pool(lake, "pool", ids, image, fragments=fragments, text=vectors(text))
    selection = ClipScore(image="vec", text="text", size=25).select(lake, "pool")
    cosine = np.einsum("ij,ij->i", image, text, dtype=np.float64)
    cosine /= np.linalg.norm(image.astype(float), axis=1) * np.linalg.norm(text.astype(float), axis=1)
    scores = {row["id"]: row["score"] for row in selection.to_arrow().to_pylist()}
    assert [scores[name] for name in ids] == pytest.approx(cosine.tolist(), abs=1.1e-6)
    order = sorted(ids, key=lambda name: (-scores[name], name))
    assert set(selection.ids().to_pylist()) == set(order[:25])
    above = ClipScore(image="vec", text="text", threshold=0.2).select(lake, "pool")
    assert set(above.ids().to_pylist()) == {name for name in ids if scores[name] >= 0.2}
    assert set(above.resize(25).ids().to_pylist()) == set(order[:25])


def test_half_means_half(lake, make_pool) -> None:
    make_pool(lake, "pool", list("dcba"), np.ones((4, 2)), score=[0.9, 0.8, 0.7, 0.6], tied=[1.0] * 4)
    for size, kept in ((0.5, {"d", "c"}), (1.0, set("abcd"))):
        assert set(ClipScore(score_column="score", size=size).select(lake, "pool").ids().to_pylist()) == kept
    assert set(ClipScore(score_column="tied", size=0.5).select(lake, "pool").ids().to_pylist()) == {"a", "b"}
    assert len(ClipScore(score_column="score", threshold=0.7).select(lake, "pool")) == 3  # the threshold itself stays


def test_unusable_vectors_of_either_side_are_counted(lake, make_pool) -> None:
    image = np.array([[1, 0], [np.nan, 0], [1, 0], [0, 0], [1, 1]], np.float32)
    text = vectors([[1, 0], [1, 0], [0, 0], [0, 0], [1, 1]])
    make_pool(lake, "pool", list("abcde"), image, fragments=2, text=text)
    selection = ClipScore(image="vec", text="text", size=5).select(lake, "pool")
    assert set(selection.ids().to_pylist()) == {"a", "e"}
    counts = selection.lineage()["counts"]
    assert (counts["invalid"], counts["eligible"], counts["shortfall"]) == (3, 2, 3)


def test_mistakes(lake, make_pool) -> None:
    make_pool(lake, "pool", ["a"], np.ones((1, 2)), text=vectors([[1, 2, 3]]), word=["x"])
    with pytest.raises(UsageError, match="'vec' of table 'pool' has 2 dimensions and column 'text' has 3"):
        ClipScore(image="vec", text="text", size=1).select(lake, "pool")
    with pytest.raises(UsageError, match="column 'word' of table 'pool' is string; a column of numbers is needed"):
        ClipScore(score_column="word", size=1).select(lake, "pool")
    for wrong in ({"image": "a"}, {"image": "a", "text": "b", "score_column": "c"}, {}):
        with pytest.raises(UsageError, match="give image and text, two vector columns, or score_column"):
            ClipScore(size=1, **wrong)
    with pytest.raises(UsageError, match="two vector columns, and both are 'vec'"):
        ClipScore(image="vec", text="vec", size=1)
    with pytest.raises(UsageError, match="give either size or threshold"):
        ClipScore(score_column="a")
    with pytest.raises(UsageError, match="threshold must be a number, not nan"):
        ClipScore(score_column="a", threshold=float("nan"))
