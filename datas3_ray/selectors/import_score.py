"""ImportScore: a ranking that another program made."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from datas3_ray.errors import UsageError
from datas3_ray.lake.schemas import fingerprint
from datas3_ray.lake.view import Fragment, Mapped
from datas3_ray.runtime import remote
from datas3_ray.selectors.base import Inputs, Outcome, Prepared, Selector, Size, score_table
from datas3_ray.selectors.score_files import check_columns, read_scores, score_files
from datas3_ray.selectors.score_join import join_scores
from datas3_ray.selectors.scores import as_stored, joined, require_number, scored

if TYPE_CHECKING:
    from datas3_ray.lake import Lake, Table


class ImportScore(Selector):
    """Keep the rows with the best value of a numeric column, of the table itself or of a file (EL2N, AUM, loss, ...).

    Parameters
    ----------
    score_column : str
        The column of the numbers.
    file : str, optional
        A Parquet or CSV file (``.parquet``, ``.csv``, ``.csv.gz``; a path or URI, globs and braces too) with one row an
        id, in any order. Without it the column is the table's.
    id_column : str
        Column of the ids in the file; compared as texts.
    higher_is_better : bool
        Whether large or small values are kept.
    size : int or float, optional
        Rows to keep: a count, or a share of the eligible rows; exactly that many, ties by id.
    threshold : float, optional
        Keep every row at least as good as this, as a number of the column's own type: 0.7 in a column of float32 is
        at least 0.7. One of ``size`` and ``threshold`` is needed.

    Notes
    -----
    Rows whose value is missing or NaN, or whose id is not in the file, are invalid. The score is the value, or minus
    the value where lower is better. Of a file, the report has its rows and how many of them met an eligible row; its
    credentials, where it is remote, come from the environment.

    >>> ImportScore(score_column="el2n", size=0.5).higher_is_better
    True
    """

    method: ClassVar[str] = "import_score"

    score_column: str
    file: str | None = Field(default=None, min_length=1)
    id_column: str = "id"
    higher_is_better: bool = True
    size: Size | None = None
    threshold: float | None = None

    @model_validator(mode="after")
    def _one_cut(self) -> ImportScore:
        if (self.size is None) == (self.threshold is None):
            raise ValueError("give either size or threshold")
        if self.threshold is not None and math.isnan(self.threshold):
            raise ValueError("threshold must be a number, not NaN")
        return self

    def check(self, lake: Lake, table: Table, query: Table | None) -> None:
        """The column must be there and hold numbers."""
        if self.file is None:
            require_number(table, self.score_column)
            return
        for file in score_files(self.file)[:1]:
            check_columns(file.uri, self.id_column, self.score_column)

    def choose(self, inputs: Inputs) -> Outcome:
        """Score = the value, turned round where lower is better."""
        report: dict[str, Any] = {}
        if self.file is None:
            kind = inputs.table.schema.field(self.score_column).type
            mapped = inputs.view.map(_from_table, self.score_column)
        else:
            kind = check_columns(score_files(self.file)[0].uri, self.id_column, self.score_column)
            mapped, report = self._from_file(inputs)
        threshold = as_stored(self.threshold, kind) if self.threshold is not None else None
        finish = remote(_finish)
        mapped.parts = [finish.remote(part, self.higher_is_better, threshold) for part in mapped.parts]
        return Outcome(mapped, size=self.size, resizable=True, report=report)

    def _from_file(self, inputs: Inputs) -> tuple[Mapped, dict[str, Any]]:
        files = score_files(str(self.file))
        read = remote(_read).options(num_returns="streaming", num_cpus=1)
        streams: list[Any] = [read.remote(file.uri, self.id_column, self.score_column) for file in files]
        pieces = [piece for stream in streams for piece in stream]
        mapped, rows = join_scores(inputs, pieces, f"import_score: '{self.file}'")
        counts = mapped.counts()
        if counts.invalid and not counts.eligible:
            raise UsageError(
                f"import_score: '{self.file}' has {rows} rows, and a number for none of the {counts.invalid} rows to "
                f"choose from; column '{self.id_column}' must hold the ids of table '{inputs.table.name}'."
            )
        return mapped, {"files": len(files), "file_rows": rows, "matched": counts.eligible}

    def _prepare(self, lake: Lake, table: str, within: Any, query: str | None) -> Prepared:
        prepared = super()._prepare(lake, table, within, query)
        if self.file is not None:
            files = [[f.uri, f.fingerprint] for f in score_files(self.file)]
            prepared.fingerprint = fingerprint({"mark": prepared.fingerprint, "files": files})
        return prepared


def _from_table(fragment: Fragment, column: str) -> pa.Table:
    ids, values = joined(scored(fragment, column))
    return pa.table({"id": ids, "value": values})


def _read(uri: str, id: str, score: str) -> Iterator[pa.Table]:
    yield from read_scores(uri, id, score)


def _finish(part: pa.Table, higher_is_better: bool, threshold: float | None) -> pa.Table:
    value: np.ndarray = part.column("value").to_numpy()
    score = value if higher_is_better else -value
    if threshold is None:
        return score_table(part.column("id"), score)
    limit = threshold if higher_is_better else -threshold
    return score_table(part.column("id"), score, keep=pa.array(score >= limit))
