"""Scores that are kept beside the pool, by id: those of another selection, or of a file."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datas3_ray.errors import UsageError
from datas3_ray.exchange import exchange
from datas3_ray.kernels.hashing import hash64, id_words
from datas3_ray.lake.aligned import aligned_refs
from datas3_ray.lake.selection import Selection
from datas3_ray.lake.storage import open_dataset
from datas3_ray.lake.view import Counts, Fragment, Mapped, Within, aligned_part
from datas3_ray.runtime import gather, remote
from datas3_ray.selectors.base import Inputs
from datas3_ray.selectors.scores import joined, numbers, taken


def selection_scores(inputs: Inputs, selection: Selection) -> Mapped:
    """The scores that a selection of the same table gave, aligned: ``id`` and ``value`` (float64).

    Rows that it did not score, or whose score is not finite, are left out and counted invalid. Where the table was
    compacted since, rows and scores are brought together by id.
    """
    within = selection.within(inputs.table)
    if within.parts is not None:
        return inputs.view.map(_aligned_scores, within)
    _, parts = aligned_refs(selection.table)
    return join_scores(inputs, parts, f"selection '{selection.name}'", finite=True)[0]


def join_scores(
    inputs: Inputs, tables: list[Any], what: str, *, column: str = "score", finite: bool = False
) -> tuple[Mapped, int]:
    """Each eligible row's value from tables with ``id`` and ``column`` in any order; and how many rows those have.

    Rows and values meet in buckets by a hash of the id, so no process holds all of either. The parts have ``id`` and
    ``value``; rows without a number (or a finite one) are left out and counted invalid. An id that the tables have
    twice is a UsageError that begins with ``what``.
    """
    import ray

    ids = inputs.view.map(_keyed_ids)
    counts = ids.counts()
    pairs: list[Any] = [remote(_keyed_scores).options(num_returns=2).remote(table, column) for table in tables]
    rows = sum(gather(pair[1] for pair in pairs))
    answers = exchange(ids.parts, counts.eligible + rows, _look_up, what, beside=[pair[0] for pair in pairs])
    finish = remote(_with_value).options(num_returns=2)
    done: list[Any] = [finish.remote(part, answer, finite) for part, answer in zip(ids.parts, answers, strict=True)]
    missing = sum(gather(pair[1] for pair in done))
    return Mapped([pair[0] for pair in done], [ray.put(counts + Counts(invalid=missing))]), rows


def _aligned_scores(fragment: Fragment, within: Within) -> pa.Table:
    assert within.parts is not None
    selection = open_dataset(within.uri, within.version, fragment.options)
    scores = aligned_part(selection, within.parts.get(fragment.fragment, []), ["id", "score"])
    known, values = scores.column("id").combine_chunks(), numbers(scores.column("score"))

    def batches() -> Any:
        for rows in fragment.batches():
            ids = rows.column("id").combine_chunks()
            value = taken(values, pc.index_in(ids, value_set=known))
            good = np.isfinite(value)
            fragment.counts.invalid += int((~good).sum())
            yield ids.filter(pa.array(good)), value[good]

    ids, value = joined(batches())
    return pa.table({"id": ids, "value": value})


def _keyed_ids(fragment: Fragment) -> pa.Table:
    return _keyed(fragment.ids())


def _keyed_scores(table: pa.Table, column: str) -> tuple[pa.Table, int]:
    return _keyed(table.column("id").combine_chunks()).append_column(
        "value", pa.array(numbers(table.column(column)))
    ), table.num_rows


def _keyed(ids: pa.Array) -> pa.Table:
    return pa.table({"key": hash64(id_words(ids), seed=0, stream="join"), "id": ids})


def _look_up(rows: pa.Table, scores: pa.Table, what: str) -> pa.Table:
    ids = scores.column("id").combine_chunks()
    if len(pc.unique(ids)) < len(ids):
        tally = pc.value_counts(ids)
        twice = pc.filter(tally.field(0), pc.greater(tally.field(1), 1))
        raise UsageError(f"{what} has id '{twice[0]}' more than once; each row needs one score.")
    places = pc.index_in(rows.column("id"), value_set=ids)
    return pa.table({"value": taken(scores.column("value").to_numpy(), places)})


def _with_value(part: pa.Table, answer: pa.Table, finite: bool) -> tuple[pa.Table, int]:
    value = answer.column("value").to_numpy()
    good = np.isfinite(value) if finite else ~np.isnan(value)
    ids = part.column("id").filter(pa.array(good))
    return pa.table({"id": ids, "value": value[good]}), int((~good).sum())
