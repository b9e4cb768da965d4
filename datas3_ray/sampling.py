"""A bounded sample of a view's unit vectors: the rows with the smallest seeded hash, in the order of their ids.

So it is the same however the table is split and whatever the order of its rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datas3_ray.errors import UsageError
from datas3_ray.kernels.hashing import hash64, id_words, uniform
from datas3_ray.kernels.similarity import normalize
from datas3_ray.lake.cut import apply_cut, find_cut
from datas3_ray.lake.view import Fragment, View
from datas3_ray.runtime import gather, remote

SPARE_ROWS = 1000
"""Rows more than are wanted that the first look at a table brings along, so that a second one is seldom needed."""

Chosen = tuple[pa.Array, np.ndarray]
"""Ids of a piece's rows, and where those are among the vectors that came along."""


def sample_ref(view: View, most: int, seed: int) -> Any:
    """A reference to the unit vectors of at most ``most`` rows, float32 (rows, d).

    Raises
    ------
    UsageError
        When there is no eligible row.
    """
    # Rows that are surely enough come along at once; where fewer are eligible than the table has rows, a second look
    # is needed.
    guess = min(1.0, 1.1 * (most + SPARE_ROWS) / max(1, view.table.count_rows()))
    looked = view.map(_hash_part, seed, guess, returns=2)
    keyed = [part for part, _ in looked.parts]
    eligible = looked.counts().eligible
    require_rows(view, eligible)
    cut = find_cut(keyed, min(eligible, most))
    chosen: Any = remote(_chosen).options(num_returns=2)
    pairs: list[Any] = [chosen.remote(part, cut, guess) for part in keyed]
    if all(gather(enough for _, enough in pairs)):
        pieces = [(rows, vectors) for (rows, _), (_, vectors) in zip(pairs, looked.parts, strict=True)]
    else:
        pieces = view.zip(_take_part, keyed, cut, returns=2).parts
    rows, vectors = ([piece[side] for piece in pieces] for side in (0, 1))
    return remote(_assembled).options(num_cpus=1).remote(*rows, *vectors)


def sample_vectors(view: View, most: int, seed: int) -> np.ndarray:
    """The sample itself, in this process."""
    return gather([sample_ref(view, most, seed)])[0]


def _assembled(*pieces: Any) -> np.ndarray:
    """The chosen rows of each piece's batches of vectors as one matrix, in the order of their ids."""
    chosen, vectors = pieces[: len(pieces) // 2], pieces[len(pieces) // 2 :]
    ids = pa.chunked_array([ids for ids, _ in chosen], pa.string()).combine_chunks()
    order = pc.array_sort_indices(ids).to_numpy()
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    width = max(batch.shape[1] for batches in vectors for batch in batches)
    sample = np.empty((len(ids), width), np.float32)
    at = 0
    for (_, rows), batches in zip(chosen, vectors, strict=True):
        start = 0
        for batch in batches:
            first, last = np.searchsorted(rows, [start, start + len(batch)])
            sample[place[at + first : at + last]] = batch[rows[first:last] - start]
            start += len(batch)
        at += len(rows)
    return sample


def require_rows(view: View, eligible: int) -> None:
    """A UsageError where a view turned out to have no eligible row."""
    if eligible == 0:
        raise UsageError(
            f"table '{view.table.name}' has no eligible row with a usable vector in column '{view.column}'."
        )


def _hash_part(fragment: Fragment, seed: int, guess: float) -> tuple[pa.Table, list[np.ndarray]]:
    """Ids of the eligible rows scored so that the smallest hash ranks first; vectors of those whose is below guess."""
    ids, hashes, found = [pa.array([], pa.string())], [np.empty(0)], []
    for batch_ids, vectors in fragment.vectors():
        drawn = uniform(hash64(id_words(batch_ids), seed=seed, stream="kmeans-sample"))
        ids.append(batch_ids)
        hashes.append(drawn)
        found.append(normalize(vectors[drawn < guess])[0])
    return pa.table({"id": pa.chunked_array(ids), "score": -np.concatenate(hashes)}), found


def _chosen(part: pa.Table, cut: Any, guess: float) -> tuple[Chosen, bool]:
    """Of the rows that came along those above the cut, and whether these are all that the cut lets in."""
    keep = apply_cut(part, cut).column("keep").to_numpy()
    near = part.column("score").to_numpy() > -guess
    ids = part.column("id").filter(pa.array(keep & near)).combine_chunks()
    return (ids, np.flatnonzero(keep[near])), not (keep & ~near).any()


def _take_part(fragment: Fragment, part: pa.Table, cut: Any) -> tuple[Chosen, list[np.ndarray]]:
    """The part's rows above the cut."""
    keep = apply_cut(part, cut).column("keep").to_numpy()
    found, at = [], 0
    for batch_ids, batch in fragment.vectors():
        found.append(normalize(batch[keep[at : at + len(batch_ids)]])[0])
        at += len(batch_ids)
    ids = part.column("id").filter(pa.array(keep)).combine_chunks()
    return (ids, np.arange(len(ids))), found
