"""How much selections agree: rows that both kept, for every pair, in bounded memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from datas3_ray.lake import Selection
from datas3_ray.report.sampling import hash_ids

BUCKET_ROWS = 16_000_000
"""Hashes held at a time, all selections together: eight bytes each."""


@dataclass(frozen=True)
class Overlap:
    """Kept rows of some selections of one table: int64 matrix ``both`` (n, n), its diagonal the kept counts."""

    table: str
    names: list[str]
    both: np.ndarray

    def jaccard(self, i: int, j: int) -> float:
        """Rows that both kept, of the rows that either kept; nan where neither kept any."""
        union = self.both[i, i] + self.both[j, j] - self.both[i, j]
        return float(self.both[i, j] / union) if union else float("nan")

    def containment(self, i: int, j: int) -> float:
        """The share of selection i's kept rows that selection j kept too; nan where i kept none."""
        return float(self.both[i, j] / self.both[i, i]) if self.both[i, i] else float("nan")


def overlap(table: str, selections: list[Selection]) -> Overlap:
    """Count the rows that each pair of selections both kept.

    Ids are compared by a 64-bit hash, one range of hashes at a time, so that memory stays bounded however many rows
    there are; each range reads the selections' ids again.
    """
    total = sum(len(selection) for selection in selections)
    buckets = max(1, -(-total // BUCKET_ROWS))
    both = np.zeros((len(selections), len(selections)), np.int64)
    for bucket in range(buckets):
        kept = [_hashes(selection, bucket, buckets) for selection in selections]
        for i, left in enumerate(kept):
            both[i, i] += len(left)
            for j in range(i):
                shared = len(np.intersect1d(left, kept[j], assume_unique=True))
                both[i, j] += shared
                both[j, i] += shared
    return Overlap(table, [selection.name for selection in selections], both)


def _hashes(selection: Selection, bucket: int, buckets: int) -> np.ndarray:
    parts = []
    for batch in selection.table.dataset.scanner(columns=["id"], filter="keep").to_batches():
        hashes = hash_ids(batch.column("id"))
        if buckets > 1:
            hashes = hashes[(hashes >> np.uint64(32)) % np.uint64(buckets) == bucket]
        parts.append(hashes)
    return np.concatenate(parts) if parts else np.empty(0, np.uint64)
