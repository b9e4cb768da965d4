"""One line that says how far a sweep is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class SweepProgress:
    """How far a sweep is: trials done of all, and the best validation score so far with the trial that has it."""

    done: int
    total: int
    metric: str
    best: float | None = None
    best_trial: str | None = None

    def __str__(self) -> str:
        best = f", best {self.metric} {self.best:.4f} ({self.best_trial})" if self.best is not None else ""
        return f"{self.done}/{self.total} trials{best}"


Listener = Callable[[SweepProgress], None]


@contextmanager
def listening(name: str, total: int, listener: Listener | None) -> Iterator[Listener]:
    """The listener given, or a line that redraws itself on a terminal's stderr (and nothing where there is none)."""
    if listener is not None:
        yield listener
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn(name), BarColumn(bar_width=20), TextColumn("{task.fields[status]}"), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as line:
        task = line.add_task(name, total=total, status=f"0/{total} trials")
        yield lambda at: line.update(task, completed=at.done, status=str(at))
