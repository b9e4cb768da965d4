"""ClipScore: rows whose image and caption say the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import model_validator

from datas3_ray.errors import UsageError
from datas3_ray.kernels.paired import paired_cosine
from datas3_ray.lake.schemas import matrix
from datas3_ray.lake.view import Fragment, usable
from datas3_ray.selectors.base import Inputs, Outcome, Selector, Size, score_table
from datas3_ray.selectors.scores import as_stored, joined, require_number, scored

if TYPE_CHECKING:
    from datas3_ray.lake import Lake, Table


class ClipScore(Selector):
    """Keep rows by the cosine of their image's vector and their caption's (DataComp, arXiv 2304.14108).

    A size keeps exactly that many rows, ties by id; a threshold keeps every row at or above it. DataComp's own setting
    is the best 30% by ViT-L/14; published thresholds are 0.28 (LAION-2B) and 0.3 (LAION-400M) by ViT-B/32.

    Parameters
    ----------
    image, text : str, optional
        Vector columns of one encoder's image and text sides.
    score_column : str, optional
        In their place, a numeric column that holds the score already.
    size : int or float, optional
        Rows to keep: a count, or a share of the eligible rows.
    threshold : float, optional
        Keep every row whose score is at least this, as a number of the column's own type. One of ``size`` and
        ``threshold`` is needed.

    Notes
    -----
    Cosines are rounded to 6 decimals. A row without a usable vector on either side, or without a score, is invalid.

    >>> ClipScore(image="clip", text="clip_text", size=0.3).score_column is None
    True
    """

    method: ClassVar[str] = "clip_score"

    image: str | None = None
    text: str | None = None
    score_column: str | None = None
    size: Size | None = None
    threshold: float | None = None

    @model_validator(mode="after")
    def _one_score_and_one_cut(self) -> ClipScore:
        if (self.image is None) != (self.text is None) or (self.image is None) == (self.score_column is None):
            raise ValueError("give image and text, two vector columns, or score_column in their place")
        if self.image is not None and self.image == self.text:
            raise ValueError(f"image and text are two vector columns, and both are '{self.image}'")
        if (self.size is None) == (self.threshold is None):
            raise ValueError("give either size or threshold")
        if self.threshold is not None and not np.isfinite(self.threshold):
            raise ValueError(f"threshold must be a number, not {self.threshold}")
        return self

    def vector(self) -> str | None:
        """The image's vectors."""
        return self.image

    def check(self, lake: Lake, table: Table, query: Table | None) -> None:
        """The columns must be there, and both vectors of one length."""
        if self.score_column is not None:
            require_number(table, self.score_column)
            return
        assert self.image is not None and self.text is not None
        image, text = table.require_vector(self.image), table.require_vector(self.text)
        if image != text:
            raise UsageError(
                f"column '{self.image}' of table '{table.name}' has {image} dimensions and column '{self.text}' has "
                f"{text}; clip_score needs the image and text sides of one encoder."
            )

    def choose(self, inputs: Inputs) -> Outcome:
        """Score = cosine of the two vectors, or the column."""
        if self.score_column is not None:
            kind = inputs.table.schema.field(self.score_column).type
            threshold = as_stored(self.threshold, kind) if self.threshold is not None else None
            mapped = inputs.view.map(_given, self.score_column, threshold)
        else:
            mapped = inputs.view.map(_score, self.image, self.text, self.threshold)
        return Outcome(mapped, size=self.size, resizable=True)


def _given(fragment: Fragment, column: str, threshold: float | None) -> pa.Table:
    return _part(*joined(scored(fragment, column)), threshold)


def _score(fragment: Fragment, image: str, text: str, threshold: float | None) -> pa.Table:
    pieces = []
    for rows in fragment.batches((text,)):
        captions = matrix(rows.column(text))
        valid = usable(captions)
        fragment.counts.invalid += int((~valid).sum())
        ids = rows.column("id").combine_chunks().filter(pa.array(valid))
        pieces.append((ids, paired_cosine(matrix(rows.column(image))[valid], captions[valid])))
    return _part(*joined(iter(pieces)), threshold)


def _part(ids: pa.Array, score: np.ndarray, threshold: float | None) -> pa.Table:
    keep = {} if threshold is None else {"keep": pa.array(score >= threshold)}
    return score_table(ids, score, **keep)
