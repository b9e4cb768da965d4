"""The rows a method may choose from, and one Ray task a fragment to work on them.

A view pins a table's version and says which rows are eligible: those kept by a parent selection (``within``), not set
aside by a split, and with a usable vector where a vector column is needed. Every result that a view's tasks return is
*aligned*: one part a fragment of the table, its rows in the table's own order. Parts stay in Ray's object store, so no
process holds a whole table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datas3_ray.lake.schemas import matrix
from datas3_ray.lake.storage import StorageOptions, open_dataset
from datas3_ray.lake.table import Table
from datas3_ray.runtime import remote

BATCH_ROWS = 8192


@dataclass
class Counts:
    """What became of the rows of a table on the way to a view's eligible rows."""

    rows: int = 0
    outside: int = 0
    held_out: int = 0
    invalid: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.rows + other.rows,
            self.outside + other.outside,
            self.held_out + other.held_out,
            self.invalid + other.invalid,
        )

    @property
    def eligible(self) -> int:
        """Rows left to choose from."""
        return self.rows - self.outside - self.held_out - self.invalid


@dataclass(frozen=True)
class Within:
    """The kept rows of a parent selection: aligned to the table's fragments, or one set of ids where it is not."""

    uri: str
    version: int
    parts: dict[int, list[int]] | None
    """Fragment id of the table -> positions of the selection's fragments; None when the table was compacted since."""


@dataclass(frozen=True)
class Fragment:
    """One fragment of a view, as a task sees it. Iterate :meth:`batches` or :meth:`vectors`."""

    uri: str
    version: int
    fragment: int
    position: int
    column: str | None
    within: Within | None
    held_out: Any
    options: StorageOptions | None
    counts: Counts = field(default_factory=Counts, compare=False)

    def batches(
        self, columns: tuple[str, ...] = (), batch_rows: int = BATCH_ROWS, *, all_usable: bool = False
    ) -> Iterator[pa.Table]:
        """Eligible rows as tables of ``id``, the view's vector column and ``columns``; counts what is left out.

        ``all_usable`` where it is known of every row of the fragment that its vector is; they are not looked at then.
        """
        dataset = open_dataset(self.uri, self.version, self.options)
        wanted = list(dict.fromkeys(("id", *((self.column,) if self.column else ()), *columns)))
        kept = self._kept_ids()
        held_out = _fetch(self.held_out)
        for batch in dataset.get_fragment(self.fragment).to_batches(columns=wanted, batch_size=batch_rows):
            rows = pa.Table.from_batches([batch])
            self.counts.rows += rows.num_rows
            if kept is not None:
                inside = rows.filter(pc.is_in(rows.column("id"), value_set=kept))
                self.counts.outside += rows.num_rows - inside.num_rows
                rows = inside
            if held_out is not None and rows.num_rows:
                free = rows.filter(pc.invert(pc.is_in(rows.column("id"), value_set=held_out)))
                self.counts.held_out += rows.num_rows - free.num_rows
                rows = free
            if self.column and rows.num_rows and not all_usable:
                valid = usable(as_float32(matrix(rows.column(self.column))))
                if not valid.all():
                    self.counts.invalid += int((~valid).sum())
                    rows = rows.filter(pa.array(valid))
            if rows.num_rows:
                yield rows

    def rows(self) -> int:
        """Rows of the fragment, eligible or not."""
        return int(open_dataset(self.uri, self.version, self.options).get_fragment(self.fragment).count_rows())

    def vectors(
        self, batch_rows: int = BATCH_ROWS, *, all_usable: bool = False
    ) -> Iterator[tuple[pa.Array, np.ndarray]]:
        """Eligible rows as (ids, float32 matrix of the view's vector column, not normalised)."""
        if self.column is None:
            raise ValueError("this view has no vector column")
        for rows in self.batches(batch_rows=batch_rows, all_usable=all_usable):
            yield rows.column("id").combine_chunks(), as_float32(matrix(rows.column(self.column)))

    def ids(self) -> pa.Array:
        """Ids of the eligible rows."""
        chunks = [rows.column("id").combine_chunks() for rows in self.batches()]
        return pa.concat_arrays(chunks) if chunks else pa.array([], pa.string())

    def _kept_ids(self) -> pa.Array | None:
        if self.within is None:
            return None
        if self.within.parts is not None:
            selection = open_dataset(self.within.uri, self.within.version, self.options)
            return aligned_part(selection, self.within.parts.get(self.fragment, []), ["id"], "keep").column("id")
        selection = open_dataset(self.within.uri, self.within.version, self.options)
        return selection.to_table(columns=["id"], filter="keep").column("id")


class View:
    """Eligible rows of an image table at one version.

    Parameters
    ----------
    table : Table
        The pinned table.
    column : str, optional
        A vector column; rows whose vector is missing, not finite or all zero are then not eligible (and counted).
    within : Within, optional
        The parent selection's kept rows.
    held_out : pyarrow.Array of string, optional
        Ids that no selection may contain.
    """

    def __init__(
        self,
        table: Table,
        column: str | None = None,
        within: Within | None = None,
        held_out: pa.Array | None = None,
    ) -> None:
        import ray

        self.table = table
        self.column = column
        self.within = within
        self._held_out = ray.put(held_out) if held_out is not None and len(held_out) else None
        self.fragment_ids = table.fragment_ids()

    def fragments(self) -> list[Fragment]:
        """One description a fragment, in table order, small enough to send anywhere."""
        return [
            Fragment(
                self.table.uri,
                self.table.version,
                fragment,
                position,
                self.column,
                self.within,
                [self._held_out] if self._held_out is not None else None,
                self.table.options,
            )
            for position, fragment in enumerate(self.fragment_ids)
        ]

    def of_fragments(self, fragment_ids: list[int]) -> View:
        """The rows of some fragments only; these are then all the fragments that the view has."""
        some = copy(self)
        some.fragment_ids = fragment_ids
        return some

    def map(
        self, work: Callable[..., Any], *args: Any, resources: dict[str, float] | None = None, returns: int = 1
    ) -> Mapped:
        """Run ``work(fragment, *args)`` as one task a fragment; results stay where they were made.

        Arguments that are one large value should be passed as ``ray.put`` references. Where ``work`` returns a tuple
        and ``returns`` says of how many values, each part is a list of references, one a value.
        """
        return self._each([()] * len(self.fragment_ids), work, args, resources, returns)

    def zip(
        self,
        work: Callable[..., Any],
        parts: list[Any],
        *args: Any,
        resources: dict[str, float] | None = None,
        returns: int = 1,
    ) -> Mapped:
        """Like :meth:`map`, with each fragment's aligned part: ``work(fragment, part, *args)``."""
        return self._each([(part,) for part in parts], work, args, resources, returns)

    def _each(
        self,
        given: list[tuple[Any, ...]],
        work: Callable[..., Any],
        args: tuple[Any, ...],
        resources: dict[str, float] | None,
        returns: int,
    ) -> Mapped:
        task = remote(_run).options(num_returns=returns + 1, **(resources or {"num_cpus": 1}))
        made: list[Any] = [
            task.remote(returns, work, fragment, *own, *args)
            for fragment, own in zip(self.fragments(), given, strict=True)
        ]
        return Mapped([refs[0] if returns == 1 else refs[:-1] for refs in made], [refs[-1] for refs in made])


@dataclass
class Mapped:
    """References to a map's results, aligned to the view's fragments, and what each task counted."""

    parts: list[Any]
    _counts: list[Any]

    def results(self) -> list[Any]:
        """Every part, fetched."""
        from datas3_ray.runtime import gather

        return gather(self.parts)

    def counts(self) -> Counts:
        """Rows seen and left out, summed over fragments. Waits for the tasks."""
        from datas3_ray.runtime import gather

        total = Counts()
        for counts in gather(self._counts):
            total = total + counts
        return total


def as_float32(vectors: np.ndarray) -> np.ndarray:
    """The vectors in the type that they are compared in: what it cannot hold becomes infinite, and so not usable."""
    with np.errstate(over="ignore"):
        return vectors.astype(np.float32, copy=False)


def usable(vectors: np.ndarray) -> np.ndarray:
    """Mask of rows that are finite and not all zero.

    >>> usable(np.array([[1.0, 0.0], [0.0, 0.0], [np.nan, 1.0]]))
    array([ True, False, False])
    """
    with np.errstate(over="ignore", invalid="ignore"):
        quick = np.einsum("ij,ij->i", vectors, vectors)
        if np.isfinite(quick).all() and (quick > 0).all():
            return np.ones(len(vectors), bool)
        # Squares that are too large or too small for float32 are not for float64.
        squares = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
    return np.isfinite(squares) & (squares > 0)


def aligned_part(dataset: Any, positions: list[int], columns: list[str] | None, filter: str | None = None) -> pa.Table:
    """Rows of an aligned table that belong to one fragment of its source, given its fragments' positions."""
    if not positions:
        names = columns or dataset.schema.names
        return pa.schema([dataset.schema.field(name) for name in names]).empty_table()
    fragments = dataset.get_fragments()
    chosen = [fragments[position] for position in positions]
    return pa.concat_tables([fragment.to_table(columns=columns, filter=filter) for fragment in chosen])


def rows_with(
    source: Within, fragment: int, ids: pa.Array, options: StorageOptions | None, columns: list[str] | None = None
) -> pa.Table:
    """Rows of a selection among which are those of a fragment's ``ids``, wherever in the selection these are."""
    dataset = open_dataset(source.uri, source.version, options)
    if source.parts is not None:
        return aligned_part(dataset, source.parts.get(fragment, []), columns)
    scanner = dataset.scanner(columns=columns)
    mine = [batch.filter(pc.is_in(batch.column("id"), value_set=ids)) for batch in scanner.to_batches()]
    return pa.Table.from_batches(mine, schema=scanner.projected_schema)


def _run(returns: int, work: Callable[..., Any], fragment: Fragment, *args: Any) -> tuple[Any, ...]:
    found = work(fragment, *args)
    return (*(found if returns > 1 else (found,)), fragment.counts)


def _fetch(boxed: Any) -> Any:
    """A reference travels inside a list, so that Ray hands it over unresolved and each task reads it in place."""
    if boxed is None:
        return None
    import ray

    return ray.get(boxed[0])
