"""Fragments of a view as tasks see them."""

from __future__ import annotations

import numpy as np

from datas3_ray.lake.view import Counts, Fragment, View


def _ids(fragment: Fragment) -> list[str]:
    return fragment.ids().to_pylist()


def test_some_fragments_of_a_view(lake, make_pool) -> None:
    vectors = np.ones((9, 3), np.float32)
    vectors[4] = 0
    make_pool(lake, "pool", [f"{i}" for i in range(9)], vectors, fragments=3)
    view = View(lake.table("pool"), "vec")
    some = view.of_fragments(view.fragment_ids[1:])
    mapped = some.map(_ids)
    assert mapped.results() == [["3", "5"], ["6", "7", "8"]]
    assert mapped.counts() == Counts(rows=6, invalid=1)
    assert [fragment.rows() for fragment in some.fragments()] == [3, 3]
    assert len(view.fragments()) == 3
    assert view.of_fragments([]).map(_ids).results() == []


def test_vectors_that_are_known_to_be_usable_are_not_looked_at(lake, make_pool) -> None:
    vectors = np.ones((4, 3), np.float32)
    vectors[1] = 0
    make_pool(lake, "pool", [f"{i}" for i in range(4)], vectors)
    fragment = View(lake.table("pool"), "vec").fragments()[0]
    assert [len(batch) for _, batch in fragment.vectors()] == [3]
    assert [len(batch) for _, batch in fragment.vectors(all_usable=True)] == [4]
