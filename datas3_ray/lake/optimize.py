"""Keeping a table quick to open and small: fragments that are too small are joined, old versions are let go.

Compaction is Lance's own, planned here: a run of small neighbours becomes one fragment of at most ``target_rows`` and
``target_bytes``, one Ray task each, one commit. Rows keep their order and indexes stay valid. Lance puts new fragments
last, so where a larger fragment comes after a small run, it is rewritten too. Versions that anything refers to are
kept for ever (:mod:`datas3_ray.lake.references`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from datas3_ray.errors import Datas3Error
from datas3_ray.lake.references import referenced_versions, unfinished, unfinished_embed
from datas3_ray.lake.row_columns import inputs_version
from datas3_ray.lake.schemas import MADE
from datas3_ray.lake.storage import StorageOptions, open_dataset
from datas3_ray.lake.table import CONTENT, Table
from datas3_ray.retry import failure
from datas3_ray.runtime import ensure_ray, gather, remote

if TYPE_CHECKING:
    from datas3_ray.lake.lake import Lake

COMPACTED = ("image", "quarantine", "ledger", "results")
"""Kinds that are compacted. A selection's fragments match those of its pool, and are as few as these."""

BATCH_BYTES = 32 << 20
DELETED_SHARE = 0.1
SMALL_AT_LEAST, SHRINK_AT_LEAST = 8, 4
ATTEMPTS = 3


class OptimizeConfig(BaseModel):
    """What is too small, how large it becomes, and how long unreferenced versions are kept (days)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    target_rows: int = Field(default=1 << 20, ge=1)
    target_bytes: int = Field(default=256 << 20, ge=1)
    small_rows: int = Field(default=100_000, ge=1)
    prune: bool = True
    keep_days: float = Field(default=7.0, ge=0)


@dataclass
class OptimizeReport:
    """What was done to a table, or would be done."""

    table: str
    fragments_before: int = 0
    fragments_after: int = 0
    rewritten_rows: int = 0
    rewritten_bytes: int = 0
    """Size of the data files that were read, as they are stored."""
    pruned: list[int] = field(default_factory=list)
    """Versions removed."""
    referenced: list[int] = field(default_factory=list)
    """Old versions kept because something refers to them."""
    freed_bytes: int = 0
    not_compacted: str | None = None
    not_pruned: str | None = None
    dry_run: bool = False

    def sentence(self) -> str:
        """The report for a person."""
        would = "would become" if self.dry_run else "became"
        parts: list[str] = []
        if self.fragments_before != self.fragments_after or self.rewritten_rows:
            size = f"{self.rewritten_rows} rows, {self.rewritten_bytes / 1e6:.1f} MB rewritten"
            parts.append(f"{self.fragments_before} fragments {would} {self.fragments_after} ({size})")
        elif self.not_compacted:
            parts.append(f"{self.fragments_before} fragments left as they are: {self.not_compacted}")
        else:
            parts.append(f"{self.fragments_before} fragments, none too small")
        if self.pruned:
            freed = "" if self.dry_run else f", {self.freed_bytes / 1e6:.1f} MB freed"
            parts.append(f"{len(self.pruned)} old versions {'would go' if self.dry_run else 'removed'}{freed}")
        if self.referenced:
            parts.append(f"{len(self.referenced)} old versions kept because they are referred to")
        if self.not_pruned:
            parts.append(f"no version removed: {self.not_pruned}")
        return "; ".join(parts) + "."


@dataclass(frozen=True)
class _Piece:
    """A fragment as the plan sees it; ``text`` is its metadata as JSON."""

    id: int
    rows: int
    deleted: int
    bytes: int
    text: str


Bin = list[_Piece]


def optimize_table(
    lake: Lake, name: str, config: OptimizeConfig | None = None, *, dry_run: bool = False
) -> OptimizeReport:
    """Join a table's small fragments and remove its old versions.

    Nothing is rewritten where nothing is small. A version that a selection, clustering, split, result or tag refers
    to is never removed, nor one that is younger than ``keep_days``, nor any while an ingest or embed is unfinished.

    Raises
    ------
    UsageError
        When there is no such table.
    Datas3Error
        When another program changed the rewritten rows meanwhile, three times over. The table is then as it was.
    """
    config = config or OptimizeConfig()
    report = OptimizeReport(name, dry_run=dry_run)
    table = lake.table(name)
    report.fragments_before = report.fragments_after = len(table.fragment_ids())
    report.not_compacted = unfinished_embed(lake, name)
    if table.kind in COMPACTED and not report.not_compacted:
        _compact(lake, name, config, report, tail_only=False)
    if config.prune:
        _prune(lake, name, config, report)
    return report


def optimize_lake(
    lake: Lake, names: list[str] | None = None, config: OptimizeConfig | None = None, *, dry_run: bool = False
) -> list[OptimizeReport]:
    """:func:`optimize_table` for the named tables, or for all of them."""
    return [optimize_table(lake, name, config, dry_run=dry_run) for name in names or lake.names()]


def compact_small(lake: Lake, name: str, config: OptimizeConfig | None = None) -> OptimizeReport | None:
    """After an ingest: join the small fragments at the table's end where it pays, and prune nothing.

    It pays when at least 8 of them become a quarter as many or fewer. None where it does not, or while an embed has
    work of its own on the fragments.
    """
    config = config or OptimizeConfig()
    if unfinished_embed(lake, name):
        return None
    pieces = _pieces(lake.table(name))
    bins = [made for made in _tail(_bins(pieces, config), config) if len(made) > 1]
    joined = sum(len(made) for made in bins)
    if joined < SMALL_AT_LEAST or joined < SHRINK_AT_LEAST * len(bins):
        return None
    report = OptimizeReport(name)
    _compact(lake, name, config, report, tail_only=True)
    return report


# -- compaction ------------------------------------------------------------------------------------------------------


def _compact(lake: Lake, name: str, config: OptimizeConfig, report: OptimizeReport, *, tail_only: bool) -> None:
    for attempt in range(ATTEMPTS):
        table = lake.table(name)
        bins = _bins(_pieces(table), config)
        bins = _tail(bins, config) if tail_only else bins
        work = _from_first(bins, config)
        if attempt == 0:
            report.fragments_before = report.fragments_after = len(table.fragment_ids())
        report.rewritten_rows = sum(piece.rows - piece.deleted for made in work for piece in made)
        report.rewritten_bytes = sum(piece.bytes for made in work for piece in made)
        if not work:
            return
        report.fragments_after = report.fragments_before - sum(len(made) - 1 for made in work)
        if report.dry_run:
            return
        try:
            _rewrite(table, work)
            report.fragments_after = len(lake.table(name).fragment_ids())
            return
        except OSError as error:
            if "conflict" not in str(error).lower():
                raise Datas3Error(
                    failure(f"compacting table '{name}'", error, after="the table is as it was")
                ) from error
            last = error
    raise Datas3Error(
        f"table '{name}' was changed by another program each of the {ATTEMPTS} times that it was compacted; try again "
        f"when that has ended ({str(last).splitlines()[0]})."
    )


def _pieces(table: Table) -> list[_Piece]:
    found = []
    for fragment in table.dataset.get_fragments():
        metadata = fragment.metadata
        found.append(
            _Piece(
                fragment.fragment_id,
                int(metadata.physical_rows),
                int(fragment.num_deletions),
                sum(int(file.file_size_bytes or 0) for file in metadata.files),
                json.dumps(metadata.to_json()),
            )
        )
    return found


def _small(piece: _Piece, config: OptimizeConfig) -> bool:
    return piece.rows < config.small_rows and piece.bytes < config.target_bytes


def _bins(pieces: list[_Piece], config: OptimizeConfig) -> list[Bin]:
    """Neighbours that become one fragment, in order; larger fragments are bins of their own.

    Filled greedily, so that two neighbouring bins never fit together: what was compacted is not compacted again.
    """
    bins: list[Bin] = []
    rows = size = 0
    open_bin = False
    for piece in pieces:
        fits = rows + piece.rows <= config.target_rows and size + piece.bytes <= config.target_bytes
        if open_bin and fits and _small(piece, config):
            bins[-1].append(piece)
            rows, size = rows + piece.rows, size + piece.bytes
        else:
            bins.append([piece])
            rows, size = piece.rows, piece.bytes
            open_bin = _small(piece, config)
    return bins


def _worth(made: Bin) -> bool:
    """Whether rewriting a bin gains anything by itself: a join, or room that deleted rows take."""
    return len(made) > 1 or made[0].deleted > DELETED_SHARE * made[0].rows


def _tail(bins: list[Bin], config: OptimizeConfig) -> list[Bin]:
    """The bins after the last large fragment: they can be joined without moving any other rows."""
    large = [number for number, made in enumerate(bins) if not _small(made[0], config)]
    return bins[large[-1] + 1 :] if large else bins


def _from_first(bins: list[Bin], config: OptimizeConfig) -> list[Bin]:
    first = next((number for number, made in enumerate(bins) if _worth(made)), len(bins))
    return bins[first:]


def _rewrite(table: Table, work: list[Bin]) -> None:
    import lance.optimize

    lance_optimize: Any = lance.optimize

    ensure_ray()
    template = _template(table, work)
    execute = remote(_execute).options(num_cpus=1)
    refs = []
    for made in work:
        text = json.dumps({**template, "task": {"fragments": [json.loads(piece.text) for piece in made]}})
        refs.append(execute.remote(table.uri, table.version, table.options, text))
    results = [lance_optimize.RewriteResult.from_json(text) for text in gather(refs)]
    lance_optimize.Compaction.commit(table.dataset, results)


def _template(table: Table, work: list[Bin]) -> dict[str, Any]:
    """A Lance compaction task for this version, into which the fragments of each bin are put."""
    import lance.optimize

    lance_optimize: Any = lance.optimize
    first = next(made for made in work if _worth(made))
    mine = {piece.id for piece in first}
    pieces = [piece for made in work for piece in made]
    rows = sum(piece.rows for piece in pieces)
    row_bytes = max(1, sum(piece.bytes for piece in pieces) // max(1, rows))
    options = {
        # A bin is one fragment whatever Lance would have planned; only its own limits keep it from being split.
        "target_rows_per_fragment": max(rows, 1 << 20),
        "num_threads": 1,
        "batch_size": min(8192, max(16, BATCH_BYTES // row_bytes)),
        "excluded_fragment_ids": [number for number in table.fragment_ids() if number not in mine],
    }
    plan = lance_optimize.Compaction.plan(table.dataset, options)
    if plan.num_tasks() == 0:
        raise Datas3Error(f"table '{table.name}' could not be compacted: Lance planned nothing for {sorted(mine)}.")
    template: dict[str, Any] = json.loads(plan.tasks[0].json())
    return template


def _execute(uri: str, version: int, options: StorageOptions | None, task: str) -> str:
    import lance.optimize

    lance_optimize: Any = lance.optimize
    return str(lance_optimize.CompactionTask.from_json(task).execute(open_dataset(uri, version, options)).json())


# -- old versions ----------------------------------------------------------------------------------------------------


def _prune(lake: Lake, name: str, config: OptimizeConfig, report: OptimizeReport) -> None:
    report.not_pruned = unfinished(lake, name)
    if report.not_pruned:
        return
    before = datetime.now(timezone.utc) - timedelta(days=config.keep_days)
    table = lake.table(name)
    report.referenced, report.pruned = _old_versions(table, referenced_versions(lake)[name], before)
    if not report.pruned or report.dry_run:
        return
    if _remember(table, report.pruned):
        table = lake.table(name)
        report.referenced, report.pruned = _old_versions(table, referenced_versions(lake)[name], before)
    # The versions are named one by one: whatever is not in the list stays, with every file it needs.
    stats = table.dataset.cleanup_old_versions(versions=report.pruned, error_if_tagged_old_versions=False)
    report.freed_bytes = int(stats.bytes_removed)


def _old_versions(table: Table, kept: set[int], before: datetime) -> tuple[list[int], list[int]]:
    """Versions that something refers to, and those that nothing does and that are old enough to go."""
    there = {int(entry["version"]): _utc(entry["timestamp"]) for entry in table.dataset.versions()}
    older = {version: made for version, made in there.items() if version != table.version}
    gone = (version for version, made in older.items() if version not in kept and made <= before)
    return sorted(kept & older.keys()), sorted(gone)


def _remember(table: Table, pruned: list[int]) -> bool:
    """Keep which change of the table was the last one, where the versions that tell are about to go."""
    changed = {"": table.content_version, MADE: inputs_version(table)}
    if pruned[-1] < min(changed.values()):
        return False
    table.dataset.update_config({CONTENT: json.dumps({"version": table.version, "changed": changed})})
    return True


def _utc(moment: datetime) -> datetime:
    """Lance gives local times without a zone."""
    return moment.astimezone(timezone.utc)
