"""DataCompBasic: captions of some length, images of some size and shape, one language."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from datas3_ray.errors import UsageError
from datas3_ray.lake.view import Fragment
from datas3_ray.runtime import gather, remote
from datas3_ray.selectors.base import Inputs, Outcome, Selector
from datas3_ray.selectors.captions import in_language, require_text, texts
from datas3_ray.selectors.scores import numbers, require_number

if TYPE_CHECKING:
    from datas3_ray.lake import Lake, Table

RULES = ("caption", "language", "words", "characters", "size", "side", "aspect")
"""In the order in which they are asked; a row is counted at the first that it fails."""


class DataCompBasic(Selector):
    """Keep rows by the rules of DataComp's basic filtering (arXiv 2304.14108, section 3.4 and appendix).

    A row is kept when its caption is in the language, has more than 2 words (between white space) and more than 5
    characters, and its image's shorter side has at least 200 pixels and its sides a ratio of at most 3. A row without
    a caption or a size fails, and is counted.

    Parameters
    ----------
    caption : str, optional
        Column of texts; None leaves the rules about captions out.
    width, height : str, optional
        Columns of numbers, in pixels; None, for both, leaves the rules about images out.
    language_column : str, optional
        Column with a language's code, found by another program (DataComp: fastText). None leaves this rule out.
    language : str
        The code that is kept.
    min_words, min_characters, min_side : int
        The smallest that pass: 3, 6 and 200.
    max_aspect : float
        The largest longer side over shorter side that passes.

    Notes
    -----
    No score. Column ``failed``: the first rule that the row fails, null for a kept one; the report counts them.

    >>> DataCompBasic(language_column="language").min_side
    200
    """

    method: ClassVar[str] = "datacomp_basic"

    caption: str | None = "caption"
    width: str | None = "width"
    height: str | None = "height"
    language_column: str | None = None
    language: str = Field(default="en", min_length=1)
    min_words: int = Field(default=3, ge=0)
    min_characters: int = Field(default=6, ge=0)
    min_side: int = Field(default=200, ge=0)
    max_aspect: float = Field(default=3.0, ge=1)

    def check(self, lake: Lake, table: Table, query: Table | None) -> None:
        """The columns must be there, with texts and numbers."""
        if (self.width is None) != (self.height is None):
            raise UsageError("datacomp_basic: width and height are given together, or both are null.")
        for column in (self.caption, self.language_column):
            if column is not None:
                require_text(table, column)
        for column in (self.width, self.height):
            if column is not None:
                require_number(table, column)

    def choose(self, inputs: Inputs) -> Outcome:
        """Each fragment applies the rules to its own rows."""
        mapped = inputs.view.map(_apply, self)
        count = remote(_count)
        tallies = gather(count.remote(part) for part in mapped.parts)
        failed = {rule: sum(tally.get(rule, 0) for tally in tallies) for rule in RULES}
        return Outcome(mapped, report={"failed": {rule: n for rule, n in failed.items() if n}})


def _apply(fragment: Fragment, rules: DataCompBasic) -> pa.Table:
    columns = tuple(c for c in (rules.caption, rules.width, rules.height, rules.language_column) if c is not None)
    ids, failed = [], []
    for rows in fragment.batches(columns):
        ids.append(rows.column("id").combine_chunks())
        failed.append(_first_failed(rows, rules))
    first = np.concatenate(failed) if failed else np.empty(0, np.int64)
    names = pa.array(np.array([*RULES, ""], object)[first], pa.string(), mask=first == len(RULES))
    return pa.table(
        {
            "id": pa.chunked_array(ids, pa.string()),
            "keep": first == len(RULES),
            "score": pa.nulls(len(first), pa.float64()),
            "failed": names,
        }
    )


def _first_failed(rows: pa.Table, rules: DataCompBasic) -> np.ndarray:
    """Place in RULES of the first rule that each row fails; their number where it passes all."""
    n = rows.num_rows
    failed = {rule: np.zeros(n, bool) for rule in RULES}
    failed["language"] = ~in_language(rows, rules.language_column, rules.language)
    if rules.caption is not None:
        captions = texts(rows, rules.caption)
        failed["caption"] = np.array([text is None for text in captions], bool)
        failed["words"] = np.array([len((text or "").split()) for text in captions]) < rules.min_words
        failed["characters"] = np.array([len(text or "") for text in captions]) < rules.min_characters
    if rules.width is not None and rules.height is not None:
        width, height = (numbers(rows.column(column)) for column in (rules.width, rules.height))
        short, long = np.minimum(width, height), np.maximum(width, height)
        failed["size"] = ~(np.isfinite(long) & (short > 0))
        failed["side"] = ~(short >= rules.min_side)
        # The quotient, as 1.15 times 200 is less than 230 to a computer.
        aspect = np.divide(long, short, out=np.full(n, np.inf), where=short > 0)
        failed["aspect"] = ~(aspect <= rules.max_aspect)
    stacked = np.stack([*(failed[rule] for rule in RULES), np.ones(n, bool)])
    return stacked.argmax(0)


def _count(part: pa.Table) -> dict[Any, int]:
    counts = pc.value_counts(part.column("failed").combine_chunks())
    return dict(zip(counts.field(0).to_pylist(), counts.field(1).to_pylist(), strict=True))
