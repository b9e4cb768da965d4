"""SemDeDup after rows were added: new rows against their clusters, and among themselves; nothing else is compared."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import PrivateAttr

from datas3_ray.clustering import assign_fragment, centroids_of
from datas3_ray.errors import UsageError
from datas3_ray.kernels._tiles import SCALE
from datas3_ray.kernels.pairwise import prior_max_groups
from datas3_ray.kernels.similarity import normalize
from datas3_ray.lake import Lake, Selection, Table
from datas3_ray.lake.aligned import aligned_refs
from datas3_ray.lake.view import Counts, Fragment, Mapped
from datas3_ray.runtime import device, gather, matrix_task
from datas3_ray.selectors.base import Inputs, Outcome
from datas3_ray.selectors.grouping import Group, Order, answer, load_group, with_key
from datas3_ray.selectors.semdedup import SemDeDup, finish
from datas3_ray.selectors.semdedup_raised import Raised, best_earlier

NEW_BYTES = 1 << 28
"""Vectors of new rows that every task can be given; of more, a full comparison is no slower."""
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
        keyed = view.zip(_keyed, earlier, centroids, self.order(), returns=2)
        parts = [part for part, _ in keyed.parts]
        fresh = [rows for (_, rows), part in zip(keyed.parts, earlier, strict=True) if part is None]
        new = ray.remote(_new_rows).remote(centroids, *fresh)
        compared = view.zip(_against, parts, new, resources=matrix_task(), returns=3)
        if not all(gather(same for _, _, same in compared.parts)):
            return None
        raised = [rows for rows, _, _ in compared.parts]
        theirs = [rows for _, rows, _ in compared.parts]
        answers = ray.remote(_settle_new).options(**matrix_task()).remote(new, *theirs)
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
        # Old fragments were read to compare their rows, new ones to assign them.
        read = zip(keyed._counts, compared._counts, earlier, strict=True)
        return self.outcome(Mapped(done, [one if part is None else other for one, other, part in read]), report)


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
    again = replace(fragment, counts=Counts())  # so that its rows are counted once, however often they are read
    part = with_key(again, assign_fragment(again, centroids), order).combine_chunks()
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
    """What a fragment's old rows and the new ones mean for each other, and whether the old rows are still the same."""
    if "max_similarity" not in part.schema.names:  # a new fragment
        return *Raised(_nobody(), new).tables(), True
    found, at = Raised(part, new), 0
    for ids, batch in fragment.vectors():
        if not part.column("id").slice(at, len(ids)).combine_chunks().equals(ids):
            return *found.tables(), False
        found.add(batch)
        at += len(ids)
    return *found.tables(), at == part.num_rows


def _nobody() -> pa.Table:
    fields = [("id", pa.string()), ("cluster", pa.int32()), ("key", pa.float64()), ("max_similarity", pa.float32())]
    return pa.schema(fields).empty_table()


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
    best = best_earlier(pa.concat_tables([own, *found]))
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
