"""SemDeDup: remove rows that are nearly the same as another row of their cluster (arXiv 2303.09540)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from datas3_ray.clustering import KMeansConfig, cluster
from datas3_ray.errors import UsageError
from datas3_ray.kernels.pairwise import largest_kept
from datas3_ray.kernels.ranking import resolve_size
from datas3_ray.lake.aligned import aligned_refs
from datas3_ray.lake.resize import checked_size
from datas3_ray.lake.view import Mapped
from datas3_ray.runtime import ensure_ray, gather, remote
from datas3_ray.selectors.base import Inputs, Outcome, Seed, Selector, Size
from datas3_ray.selectors.earlier import Rule, compare
from datas3_ray.selectors.grouping import BUCKET_ROWS, Order, bucket_rows_for, collect

if TYPE_CHECKING:
    from datas3_ray.lake import Lake, Selection, Table

MILLION = 1_000_000
EPS = 0.03


class SemDeDup(Selector):
    """Keep a row unless an earlier row of its cluster is more similar than ``1 - eps``.

    Rows are clustered by spherical k-means. In each cluster they are ordered (``keep``), and M_j is the largest
    cosine of row j to any *earlier* row, kept or not, and 0 for the first. Row j is removed when M_j > 1 - eps. So no
    two kept rows of a cluster are more similar than 1 - eps. Cosines are rounded to 6 decimals.

    Parameters
    ----------
    column : str
        Vector column.
    clusters : int, optional
        Clusters of the k-means; one for each 1,000 rows of the table by default.
    centroids : str, optional
        In its place, the table of centroids that an earlier clustering left in the lake (``datas3 show`` of a
        selection names it): its centroids are used, and none are trained.
    eps : float, optional
        Radius in cosine distance, in (0, 1]; larger removes more. 0.03 unless ``size`` is given.
    size : int or float, optional
        Keep exactly this many rows instead, those of smallest M. For the paper's rule only.
    rule : {"paper", "leader", "components"}
        ``leader``: only kept rows count as earlier ones, so a removed row removes nobody, and every removed row has a
        kept one within eps. ``components``: rows that are linked within eps, directly or through others, are one
        group, of which the first stays.
    keep : str
        Order inside a cluster: ``hard``, farthest from the centroid first (the paper's); ``easy``, nearest first;
        ``random``, by a seeded hash; or a numeric column, its best value first and rows without one last;
        ``resolution`` is width times height.
    higher_is_better : bool
        Whether the largest or the smallest value of the column ``keep`` is the best.
    seed, iterations : int
        Of the k-means, and of the random order.

    Notes
    -----
    Under the paper's rule the score is 1 - M, so another ``eps`` or size is a filter on the finished selection:
    :meth:`Selection.resize`, and :meth:`eps_for` says which eps keeps a size. After rows were added, :meth:`update`
    compares only those. Columns: ``cluster``, ``similarity`` (to the centroid), ``max_similarity`` (M; to an earlier
    kept row under ``leader``) and ``duplicate_of`` (the earlier row that gives it, a duplicate when M > 1 - eps; under
    ``components`` the row of its group that stays).

    >>> SemDeDup(column="clip", clusters=100, eps=0.03).keep
    'hard'
    """

    method: ClassVar[str] = "semdedup"
    bucket_rows: ClassVar[int] = BUCKET_ROWS
    """Rows that one task compares at most; a cluster with more is split over several tasks, with the same answer."""

    column: str
    clusters: int | None = Field(default=None, ge=1)
    centroids: str | None = None
    eps: float | None = Field(default=None, gt=0, le=1)
    size: Size | None = None
    rule: Literal["paper", "leader", "components"] = "paper"
    keep: str = "hard"
    higher_is_better: bool = True
    seed: Seed = 0
    iterations: int = Field(default=20, ge=1)

    @model_validator(mode="after")
    def _one_of_each(self) -> SemDeDup:
        if self.eps is not None and self.size is not None:
            raise ValueError("give either eps or size, not both")
        if self.clusters is not None and self.centroids is not None:
            raise ValueError("give either clusters or centroids, not both")
        if self.size is not None and self.rule != "paper":
            raise ValueError(f"size goes with rule: paper; what rule: {self.rule} keeps depends on eps, so give eps")
        return self

    def check(self, lake: Lake, table: Table, query: Table | None) -> None:
        """The vector column, the column to rank by and the centroids must be there."""
        super().check(lake, table, query)
        self.order().preference().check(table)
        if self.centroids is not None:
            _check_centroids(lake, self.centroids, table, self.column)

    def order(self) -> Order:
        """How rows rank inside their cluster."""
        return Order(self.keep, self.seed, self.higher_is_better)

    def choose(self, inputs: Inputs) -> Outcome:
        """Cluster, deal the rows of each cluster together, and find each row's nearest earlier row."""
        clusters = self.clusters or max(1, round(inputs.table.count_rows() / 1000))
        config = KMeansConfig(clusters=clusters, seed=self.seed, iterations=self.iterations)
        clustering = cluster(inputs.lake, inputs.view, inputs.fingerprint(), config, centroids=self.centroids)
        rows = bucket_rows_for(clustering.centroids.shape[1], self.bucket_rows)
        keyed = self.order().keyed(inputs.view, clustering.mapped.parts)
        rule = Rule(self.rule, largest_kept(self.eps or EPS))
        answers = compare(inputs.view, keyed, clustering.sizes, rule, rows)
        scored = collect(inputs.view, clustering.mapped, answers, finish, self.cut_eps())
        report = {"clusters": clustering.name, "largest_cluster": int(clustering.sizes.max())}
        return self.outcome(scored, report)

    def cut_eps(self) -> float | None:
        """The eps that decides; None where a size does."""
        return None if self.size is not None else self.eps if self.eps is not None else EPS

    def outcome(self, scored: Mapped, report: dict[str, Any]) -> Outcome:
        """Aligned answers as what the method found."""
        report = {**report, "centroids": self.centroids or report["clusters"], "eps": self.cut_eps()}
        return Outcome(scored, size=self.size, resizable=self.rule == "paper", report=report)

    def update(
        self, lake: Lake, table: str, *, since: str | Selection, name: str | None = None, replace: bool = False
    ) -> Selection:
        """The selection after rows were added to the table, with the centroids that ``since`` was made with.

        Only the new rows are compared, with their clusters and among themselves; the answer is that of
        :meth:`select` with those ``centroids``. Where rows were changed or removed since, where many are new, or under
        another rule than the paper's, all rows are compared, with the same answer.

        Parameters
        ----------
        since : str or Selection
            An earlier selection of the same table by this method, made without ``within``; ``eps`` and ``size`` may
            differ, the other parameters may not.
        name, replace
            As for :meth:`select`; the name of ``since`` itself may be given with ``replace=True``.

        Raises
        ------
        UsageError
            When ``since`` was made otherwise.
        """
        from datas3_ray.selectors.semdedup_update import Update

        before = lake.selection(since) if isinstance(since, str) else since
        return Update.of(self, before, table).select(lake, table, name=name, replace=replace)

    @staticmethod
    def eps_for(selection: Selection, size: int | float | str) -> float:
        """The largest eps at which a finished selection keeps at least ``size`` rows: a count, or a share.

        Rows with the same M stay or go together, so it may keep a few more. Nothing is computed anew.

        Raises
        ------
        UsageError
            When the selection was not made by this method's paper rule, or no eps keeps so many rows.
        """
        if selection.method != SemDeDup.method or not selection.lineage().get("resizable"):
            raise UsageError(f"selection '{selection.name}' was not made by semdedup with rule: paper.")
        eligible = selection.lineage()["counts"]["eligible"]
        wanted = resolve_size(checked_size(size), eligible)
        ensure_ray()
        tally = remote(_tally)
        pairs = gather(tally.remote(part) for part in aligned_refs(selection.table)[1])
        largest, count = (np.concatenate([pair[side] for pair in pairs]) for side in (0, 1))
        order = np.argsort(largest, kind="stable")
        kept = np.cumsum(count[order])
        place = int(np.searchsorted(kept, wanted))
        distinct = int(count[largest < MILLION].sum())
        if wanted > distinct:
            raise UsageError(
                f"selection '{selection.name}' has {distinct} rows that are no exact copy of another of {eligible}; "
                f"no eps keeps {wanted}."
            )
        return (MILLION - int(largest[order][place])) / MILLION if wanted else 1.0


def _check_centroids(lake: Lake, name: str, table: Table, column: str) -> None:
    centroids = lake.table(name)
    if centroids.kind != "centroids":
        raise UsageError(f"table '{name}' is of kind {centroids.kind}; the name of a table of centroids is needed.")
    of, wanted = centroids.require_vector("vector"), table.require_vector(column)
    if of != wanted or centroids.lineage().get("column") != column:
        raise UsageError(
            f"the centroids '{name}' are of column '{centroids.lineage().get('column')}' with {of} dimensions, and "
            f"column '{column}' of table '{table.name}' has {wanted}."
        )


def _millionths(similarity: pa.ChunkedArray | pa.Array) -> np.ndarray:
    return np.round(similarity.to_numpy().astype(np.float64) * MILLION).astype(np.int64)


def _tally(part: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    return np.unique(_millionths(part.column("max_similarity")), return_counts=True)


def finish(part: pa.Table, answers: pa.Table, eps: float | None) -> pa.Table:
    """The selection's rows of one fragment: what is known of them, and whether they stay where ``eps`` decides."""
    similarity = _millionths(answers.column("max_similarity"))
    columns = {
        "id": part.column("id"),
        "score": (MILLION - similarity) / MILLION,
        "cluster": part.column("cluster"),
        "similarity": part.column("similarity"),
        "max_similarity": answers.column("max_similarity"),
        "duplicate_of": answers.column("duplicate_of"),
    }
    if "keep" in answers.schema.names:
        columns["keep"] = answers.column("keep")
    elif eps is not None:
        columns["keep"] = similarity <= largest_kept(eps)
    return pa.table(columns)
