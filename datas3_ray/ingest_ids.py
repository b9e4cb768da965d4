"""Rows whose ids are their own: those that a shard before theirs has, or the table already."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datas3_ray.exchange import exchange
from datas3_ray.kernels.hashing import hash64, id_words
from datas3_ray.lake.storage import open_dataset
from datas3_ray.runtime import ensure_ray, gather, remote
from datas3_ray.sources import Shard, VectorSource

if TYPE_CHECKING:
    from datas3_ray.ingest_plan import Plan
    from datas3_ray.lake import Lake


def repeated_rows(lake: Lake, plan: Plan) -> dict[str, bytes]:
    """By uri, of each shard that has any, its rows that may not come in: one bit a row, as ``np.packbits`` gives them.

    Of two shards with an id it is the first one's, in the order of the plan, whichever is read first; of a shard and
    the table it is the table's, but for the rows that the plan replaces. Only ids are read.
    """
    there = lake.table(plan.table).count_rows() if lake.exists(plan.table) else 0
    if not isinstance(plan.source, VectorSource) or len(plan.todo) + bool(there) < 2:
        return {}
    ensure_ray()
    read = remote(_ids_of_shard).options(num_returns=2)
    made: list[Any] = [read.remote(plan.source, shard, number) for number, shard in enumerate(plan.todo)]
    counts = gather(count for _, count in made)
    mine = [(shard, part) for shard, (part, _), count in zip(plan.todo, made, counts, strict=True) if count]
    theirs = _ids_there(lake, plan) if mine and there else []
    if len(mine) + len(theirs) < 2:
        return {}
    answers = exchange([part for _, part in mine], sum(counts) + there, _repeated, beside=theirs or None)
    bits = gather(remote(_bits).remote(part, answer) for (_, part), answer in zip(mine, answers, strict=True))
    return {shard.uri: found for (shard, _), found in zip(mine, bits, strict=True) if found}


def _ids_there(lake: Lake, plan: Plan) -> list[Any]:
    """References to the ids of each of the table's fragments, without those of rows that are to be replaced."""
    table = lake.table(plan.table)
    gone = " OR ".join(f"({replaced.rows})" for replaced in plan.replacing.values())
    read = remote(_ids_of_fragment)
    fragments = [fragment.fragment_id for fragment in table.dataset.get_fragments()]
    return [read.remote(table.uri, table.version, fragment, gone, lake.options) for fragment in fragments]


def _ids_of_shard(source: VectorSource, shard: Shard, number: int) -> tuple[pa.Table, int]:
    """The shard's ids, each with its ``row`` and the shard's number; and how many rows there are."""
    ids = pa.chunked_array(list(source.read_ids(shard)), pa.string())
    row = pc.indices_nonzero(ids.is_valid())
    return _keyed(ids.take(row), row=row, shard=pa.repeat(pa.scalar(number), len(row))), len(ids)


def _ids_of_fragment(uri: str, version: int, fragment: int, gone: str, options: dict[str, str] | None) -> pa.Table:
    rows = open_dataset(uri, version, options).get_fragment(fragment)
    return _keyed(rows.to_table(columns=["id"], filter=f"({gone}) IS NOT TRUE" if gone else None).column("id"))


def _keyed(ids: pa.ChunkedArray, **columns: pa.Array) -> pa.Table:
    return pa.table({"key": hash64(id_words(ids), 0, "ids"), "id": ids, **columns})


def _repeated(mine: pa.Table, theirs: pa.Table | None = None) -> pa.Table:
    """Whether the id of each of the shards' rows is one of the table's, or of a shard before the row's own."""
    firsts = mine.group_by("id").aggregate([("shard", "min")])
    first = firsts.column("shard_min").take(pc.index_in(mine.column("id"), firsts.column("id").combine_chunks()))
    repeated = pc.less(first, mine.column("shard"))
    if theirs is not None:
        repeated = pc.or_(repeated, pc.is_in(mine.column("id"), theirs.column("id").combine_chunks()))
    return pa.table({"repeated": repeated})


def _bits(part: pa.Table, answer: pa.Table) -> bytes:
    """One bit for each row of the shard, up to the last that is repeated; nothing where none is."""
    rows = part.column("row").filter(answer.column("repeated")).to_numpy()
    if not len(rows):
        return b""
    marked = np.zeros(int(rows.max()) + 1, bool)
    marked[rows] = True
    return np.packbits(marked).tobytes()


def marked(bits: bytes, rows: np.ndarray) -> np.ndarray:
    """Which of some rows of a shard are marked in what :func:`repeated_rows` says of it.

    >>> marked(np.packbits([False, True]).tobytes(), np.array([0, 1, 70]))
    array([False,  True, False])
    """
    known = np.unpackbits(np.frombuffer(bits, np.uint8)).astype(bool)
    found = np.zeros(len(rows), bool)
    inside = rows < len(known)
    found[inside] = known[rows[inside]]
    return found
