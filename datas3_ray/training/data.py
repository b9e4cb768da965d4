"""What a probe learns from: labelled vectors of a selection's rows, split by a hash of their ids.

Rows are sorted by id and the split looks at nothing but ids, classes and the seed, so the order in which rows were
stored, appended or compacted never matters. Selections of one pool share one matrix: each is a list of its rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datas3_ray.errors import UsageError, did_you_mean
from datas3_ray.kernels.hashing import hash64, id_words, uniform
from datas3_ray.lake.pool import may_be_of, pool_then
from datas3_ray.lake.schemas import matrix

if TYPE_CHECKING:
    from datas3_ray.lake import Lake, Selection, Table

HELD_OUT = "held out"
TRAINING_ROWS = "training rows"
FEWEST_TO_HOLD_OUT = 10
"""A selection with fewer labelled rows than this validates on the rows it trains on."""

_TAKE_ROWS = 8192
_TAKE_SHARE = 0.25
# How vectors were computed differs between machines; what they mean does not.
_MACHINE_KEYS = {"dtype", "precision", "device"}


@dataclass(frozen=True)
class LabelledVectors:
    """Rows with a label and a usable vector, sorted by id.

    ``x`` is float32 (n, d), ``y`` int64 (n,) codes into ``classes`` (sorted names), or float64 (n,) numbers without
    classes. ``unlabelled`` and ``unusable`` hold the ids that were left out: without a label, or with a vector that is
    missing or not finite.
    """

    ids: pa.Array
    x: np.ndarray
    y: np.ndarray
    classes: tuple[str, ...]
    unlabelled: pa.Array
    unusable: pa.Array

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Split:
    """One selection's rows of a :class:`LabelledVectors`, in two.

    ``train`` and ``validation`` are int64 rows of the matrix, ascending, disjoint when ``validation_on`` is
    ``held out`` and equal when it is ``training rows``. ``classes`` are the sorted names of the classes the selection
    holds; a regression has none.
    """

    train: np.ndarray
    validation: np.ndarray
    classes: tuple[str, ...]
    unlabelled: int
    unusable: int
    validation_on: str


@dataclass(frozen=True)
class ProbeData:
    """Everything :func:`datas3_ray.training.probe.fit_probe` needs: ``y`` are codes into the split's classes."""

    x: np.ndarray
    y: np.ndarray
    ids: pa.Array
    split: Split


def probe_data(
    lake: Lake, selection: str, column: str, label: str = "label", *, validation: float = 0.1, seed: int = 0
) -> ProbeData:
    """Vectors and labels of a selection's kept rows, ready for a probe.

    Parameters
    ----------
    lake : Lake
    selection : str
        Its lineage says which table, at which version, is read.
    column, label : str
        The vector column and the column of classes. Rows without a class are left out and counted.
    validation : float
        Share to hold out.
    seed : int
        Another seed holds out other rows.

    Raises
    ------
    UsageError
        When a column is missing, or fewer than two classes are left.
    """
    chosen = lake.selection(selection)
    vectors = read_labelled(pool_of(lake, chosen, column, label), column, label, keep=chosen.ids())
    split = split_selection(vectors, chosen, validation=validation, seed=seed)
    return ProbeData(vectors.x, vectors.y, vectors.ids, split)


def pool_of(lake: Lake, selection: Selection, column: str, label: str) -> Table:
    """The table a selection was made from, at the version it read.

    Columns may have been added since (another encoder's vectors, labels): where that version lacks one, the newest
    version is read instead, for an id's row does not change.

    Raises
    ------
    UsageError
        When the version is no longer there, or the table was made anew.
    """
    pinned = pool_then(lake, selection)
    if {column, label} <= set(pinned.schema.names):
        return pinned
    newest = lake.table(pinned.name)
    return newest if may_be_of(selection, newest) else pinned


def by_pool(
    lake: Lake, selections: Iterable[Selection], column: str, label: str
) -> list[tuple[Table, list[Selection]]]:
    """The tables that selections were made from, see :func:`pool_of`, and those made from each."""
    pools: dict[tuple[str, int], tuple[Table, list[Selection]]] = {}
    for selection in selections:
        pool = pool_of(lake, selection, column, label)
        pools.setdefault((pool.name, pool.version), (pool, []))[1].append(selection)
    return list(pools.values())


def default_column(column: str | None, pool: Table) -> str:
    """The vector column asked for, or a table's only one; a UsageError says which there are."""
    if column is not None:
        return column
    known = list(pool.vector_columns())
    if len(known) != 1:
        has = f"has several vector columns ({', '.join(known)})" if known else "has no vector column"
        raise UsageError(f"table '{pool.name}' {has}; name the one to train on as 'column' in the sweep's config.")
    return known[0]


def check_same_vectors(column: str, pool: Table, test: Table) -> None:
    """Raise a UsageError unless both tables' vectors have one length and came from one encoder."""
    sizes = pool.require_vector(column), test.require_vector(column)
    if sizes[0] != sizes[1]:
        raise UsageError(
            f"column '{column}' has {sizes[0]} dimensions in table '{pool.name}' and {sizes[1]} in test table "
            f"'{test.name}'; both must come from the same encoder."
        )
    made = [{k: v for k, v in table.encoder(column).items() if k not in _MACHINE_KEYS} for table in (pool, test)]
    if all(made) and made[0] != made[1]:
        differing = sorted(key for key in {*made[0], *made[1]} if made[0].get(key) != made[1].get(key))
        raise UsageError(
            f"column '{column}' of table '{pool.name}' and of test table '{test.name}' came from different encoders "
            f"(they differ in: {', '.join(differing)}); ingest one of them again with the other's encoder."
        )


def read_labelled(
    table: Table, column: str, label: str, keep: pa.Array | None = None, *, numbers: bool = False
) -> LabelledVectors:
    """Read the rows of ``keep`` (or all) that have a class, or with ``numbers`` a finite number, and a usable vector.

    Labels are read first, and then only the vectors of the rows that matter, straight into one matrix.

    Raises
    ------
    UsageError
        When a column is missing or not of its kind, or the table lacks rows of ``keep``.
    """
    dimensions = table.require_vector(column)
    require_label(table, label, numbers)
    found = _read_labels(table, label, keep, numbers)
    if keep is not None and found.num_rows != len(keep):
        raise UsageError(
            f"{len(keep) - found.num_rows} of {len(keep)} selected rows are not in version {table.version} of table "
            f"'{table.name}'; make the selection again."
        )
    has_label = found.column("label").is_valid()
    unlabelled = found.filter(pc.invert(has_label)).column("id").combine_chunks()
    labelled = found.filter(has_label)
    labelled = labelled.append_column("stored", pa.array(np.arange(labelled.num_rows)))
    labelled = labelled.sort_by("id")
    place = np.empty(labelled.num_rows, dtype=np.int64)
    place[labelled.column("stored").to_numpy()] = np.arange(labelled.num_rows)
    x = np.empty((labelled.num_rows, dimensions), dtype=np.float32)
    offsets = np.sort(labelled.column("offset").to_numpy())
    for start, vectors in _read_vectors(table, column, offsets):
        x[place[start : start + len(vectors)]] = vectors
    with np.errstate(invalid="ignore"):
        finite = np.isfinite(x.sum(axis=1, dtype=np.float64))
    unusable = labelled.filter(pa.array(~finite)).column("id").combine_chunks()
    if not finite.all():
        x, labelled = x[finite], labelled.filter(pa.array(finite))
    y, classes = coded(labelled.column("label").combine_chunks())
    return LabelledVectors(labelled.column("id").combine_chunks(), x, y, classes, unlabelled, unusable)


def as_labels(values: pa.Array, numbers: bool) -> pa.Array:
    """Classes as text, or numbers as float64; null where one is missing, empty or not finite."""
    if numbers:
        found = values.cast(pa.float64(), safe=False)
        return pc.if_else(pc.is_finite(found), found, pa.scalar(None, pa.float64()))
    names = values.cast(pa.string())
    return pc.if_else(pc.equal(names, ""), pa.scalar(None, pa.string()), names)


def coded(labels: pa.Array) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels (n,) without nulls as int64 codes into sorted names, or as float64 numbers and no names."""
    if pa.types.is_floating(labels.type):
        return labels.to_numpy(zero_copy_only=False), ()
    classes = labels.unique().sort() if len(labels) else labels
    codes = pc.index_in(labels, value_set=classes).to_numpy(zero_copy_only=False).astype(np.int64)
    return codes, tuple(classes.to_pylist())


def hold_out(ids: pa.Array, y: np.ndarray, *, validation: float, seed: int) -> np.ndarray:
    """Which of a selection's labelled rows, sorted by id, to validate on: bool (n,), about that share.

    None where there are fewer than :data:`FEWEST_TO_HOLD_OUT`. ``y`` (n,) are codes, of which each keeps a row to learn
    from, or numbers.
    """
    numbers = np.issubdtype(y.dtype, np.floating)
    return _held_out(ids, np.zeros(len(y), dtype=np.int64) if numbers else y, validation, seed)


def classes_to_learn(y: np.ndarray, classes: Sequence[str], name: str) -> tuple[str, ...]:
    """The classes of training rows y (n,), sorted; none where y are numbers.

    Raises
    ------
    UsageError
        When all rows of selection ``name`` have one class or number.
    """
    numbers = np.issubdtype(y.dtype, np.floating)
    present = np.unique(y)
    if len(present) < 2:
        only = f"one number only ({present[0]:g}" if numbers else f"one class only ('{classes[present[0]]}'"
        raise UsageError(f"selection '{name}' holds {only}, {len(y)} rows); training needs two or more.")
    return () if numbers else tuple(classes[code] for code in present)


def split_selection(vectors: LabelledVectors, selection: Selection, *, validation: float, seed: int) -> Split:
    """Divide a selection's rows into those to learn from and those to choose by.

    Raises
    ------
    UsageError
        When the selection has no labelled rows, or rows of one class or number only.
    """
    kept = selection.ids()
    rows = pc.index_in(kept, value_set=vectors.ids).drop_null().to_numpy(zero_copy_only=False)
    rows = np.sort(rows.astype(np.int64))
    if not len(rows):
        raise UsageError(
            f"selection '{selection.name}' keeps {len(kept)} rows and none of them has both a label and a vector; "
            "there is nothing to train on."
        )
    classes = classes_to_learn(vectors.y[rows], vectors.classes, selection.name)
    held_out = hold_out(vectors.ids.take(pa.array(rows)), vectors.y[rows], validation=validation, seed=seed)
    on_training_rows = not held_out.any()
    return Split(
        train=rows[~held_out],
        validation=rows if on_training_rows else rows[held_out],
        classes=classes,
        unlabelled=count_in(kept, vectors.unlabelled),
        unusable=count_in(kept, vectors.unusable),
        validation_on=TRAINING_ROWS if on_training_rows else HELD_OUT,
    )


def check_no_test_rows(selection: Selection, test: str, test_ids: pa.Array) -> None:
    """Raise a UsageError when a selection keeps rows of a test table."""
    kept = selection.ids()
    shared = pc.filter(kept, pc.is_in(kept, value_set=test_ids))
    if len(shared):
        raise UsageError(
            f"selection '{selection.name}' keeps {len(shared)} rows of test table '{test}' ('{shared[0]}' for one), so "
            "the test would be of rows learnt by heart; set the test rows aside first and make the selection again."
        )


def _held_out(ids: pa.Array, codes: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Mask of the rows to validate on: those whose hash is below ``share``.

    Every class keeps a row to learn from: where all of a class's rows would be held out, the one of largest hash is
    not. Where no row falls below the share, the one of smallest hash among classes of several rows is held out.
    """
    if len(ids) < FEWEST_TO_HOLD_OUT:
        return np.zeros(len(ids), dtype=bool)
    u = uniform(hash64(id_words(ids), seed=seed, stream="validation"))
    held_out = u < share
    # Rows are sorted by id, so a stable sort breaks ties of the hash by id.
    by_class = np.lexsort((u, codes))
    last_of_class = by_class[np.append(np.flatnonzero(np.diff(codes[by_class])), len(codes) - 1)]
    held_out[last_of_class] = False
    if not held_out.any():
        spare = np.ones(len(codes), dtype=bool)
        spare[last_of_class] = False
        if spare.any():
            held_out[np.flatnonzero(spare)[np.argmin(u[spare])]] = True
    return held_out


def require_label(table: Table, label: str, numbers: bool = False) -> None:
    """Raise a UsageError unless a column can hold classes, or with ``numbers`` numbers to predict."""
    table.require_column(label)
    kind = table.schema.field(label).type
    if numbers:
        if not _is_number(kind):
            known = ", ".join(field.name for field in table.schema if _is_number(field.type)) or "none"
            raise UsageError(
                f"column '{label}' of table '{table.name}' holds {kind}, not numbers to predict; its numeric columns "
                f"are: {known}."
            )
        return
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if not (text or pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
        others = [f.name for f in table.schema if pa.types.is_string(f.type) and f.name not in ("id", "uri", "meta")]
        raise UsageError(
            f"column '{label}' of table '{table.name}' holds {kind}, not classes (text, whole numbers or booleans)."
            + did_you_mean(label, others)
        )


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _read_labels(table: Table, label: str, keep: pa.Array | None, numbers: bool) -> pa.Table:
    """``id``, ``label`` (see :func:`as_labels`) and ``offset`` (place in the table) of the rows wanted."""
    parts, offset = [], 0
    for batch in table.dataset.scanner(columns=["id", label], scan_in_order=True).to_batches():
        labels = as_labels(batch.column(label), numbers)
        offsets = pa.array(np.arange(offset, offset + batch.num_rows))
        offset += batch.num_rows
        part = pa.table({"id": batch.column("id").cast(pa.string()), "label": labels, "offset": offsets})
        parts.append(part if keep is None else part.filter(pc.is_in(part.column("id"), value_set=keep)))
    kind = pa.float64() if numbers else pa.string()
    schema = pa.schema({"id": pa.string(), "label": kind, "offset": pa.int64()})
    return pa.concat_tables([schema.empty_table(), *parts])


def _read_vectors(table: Table, column: str, offsets: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Vectors of the rows at ``offsets`` (ascending) as (first of them, float (b, d)): by scan, or by row if few."""
    if len(offsets) < _TAKE_SHARE * table.count_rows():
        for start in range(0, len(offsets), _TAKE_ROWS):
            rows = table.dataset.take(offsets[start : start + _TAKE_ROWS].tolist(), columns=[column])
            yield start, matrix(rows.column(column))
        return
    first = 0
    for batch in table.dataset.scanner(columns=[column], scan_in_order=True).to_batches():
        low, high = np.searchsorted(offsets, (first, first + batch.num_rows))
        if high > low:
            yield int(low), matrix(batch.column(column))[offsets[low:high] - first]
        first += batch.num_rows


def count_in(ids: pa.Array, among: pa.Array) -> int:
    """How many of some ids are among others."""
    return int(pc.sum(pc.is_in(ids, value_set=among)).as_py() or 0)
