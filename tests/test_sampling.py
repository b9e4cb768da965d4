"""Samples of vectors: the rows of smallest hash, in the order of their ids."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from datas3_ray import sampling
from datas3_ray.kernels.hashing import hash64, id_words, uniform
from datas3_ray.lake.view import View
from datas3_ray.sampling import sample_vectors


@pytest.mark.parametrize("spare", [1000, -30])
def test_the_sample_is_the_smallest_hashes_however_many_rows_are_not_usable(
    lake, make_pool, spare, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With less than nothing to spare, a second look is needed."""
    monkeypatch.setattr(sampling, "SPARE_ROWS", spare)
    rng = np.random.default_rng(0)
    vectors, ids = rng.normal(size=(120, 3)), [f"{i:03}" for i in rng.permutation(120)]
    vectors[::2] = np.nan
    make_pool(lake, "pool", ids, vectors, fragments=3)
    found = sample_vectors(View(lake.table("pool"), "vec"), 40, seed=7)
    usable = pa.array([ids[i] for i in range(1, 120, 2)])
    drawn = uniform(hash64(id_words(usable), seed=7, stream="kmeans-sample"))
    chosen = sorted(np.argsort(drawn)[:40], key=lambda i: usable[int(i)].as_py())
    expected = vectors[1::2][chosen]
    assert found == pytest.approx(expected / np.linalg.norm(expected, axis=1, keepdims=True), abs=1e-6)
