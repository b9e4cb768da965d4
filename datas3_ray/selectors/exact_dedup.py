"""ExactDedup: one of each group of rows with the same content."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from datas3_ray.errors import UsageError
from datas3_ray.exchange import exchange
from datas3_ray.lake.schemas import matrix
from datas3_ray.lake.view import Fragment, usable
from datas3_ray.runtime import remote
from datas3_ray.selectors.base import Inputs, Outcome, Selector
from datas3_ray.selectors.duplicates import Preference, first_of_each, keep_column

if TYPE_CHECKING:
    from datas3_ray.lake import Lake, Table


class ExactDedup(Selector):
    """Keep one row of each distinct value of a column: the same file (``sha256``), or the very same vector.

    Parameters
    ----------
    by : str
        A column of texts, bytes or whole numbers, such as the digest of the encoded image that the ingest feature
        ``sha256`` stores; or a vector column, whose values are then compared exactly, number by number.
    keep : str, optional
        A numeric column: of equal rows the one with the best value stays, a missing value being the worst; without
        it, and where values are equal, the smallest id.
    higher_is_better : bool
        Whether the largest or the smallest value of ``keep`` is the best.

    Notes
    -----
    Column ``duplicate_of``: the id of the row that stays, null for it itself. There is no score. A row without a value
    (of a vector: missing, not finite or zero) is invalid. Values are compared by a cryptographic digest of 128 bits.

    >>> ExactDedup(keep="width").by
    'sha256'
    """

    method: ClassVar[str] = "exact_dedup"

    by: str = "sha256"
    keep: str | None = None
    higher_is_better: bool = True

    def check(self, lake: Lake, table: Table, query: Table | None) -> None:
        """The columns must be there, and hold what can be compared."""
        table.require_column(self.by)
        kind, types = table.schema.field(self.by).type, pa.types
        texts = types.is_string(kind) or types.is_large_string(kind)
        bytes_ = types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind)
        if not (texts or bytes_ or types.is_integer(kind) or self.by in table.vector_columns()):
            raise UsageError(
                f"column '{self.by}' of table '{table.name}' is {kind}; exact_dedup compares texts, bytes, whole "
                "numbers or vectors."
            )
        self._preference().check(table)

    def choose(self, inputs: Inputs) -> Outcome:
        """Each fragment finds its own first rows; those of one value meet, and the first of all stays."""
        keyed = inputs.view.map(_keyed, self.by, self._preference())
        rows = keyed.counts().eligible
        split = remote(_split).options(num_returns=2)
        pairs: list[Any] = [split.remote(part) for part in keyed.parts]
        answers = exchange([pair[1] for pair in pairs], rows, _first_of_all)
        finish = remote(_finish)
        keyed.parts = [finish.remote(pair[0], answer) for pair, answer in zip(pairs, answers, strict=True)]
        return Outcome(keyed)

    def _preference(self) -> Preference:
        return Preference(self.keep, self.higher_is_better)


def _keyed(fragment: Fragment, by: str, preference: Preference) -> pa.Table:
    """``id``, the digest of the value as ``key`` and ``key2`` (uint64), and ``prefer`` (float64)."""
    tables = []
    for rows in fragment.batches((by, *preference.columns())):
        valid, values = _values(rows.column(by))
        fragment.counts.invalid += int((~valid).sum())
        rows = rows.filter(pa.array(valid))
        digests = b"".join(hashlib.blake2b(value, digest_size=16).digest() for value in values)
        keys = np.frombuffer(digests, np.uint64).reshape(-1, 2)
        columns = {"key": keys[:, 0], "key2": keys[:, 1], "prefer": preference.of(rows)}
        tables.append(pa.table({"id": rows.column("id"), **columns}))
    kinds = {"id": pa.string(), "key": pa.uint64(), "key2": pa.uint64(), "prefer": pa.float64()}
    return pa.concat_tables(tables) if tables else pa.schema(list(kinds.items())).empty_table()


def _values(column: pa.ChunkedArray) -> tuple[np.ndarray, list[bytes]]:
    """Which rows have a value, and the bytes of those values."""
    if pa.types.is_fixed_size_list(column.type):
        vectors = matrix(column)
        valid = usable(vectors)
        return valid, [row.tobytes() for row in vectors[valid] + vectors.dtype.type(0)]  # -0.0 becomes 0.0
    valid = column.is_valid().to_numpy()
    is_bytes = pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)
    if not (is_bytes or pa.types.is_fixed_size_binary(column.type)):
        return valid, [text.encode() for text in column.drop_null().cast(pa.string()).to_pylist()]
    return valid, column.drop_null().to_pylist()


def _split(part: pa.Table) -> tuple[pa.Table, pa.Table]:
    """The rows with the place of their value, and the part's first row of each value."""
    ids = part.column("id").combine_chunks()
    first, slot = first_of_each(_keys(part), part.column("prefer").to_numpy(), ids)
    return pa.table({"id": ids, "slot": slot}), part.take(pa.array(first))


def _keys(part: pa.Table) -> list[np.ndarray]:
    return [part.column("key").to_numpy(), part.column("key2").to_numpy()]


def _first_of_all(rows: pa.Table) -> pa.Table:
    ids = rows.column("id").combine_chunks()
    first, slot = first_of_each(_keys(rows), rows.column("prefer").to_numpy(), ids)
    return pa.table({"first": ids.take(pa.array(first[slot]))})


def _finish(part: pa.Table, answer: pa.Table) -> pa.Table:
    keep, duplicate_of = keep_column(part.column("id"), answer.column("first").take(part.column("slot")))
    score = pa.nulls(part.num_rows, pa.float64())
    return pa.table({"id": part.column("id"), "keep": keep, "score": score, "duplicate_of": duplicate_of})
