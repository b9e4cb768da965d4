"""The contract of every selector: parameters in the constructor, tables in :meth:`Selector.select`."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import pyarrow as pa
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from datas3_ray import __version__
from datas3_ray.errors import UsageError, one_sentence
from datas3_ray.kernels.ranking import read_size, resolve_size
from datas3_ray.lake.aligned import write_aligned
from datas3_ray.lake.cut import apply_cut, find_cut
from datas3_ray.lake.lake import check_own_name
from datas3_ray.lake.schemas import fingerprint
from datas3_ray.lake.selection import Selection
from datas3_ray.lake.splits import content_marks, held_out_ids, splits_of
from datas3_ray.lake.storage import Mode, TableExists
from datas3_ray.lake.view import Counts, Mapped, View
from datas3_ray.selectors.outside import code_mark, travels

if TYPE_CHECKING:
    from datas3_ray.lake import Lake, Table


Size = Annotated[int | float, BeforeValidator(read_size)]
"""A count (int), or a share of the eligible rows: a float in (0, 1], rounded half up, or a text such as ``25%``."""

Seed = Annotated[int, Field(ge=0, lt=1 << 63)]


@dataclass
class Outcome:
    """What a method found: one part a fragment, each an Arrow table with ``id``, ``score`` and the method's columns.

    With ``size`` the rows of highest score are kept, exactly that many, ties by id. Without it the parts carry a
    boolean column ``keep`` themselves (``asked`` says how many rows were wanted, where a number was). ``resizable``
    when the score alone decides, so that another size is a filter.
    """

    mapped: Mapped
    size: int | float | None = None
    asked: int | None = None
    resizable: bool = False
    report: dict[str, Any] = field(default_factory=dict)


@dataclass
class Inputs:
    """The pinned tables a method reads."""

    lake: Lake
    table: Table
    view: View
    query: Table | None
    within: Selection | None
    splits: list[Table]

    def fingerprint(self) -> str:
        """Changes when the eligible rows may have changed."""
        return fingerprint(
            {
                "table": [self.table.name, self.table.content_mark],
                "within": self.within.fingerprint if self.within is not None else None,
                "held_out": content_marks(self.splits),
            }
        )


@dataclass
class Prepared:
    """The tables that a selection is made from, checked; what it is, and a fingerprint of that."""

    pool: Table
    within: Selection | None
    query: Table | None
    splits: list[Table]
    identity: dict[str, Any]
    fingerprint: str


class Selector(BaseModel):
    """Base of all methods. A subclass states its parameters as fields and implements :meth:`choose`.

    Constructors only store and validate; an error names the parameter, the value and what is allowed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: ClassVar[str]
    """The method's name in recipes, selections and leaderboards."""
    needs_query: ClassVar[bool] = False

    def __init__(self, **parameters: Any) -> None:
        with one_sentence(type(self), parameters, self.method):
            super().__init__(**parameters)

    def vector(self) -> str | None:
        """The vector column that every eligible row must have."""
        return getattr(self, "column", None)

    def choose(self, inputs: Inputs) -> Outcome:
        """Score (or decide) the eligible rows; implemented by each method."""
        raise NotImplementedError

    def read_selections(self) -> list[str]:
        """Names of the selections that the method itself reads: what changes one of them makes this one stale."""
        return []

    def check(self, lake: Lake, table: Table, query: Table | None) -> None:
        """Raise a UsageError for what can be seen to be wrong before work starts; extended by methods."""
        column = self.vector()
        if column is None:
            return
        dimensions = table.require_vector(column)
        if query is not None and query.require_vector(column) != dimensions:
            raise UsageError(
                f"column '{column}' has {dimensions} dimensions in table '{table.name}' and "
                f"{query.require_vector(column)} in query table '{query.name}'; both must come from the same encoder."
            )

    def select(
        self,
        lake: Lake,
        table: str,
        *,
        within: str | Selection | None = None,
        query: str | None = None,
        name: str | None = None,
        replace: bool = False,
    ) -> Selection:
        """Choose rows of ``table`` and save the choice as a selection of the lake.

        Parameters
        ----------
        lake : Lake
        table : str
            The image table to choose from. Rows that a split set aside are never chosen.
        within : str or Selection, optional
            Choose only from the rows that this selection of the same table kept.
        query : str, optional
            An image table with examples of the deployment, for methods that look at one.
        name : str, optional
            Name of the new selection; ``TABLE-METHOD-FINGERPRINT`` by default.
        replace : bool
            Replace a selection of this name that was made otherwise. One made in just this way is returned as it is.

        Raises
        ------
        UsageError
            For unknown tables and columns, differing dimensions, a missing query, or a name that is taken.
        """
        started = time.perf_counter()
        made = self._prepare(lake, table, within, query)
        pool, parent, mark = made.pool, made.within, made.fingerprint
        name = name or f"{table}-{self.method}-{mark[:8]}"
        check_own_name(name)
        there = lake.exists(name)
        if there:
            existing = lake.table(name)
            if existing.kind != "selection":
                raise UsageError(f"'{name}' is a table of kind {existing.kind} already; choose another name.")
            if existing.lineage().get("fingerprint") == mark:
                return lake.selection(name)
            if not replace:
                raise UsageError(
                    f"selection '{name}' exists and was made with other parameters or from other versions; "
                    "choose another name, or pass replace=True."
                )
        from datas3_ray.runtime import ensure_ray

        ensure_ray()
        travels(type(self))
        view = View(pool, self.vector(), parent.within(pool) if parent is not None else None, held_out_ids(made.splits))
        outcome = self.choose(Inputs(lake, pool, view, made.query, parent, made.splits))
        identity = {**made.identity, "fingerprint": mark}
        try:
            return _save(lake, name, view, outcome, identity, started, "overwrite" if there else "create")
        except TableExists:  # another program took the name meanwhile: it is judged as any that is taken
            return self.select(lake, table, within=within, query=query, name=name, replace=replace)

    def is_current(
        self, lake: Lake, table: str, name: str, *, within: str | Selection | None = None, query: str | None = None
    ) -> bool:
        """Whether the selection ``name`` is there and :meth:`select` with the same arguments would do nothing."""
        needed = [table, name, *(n for n in (within, query) if isinstance(n, str))]
        if not all(lake.exists(wanted) for wanted in needed):
            return False
        return lake.table(name).lineage().get("fingerprint") == self._prepare(lake, table, within, query).fingerprint

    def _prepare(self, lake: Lake, table: str, within: str | Selection | None, query: str | None) -> Prepared:
        pool = lake.image_table(table)
        pool.require_ids()
        parent = self._parent(lake, table, within)
        asked = self._query(lake, query)
        self.check(lake, pool, asked)
        identity = self._identity(pool, parent, asked)
        splits = splits_of(lake, pool.name)
        read = [pool, *splits, *([asked] if asked is not None else []), *([parent.table] if parent is not None else [])]
        # Which versions were read is told; what is the same depends on when their rows last changed.
        mark = fingerprint({**identity, "inputs": content_marks(read)})
        identity["inputs"] = {table.name: table.version for table in read}
        identity["born"] = pool.born
        identity["marks"] = content_marks([pool, *splits])
        return Prepared(pool, parent, asked, splits, identity, mark)

    def _parent(self, lake: Lake, table: str, within: str | Selection | None) -> Selection | None:
        if within is None:
            return None
        if not isinstance(within, (str, Selection)):
            raise UsageError(f"within is a selection or its name, not {within!r}.")
        parent = lake.selection(within) if isinstance(within, str) else within
        of = parent.lineage()["table"]
        if of != table:
            raise UsageError(f"selection '{parent.name}' was made from table '{of}' and cannot restrict '{table}'.")
        return parent

    def _query(self, lake: Lake, query: str | None) -> Table | None:
        if self.needs_query and query is None:
            raise UsageError(f"{self.method} needs a query: the name of a table with examples of the deployment.")
        if query is not None and not self.needs_query:
            raise UsageError(f"{self.method} looks at no query; leave out query='{query}'.")
        return lake.image_table(query) if query is not None else None

    def _identity(self, pool: Table, parent: Selection | None, query: Table | None) -> dict[str, Any]:
        code = code_mark(type(self))
        return {
            "method": self.method,
            **({"code": code} if code else {}),
            "parameters": self.model_dump(mode="json"),
            "table": pool.name,
            "within": parent.name if parent is not None else None,
            "parent_fingerprint": parent.fingerprint if parent is not None else None,
            "query": query.name if query is not None else None,
        }


def _save(
    lake: Lake, name: str, view: View, outcome: Outcome, identity: dict[str, Any], started: float, mode: Mode
) -> Selection:
    parts = outcome.mapped.parts
    counts = outcome.mapped.counts()
    if counts.invalid and not counts.eligible:
        raise UsageError(
            f"{identity['method']}: of the {counts.invalid} rows of table '{identity['table']}' to choose from, none "
            "has a usable value in the columns that it reads."
        )
    cut = None
    size = outcome.asked
    if outcome.size is not None:
        size = resolve_size(outcome.size, counts.eligible)
        try:
            cut = find_cut(parts, min(size, counts.eligible))
        except ValueError as error:
            advice = "a row without a score is to be left out of its part and counted invalid"
            raise UsageError(f"{identity['method']}: the scores cannot be ranked: {error}; {advice}.") from error

    def lineage(tallies: list[dict[str, int]]) -> dict[str, Any]:
        kept = sum(tally["kept"] for tally in tallies)
        return {
            **identity,
            "resizable": outcome.resizable,
            "size": size,
            "counts": selection_counts(counts, kept, size),
            "report": outcome.report,
            "code_version": __version__,
            "seconds": round(time.perf_counter() - started, 3),
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }

    write_aligned(
        lake,
        name,
        parts,
        kind="selection",
        fragment_ids=view.fragment_ids,
        lineage=lineage,
        make=apply_cut,
        args=(cut,),
        mode=mode,
    )
    return lake.selection(name)


def selection_counts(counts: Counts, kept: int, size: int | None) -> dict[str, int]:
    """The counts kept in a selection's lineage; ``shortfall`` is how many rows asked for were not there."""
    return {
        "rows": counts.rows,
        "outside": counts.outside,
        "held_out": counts.held_out,
        "invalid": counts.invalid,
        "eligible": counts.eligible,
        "kept": kept,
        "dropped": counts.eligible - kept,
        "shortfall": max(0, size - counts.eligible) if size is not None else 0,
    }


def score_table(ids: pa.Array, score: Any, **columns: Any) -> pa.Table:
    """A part: id, score (float64) and the method's columns, in the order given."""
    return pa.table({"id": ids, "score": pa.array(score, pa.float64()), **columns})


__all__ = [
    "Inputs",
    "Outcome",
    "Seed",
    "Selector",
    "Size",
    "score_table",
    "selection_counts",
]
