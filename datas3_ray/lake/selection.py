"""A selection: which rows of an image table a method kept, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from datas3_ray.lake.aligned import part_positions
from datas3_ray.lake.table import Table
from datas3_ray.lake.view import Within

if TYPE_CHECKING:
    from datas3_ray.lake.lake import Lake


class Selection:
    """An immutable table with one row for each eligible row of its pool: ``id``, ``keep``, ``score`` and more.

    ``len(selection)`` is the number of rows kept.
    """

    def __init__(self, lake: Lake, table: Table) -> None:
        self.lake = lake
        self.table = table
        self._lineage = table.lineage()

    @property
    def name(self) -> str:
        """The selection's name, which is also its table's."""
        return self.table.name

    @property
    def method(self) -> str:
        """Name of the method that made it, as recipes write it."""
        return str(self._lineage["method"])

    @property
    def fingerprint(self) -> str:
        """Changes when the method, its parameters or what it read change."""
        return str(self._lineage["fingerprint"])

    def lineage(self) -> dict[str, Any]:
        """Method, parameters, tables and versions read, parent selection, counts, code version and seconds."""
        return {key: value for key, value in self._lineage.items() if key != "parts"}

    def __len__(self) -> int:
        return int(self._lineage["counts"]["kept"])

    def ids(self) -> pa.Array:
        """Ids of the kept rows, in the pool's order."""
        return self.to_arrow(["id"], kept=True).column("id").combine_chunks()

    def to_arrow(self, columns: list[str] | None = None, *, kept: bool = False) -> pa.Table:
        """Every eligible row (or the kept ones): id, keep, score and the method's own columns."""
        return self.table.to_arrow(columns, filter="keep" if kept else None)

    def within(self, pool: Table) -> Within:
        """The kept rows as a view of ``pool`` needs them."""
        parts = part_positions(self._lineage)
        return Within(self.table.uri, self.table.version, parts if self._aligned(pool, parts) else None)

    def is_of(self, pool: Table) -> bool:
        """Whether it was made from this very table, and not from one of the same name that was deleted since."""
        return self._lineage.get("born") == pool.born

    def _aligned(self, pool: Table, parts: dict[int, list[int]]) -> bool:
        """Whether every row of the selection that the pool still has is in the fragment that it was in."""
        if not self.is_of(pool):
            return False
        live = {fragment.fragment_id: fragment.metadata.num_rows for fragment in pool.dataset.get_fragments()}
        if any(fragment not in live for fragment, positions in parts.items() if positions):
            return False
        # A row that was changed or written again lies in a newer fragment, and is deleted where it was.
        nothing_deleted = sum(live.get(fragment, 0) for fragment in parts) == self._lineage["counts"]["rows"]
        return nothing_deleted or live.keys() <= parts.keys()

    def resize(self, size: int | float | str, name: str | None = None) -> Selection:
        """The same ranking cut at another size: a count, or a share of the eligible rows. Nothing is computed anew.

        The result is saved as ``name`` (``NAME-SIZE`` by default), with this selection as its parent. Rows that were
        deleted or set aside by a split since are not among those to choose from.

        Raises
        ------
        UsageError
            When the method has no ranking that a size could cut (a predicate, or density pruning, whose choice for
            each cluster depends on the size).
        """
        from datas3_ray.lake.resize import resize

        return resize(self, size, name)

    def publish(self, columns: Sequence[str] = ("keep",), name: str | None = None) -> list[str]:
        """Write columns beside the rows of the image table, for searches with ``where`` in plain LanceDB.

        ``keep`` becomes the column ``name`` (the selection's own name by default, with ``_`` for what no column may be
        called), another one ``NAME_COLUMN``. Rows that the selection does not know, such as later ones, have null. It
        makes nothing stale; only publishing a selection of the same name that was made anew changes values that are
        there. Publishing the same again does nothing.

        Returns
        -------
        list of str
            The columns of the image table.

        Raises
        ------
        UsageError
            For a column that the selection does not have, a name that no column may have or that another column has,
            and where the image table was deleted since.
        Datas3Error
            When another program changed rows of the table meanwhile; nothing is written then.
        """
        from datas3_ray.lake.publish import publish

        return publish(self, columns, name)

    def __repr__(self) -> str:
        return f"Selection({self.name!r}, method={self.method!r}, kept={len(self)})"
