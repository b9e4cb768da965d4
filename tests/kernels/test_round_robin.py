"""Turns equal the rule written out, whatever the lists were when they were given."""

from __future__ import annotations

import numpy as np
import pytest

from datas3_ray.kernels.round_robin import RoundRobin


def brute(orders: list[list[int]], wanted: int) -> list[int]:
    taken: list[int] = []
    while len(taken) < wanted:
        order = orders[len(taken) % len(orders)]
        taken.append(next(row for row in order if row not in taken))
    return taken


@pytest.mark.parametrize(("queries", "rows", "wanted"), [(1, 5, 5), (3, 20, 20), (7, 50, 3), (7, 50, 31), (5, 4, 4)])
def test_equals_the_rule(queries, rows, wanted) -> None:
    rng = np.random.default_rng(wanted)
    orders = [rng.permutation(rows).tolist() for _ in range(queries)]
    turns = RoundRobin(queries, rows, wanted)
    for query, order in enumerate(orders):
        turns.give(query, order, np.arange(rows)[::-1])
    assert turns.run() is None
    assert turns.picks().tolist() == brute(orders, wanted)


def test_short_lists_are_given_again_and_nothing_changes() -> None:
    rng = np.random.default_rng(0)
    orders = [(np.argsort(rng.random(60) + 0.3 * np.arange(60))).tolist() for _ in range(6)]
    turns = RoundRobin(6, 60, 60)
    length, given = [2] * 6, 0
    for query, order in enumerate(orders):
        turns.give(query, order[:2], np.zeros(2))
    while (stuck := turns.run()) is not None:
        length[stuck] = min(60, length[stuck] + 3)
        free = [row for row in orders[stuck][: length[stuck]] if not turns.taken[row]]
        turns.give(stuck, free, np.zeros(len(free)))
        given += 1
    assert given > 5
    assert turns.picks().tolist() == brute(orders, 60)


def test_known_answer_of_the_skip_rule() -> None:
    """A query whose first choice is gone takes its next one: A and C, and not A and B as in a global ranking."""
    turns = RoundRobin(2, 3, 2)
    turns.give(0, [0, 1, 2], [900, 800, 100])
    turns.give(1, [0, 2, 1], [950, 300, 200])
    assert turns.run() is None
    assert turns.picks().tolist() == [0, 2]
    assert turns.keys().tolist() == [900, 300]


def test_equal_lists_with_long_runs_of_taken_rows() -> None:
    order = np.arange(20_000)
    turns = RoundRobin(3, 20_000, 15_000)
    for query in range(3):
        turns.give(query, order, order)
    assert turns.run() is None
    assert turns.picks().tolist() == list(range(15_000))
    turns = RoundRobin(1, 20_000, 19_000)
    turns.taken[:9000] = 1
    turns.give(0, order, order)
    assert turns.run() == 0
    assert turns.picks().tolist() == list(range(9000, 20_000))


def test_what_cannot_be_done_is_refused() -> None:
    with pytest.raises(ValueError, match="6 picks by 2 queries out of 5 rows"):
        RoundRobin(2, 5, 6)
