"""ImageAlign: rows that look like the deployment's examples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from datas3_ray.errors import UsageError
from datas3_ray.kernels.similarity import mean_cosine, top_order_statistic
from datas3_ray.lake.view import Fragment
from datas3_ray.runtime import device, matrix_task
from datas3_ray.selectors.base import Inputs, Outcome, Selector, Size
from datas3_ray.selectors.query import query_vectors

if TYPE_CHECKING:
    from datas3_ray.lake import Lake, Table


class ImageAlign(Selector):
    """Keep rows whose cosine is high for at least ``x`` query images (DataS3, Image-Align).

    "cosine > threshold for at least x queries" holds exactly when the x-th largest cosine over the queries exceeds the
    threshold, so that one number a row serves every threshold and every size.

    Parameters
    ----------
    column : str
        Vector column of both the table and the query.
    x : int
        How many queries a row must agree with; at most the number of queries.
    size : int or float, optional
        Keep exactly this many rows, those of highest score.
    threshold : float, optional
        Keep every row whose score exceeds it. One of ``size`` and ``threshold`` is needed.
    form : {"order_statistic", "mean"}
        ``mean`` scores by the mean cosine over all queries, as DataS3's released code does.

    >>> ImageAlign(column="clip", x=10, size=0.25).form
    'order_statistic'
    """

    method: ClassVar[str] = "image_align"
    needs_query: ClassVar[bool] = True

    column: str
    x: int = Field(default=1, ge=1)
    size: Size | None = None
    threshold: float | None = Field(default=None, ge=-1, le=1)
    form: Literal["order_statistic", "mean"] = "order_statistic"

    @model_validator(mode="after")
    def _one_cut(self) -> ImageAlign:
        if (self.size is None) == (self.threshold is None):
            raise ValueError("give either size or threshold")
        return self

    def check(self, lake: Lake, table: Table, query: Table | None) -> None:
        """There must be at least ``x`` queries."""
        super().check(lake, table, query)
        assert query is not None
        if self.form == "order_statistic" and query.count_rows() < self.x:
            raise UsageError(
                f"image_align: x = {self.x} queries are asked to agree, but query table '{query.name}' has "
                f"{query.count_rows()} rows."
            )

    def choose(self, inputs: Inputs) -> Outcome:
        """Score = x-th largest cosine (or mean cosine), rounded to 6 decimals."""
        import ray

        assert inputs.query is not None
        queries, unusable = query_vectors(inputs.query, self.column)
        x = self.x if self.form == "order_statistic" else 0
        if x > len(queries):
            raise UsageError(f"image_align: x = {x} but only {len(queries)} queries have a usable vector.")
        mapped = inputs.view.map(_align, ray.put(queries), x, self.threshold, resources=matrix_task())
        report = {"queries": len(queries), "unusable_queries": unusable}
        return Outcome(mapped, size=self.size, resizable=True, report=report)


def _align(fragment: Fragment, queries: np.ndarray, x: int, threshold: float | None) -> pa.Table:
    ids, scores = [], []
    for batch_ids, vectors in fragment.vectors():
        ids.append(batch_ids)
        score = top_order_statistic(vectors, queries, x, device=device()) if x else mean_cosine(vectors, queries)
        scores.append(np.round(score.astype(np.float64), 6))
    columns: dict[str, Any] = {
        "id": pa.chunked_array(ids, pa.string()),
        "score": np.concatenate(scores) if scores else pa.array([], pa.float64()),
    }
    if threshold is not None:
        columns["keep"] = np.concatenate(scores) > threshold if scores else pa.array([], pa.bool_())
    return pa.table(columns)
