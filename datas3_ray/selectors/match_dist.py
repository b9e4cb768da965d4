"""MatchDist: as many rows of each class as the deployment's label distribution asks for."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import pyarrow as pa

from datas3_ray.kernels.group_ranking import GroupCuts
from datas3_ray.kernels.hashing import hash64, id_words, uniform
from datas3_ray.kernels.ranking import resolve_size
from datas3_ray.kernels.strata import match_counts, total_variation
from datas3_ray.lake.view import Fragment
from datas3_ray.runtime import remote
from datas3_ray.selectors.base import Inputs, Outcome, Seed, Selector, Size
from datas3_ray.selectors.group_cut import find_group_cuts, group_keep, group_sizes
from datas3_ray.selectors.labels import absent, classed, query_labels, require_labels

if TYPE_CHECKING:
    from datas3_ray.lake import Lake, Table


class MatchDist(Selector):
    """Draw ``size`` rows whose labels are distributed as the query's (DataS3, Match-Dist).

    Class c gets N p(c) rows, p being the query's shares, in whole numbers that add up to N. Rows are drawn without
    replacement, by a hash of (seed, id); a row of a class that the query does not have is never drawn.

    Parameters
    ----------
    size : int or float
        N: a count, or a share of the rows with a label.
    label : str
        Column of the labels, in the table and in the query: texts or whole numbers, compared as texts.
    on_shortage : {"redistribute", "stop", "oversample"}
        What happens where a class has fewer rows than its share. ``redistribute``: the other classes of the query give
        more, in proportion, so that N rows come back as long as the query's classes have that many. ``stop``: fewer
        rows come back. ``oversample``: its rows count several times, as the column ``copies`` says; no row is doubled.
    seed : int
        Of the draw.

    Notes
    -----
    The score is -u, the row's draw; ``copies`` is how often a kept row counts, 0 for the others, and adds up to N
    where rows are oversampled. The report has the total-variation distance between the query's label distribution and
    the selection's (with its copies), what is missing to N, and the query's classes that the pool lacks. It cannot be
    cut at another size, since the quotas depend on the size.

    >>> MatchDist(size=0.25).on_shortage
    'redistribute'
    """

    method: ClassVar[str] = "match_dist"
    needs_query: ClassVar[bool] = True

    size: Size
    label: str = "label"
    on_shortage: Literal["stop", "redistribute", "oversample"] = "redistribute"
    seed: Seed = 0

    def check(self, lake: Lake, table: Table, query: Table | None) -> None:
        """Both tables must have labels."""
        assert query is not None
        require_labels(table, self.label)
        require_labels(query, self.label)

    def choose(self, inputs: Inputs) -> Outcome:
        """Count the classes, share N out among them, and draw in each."""
        import ray

        assert inputs.query is not None
        counts, unlabelled = query_labels(inputs.query, self.label)
        classes, target = list(counts), np.array(list(counts.values()), np.float64)
        mapped = inputs.view.map(_drawn, self.label, ray.put(pa.array(classes, pa.string())), self.seed)
        sizes = group_sizes(mapped.parts, len(classes))
        asked = resolve_size(self.size, mapped.counts().eligible)
        # A share of what is there cannot be more; a count may be, and what is missing is said.
        shares = match_counts(target, sizes, asked, self.on_shortage)
        cuts = find_group_cuts(mapped.parts, shares.rows, sizes)
        often, once_more = np.divmod(shares.copies, np.maximum(shares.rows, 1))
        extra = find_group_cuts(mapped.parts, np.where(shares.rows > 0, once_more, 0), sizes)
        distance = total_variation(target, shares.copies)
        report = {
            "classes": len(classes),
            "unlabelled_queries": unlabelled,
            **absent(classes, sizes),
            "classes_short": int((sizes < np.floor(target / target.sum() * asked)).sum()),
            "copies": int(shares.copies.sum()),
            "missing_rows": max(0, asked - int(shares.copies.sum())),
            "total_variation": None if math.isnan(distance) else round(distance, 6),
        }
        finish = remote(_finish)
        mapped.parts = [finish.remote(part, cuts, extra, often) for part in mapped.parts]
        return Outcome(mapped, asked=asked, report=report)


def _drawn(fragment: Fragment, label: str, classes: pa.Array, seed: int) -> pa.Table:
    rows = classed(fragment, label, classes)
    draw = uniform(hash64(id_words(rows.column("id")), seed=seed, stream="match_dist"))
    return rows.append_column("score", pa.array(-draw))


def _finish(part: pa.Table, cuts: GroupCuts, extra: GroupCuts, often: np.ndarray) -> pa.Table:
    keep = group_keep(part, cuts)
    copies = np.where(keep, often[part.column("group").to_numpy()] + group_keep(part, extra), 0)
    columns = {"keep": pa.array(keep), "score": part.column("score"), "copies": pa.array(copies, pa.int32())}
    return pa.table({"id": part.column("id"), **columns})
