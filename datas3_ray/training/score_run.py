"""Training-based scores of a pool's rows, written beside them as columns.

A proxy, the linear probe on a vector column, is trained on every labelled row that no split has set aside, and the
logits of all of them are looked at after each epoch, in blocks: no epoch is held. Several proxies are tasks side by
side that read one matrix. The columns come in one commit, or not at all.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datas3_ray import __version__
from datas3_ray.errors import Datas3Error, UsageError
from datas3_ray.kernels.training_scores import HARDEST, TrainingScores
from datas3_ray.lake.row_columns import write_numbers
from datas3_ray.runtime import ensure_ray, gather, matrix_task, remote
from datas3_ray.training.score_plan import ScoreConfig, ScorePlan, parse_config, plan_scores, record_folder

if TYPE_CHECKING:
    from datas3_ray.lake import Lake
    from datas3_ray.lake.storage import StorageOptions
    from datas3_ray.training.probe import ProbeSettings
    from datas3_ray.training.recorder import Recorder

VALIDATION_ROWS = 8192
"""Rows whose accuracy is reported. All proxies run to their last epoch, and none is chosen by it."""


@dataclass
class ScoreSummary:
    """What a scoring did."""

    table: str
    columns: list[str] = field(default_factory=list)
    """The columns written; empty where all were up to date."""
    rows: int = 0
    """Rows of the table."""
    scored: int = 0
    unlabelled: int = 0
    unusable: int = 0
    """Rows with a label and without a usable vector."""
    held_out: int = 0
    """Rows set aside by splits."""
    classes: int = 0
    accuracy: float | None = None
    """Of the proxies after their last epoch, on rows that they were trained on."""
    recorded: str | None = None
    seconds: float = 0.0

    def sentence(self) -> str:
        """The summary for a person."""
        if self.accuracy is None:
            return f"the scores of {self.table} are up to date."
        text = f"{', '.join(self.columns) or 'no column'} written for {self.scored} of {self.rows} rows of {self.table}"
        for count, why in (
            (self.unlabelled, "without a label"),
            (self.unusable, "without a usable vector"),
            (self.held_out, "set aside by splits"),
        ):
            text += f", {count} {why}" if count else ""
        text += f"; the proxy gets {self.accuracy:.1%} of {self.classes} classes right"
        return text + (f"; logits in {self.recorded}." if self.recorded else ".")


def score_table(lake: Lake, name: str, config: ScoreConfig) -> ScoreSummary:
    """Give the rows of the image table ``name`` training-based scores, unless they have these already.

    Rows without a label or a usable vector, and rows that a split has set aside, are not trained on and get null.
    Columns of the same name that were made with other settings or from other rows are replaced.

    Raises
    ------
    UsageError
        See :func:`datas3_ray.training.score_plan.plan_scores`; also when no row can be trained on, or rows of one
        class only.
    Datas3Error
        When training diverges, or the table is changed meanwhile. Nothing is written then.

    Examples
    --------
    >>> from datas3_ray import Lake
    >>> config = ScoreConfig(scores=("el2n", "forgetting"), column="lite", epochs=10)
    >>> score_table(Lake("./lake"), "pool", config).sentence()  # doctest: +SKIP
    'el2n, forgetting written for 14950 of 15680 rows of pool, ...'
    """
    started = time.perf_counter()
    plan = plan_scores(lake, name, config)
    summary = ScoreSummary(name, rows=plan.table.count_rows())
    if plan.is_done:
        return summary
    numbers = _train(plan, summary)
    if plan.todo:
        renamed = numbers.rename_columns(["id", *plan.todo.values()])
        made = {target: _about(plan, score, summary) for score, target in plan.todo.items()}
        write_numbers(lake, name, plan.inputs, renamed, made)
    summary.columns = list(plan.todo.values())
    summary.recorded = plan.config.record
    summary.seconds = time.perf_counter() - started
    return summary


@dataclass(frozen=True)
class _Job:
    """What a proxy's worker is told besides the rows."""

    table: str
    scores: tuple[str, ...]
    config: ScoreConfig
    run: int
    recorded: str


def _train(plan: ScorePlan, summary: ScoreSummary) -> pa.Table:
    """Train the proxies; ``id`` and a float32 column a score, and the counts put into the summary."""
    ensure_ray()
    table, config = plan.table, plan.config
    read: Any = remote(_read).options(num_returns=3, num_cpus=1)
    where = (table.name, table.uri, table.version, table.options)
    x, rows, about = read.remote(*where, plan.column, config.label, plan.held_out)
    ids, classes, counts = gather([about])[0]
    summary.scored, summary.classes = len(ids), len(classes)
    summary.unlabelled, summary.unusable, summary.held_out = counts
    _require_classes(plan, summary)
    train = remote(_proxy).options(**matrix_task())
    jobs = [_Job(table.name, tuple(plan.todo), config, run, plan.recorded) for run in range(config.runs)]
    done = gather(train.remote(x, rows, job) for job in jobs)
    summary.accuracy = float(np.mean([accuracy for _, accuracy in done]))
    means = {score: np.mean([scores[score] for scores, _ in done], axis=0) for score in plan.todo}
    return pa.table({"id": ids, **{score: pa.array(mean.astype(np.float32)) for score, mean in means.items()}})


def _read(
    name: str,
    uri: str,
    version: int,
    options: StorageOptions | None,
    column: str,
    label: str,
    held_out: pa.Array | None,
) -> tuple[Any, Any, Any]:
    """The vectors, what a proxy needs beside them, and what the driver wants to know, sorted by id."""
    from datas3_ray.lake.storage import open_dataset
    from datas3_ray.lake.table import Table
    from datas3_ray.training.data import read_labelled

    table = Table(name, open_dataset(uri, version, options), options)
    keep, aside = None, 0
    if held_out is not None:
        ids = table.to_arrow(["id"]).column("id").combine_chunks().cast(pa.string())
        keep = ids.filter(pc.invert(pc.is_in(ids, value_set=held_out)))
        aside = len(ids) - len(keep)
    vectors = read_labelled(table, column, label, keep=keep)
    counts = (len(vectors.unlabelled), len(vectors.unusable), aside)
    return vectors.x, (vectors.ids, vectors.y, vectors.classes), (vectors.ids, vectors.classes, counts)


def _require_classes(plan: ScorePlan, summary: ScoreSummary) -> None:
    table, label = plan.table.name, plan.config.label
    if not summary.scored:
        raise UsageError(
            f"table '{table}' has no row with both a '{label}' and a vector in '{plan.column}' to train on "
            f"({summary.unlabelled} without a label, {summary.unusable} without a usable vector, {summary.held_out} "
            "set aside by splits)."
        )
    if summary.classes < 2:
        raise UsageError(
            f"the {summary.scored} rows of table '{table}' to train on are of one class in '{label}'; scores need two "
            "or more."
        )


def _proxy(
    x: np.ndarray, rows: tuple[pa.Array, np.ndarray, tuple[str, ...]], job: _Job
) -> tuple[dict[str, np.ndarray], float]:
    """Train one proxy in a worker: its scores by name, float64 (n,), and its accuracy."""
    import torch

    from datas3_ray.training.probe import feature_lengths, fit_probe

    # Sums are then the same however many cores there are.
    torch.set_num_threads(1)
    config, settings, (_, codes, classes) = job.config, _settings(job), rows
    everything = np.arange(len(codes))
    norms = feature_lengths(x, everything, settings) if "grand" in job.scores else None
    scores = TrainingScores(
        codes, len(classes), job.scores, early=config.early, window=config.used_window, decay=config.decay
    )
    recorder = _recorder(job, rows)

    def on_logits(epoch: int, first: int, logits: np.ndarray) -> None:
        part = slice(first, first + len(logits))
        scores.update(part, logits, None if norms is None else norms[part])
        if recorder is not None:
            recorder.record(epoch, part, logits)

    few = everything[:VALIDATION_ROWS]
    try:
        fit = fit_probe(x, codes, everything, few, classes=classes, settings=settings, on_logits=on_logits)
    except ValueError as error:
        raise Datas3Error(f"scoring table '{job.table}' stopped: {error} (it is {settings.lr}).") from error
    if recorder is not None:
        recorder.flush()
    return scores.results(), fit.history[-1].validation


def _settings(job: _Job) -> ProbeSettings:
    from datas3_ray.training.probe import ProbeSettings

    config = job.config
    return ProbeSettings(
        batch_size=config.batch_size,
        lr=config.lr,
        epochs=config.epochs,
        patience=config.epochs,
        weight_decay=config.weight_decay,
        normalize=config.normalize,
        standardize=config.standardize,
        seed=config.seed + job.run,
    )


def _recorder(job: _Job, rows: tuple[pa.Array, np.ndarray, tuple[str, ...]]) -> Recorder | None:
    from datas3_ray.training.recorder import Recorder

    config = job.config
    if config.record is None:
        return None
    folder = record_folder(config, job.run)
    dtype = config.record_dtype
    return Recorder(folder, *rows, epochs=config.epochs, dtype=dtype, replace=True, made=job.recorded)


def _about(plan: ScorePlan, score: str, summary: ScoreSummary) -> Mapping[str, Any]:
    """What a column's field keeps about its numbers."""
    return {
        **plan.config.settings(score),
        "hardest": HARDEST[score],
        "mark": plan.marks[score],
        "version": plan.table.version,
        "scored": summary.scored,
        "classes": summary.classes,
        "accuracy": round(summary.accuracy or 0.0, 6),
        "code_version": __version__,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


__all__ = ["ScoreConfig", "ScorePlan", "ScoreSummary", "parse_config", "plan_scores", "score_table"]
