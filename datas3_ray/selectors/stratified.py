"""Stratified: rows from every range of a score, without the hardest (CCS, arXiv 2210.15809)."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from datas3_ray.errors import UsageError
from datas3_ray.kernels.group_ranking import GroupCuts
from datas3_ray.kernels.hashing import hash64, id_words, uniform
from datas3_ray.kernels.ranking import Cut, rank_words, resolve_size
from datas3_ray.kernels.strata import equal_width_bins, stratum_counts
from datas3_ray.lake.cut import find_cut
from datas3_ray.lake.schemas import fingerprint
from datas3_ray.lake.view import Counts, Fragment, Mapped
from datas3_ray.runtime import gather, remote
from datas3_ray.selectors.base import Inputs, Outcome, Prepared, Seed, Selector, Size
from datas3_ray.selectors.group_cut import find_group_cuts, group_keep, group_sizes
from datas3_ray.selectors.score_join import selection_scores
from datas3_ray.selectors.scores import joined, require_number, scored

if TYPE_CHECKING:
    from datas3_ray.lake import Lake, Selection, Table


class Stratified(Selector):
    """Keep ``size`` rows spread evenly over the range of a score: coverage-centric coreset selection (algorithm 1).

    The share ``beta`` of the hardest rows is dropped. What is left is cut into ``bins`` strata of equal width between
    its lowest and its highest score; every stratum that has rows gets the same budget, and what one cannot fill is
    spread over the others. Inside a stratum rows are drawn by a hash of (seed, id).

    Parameters
    ----------
    size : int or float
        Rows to keep: a count, or a share of the eligible rows.
    score_column : str, optional
        A numeric column of the table: EL2N, forgetting, AUM, loss, sharpness, ...
    selection : str, optional
        In its place, a selection of the same table, whose scores are used; rows that it did not score are invalid.
    bins : int
        Strata; 50 in the paper.
    beta : float
        Share of the eligible rows that is dropped, in [0, 1), rounded half up. Fewer are dropped where ``size`` could
        not be met otherwise.
    hardest : {"highest", "lowest"}
        Which end of the score is hard: ``lowest`` for AUM and margins.
    seed : int
        Of the draw.

    Notes
    -----
    Columns: ``value`` (the score that is stratified) and ``stratum`` (from 0, the lowest scores; -1 for what beta
    dropped). The score is -u, the row's draw. It cannot be cut at another size, since the budgets depend on the size.
    Rows whose score is missing or not finite are invalid.

    >>> Stratified(score_column="el2n", size=0.1, beta=0.2).bins
    50
    """

    method: ClassVar[str] = "stratified"

    size: Size
    score_column: str | None = None
    selection: str | None = None
    bins: int = Field(default=50, ge=1, le=100_000)
    beta: float = Field(default=0.0, ge=0, lt=1)
    hardest: Literal["highest", "lowest"] = "highest"
    seed: Seed = 0

    @model_validator(mode="after")
    def _one_score(self) -> Stratified:
        if (self.score_column is None) == (self.selection is None):
            raise ValueError("give either score_column or selection")
        return self

    def check(self, lake: Lake, table: Table, query: Table | None) -> None:
        """The column must be there, or the selection be one of this table."""
        if self.score_column is not None:
            require_number(table, self.score_column)
            return
        of = self._scores(lake).lineage()["table"]
        if of != table.name:
            raise UsageError(f"selection '{self.selection}' was made from table '{of}', not from '{table.name}'.")

    def read_selections(self) -> list[str]:
        """The selection whose scores are used."""
        return [self.selection] if self.selection is not None else []

    def is_current(self, lake: Lake, table: str, name: str, **arguments: Any) -> bool:
        """As for every selector; not before the selection that is read is there."""
        if self.selection is not None and not lake.exists(self.selection):
            return False
        return super().is_current(lake, table, name, **arguments)

    def choose(self, inputs: Inputs) -> Outcome:
        """Drop the hardest, count the strata, share the size out among them, and draw in each."""
        import ray

        if self.score_column is not None:
            mapped = inputs.view.map(_column_scores, self.score_column)
        else:
            mapped = selection_scores(inputs, self._scores(inputs.lake))
        counts = mapped.counts()
        mapped = Mapped(mapped.parts, [ray.put(counts)])
        asked = resolve_size(self.size, counts.eligible)
        total = min(asked, counts.eligible)
        dropped, easy = self._without_hardest(mapped.parts, counts, total)
        low, high = _span(mapped.parts, easy, self.hardest)
        place = remote(_placed)
        parts = [place.remote(part, easy, self.hardest, low, high, self.bins, self.seed) for part in mapped.parts]
        sizes = group_sizes(parts, self.bins)
        budget = stratum_counts(sizes, total)
        cuts = find_group_cuts(parts, budget, sizes)
        finish = remote(_finish)
        mapped.parts = [finish.remote(part, cuts) for part in parts]
        report = {
            "dropped_hardest": dropped,
            "lowest": low if dropped < counts.eligible else None,
            "highest": high if dropped < counts.eligible else None,
            "strata_with_rows": int((sizes > 0).sum()),
            "strata_kept_whole": int(((sizes > 0) & (budget == sizes)).sum()),
            "largest_budget": int(budget.max()),
        }
        return Outcome(mapped, asked=asked, report=report)

    def _without_hardest(self, parts: list[Any], counts: Counts, total: int) -> tuple[int, Cut | None]:
        """How many rows beta drops, and the cut that keeps the others; None where nothing is dropped."""
        share = (Decimal(repr(self.beta)) * counts.eligible).quantize(Decimal(1), ROUND_HALF_UP)
        dropped = min(int(share), counts.eligible - total)
        if not dropped:
            return 0, None
        rank = remote(_easiest_first)
        return dropped, find_cut([rank.remote(part, self.hardest) for part in parts], counts.eligible - dropped)

    def _scores(self, lake: Lake) -> Selection:
        return lake.selection(str(self.selection))

    def _prepare(self, lake: Lake, table: str, within: Any, query: str | None) -> Prepared:
        prepared = super()._prepare(lake, table, within, query)
        if self.selection is not None:
            scores = self._scores(lake)
            prepared.identity["inputs"][scores.name] = scores.table.version
            prepared.fingerprint = fingerprint({"mark": prepared.fingerprint, "scores": scores.fingerprint})
        return prepared


def _column_scores(fragment: Fragment, column: str) -> pa.Table:
    ids, values = joined(scored(fragment, column, finite=True))
    return pa.table({"id": ids, "value": values})


def _easiness(part: pa.Table, hardest: str) -> np.ndarray:
    values = part.column("value").to_numpy()
    return -values if hardest == "highest" else values


def _easiest_first(part: pa.Table, hardest: str) -> pa.Table:
    return pa.table({"id": part.column("id"), "score": _easiness(part, hardest)})


def _left(part: pa.Table, easy: Cut | None, hardest: str) -> np.ndarray:
    """Mask of the rows that beta leaves."""
    if easy is None:
        return np.ones(part.num_rows, bool)
    return easy.keep(rank_words(_easiness(part, hardest), part.column("id")))


def _span(parts: list[Any], easy: Cut | None, hardest: str) -> tuple[float, float]:
    """The lowest and the highest score that beta leaves; (0, 0) where there is no row."""
    ends = gather(remote(_ends).remote(part, easy, hardest) for part in parts)
    low, high = min((low for low, _ in ends), default=np.inf), max((high for _, high in ends), default=-np.inf)
    return (low, high) if low <= high else (0.0, 0.0)


def _ends(part: pa.Table, easy: Cut | None, hardest: str) -> tuple[float, float]:
    values = part.column("value").to_numpy()[_left(part, easy, hardest)]
    return (float(values.min()), float(values.max())) if len(values) else (np.inf, -np.inf)


def _placed(part: pa.Table, easy: Cut | None, hardest: str, low: float, high: float, bins: int, seed: int) -> pa.Table:
    value = part.column("value").to_numpy()
    group = np.where(_left(part, easy, hardest), equal_width_bins(value, low, high, bins), -1)
    draw = uniform(hash64(id_words(part.column("id")), seed=seed, stream="stratified"))
    return part.append_column("group", pa.array(group, pa.int32())).append_column("score", pa.array(-draw))


def _finish(part: pa.Table, cuts: GroupCuts) -> pa.Table:
    return pa.table(
        {
            "id": part.column("id"),
            "keep": pa.array(group_keep(part, cuts)),
            "score": part.column("score"),
            "value": part.column("value"),
            "stratum": part.column("group"),
        }
    )
