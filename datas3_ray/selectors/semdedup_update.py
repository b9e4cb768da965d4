"""SemDeDup after rows were added: new rows against their clusters, and among themselves; nothing else is compared."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import PrivateAttr

from datas3_ray.clustering import assign_fragment, centroids_of
from datas3_ray.errors import UsageError
from datas3_ray.kernels._tiles import SCALE, WINDOW, Pairs
from datas3_ray.kernels.pairwise import prior_max_groups
from datas3_ray.kernels.ranking import rank_words
from datas3_ray.kernels.similarity import normalize
from datas3_ray.lake import Lake, Selection, Table
from datas3_ray.lake.aligned import aligned_refs
from datas3_ray.lake.view import Fragment, Mapped
from datas3_ray.runtime import device, gather, matrix_task, unpacked
from datas3_ray.selectors.base import Inputs, Outcome
from datas3_ray.selectors.grouping import Group, Order, answer, load_group, with_key
from datas3_ray.selectors.semdedup import SemDeDup, finish

NEW_BYTES = 1 << 28
"""Vectors of new rows that every task can be given; of more, a full comparison is no slower."""
BATCH_ROWS = 1 << 16
_FIXED = ("column", "rule", "keep", "higher_is_better", "seed")


class Update(SemDeDup):
    """A :class:`SemDeDup` that takes over what an earlier selection found. Made by :meth:`SemDeDup.update`."""

    _since: Selection = PrivateAttr()

    @classmethod
    def of(cls, selector: SemDeDup, since: Selection, table: str) -> Update:
        """``selector`` with the centroids of ``since``; a UsageError says where the two differ."""
        lineage = since.lineage()
        if since.method != cls.method or lineage["table"] != table:
            raise UsageError(
                f"selection '{since.name}' was made by {since.method} from table '{lineage['table']}'; an update of "
                f"semdedup on table '{table}' needs an earlier selection by semdedup from that table."
            )
        if lineage["within"] is not None:
            raise UsageError(
                f"selection '{since.name}' was made within '{lineage['within']}'; only one made from the whole table "
                "can be updated. Run select with centroids=... and within=..."
            )
        before = SemDeDup(**lineage["parameters"])
        for field in _FIXED:
            was, now = getattr(before, field), getattr(selector, field)
            if was != now:
                raise UsageError(f"selection '{since.name}' was made with {field}: {was}, not {field}: {now}.")
        if selector.clusters not in (None, before.clusters):
            raise UsageError(
                f"selection '{since.name}' was made with clusters: {before.clusters}; an update keeps its centroids."
            )
        centroids = lineage["report"]["centroids"]
        if selector.centroids not in (None, centroids):
            raise UsageError(f"selection '{since.name}' was made with centroids: {centroids}; an update keeps them.")
        update = cls(**{**selector.model_dump(), "clusters": None, "centroids": centroids})
        update._since = since
        return update

    def choose(self, inputs: Inputs) -> Outcome:
        """Compare what is new; everything where more than that has changed."""
        old = self._taken_over(inputs)
        outcome = self._compare_new(inputs, old) if old is not None else None
        return outcome if outcome is not None else super().choose(inputs)

    def _taken_over(self, inputs: Inputs) -> dict[int, Any] | None:
        """Fragment id -> reference to its rows of the earlier selection; None when all must be compared."""
        if self.rule != "paper":
            return None
        fragments, parts = aligned_refs(self._since.table)
        if not _unchanged(inputs.lake, inputs.table, self._since.lineage()["inputs"][inputs.table.name], fragments):
            return None
        new = inputs.table.count_rows() - self._since.lineage()["counts"]["rows"]
        if 4 * new * inputs.table.require_vector(self.column) > NEW_BYTES or 5 * new > inputs.table.count_rows():
            return None
        return dict(zip(fragments, parts, strict=True))

    def _compare_new(self, inputs: Inputs, old: dict[int, Any]) -> Outcome | None:
        """None when a row that was there is not eligible any more, or one became so."""
        import ray

        view, eps = inputs.view, self.cut_eps()
        earlier = [old.get(fragment) for fragment in view.fragment_ids]
        centroids = ray.put(centroids_of(inputs.lake, str(self.centroids)))
        pairs = unpacked(view.zip(_keyed, earlier, centroids, self.order()).parts, 2)
        parts = [part for part, _ in pairs]
        fresh = [rows for (_, rows), part in zip(pairs, earlier, strict=True) if part is None]
        new = ray.remote(_new_rows).remote(centroids, *fresh)
        compared = view.zip(_against, parts, new, resources=matrix_task())
        found = unpacked(compared.parts, 3)
        if not all(gather(same for _, _, same in found)):
            return None
        raised = [rows for rows, _, _ in found]
        answers = ray.remote(_settle_new).options(**matrix_task()).remote(new, *(rows for _, rows, _ in found))
        keys = _keys_of_tied(parts, raised)
        finish_old, finish_new = ray.remote(_finish_old), ray.remote(_finish_new)
        done = [
            finish_new.remote(part, position, answers, eps)
            if before is None
            else finish_old.remote(part, rows, new, keys, eps)
            for position, (part, before, rows) in enumerate(zip(parts, earlier, raised, strict=True))
        ]
        count = gather([ray.remote(_length).remote(new)])[0]
        report = {"clusters": str(self.centroids), "new_rows": count}
        return self.outcome(Mapped(done, compared._counts), report)


def _unchanged(lake: Lake, table: Table, version: int, fragments: list[int]) -> bool:
    """Whether the fragments of a version are all there still, with the same files and the same rows."""
    try:
        before = {f.fragment_id: f.metadata for f in lake.table(table.name, version=version).dataset.get_fragments()}
    except Exception:  # pruned; the engine has no one kind of error for it
        return False
    now = {fragment.fragment_id: fragment.metadata for fragment in table.dataset.get_fragments()}
    return all(f in before and f in now and _same(before[f], now[f]) for f in fragments)


def _same(before: Any, now: Any) -> bool:
    """A column that was added since is another file; nothing else may differ."""
    files = {file.path for file in before.files} <= {file.path for file in now.files}
    return files and str(before.deletion_file) == str(now.deletion_file) and before.physical_rows == now.physical_rows


def _keyed(
    fragment: Fragment, before: pa.Table | None, centroids: np.ndarray, order: Order
) -> tuple[pa.Table, dict[str, Any] | None]:
    """The fragment's rows with keys: as they were selected, or assigned to a cluster now, and then their vectors."""
    if before is not None:
        return with_key(fragment, before, order), None
    part = with_key(fragment, assign_fragment(fragment, centroids), order).combine_chunks()
    vectors = [normalize(batch)[0] for _, batch in fragment.vectors()]
    rows = {
        "rows": part.select(["id", "cluster", "key"]),
        "vectors": np.concatenate([np.empty((0, centroids.shape[1]), np.float32), *vectors]),
        "part": fragment.position,
        "position": np.arange(part.num_rows),
    }
    return part, rows


def _new_rows(centroids: np.ndarray, *dealt: dict[str, Any]) -> Group:
    """All new rows by cluster and rank."""
    schema = pa.schema([("id", pa.string()), ("cluster", pa.int32()), ("key", pa.float64())])
    none = np.empty((0, centroids.shape[1]), np.float32)
    nobody = {"rows": schema.empty_table(), "vectors": none, "part": 0, "position": np.empty(0, np.int64)}
    return load_group(dealt or [nobody])


def _length(new: Group) -> int:
    return len(new)


def _against(fragment: Fragment, part: pa.Table, new: Group) -> tuple[pa.Table, pa.Table, bool]:
    """What a fragment's old rows and the new ones mean for each other, and whether the old rows are still the same.

    First table: ``position`` of an old row, the cosine's ``millionths`` and the ``new`` row, the best earlier one.
    Second: the ``new`` row, ``millionths``, and ``key`` and ``id`` of the old row, the best earlier one.
    """
    if "max_similarity" not in part.schema.names:
        for _ in fragment.vectors():  # read once more, so that the fragment's rows are counted
            pass
        return *Raised(part, new).tables(), True
    found, at = Raised(part, new), 0
    for ids, batch in fragment.vectors(batch_rows=BATCH_ROWS):
        if not part.column("id").slice(at, len(ids)).combine_chunks().equals(ids):
            return *Raised(part, new).tables(), False
        found.look(at, batch)
        at += len(ids)
    return *found.tables(), at == part.num_rows


class Raised:
    """Pairs of an old and a new row of one cluster, found batch by batch.

    A float32 cosine only rules pairs out that are safely below what a row has already; the others are computed exactly.
    """

    def __init__(self, part: pa.Table, new: Group) -> None:
        self.part, self.new = part, new
        self.cluster = part.column("cluster").to_numpy()
        self.key = part.column("key").to_numpy()
        self.found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        if "max_similarity" in part.schema.names:
            self.most = part.column("max_similarity").to_numpy().astype(np.float64)
        # A new row has at least this to an earlier old row, less what float32 may be off.
        self.least = np.zeros(len(new))

    def look(self, at: int, vectors: np.ndarray) -> None:
        """Compare the old rows from ``at`` on, vectors (n, d) of any length, with the new rows of their clusters."""
        scale = _inverse_lengths(vectors)
        if scale is None:
            vectors, scale = normalize(vectors)[0], np.ones(len(vectors), np.float32)
        cluster = self.cluster[at : at + len(vectors)]
        sort = np.argsort(cluster, kind="stable")
        of_new = self.new.cluster[self.new.offsets[:-1]]
        starts = np.searchsorted(cluster[sort], of_new, side="left")
        stops = np.searchsorted(cluster[sort], of_new, side="right")
        pairs = [
            self._cluster(at, sort[start:stop], int(first), int(last), vectors, scale)
            for start, stop, first, last in zip(starts, stops, self.new.offsets[:-1], self.new.offsets[1:], strict=True)
            if start < stop
        ]
        if not pairs:
            return
        old, new = (np.concatenate([pair[side] for pair in pairs]) for side in (0, 1))
        keys = _exact(vectors, old, self.new.matrix(), new)
        self.found.append((old + at, new, keys))

    def _cluster(
        self, at: int, rows: np.ndarray, first: int, last: int, vectors: np.ndarray, scale: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Old rows (in the batch) and new rows that may be each other's most similar earlier row."""
        cosines = (vectors[rows] @ self.new.matrix()[first:last].T) * scale[rows, None]
        before = self.key[at + rows][:, None]
        after = self.new.key[first:last][None, :]
        earlier, later = before < after, before > after
        least = self.least[first:last]
        np.maximum(least, np.where(earlier, cosines, 0).max(0), out=least)
        most = np.maximum(self.most[at + rows], np.where(later, cosines, 0).max(1))
        # Rows with the same key are ordered by their ids, which is looked at only where the pair matters.
        matters = ~later & (cosines >= least - WINDOW)
        matters |= ~earlier & (cosines >= most[:, None] - WINDOW)
        old, new = np.nonzero(matters & (cosines > -WINDOW))
        return rows[old], new + first

    def tables(self) -> tuple[pa.Table, pa.Table]:
        """See :func:`_against`."""
        none = np.empty(0, np.int64)
        old, new, keys = (np.concatenate([none, *(found[side] for found in self.found)]) for side in (0, 1, 2))
        positive = keys > 0
        old, new, keys = old[positive], new[positive], keys[positive]
        ids = self.part.column("id").take(pa.array(old)).combine_chunks()
        earlier = self.key[old] < self.new.key[new]
        same = np.flatnonzero(self.key[old] == self.new.key[new])
        if len(same):
            names = self.new.ids.take(pa.array(new[same]))
            earlier[same] = pc.less(ids.take(pa.array(same)).cast(pa.binary()), names.cast(pa.binary())).to_numpy(
                zero_copy_only=False
            )
        raised = _first(old[~earlier], keys[~earlier], new[~earlier][:, None])
        mine = pa.table({"position": old[~earlier], "millionths": keys[~earlier], "new": new[~earlier]})
        theirs = pa.table(
            {
                "new": new[earlier],
                "millionths": keys[earlier],
                "key": self.key[old[earlier]],
                "id": ids.filter(pa.array(earlier)),
            }
        )
        return mine.take(pa.array(raised)), _best(theirs)


def _inverse_lengths(vectors: np.ndarray) -> np.ndarray | None:
    """1 over each row's length (n,), float32 and off by less than WINDOW; None where float32 cannot hold a square."""
    with np.errstate(over="ignore"):
        squares = np.einsum("ij,ij->i", vectors, vectors)
    tiny = np.finfo(np.float32).tiny * 1e9
    return 1 / np.sqrt(squares) if np.isfinite(squares).all() and (squares > tiny).all() else None


def _exact(left: np.ndarray, i: np.ndarray, right: np.ndarray, j: np.ndarray) -> np.ndarray:
    """Cosines of pairs in whole millionths."""
    import torch

    rows, place = np.unique(i, return_inverse=True)
    pairs = Pairs(torch.from_numpy(normalize(left[rows])[0]), torch.from_numpy(right.copy()))
    return pairs.keys(torch.from_numpy(place), torch.from_numpy(j)).numpy()


def _first(row: np.ndarray, keys: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """Of the entries of each row the one with the largest key, then of the smallest rank (n, w): their places."""
    sort = np.lexsort([*rank.T[::-1], -keys, row])
    ordered = row[sort]
    return sort[np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])] if len(sort) else sort


def _best(theirs: pa.Table) -> pa.Table:
    """Of the candidates of each new row the most similar, then the first in rank."""
    words = rank_words(-theirs.column("key").to_numpy(), theirs.column("id"))
    return theirs.take(pa.array(_first(theirs.column("new").to_numpy(), theirs.column("millionths").to_numpy(), words)))


def _settle_new(new: Group, *found: pa.Table) -> pa.Table:
    """Each new row's most similar earlier row, old or new, as answers."""
    if len(new) == 0:
        return answer(new, max_similarity=pa.array([], pa.float32()), duplicate_of=pa.array([], pa.string()))
    similarity, earlier = prior_max_groups(new.matrix(), new.offsets, device=device())
    among = np.flatnonzero(earlier >= 0)
    own = pa.table(
        {
            "new": among,
            "millionths": np.round(similarity[among].astype(np.float64) * SCALE).astype(np.int64),
            "key": new.key[earlier[among]],
            "id": new.ids.take(pa.array(earlier[among])),
        }
    )
    best = _best(pa.concat_tables([own, *found]))
    largest, names = np.zeros(len(new), np.int64), np.full(len(new), -1)
    row = best.column("new").to_numpy()
    largest[row], names[row] = best.column("millionths").to_numpy(), np.arange(best.num_rows)
    ids = best.column("id").combine_chunks().take(pa.array(names, mask=names < 0))
    return answer(new, max_similarity=pa.array((largest / SCALE).astype(np.float32)), duplicate_of=ids)


def _keys_of_tied(parts: list[Any], raised: list[Any]) -> pa.Table | None:
    """Ids and keys of the earlier rows that an old row names, where a new row is exactly as similar."""
    import ray

    tied, look_up = ray.remote(_tied), ray.remote(_look_up)
    asked = gather(tied.remote(part, rows) for part, rows in zip(parts, raised, strict=True))
    ids = pa.concat_arrays([pa.array([], pa.string()), *asked]).unique()
    return pa.concat_tables(gather(look_up.remote(part, ids) for part in parts)) if len(ids) else None


def _has(part: pa.Table, raised: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """The rows for which a new row was found, and what they had, in millionths."""
    rows = raised.column("position").to_numpy()
    if len(rows) == 0:
        return rows, rows
    return rows, np.round(part.column("max_similarity").to_numpy()[rows].astype(np.float64) * SCALE).astype(np.int64)


def _tied(part: pa.Table, raised: pa.Table) -> pa.Array:
    rows, had = _has(part, raised)
    same = rows[had == raised.column("millionths").to_numpy()]
    if len(same) == 0:
        return pa.array([], pa.string())
    return part.column("duplicate_of").take(pa.array(same)).combine_chunks().drop_null()


def _look_up(part: pa.Table, ids: pa.Array) -> pa.Table:
    found = part.filter(pc.is_in(part.column("id"), value_set=ids))
    return pa.table({"id": found.column("id"), "key": found.column("key")})


def _finish_old(part: pa.Table, raised: pa.Table, new: Group, keys: pa.Table | None, eps: float | None) -> pa.Table:
    """An old fragment's rows, those raised for which a new row is more similar, or as similar and earlier in rank."""
    similarity = part.column("max_similarity").to_numpy().copy()
    names = part.column("duplicate_of").combine_chunks()
    rows, had = _has(part, raised)
    found, by = raised.column("millionths").to_numpy(), raised.column("new").to_numpy()
    takes = found > had
    tied = np.flatnonzero(found == had)
    if len(tied) and keys is not None:
        takes[tied] = _ranks_before(new, by[tied], names.take(pa.array(rows[tied])), keys)
    rows, found, by = rows[takes], found[takes], by[takes]
    similarity[rows] = (found / SCALE).astype(np.float32)
    place = np.arange(len(names))
    place[rows] = len(names) + np.arange(len(rows))
    answers = pa.table(
        {
            "max_similarity": pa.array(similarity, pa.float32()),
            "duplicate_of": pa.concat_arrays([names, new.ids.take(pa.array(by))]).take(pa.array(place)),
        }
    )
    return finish(part, answers, eps)


def _ranks_before(new: Group, by: np.ndarray, names: pa.Array, keys: pa.Table) -> np.ndarray:
    """Whether each new row ranks before the old row of that name."""
    place = pc.index_in(names, value_set=keys.column("id").combine_chunks())
    old = keys.column("key").combine_chunks().take(place).to_numpy(zero_copy_only=False)
    smaller = pc.less(new.ids.take(pa.array(by)).cast(pa.binary()), names.cast(pa.binary()))
    mine = new.key[by]
    return (mine < old) | ((mine == old) & smaller.to_numpy(zero_copy_only=False))


def _finish_new(part: pa.Table, position: int, answers: pa.Table, eps: float | None) -> pa.Table:
    first, last = np.searchsorted(answers.column("part").to_numpy(), [position, position + 1])
    return finish(part, answers.slice(first, last - first), eps)
