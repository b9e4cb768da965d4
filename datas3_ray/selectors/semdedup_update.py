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
from datas3_ray.lake.staged import field_ids, file_of
from datas3_ray.lake.storage import open_dataset
from datas3_ray.lake.view import Counts, Fragment, Mapped, View, Within, aligned_part
from datas3_ray.runtime import cluster_cpus, device, gather, matrix_task, remote
from datas3_ray.selectors.base import Inputs, Outcome
from datas3_ray.selectors.grouping import Group, Order, answer, load_group, with_key
from datas3_ray.selectors.semdedup import SemDeDup, finish
from datas3_ray.selectors.semdedup_raised import Raised, best_earlier, block_rows

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
        centroids = lineage["report"]["centroids"]
        if selector.clusters not in (None, before.clusters):
            # A selection that is an update itself names its centroids only; they say how many were asked for.
            asked = before.clusters or _clusters_asked(since.lake, centroids)
            if selector.clusters != asked:
                raise UsageError(
                    f"selection '{since.name}' was made with clusters: {asked}; an update keeps its centroids."
                )
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

    def _taken_over(self, inputs: Inputs) -> Within | None:
        """Where the rows of the earlier selection are; None when all must be compared."""
        if self.rule != "paper":
            return None
        old = self._since.within(inputs.table)
        if old.parts is None:
            return None
        before = self._since.lineage()["inputs"][inputs.table.name]
        columns = ["id", self.column, *self.order().preference().columns()]
        if not _unchanged(inputs.lake, inputs.table, before, list(old.parts), columns):
            return None
        new = inputs.table.count_rows() - self._since.lineage()["counts"]["rows"]
        if 4 * new * inputs.table.require_vector(self.column) > NEW_BYTES or 5 * new > inputs.table.count_rows():
            return None
        return old

    def _compare_new(self, inputs: Inputs, old: Within) -> Outcome | None:
        """None when a row that was there is not eligible any more, or one became so."""
        import ray

        view, order, eps, known = inputs.view, self.order(), self.cut_eps(), old.parts or {}
        added = view.of_fragments([fragment for fragment in view.fragment_ids if fragment not in known])
        kept = view.of_fragments([fragment for fragment in view.fragment_ids if fragment in known])
        centroids = ray.put(centroids_of(inputs.lake, str(self.centroids)))
        assigned = added.map(_assigned, centroids, order, resources=matrix_task(), returns=2)
        new_rows = remote(_new_rows).options(num_returns=2)
        new, count = new_rows.remote(centroids, *(rows for _, rows in assigned.parts))
        compared = _compared(kept, old, new, order, eps)
        # Asked for last: the fragments that all others wait for come first.
        among = remote(_among_new).options(**matrix_task()).remote(new)
        ties = gather(tied for _, _, tied in compared.parts)
        if any(tied is None for tied in ties):
            return None
        answers = remote(_settle_new).remote(new, among, *(theirs for _, theirs, _ in compared.parts))
        finish = remote(_finish_new)
        parts = _settle_ties(kept, [part for part, _, _ in compared.parts], ties, new, order)
        parts += [finish.remote(part, position, answers, eps) for position, (part, _) in enumerate(assigned.parts)]
        counts = compared._counts + assigned._counts
        place = {fragment: at for at, fragment in enumerate(kept.fragment_ids + added.fragment_ids)}
        found = Mapped(*([each[place[fragment]] for fragment in view.fragment_ids] for each in (parts, counts)))
        return self.outcome(found, {"clusters": str(self.centroids), "new_rows": gather([count])[0]})


def _clusters_asked(lake: Lake, centroids: str) -> int:
    """The clusters that the k-means was asked for that left these centroids, of which some may have stayed empty."""
    return int(lake.table(centroids).lineage()["parameters"]["clusters"])


def _unchanged(lake: Lake, table: Table, version: int, fragments: list[int], columns: list[str]) -> bool:
    """Whether the fragments of a version are all there still, with the same rows and the same values of the columns."""
    try:
        before = _contents(lake.table(table.name, version=version), columns)
    except Exception:  # pruned; the engine has no one kind of error for it
        return False
    now = _contents(table, columns)
    return all(fragment in before and before[fragment] == now.get(fragment) for fragment in fragments)


def _contents(table: Table, columns: list[str]) -> dict[int, Any]:
    """Of each fragment the files with the columns' values, and its deleted rows."""
    fields = [field_ids(table)[column] for column in columns]
    found = {}
    for fragment in table.dataset.get_fragments():
        metadata = fragment.metadata
        # Values that are written again are in another file; the one before stays for its other columns.
        files = [file_of(metadata, field) for field in fields]
        overlays = str(getattr(metadata, "overlays", None))
        found[fragment.fragment_id] = (files, str(metadata.deletion_file), metadata.physical_rows, overlays)
    return found


def _assigned(fragment: Fragment, centroids: np.ndarray, order: Order) -> tuple[pa.Table, dict[str, Any]]:
    """A new fragment's rows with clusters and keys, and what the comparison needs of them."""
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


def _new_rows(centroids: np.ndarray, *dealt: dict[str, Any]) -> tuple[Group, int]:
    """All new rows by cluster and rank, and how many they are."""
    schema = pa.schema([("id", pa.string()), ("cluster", pa.int32()), ("key", pa.float64())])
    none = np.empty((0, centroids.shape[1]), np.float32)
    nobody = {"rows": schema.empty_table(), "vectors": none, "part": 0, "position": np.empty(0, np.int64)}
    new = load_group(dealt or [nobody])
    return new, len(new)


def _compared(view: View, old: Within, new: Any, order: Order, eps: float | None) -> Mapped:
    """:func:`_against` of every old fragment.

    What the first few find rules most pairs of the others out: only the best earlier row of all counts for a new row.
    """
    few = max(cluster_cpus(), len(view.fragment_ids) // 16)
    first, rest = (view.of_fragments(ids) for ids in (view.fragment_ids[:few], view.fragment_ids[few:]))
    some = first.map(_against, old, new, None, order, eps, returns=3)
    least = remote(_least).remote(new, *(theirs for _, theirs, _ in some.parts))
    others = rest.map(_against, old, new, least, order, eps, returns=3)
    return Mapped(some.parts + others.parts, some._counts + others._counts)


def _against(
    fragment: Fragment, old: Within, new: Group, least: np.ndarray | None, order: Order, eps: float | None
) -> tuple[pa.Table, pa.Table, pa.Table | None]:
    """What a fragment's old rows and the new ones mean for each other.

    Returns the old rows as selected now, what they mean for the new rows, and the old rows that a new row is exactly as
    similar to as the earlier row they name: None instead where the old rows are not the same any more.
    """
    positions = (old.parts or {})[fragment.fragment]
    part = aligned_part(open_dataset(old.uri, old.version, fragment.options), positions, None)
    part = with_key(replace(fragment, counts=Counts()), part, order)  # so that its rows are counted once
    found, at = Raised(part, new, least), 0
    # The files are the same as when the rows were selected, so what was usable is.
    batches = fragment.vectors(block_rows(new.matrix().shape[1]), all_usable=part.num_rows == fragment.rows())
    for ids, batch in batches:
        if not part.column("id").slice(at, len(ids)).combine_chunks().equals(ids):
            return part, found.tables()[1], None
        found.add(batch)
        at += len(ids)
    raised, theirs = found.tables()
    selected, tied = _raise(part, raised, new, eps)
    return selected, theirs, tied if at == part.num_rows else None


def _raise(part: pa.Table, raised: pa.Table, new: Group, eps: float | None) -> tuple[pa.Table, pa.Table]:
    """An old fragment's rows, those raised for which a new row is more similar, and those for which one is as similar.

    The second are only what may be named otherwise: ``position``, the ``new`` row, and the ``id`` that is named.
    """
    similarity = part.column("max_similarity").to_numpy().copy()
    names = part.column("duplicate_of").combine_chunks()
    rows, by = raised.column("position").to_numpy(), raised.column("new").to_numpy()
    found, had = raised.column("millionths").to_numpy(), np.round(similarity[rows].astype(np.float64) * SCALE)
    tied = pa.array(found == had)
    ties = raised.select(["position", "new"]).append_column("id", names.take(raised.column("position"))).filter(tied)
    more = found > had
    rows, by = rows[more], by[more]
    similarity[rows] = (found[more] / SCALE).astype(np.float32)
    answers = {"max_similarity": pa.array(similarity, pa.float32()), "duplicate_of": _renamed(names, rows, new, by)}
    return finish(part, pa.table(answers), eps), ties


def _renamed(names: pa.Array, rows: np.ndarray, new: Group, by: np.ndarray) -> pa.Array:
    """The names, with those of the given rows replaced by the ids of new rows."""
    place = np.arange(len(names))
    place[rows] = len(names) + np.arange(len(rows))
    return pa.concat_arrays([names, new.ids.take(pa.array(by))]).take(pa.array(place))


def _least(new: Group, *found: pa.Table) -> np.ndarray:
    """What each new row has at least to an earlier row, float32, less a millionth for what rounding may have added."""
    least = np.zeros(len(new), np.int64)
    for theirs in found:
        np.maximum.at(least, theirs.column("new").to_numpy(), theirs.column("millionths").to_numpy() - 1)
    return (least / SCALE).astype(np.float32)


def _among_new(new: Group) -> pa.Table:
    """Each new row's most similar earlier new row, as :meth:`Raised.tables` states those of old rows."""
    if len(new) == 0:
        return pa.table(
            {"new": np.empty(0, np.int64), "millionths": np.empty(0, np.int64), "key": new.key, "id": new.ids}
        )
    similarity, earlier = prior_max_groups(new.matrix(), new.offsets, device=device())
    among = np.flatnonzero(earlier >= 0)
    return pa.table(
        {
            "new": among,
            "millionths": np.round(similarity[among].astype(np.float64) * SCALE).astype(np.int64),
            "key": new.key[earlier[among]],
            "id": new.ids.take(pa.array(earlier[among])),
        }
    )


def _settle_new(new: Group, *found: pa.Table) -> pa.Table:
    """Each new row's most similar earlier row, old or new, as answers."""
    best = best_earlier(pa.concat_tables(found))
    largest, names = np.zeros(len(new), np.int64), np.full(len(new), -1)
    row = best.column("new").to_numpy()
    largest[row], names[row] = best.column("millionths").to_numpy(), np.arange(best.num_rows)
    ids = best.column("id").combine_chunks().take(pa.array(names, mask=names < 0))
    return answer(new, max_similarity=pa.array((largest / SCALE).astype(np.float32)), duplicate_of=ids)


def _settle_ties(kept: View, parts: list[Any], ties: list[pa.Table], new: Any, order: Order) -> list[Any]:
    """The parts, with the earlier of two rows named where both are exactly as similar."""
    ids = pa.chunked_array([pa.array([], pa.string()), *(tied.column("id").combine_chunks() for tied in ties)]).unique()
    if len(ids) == 0:
        return parts
    keys = pa.concat_tables(kept.zip(_look_up, parts, ids, order).results())
    rename = remote(_rename)
    return [
        rename.remote(part, tied, new, keys) if tied.num_rows else part for part, tied in zip(parts, ties, strict=True)
    ]


def _look_up(fragment: Fragment, part: pa.Table, ids: pa.Array, order: Order) -> pa.Table:
    """Ids and keys of the fragment's rows that have one of the ids."""
    named = pc.is_in(part.column("id"), value_set=ids)
    return with_key(fragment, part, order).select(["id", "key"]).filter(named)


def _rename(part: pa.Table, tied: pa.Table, new: Group, keys: pa.Table) -> pa.Table:
    """An old fragment's rows, those that are tied naming the new row where it ranks before the old one."""
    names, by = tied.column("id").combine_chunks(), tied.column("new").to_numpy()
    place = pc.index_in(names, value_set=keys.column("id").combine_chunks())
    old, mine = keys.column("key").combine_chunks().take(place).to_numpy(), new.key[by]
    smaller = pc.less(new.ids.take(pa.array(by)).cast(pa.binary()), names.cast(pa.binary()))
    before = (mine < old) | ((mine == old) & smaller.to_numpy(zero_copy_only=False))
    rows = tied.column("position").to_numpy()[before]
    at = part.schema.get_field_index("duplicate_of")
    return part.set_column(
        at, "duplicate_of", _renamed(part.column("duplicate_of").combine_chunks(), rows, new, by[before])
    )


def _finish_new(part: pa.Table, position: int, answers: pa.Table, eps: float | None) -> pa.Table:
    first, last = np.searchsorted(answers.column("part").to_numpy(), [position, position + 1])
    return finish(part, answers.slice(first, last - first), eps)
