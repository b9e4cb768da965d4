"""How a selection changes the mix of labels: exact counts before and after, in bounded memory."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datas3_ray.lake import Selection, Table
from datas3_ray.report.sampling import blocks, hash_ids

BLOCK_ROWS = 8_000_000
"""Selection rows joined at a time: nine bytes each."""
JOIN_ROWS = 1_000_000
"""Table rows looked up at a time."""


@dataclass(frozen=True)
class LabelCount:
    """One line of the distribution: rows eligible and rows kept. ``special`` lines are sums, not labels."""

    label: str
    eligible: int
    kept: int
    special: bool = False


@dataclass(frozen=True)
class LabelMix:
    """The most frequent eligible labels, then the rest as one line, then the unlabelled."""

    rows: list[LabelCount]
    labels: int
    labels_kept: int
    gone: int
    """Rows of the selection that the table no longer has."""


def label_mix(selection: Selection, table: Table, *, top: int = 20) -> LabelMix | None:
    """Labels of a selection's eligible and kept rows; None where the table has no labels at all.

    The table's ids and labels are read once for every eight million rows of the selection, and joined by a 64-bit
    hash of the id.

    Args:
        selection: whose rows to count.
        table: the image table it chose from, at the version it read.
        top: how many labels get a line of their own.
    """
    if "label" not in table.schema.names:
        return None
    eligible: Counter[str] = Counter()
    kept: Counter[str] = Counter()
    gone = 0
    batches = selection.table.dataset.scanner(columns=["id", "keep"], scan_in_order=True).to_batches()
    for block in blocks(batches, BLOCK_ROWS):
        hashes = hash_ids(block.column("id"))
        order = np.argsort(hashes)
        keep = block.column("keep").to_numpy(zero_copy_only=False).astype(bool)
        found = _count(table, hashes[order], keep[order], eligible, kept)
        gone += len(hashes) - found
    unlabelled = LabelCount("unlabelled", eligible.pop("", 0), kept.pop("", 0), special=True)
    if not eligible:
        return None
    ranked = sorted(eligible, key=lambda label: (-eligible[label], label))
    rows = [LabelCount(label, eligible[label], kept[label]) for label in ranked[:top]]
    rest = ranked[top:]
    if rest:
        name = f"{len(rest):,} other labels" if len(rest) > 1 else "1 other label"
        rows.append(LabelCount(name, sum(eligible[x] for x in rest), sum(kept[x] for x in rest), special=True))
    if unlabelled.eligible:
        rows.append(unlabelled)
    return LabelMix(rows, labels=len(ranked), labels_kept=sum(1 for label in ranked if kept[label]), gone=gone)


def _count(table: Table, hashes: np.ndarray, keep: np.ndarray, eligible: Counter[str], kept: Counter[str]) -> int:
    """Add one block's labels to the counters (the empty string for no label); returns how many rows were found."""
    if len(hashes) == 0:
        return 0
    found = 0
    for rows in blocks(table.dataset.scanner(columns=["id", "label"]).to_batches(), JOIN_ROWS):
        wanted = hash_ids(rows.column("id"))
        # Looked up in ascending order, neighbours share cache lines: ten times faster than in the table's order.
        order = np.argsort(wanted)
        place = np.empty(len(wanted), np.int64)
        place[order] = np.minimum(np.searchsorted(hashes, wanted[order]), len(hashes) - 1)
        hit = hashes[place] == wanted
        found += int(hit.sum())
        labels = pc.fill_null(rows.column("label").cast(pa.string()), "").filter(pa.array(hit))
        _tally(labels, eligible)
        _tally(labels.filter(pa.array(keep[place[hit]])), kept)
    return found


def _tally(labels: pa.ChunkedArray, into: Counter[str]) -> None:
    for entry in pc.value_counts(labels).to_pylist():
        into[entry["values"]] += entry["counts"]
