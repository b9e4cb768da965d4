"""How far a sweep is, as a table that redraws itself on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

SHOWN = 12
"""Trials in the table; the running ones first, then the latest that have ended."""


@dataclass(frozen=True)
class TrialState:
    """One trial: ``state`` is running, done, stopped or failed; the figures are those of its last epoch."""

    name: str
    state: str
    epoch: int | None = None
    loss: float | None = None
    validation: float | None = None


@dataclass(frozen=True)
class SweepProgress:
    """How far a sweep is: trials done of all, the failed ones among them, and the best validation score so far with the
    trial that has it; ``trials`` are those that run and the latest that have ended."""

    done: int
    total: int
    metric: str
    best: float | None = None
    best_trial: str | None = None
    failed: int = 0
    trials: Sequence[TrialState] = ()

    def __str__(self) -> str:
        failed = f", {self.failed} failed" if self.failed else ""
        best = f", best {self.metric} {self.best:.4f} ({self.best_trial})" if self.best is not None else ""
        return f"{self.done}/{self.total} trials{failed}{best}"


Listener = Callable[[SweepProgress], None]


@contextmanager
def listening(name: str, total: int, listener: Listener | None) -> Iterator[Listener]:
    """The listener given, or a table that redraws itself on a terminal's stderr (and nothing where there is none)."""
    if listener is not None:
        yield listener
        return
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda progress: None
        return
    with Live(console=console, transient=True, refresh_per_second=4) as live:
        yield lambda progress: live.update(table(name, progress))


def table(name: str, progress: SweepProgress) -> Any:
    """The trials as a rich table, titled with how far the sweep is."""
    from rich.table import Table
    from rich.text import Text

    drawn = Table(title=f"{name}: {progress}", title_justify="left", box=None, pad_edge=False)
    for column in ("trial", "state", "epoch", "loss", progress.metric):
        drawn.add_column(column, justify="left" if column in ("trial", "state") else "right")
    for trial in progress.trials[:SHOWN]:
        figures = ("" if figure is None else f"{figure:.4f}" for figure in (trial.loss, trial.validation))
        style = {"failed": "red", "running": "bold"}.get(trial.state, "dim")
        drawn.add_row(Text(trial.name), trial.state, str(trial.epoch or ""), *figures, style=style)
    return drawn
