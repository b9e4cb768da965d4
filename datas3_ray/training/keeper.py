"""Where a sweep's trials find their arrays: an actor that holds the references while the sweep runs.

A reference that travels inside a trainable, as ``tune.with_parameters`` sends it, pins its object in the store until
the driver's process ends. Those that this actor holds are let go with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Work:
    """What trials read, by selection and seed, and the test tables (by name) to score each selection on.

    ``epochs`` are those of a trial's budget, by selection and seed.
    """

    training: Mapping[tuple[str, int], Any]
    tests: Mapping[str, Any]
    tests_of: Mapping[str, Sequence[str]]
    epochs: Mapping[tuple[str, int], int]


class Keeper:
    """The actor's class."""

    def __init__(self, work: Work) -> None:
        self.work = work

    def fetch(self, selection: str, seed: int) -> tuple[Any, dict[str, Any]]:
        """A selection's training data and its test tables' data, as references."""
        return self.work.training[selection, seed], {
            name: self.work.tests[name] for name in self.work.tests_of[selection]
        }


@contextmanager
def keeping(work: Work, name: str) -> Iterator[None]:
    """Keep ``work`` in the store under a name that workers know, until the block ends."""
    import ray

    actor: Any = ray.remote(Keeper)
    keeper = actor.options(name=name, num_cpus=0).remote(work)
    try:
        yield
    finally:
        ray.kill(keeper)
