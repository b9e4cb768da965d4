"""HashDedup: one of each group of pictures whose perceptual hashes are nearly the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from datas3_ray.errors import UsageError
from datas3_ray.exchange import exchange, reduce_buckets
from datas3_ray.kernels.hamming import MAX_RADIUS, band_values, leaders, linked, merge_links
from datas3_ray.kernels.phash import hamming
from datas3_ray.kernels.ranking import rank_words
from datas3_ray.lake.view import Fragment
from datas3_ray.runtime import gather, remote
from datas3_ray.selectors.base import Inputs, Outcome, Selector
from datas3_ray.selectors.duplicates import Preference, first_of_each, keep_column

if TYPE_CHECKING:
    from datas3_ray.lake import Lake, Table

LINK_ROWS = 250_000
"""Bands of hashes that one task compares, about."""


class HashDedup(Selector):
    """Remove rows whose 64-bit perceptual hash is within ``radius`` bits of a row that comes before them.

    Rows come in the order of ``keep``, then of their ids. Every pair within the radius is found, exactly: hashes that
    differ in r bits agree in one of r + 1 bands of bits, so only those that share a band are compared.

    Parameters
    ----------
    hash : str
        Column of the hashes (uint64), such as the ingest feature ``phash`` stores.
    radius : int
        Bits that may differ, from 0 to 32. Up to 4 finds the same picture at another size or compression; from about
        10 different pictures are found too, and the bands become so narrow that most pairs are compared.
    rule : {"leader", "components"}
        ``leader``: a row is removed by the first row before it that stays and is within the radius, so that no two
        rows that stay are, and every one that goes is. ``components``: rows are joined by chains of steps within the
        radius, and each chain keeps its first row only.
    keep : str, optional
        A numeric column: the row with the best value comes first, a missing value last; ties by id.
    higher_is_better : bool
        Whether the largest or the smallest value of ``keep`` is the best.
    flat : {"keep", "compare"}
        A picture without structure, or with it in one direction only, has the hash 0, whatever its colour: such rows
        stay, or are compared as any other.

    Notes
    -----
    Columns: ``duplicate_of`` (the row that removes it, null for one that stays) and ``distance`` (bits between the
    two). There is no score. A row without a hash is invalid. The driver holds 16 bytes for each distinct hash that has
    another one within the radius.

    >>> HashDedup(radius=4).rule
    'leader'
    """

    method: ClassVar[str] = "hash_dedup"

    hash: str = "phash"
    radius: int = Field(default=4, ge=0, le=MAX_RADIUS)
    rule: Literal["leader", "components"] = "leader"
    keep: str | None = None
    higher_is_better: bool = True
    flat: Literal["keep", "compare"] = "keep"

    def check(self, lake: Lake, table: Table, query: Table | None) -> None:
        """The hashes must be whole numbers of 64 bits."""
        table.require_column(self.hash)
        kind = table.schema.field(self.hash).type
        if kind not in (pa.uint64(), pa.int64()):
            raise UsageError(f"column '{self.hash}' of table '{table.name}' is {kind}; hashes are uint64 (or int64).")
        self._preference().check(table)

    def choose(self, inputs: Inputs) -> Outcome:
        """Distinct hashes, links between near ones, and in each linked group the rule."""
        import ray

        hashed = inputs.view.map(_hashed, self.hash, self._preference())
        rows = hashed.counts().eligible
        split = remote(_split).options(num_returns=3)
        triples: list[Any] = [split.remote(part, self.flat == "keep") for part in hashed.parts]
        distinct = [triple[1] for triple in triples]
        flat = sum(gather(triple[2] for triple in triples))
        nodes, label = _links(distinct, rows, self.radius)
        links = ray.put((nodes, label))
        labelled = [remote(_labelled).remote(part, links) for part in distinct]
        answers = exchange(labelled, rows, _decide, self.rule, self.radius, key="label")
        finish = remote(_finish)
        hashed.parts = [finish.remote(triple[0], answer) for triple, answer in zip(triples, answers, strict=True)]
        report = {
            "hashes_with_a_near_one": len(nodes),
            "groups_of_near_hashes": len(np.unique(label)),
            "flat_rows": flat,
        }
        return Outcome(hashed, report=report)

    def _preference(self) -> Preference:
        return Preference(self.keep, self.higher_is_better)


def _links(distinct: list[Any], rows: int, radius: int) -> tuple[np.ndarray, np.ndarray]:
    """Hashes that have another one within the radius, ascending, and the smallest hash of each one's component."""
    nodes = label = np.empty(0, np.uint64)
    if radius == 0:
        return nodes, label
    banded = [remote(_banded).remote(part, radius) for part in distinct]
    found = reduce_buckets(banded, rows * (radius + 1), _link, radius, key="band", bucket_rows=LINK_ROWS)
    for ref in found:
        left, right = gather([ref])[0]
        if len(left):
            nodes, label = merge_links(np.concatenate([nodes, left]), np.concatenate([label, right]))
    return nodes, label


def _hashed(fragment: Fragment, column: str, preference: Preference) -> pa.Table:
    """``id``, ``key`` (the hash, uint64) and ``prefer`` (float64)."""
    tables = [pa.schema([("id", pa.string()), ("key", pa.uint64()), ("prefer", pa.float64())]).empty_table()]
    for rows in fragment.batches((column, *preference.columns())):
        there = rows.column(column).is_valid()
        fragment.counts.invalid += rows.column(column).null_count
        rows = rows.filter(there)
        hashes = rows.column(column).to_numpy().view(np.uint64)
        tables.append(pa.table({"id": rows.column("id"), "key": hashes, "prefer": preference.of(rows)}))
    return pa.concat_tables(tables)


def _split(part: pa.Table, skip_flat: bool) -> tuple[pa.Table, pa.Table, int]:
    """The rows with the place of their hash, the part's first row of each hash, and how many rows are flat.

    A flat row that is not compared has the place null.
    """
    ids, hashes = part.column("id").combine_chunks(), part.column("key").to_numpy()
    compared = np.flatnonzero(hashes != 0) if skip_flat else np.arange(len(hashes))
    mine = part.take(pa.array(compared))
    keys, prefer = [mine.column("key").to_numpy()], mine.column("prefer").to_numpy()
    first, slot = first_of_each(keys, prefer, mine.column("id").combine_chunks())
    place = np.full(len(hashes), -1, np.int64)
    place[compared] = slot
    rows = pa.table({"id": ids, "slot": pa.array(place, mask=place < 0)})
    return rows, mine.take(pa.array(first)), int((hashes == 0).sum())


def _banded(distinct: pa.Table, radius: int) -> pa.Table:
    hashes = distinct.column("key").to_numpy()
    bands = band_values(hashes, radius)
    return pa.table({"band": bands.reshape(-1), "key": np.repeat(hashes, radius + 1)})


def _link(rows: pa.Table, radius: int) -> tuple[np.ndarray, np.ndarray]:
    """Each hash that is linked to another of its band, and the first hash it is linked with, however indirectly."""
    bands, hashes = rows.column("band").to_numpy(), rows.column("key").to_numpy()
    order = np.lexsort([hashes, bands])
    bands, hashes = bands[order], hashes[order]
    new = np.ones(len(order), bool)  # the same hash comes from every part that has it
    new[1:] = (bands[1:] != bands[:-1]) | (hashes[1:] != hashes[:-1])
    bands, hashes = bands[new], hashes[new]
    runs = np.flatnonzero(np.r_[True, bands[1:] != bands[:-1], True]) if len(bands) else np.zeros(1, np.int64)
    first = linked(hashes, runs, radius)
    joined = np.flatnonzero(first != np.arange(len(first)))
    return hashes[joined], hashes[first[joined]]


def _labelled(distinct: pa.Table, links: tuple[np.ndarray, np.ndarray]) -> pa.Table:
    """With the column ``label``: the same for all hashes of a component."""
    nodes, label = links
    hashes = distinct.column("key").to_numpy()
    mine = hashes.copy()
    if len(nodes):
        place = np.minimum(np.searchsorted(nodes, hashes), len(nodes) - 1)
        there = nodes[place] == hashes
        mine[there] = label[place[there]]
    return distinct.append_column("label", pa.array(mine))


def _decide(rows: pa.Table, rule: str, radius: int) -> pa.Table:
    """The row that stays for each of a bucket's rows, and the bits between the two."""
    ids, label = rows.column("id").combine_chunks(), rows.column("label").to_numpy()
    hashes = rows.column("key").to_numpy()
    words = rank_words(rows.column("prefer").to_numpy(), ids)
    order = np.lexsort([*words.T[::-1], label])
    label, hashes = label[order], hashes[order]
    first = _stays(hashes, label, rule, radius)
    back = np.empty(len(order), np.int64)
    back[order] = np.arange(len(order))
    distance = hamming(hashes, hashes[first])[back]
    return pa.table({"first": ids.take(pa.array(order[first][back])), "distance": pa.array(distance, pa.uint8())})


def _stays(hashes: np.ndarray, label: np.ndarray, rule: str, radius: int) -> np.ndarray:
    """For rows sorted by (component, order): the position of the row that stays for each."""
    if len(hashes) == 0:
        return np.empty(0, np.int64)
    starts = np.flatnonzero(np.r_[True, label[1:] != label[:-1]])
    sizes = np.diff(np.r_[starts, len(hashes)])
    first = np.repeat(starts, sizes)
    if rule == "leader":
        mixed = np.minimum.reduceat(hashes, starts) != np.maximum.reduceat(hashes, starts)
        for start, size in zip(starts[mixed], sizes[mixed], strict=True):
            first[start : start + size] = start + leaders(hashes[start : start + size], radius)
    return first


def _finish(part: pa.Table, answer: pa.Table) -> pa.Table:
    slot, ids = part.column("slot"), part.column("id")
    # A flat row has no place, and stays.
    keep, duplicate_of = keep_column(ids, pc.coalesce(answer.column("first").take(slot), ids))
    distance = pc.if_else(keep, pa.scalar(None, pa.uint8()), answer.column("distance").take(slot))
    columns = {"score": pa.nulls(part.num_rows, pa.float64()), "duplicate_of": duplicate_of, "distance": distance}
    return pa.table({"id": ids, "keep": keep, **columns})
