"""Each row's most similar earlier row of its cluster, and whether it stays: the distributed part of SemDeDup."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from datas3_ray.kernels.dedup_rules import components, join, leaders, links
from datas3_ray.kernels.pairwise import PriorMax, cross_max, merge_max, prior_max, prior_max_groups
from datas3_ray.lake.view import View
from datas3_ray.runtime import device, gather, matrix_task, remote
from datas3_ray.selectors.grouping import Dealing, Group, answer, deal, load_group


@dataclass(frozen=True)
class Rule:
    """Which rows stay. ``largest`` is the largest cosine of two kept rows in millionths; paper needs none."""

    name: Literal["paper", "leader", "components"]
    largest: int = 0


def compare(view: View, keyed: list[Any], sizes: np.ndarray, rule: Rule, bucket_rows: int) -> list[Any]:
    """References to one answer a bucket or piece, as :func:`datas3_ray.selectors.grouping.collect` takes them.

    Parameters
    ----------
    keyed : list of references
        A part a fragment: ``id``, ``cluster`` and ``key``.
    sizes : ndarray of shape (k,)
        Rows of each cluster.

    Notes
    -----
    Columns: ``max_similarity`` (float32), ``duplicate_of`` (string), and ``keep`` for the rules other than the paper's.
    Under ``leader`` only kept rows count as earlier; under ``components``, ``duplicate_of`` is the first row of the
    row's component.
    """
    dealing = Dealing.plan(sizes, bucket_rows, keyed)
    buckets = deal(view, keyed, dealing, vectors=True)
    cut = {bucket for pieces in dealing.cut() for bucket in pieces}
    whole = remote(_whole).options(**matrix_task())
    answers = [whole.remote(rule, *pieces) for number, pieces in enumerate(buckets) if number not in cut]
    for pieces in dealing.cut():
        answers += Pieces([buckets[number] for number in pieces], rule).answers()
    return answers


def _whole(rule: Rule, *pieces: dict[str, Any]) -> pa.Table:
    group = load_group(pieces)
    if rule.name == "leader":
        return _answer(group, *_lead_groups(group, rule.largest), names=group.ids)
    similarity, earlier = prior_max_groups(group.matrix(), group.offsets, device=device())
    if rule.name == "paper":
        return _answer(group, similarity, earlier, names=group.ids)
    first = np.arange(len(group))
    for start, stop in _several(group):
        first[start:stop] = start + components(group.matrix()[start:stop], rule.largest, device=device())
    return _answer_components(group, similarity, first, 0, group.ids)


def _lead_groups(group: Group, largest: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    similarity, earlier = np.zeros(len(group), np.float32), np.full(len(group), -1)
    leads = np.ones(len(group), bool)
    for start, stop in _several(group):
        found = leaders(group.matrix()[start:stop], largest, base=start, device=device())
        similarity[start:stop], earlier[start:stop], leads[start:stop] = found
    return similarity, earlier, leads


def _several(group: Group) -> list[tuple[int, int]]:
    """Where the clusters of more than one row begin and end."""
    starts, stops = group.offsets[:-1], group.offsets[1:]
    return [(int(a), int(b)) for a, b in zip(starts, stops, strict=True) if b - a > 1]


class Pieces:
    """A cluster too large for one task: a task a pair of its pieces, which follow one another in the cluster's order.

    Rows are numbered through all pieces; ``base`` is the number of a piece's first row.
    """

    def __init__(self, buckets: list[list[Any]], rule: Rule) -> None:
        load = remote(_load).options(num_returns=2, num_cpus=1)
        loaded: list[Any] = [load.remote(*pieces) for pieces in buckets]
        self.rule = rule
        self.groups = [group for group, _ in loaded]
        ids = [names for _, names in loaded]
        self.names = remote(_joined).remote(*ids)
        lengths = gather(remote(_length).remote(names) for names in ids)
        self.base = np.concatenate([[0], np.cumsum(lengths)])

    def answers(self) -> list[Any]:
        """One reference a piece."""
        if self.rule.name == "leader":
            return self._leaders()
        found = self._prior()
        if self.rule.name == "components":
            return self._components(found)
        return self._each(_merged, found)

    def _prior(self) -> list[list[Any]]:
        """For each piece, the maxima of its rows over the earlier pieces in order, and over itself."""
        own = remote(_own).options(**matrix_task())
        across = remote(_across).options(**matrix_task())
        return [
            [
                *(across.remote(mine, self.groups[b], self.base[b]) for b in range(a)),
                own.remote(mine, self.base[a]),
            ]
            for a, mine in enumerate(self.groups)
        ]

    def _leaders(self) -> list[Any]:
        """Piece by piece: once a piece's leaders are known, all later pieces are compared with them at once."""
        lead = remote(_lead).options(num_returns=2, **matrix_task())
        against = remote(_against_leaders).options(**matrix_task())
        found: list[list[Any]] = [[] for _ in self.groups]
        answers = []
        for a, group in enumerate(self.groups):
            rows, leads = lead.remote(group, self.names, self.base[a], self.rule.largest, *found[a])
            answers.append(rows)
            for later in range(a + 1, len(self.groups)):
                found[later].append(against.remote(self.groups[later], group, leads, self.base[a]))
        return answers

    def _components(self, found: list[list[Any]]) -> list[Any]:
        own = remote(_own_links).options(**matrix_task())
        across = remote(_across_links).options(**matrix_task())
        linked = [own.remote(group, self.base[a], self.rule.largest) for a, group in enumerate(self.groups)]
        linked += [
            across.remote(self.groups[a], self.base[a], self.groups[b], self.base[b], self.rule.largest)
            for a in range(len(self.groups))
            for b in range(a)
        ]
        first = remote(_join_all).remote(int(self.base[-1]), *linked)
        return self._each(_merged_components, found, first)

    def _each(self, finish: Any, found: list[list[Any]], *args: Any) -> list[Any]:
        task = remote(finish).options(num_cpus=1)
        return [task.remote(group, self.names, self.base[a], *args, *found[a]) for a, group in enumerate(self.groups)]


def _load(*pieces: dict[str, Any]) -> tuple[Group, pa.Array]:
    group = load_group(pieces)
    return group, group.ids


def _length(ids: pa.Array) -> int:
    return len(ids)


def _joined(*ids: pa.Array) -> pa.Array:
    return pa.concat_arrays(list(ids))


def _own(group: Group, base: int) -> PriorMax:
    return _moved(prior_max(group.matrix(), device=device()), base)


def _across(group: Group, earlier: Group, base: int) -> PriorMax:
    return _moved(cross_max(group.matrix(), earlier.matrix(), device=device()), base)


def _moved(found: PriorMax, base: int) -> PriorMax:
    return PriorMax(found.similarity, np.where(found.argmax >= 0, found.argmax + base, -1))


def _largest(found: tuple[PriorMax, ...]) -> PriorMax:
    best = found[0]
    for other in found[1:]:
        best = merge_max(best, other)
    return best


def _merged(group: Group, names: pa.Array, base: int, *found: PriorMax) -> pa.Table:
    return _answer(group, *_largest(found), names=names)


def _lead(group: Group, names: pa.Array, base: int, largest: int, *found: PriorMax) -> tuple[pa.Table, np.ndarray]:
    known = _largest(found) if found else None
    similarity, earlier, leads = leaders(group.matrix(), largest, known=known, base=int(base), device=device())
    return _answer(group, similarity, earlier, leads, names=names), np.flatnonzero(leads)


def _against_leaders(group: Group, earlier: Group, leads: np.ndarray, base: int) -> PriorMax:
    if len(leads) == 0:
        return PriorMax(np.zeros(len(group), np.float32), np.full(len(group), -1))
    found = cross_max(group.matrix(), earlier.matrix()[leads], device=device())
    return PriorMax(found.similarity, np.where(found.argmax >= 0, leads[found.argmax] + base, -1))


def _own_links(group: Group, base: int, largest: int) -> tuple[np.ndarray, np.ndarray]:
    first = components(group.matrix(), largest, device=device())
    rows = np.flatnonzero(first != np.arange(len(first)))
    return rows + base, first[rows] + base


def _across_links(a: Group, base_a: int, b: Group, base_b: int, largest: int) -> tuple[np.ndarray, np.ndarray]:
    i, j = links(a.matrix(), b.matrix(), largest, device=device())
    return i + base_a, j + base_b


def _join_all(rows: int, *linked: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    first = np.arange(rows)
    for i, j in linked:
        first = join(first, i, j)
    return first


def _merged_components(group: Group, names: pa.Array, base: int, first: np.ndarray, *found: PriorMax) -> pa.Table:
    similarity, _ = _largest(found)
    return _answer_components(group, similarity, first[base : base + len(group)], int(base), names)


def _answer_components(group: Group, similarity: np.ndarray, first: np.ndarray, base: int, names: pa.Array) -> pa.Table:
    leads = first == np.arange(base, base + len(group))
    return _answer(group, similarity, np.where(leads, -1, first), leads, names=names)


def _answer(
    group: Group, similarity: np.ndarray, earlier: np.ndarray, keep: np.ndarray | None = None, *, names: pa.Array
) -> pa.Table:
    """The answers of a group's rows; ``earlier`` are places in ``names``, -1 where there is no earlier row."""
    columns: dict[str, Any] = {
        "max_similarity": pa.array(similarity, pa.float32()),
        "duplicate_of": names.take(pa.array(earlier, pa.int64(), mask=earlier < 0)),
    }
    return answer(group, **columns, **({"keep": pa.array(keep)} if keep is not None else {}))
