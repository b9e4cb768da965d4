"""What a selection's table says, read as a stream: counts, samples, the score's histogram, pairs of duplicates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datas3_ray.lake import Selection, Table
from datas3_ray.report.sampling import First, hash_ids

BINS = 40
BATCH_ROWS = 1 << 16
WIDEST = float(np.finfo(np.float64).max / 4)
"""Scores further from zero are beyond the histogram's axis, whose length is a number too."""
SIMILARITY = "max_similarity"
PARTNER = "duplicate_of"


@dataclass(frozen=True)
class Histogram:
    """Scores of kept and dropped rows: ``edges`` float64 (bins + 1,), counts int64 (bins,).

    Rows outside the edges are counted in the first and the last bin; ``beyond`` says how many. ``missing`` rows have
    no finite score and are in no bin.
    """

    edges: np.ndarray
    kept: np.ndarray
    dropped: np.ndarray
    beyond: int
    missing: int


@dataclass(frozen=True)
class Pairs:
    """Rows beside the row they duplicate, as tables of id, duplicate_of and, where it is recorded, max_similarity."""

    highest: pa.Table
    just_removed: pa.Table
    just_kept: pa.Table
    has_similarity: bool
    cut: tuple[float, float] | None
    """Highest cosine of a kept row and lowest of a removed one, which the threshold lies between."""


@dataclass(frozen=True)
class Profile:
    """A selection in figures. Samples are tables of id and, where it is recorded, score."""

    kept: int
    dropped: int
    kept_sample: pa.Table
    dropped_sample: pa.Table
    histogram: Histogram | None
    pairs: Pairs | None


def profile(selection: Selection, *, samples: int, pairs: int, seed: int) -> Profile:
    """Read a selection's rows once (twice or more for the histogram), holding one batch and the samples.

    Args:
        selection: the selection.
        samples: rows to sample from the kept and from the dropped, by a hash of (seed, id).
        pairs: rows of each kind of duplicate pair.
        seed: of the samples.
    """
    names = selection.table.schema.names
    columns = [name for name in ("id", "keep", "score", SIMILARITY, PARTNER) if name in names]
    order = [("hash", "ascending"), ("id", "ascending")]
    kept_rows, dropped_rows = First(samples, order), First(samples, order)
    finder = _PairFinder(pairs, SIMILARITY in columns) if PARTNER in columns else None
    kept = total = 0
    low, high, missing = np.inf, -np.inf, 0
    for rows in _stream(selection, columns):
        total += rows.num_rows
        keep = rows.column("keep")
        kept += pc.sum(keep).as_py() or 0
        sample = rows.select([name for name in ("id", "score") if name in columns])
        sample = sample.append_column("hash", pa.array(hash_ids(rows.column("id"), seed)))
        kept_rows.add(sample.filter(keep))
        dropped_rows.add(sample.filter(pc.invert(keep)))
        if finder:
            finder.add(rows)
        if "score" in columns:
            scores = _scores(rows)
            finite = scores[np.isfinite(scores)]
            missing += len(scores) - len(finite)
            if len(finite):
                low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    empty = pa.schema([("id", pa.string()), ("score", pa.float64()), ("hash", pa.uint64())]).empty_table()
    return Profile(
        kept=kept,
        dropped=total - kept,
        kept_sample=_or_empty(kept_rows.rows(), empty),
        dropped_sample=_or_empty(dropped_rows.rows(), empty),
        histogram=_histogram(selection, low, high, missing) if high >= low else None,
        pairs=finder.found() if finder else None,
    )


def sample_ids(table: Table, size: int, seed: int) -> list[str]:
    """Ids of ``size`` rows of any table, by a hash of (seed, id)."""
    first = First(size, [("hash", "ascending"), ("id", "ascending")])
    for batch in table.dataset.scanner(columns=["id"]).to_batches():
        first.add(pa.table({"id": batch.column("id"), "hash": hash_ids(batch.column("id"), seed)}))
    rows = first.rows()
    return [] if rows is None else rows.column("id").to_pylist()


class _PairFinder:
    """The pairs worth looking at: the most alike, the last that were removed and the first that were not."""

    def __init__(self, size: int, has_similarity: bool) -> None:
        self.has_similarity = has_similarity
        self.columns = ["id", PARTNER, *([SIMILARITY] if has_similarity else [])]
        key = SIMILARITY if has_similarity else "hash"
        far, near = [(key, "descending"), ("id", "ascending")], [(key, "ascending"), ("id", "ascending")]
        self.highest, self.just_removed, self.just_kept = First(size, far), First(size, near), First(size, far)

    def add(self, rows: pa.Table) -> None:
        with_partner = rows.filter(
            pc.and_kleene(pc.is_valid(rows.column(PARTNER)), pc.not_equal(rows.column(PARTNER), ""))
        )
        keep = with_partner.column("keep")
        found = with_partner.select(self.columns)
        if self.has_similarity:
            alike = pc.fill_null(pc.is_finite(found.column(SIMILARITY)), False)
            found, keep = found.filter(alike), keep.filter(alike)
        else:
            found = found.append_column("hash", pa.array(hash_ids(found.column("id"))))
        removed = found.filter(pc.invert(keep))
        self.highest.add(removed)
        if self.has_similarity:
            self.just_removed.add(removed)
            self.just_kept.add(found.filter(keep))

    def found(self) -> Pairs:
        fields = [("id", pa.string()), (PARTNER, pa.string()), (SIMILARITY, pa.float64())]
        empty = pa.schema(fields).empty_table()
        highest, removed, kept = (_or_empty(f.rows(), empty) for f in (self.highest, self.just_removed, self.just_kept))
        cut = None
        if self.has_similarity and removed.num_rows and kept.num_rows:
            cut = kept.column(SIMILARITY)[0].as_py(), removed.column(SIMILARITY)[0].as_py()
        # Where few rows were removed, both ends are the same rows: each is shown once, among the most alike.
        removed = removed.filter(pc.invert(pc.is_in(removed.column("id"), value_set=highest.column("id"))))
        return Pairs(highest, removed, kept, self.has_similarity, cut)


def _stream(selection: Selection, columns: list[str]) -> Iterator[pa.Table]:
    for batch in selection.table.dataset.scanner(columns=columns, batch_size=BATCH_ROWS).to_batches():
        yield pa.Table.from_batches([batch])


def _scores(rows: pa.Table) -> np.ndarray:
    return np.asarray(rows.column("score").cast(pa.float64()).to_numpy(zero_copy_only=False), np.float64)


def _histogram(selection: Selection, low: float, high: float, missing: int) -> Histogram:
    """Histogram over the range that holds all but a few rows: a long tail must not squeeze the rest into one bin."""
    low, high = np.clip((low, high), -WIDEST, WIDEST).tolist()
    whole = tried = _fine_counts(selection, low, high)
    for _ in range(3):
        fine, edges, beyond = tried
        if fine.shape[1] == 1:
            break
        first, last = _central(fine.sum(axis=0))
        if last - first >= fine.shape[1] // 4:
            return _coarse(fine, edges, beyond, missing)
        tried = _fine_counts(selection, float(edges[first]), float(edges[last]))
    # Nearly every row has one same score: the full range says more than a zoom into it.
    return _coarse(*whole, missing=missing)


def _fine_counts(selection: Selection, low: float, high: float) -> tuple[np.ndarray, np.ndarray, int]:
    edges = np.linspace(low, high, BINS * 50 + 1) if high > low else np.array([low, low])
    counts = np.zeros((2, len(edges) - 1), np.int64)
    beyond = 0
    for rows in _stream(selection, ["keep", "score"]):
        scores, keep = _scores(rows), rows.column("keep").to_numpy(zero_copy_only=False).astype(bool)
        finite = np.isfinite(scores)
        scores, keep = scores[finite], keep[finite]
        beyond += int(((scores < edges[0]) | (scores > edges[-1])).sum())
        bins = _bins(scores, edges)
        for row, mask in enumerate((keep, ~keep)):
            counts[row] += np.bincount(bins[mask], minlength=counts.shape[1])
    return counts, edges, beyond


def _coarse(fine: np.ndarray, edges: np.ndarray, beyond: int, missing: int) -> Histogram:
    if fine.shape[1] == 1:
        return Histogram(edges, fine[0], fine[1], beyond, missing)
    coarse = fine.reshape(2, BINS, -1).sum(axis=2)
    return Histogram(edges[:: fine.shape[1] // BINS], coarse[0], coarse[1], beyond, missing)


def _bins(scores: np.ndarray, edges: np.ndarray) -> np.ndarray:
    last = len(edges) - 2
    if last == 0:
        return np.zeros(len(scores), np.int64)
    place = (np.clip(scores, edges[0], edges[-1]) - edges[0]) * ((last + 1) / (edges[-1] - edges[0]))
    return np.minimum(place.astype(np.int64), last)


def _central(counts: np.ndarray) -> tuple[int, int]:
    """First and last edge of the bins between the 0.5th and the 99.5th percentile."""
    cumulative = np.cumsum(counts)
    total = int(cumulative[-1])
    first = int(np.searchsorted(cumulative, 0.005 * total, side="right"))
    last = int(np.searchsorted(cumulative, 0.995 * total, side="left"))
    return first, last + 1


def _or_empty(rows: pa.Table | None, empty: pa.Table) -> pa.Table:
    return empty if rows is None else rows
