"""CaptionWords: rows whose caption names something of a list."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, ClassVar

import fsspec
import numpy as np
import pyarrow as pa
from pydantic import Field

from datas3_ray.errors import UsageError
from datas3_ray.lake.view import Fragment
from datas3_ray.selectors.base import Inputs, Outcome, Selector, score_table
from datas3_ray.selectors.captions import in_language, require_text, texts

if TYPE_CHECKING:
    from datas3_ray.lake import Lake, Selection, Table

EDGES = "".join(chr(code) for code in range(33, 127) if not chr(code).isalnum()) + "«»“”‘’„‚…–—、。！？，：；（）「」"
"""Punctuation that is taken off both ends of a word."""


class CaptionWords(Selector):
    """Keep rows whose caption contains an entry of a word list (DataComp's text-based filtering, arXiv 2304.14108).

    DataComp keeps English captions with a word whose first WordNet synset is one of ImageNet-21k's; here the words
    themselves are the list, so that it needs no WordNet. A caption is split at white space, punctuation at the ends
    of a word is taken off, and case does not matter. An entry of several words (``polar bear``, ``polar_bear``)
    matches these words in a row. Nothing is stemmed: list plurals too.

    Parameters
    ----------
    words : str or list of str
        A file (or uri) with one entry a line, or the entries themselves. Empty lines are passed over.
    caption : str
        Column of texts. A row without a caption is not kept.
    language_column, language : str
        Keep only rows with this code in this column; without a column the rule is left out.

    Notes
    -----
    The score is the number of different entries found (0 where the language is another); kept is what has any. Column
    ``word``: the entry that comes first in the caption.

    >>> CaptionWords(words=["zebra", "polar bear"]).caption
    'caption'
    """

    method: ClassVar[str] = "caption_words"

    words: str | tuple[str, ...] = Field(min_length=1)
    caption: str = "caption"
    language_column: str | None = None
    language: str = Field(default="en", min_length=1)

    def check(self, lake: Lake, table: Table, query: Table | None) -> None:
        """The columns must hold texts, and the list an entry."""
        for column in (self.caption, self.language_column):
            if column is not None:
                require_text(table, column)
        if not _entries(self._lines()):
            raise UsageError(f"caption_words: words = {self.words!r} has no entry.")

    def choose(self, inputs: Inputs) -> Outcome:
        """Each fragment looks at its own captions."""
        import ray

        entries = _entries(self._lines())
        mapped = inputs.view.map(_look, ray.put(entries), self.caption, self.language_column, self.language)
        return Outcome(mapped, report={"entries": len(entries)})

    def _identity(self, pool: Table, parent: Selection | None, query: Table | None) -> dict[str, Any]:
        """A list that changed makes another selection, whatever its file is called."""
        content = "\n".join(self._lines()).encode()
        return {
            **super()._identity(pool, parent, query),
            "words_digest": hashlib.blake2b(content, digest_size=8).hexdigest(),
        }

    def _lines(self) -> list[str]:
        if not isinstance(self.words, str):
            return list(self.words)
        try:
            with fsspec.open(self.words, "r", encoding="utf-8-sig") as file:
                return file.read().splitlines()
        except (OSError, ValueError, ImportError) as error:
            raise UsageError(f"caption_words: the file words = '{self.words}' cannot be read: {error}.") from error


def _entries(lines: list[str]) -> dict[tuple[str, ...], str]:
    """The words of each entry, as they are looked for, and the entry as it was written."""
    found: dict[tuple[str, ...], str] = {}
    for line in lines:
        words = tuple(_words(line.replace("_", " ")))
        if words:
            found.setdefault(words, line.strip())
    return found


def _words(text: str) -> list[str]:
    stripped = (word.strip(EDGES).casefold() for word in text.split())
    return [word for word in stripped if word]


def _look(
    fragment: Fragment,
    entries: dict[tuple[str, ...], str],
    caption: str,
    language_column: str | None,
    language: str,
) -> pa.Table:
    columns = (caption, *((language_column,) if language_column else ()))
    lengths = sorted({len(entry) for entry in entries})
    ids: list[pa.Array] = []
    scores: list[int] = []
    names: list[str | None] = []
    for rows in fragment.batches(columns):
        ids.append(rows.column("id").combine_chunks())
        for text, spoken in zip(texts(rows, caption), in_language(rows, language_column, language), strict=True):
            found = _found(text, entries, lengths) if text is not None and spoken else []
            scores.append(len(found))
            names.append(found[0] if found else None)
    score = np.array(scores, np.float64)
    return score_table(
        pa.chunked_array(ids, pa.string()), score, keep=pa.array(score > 0), word=pa.array(names, pa.string())
    )


def _found(text: str, entries: dict[tuple[str, ...], str], lengths: list[int]) -> list[str]:
    """Different entries in the text, in the order in which they begin; of those that begin together, shorter first."""
    words = _words(text)
    pieces = (tuple(words[at : at + length]) for at in range(len(words)) for length in lengths)
    return list(dict.fromkeys(entries[piece] for piece in pieces if piece in entries))
