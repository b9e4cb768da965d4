"""The workers that train one model: how they are started, and what they say to each other.

One worker trains in the trial's own process. Several are a Ray Train run that does one trial's work after another's,
for starting them takes longer than a small trial. The sweep's process starts the runs and ends them; a trial leaves its
work with an actor, from which the workers take it and to which they tell what each epoch gave.
"""

from __future__ import annotations

import itertools
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from datas3_ray.errors import Datas3Error
from datas3_ray.training.contract import Outcome, Report

if TYPE_CHECKING:
    import torch

    from datas3_ray.training.config import SweepConfig

_LOOK_SECONDS = 0.1
_CLOSE_SECONDS = 60.0
_STALE_SECONDS = 20.0  # a trial that has not looked for so long was stopped, and left its workers at their work
# Two seconds by default, several times a run: more than a small trial takes.
_CONTROLLER = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",
    "RAY_TRAIN_METRICS_ENABLED": "0",
}


class Gang(Protocol):
    """The workers of a trial as each of them sees them: ``rank`` of ``world``."""

    rank: int
    world: int

    def device(self) -> str:
        """The torch device of this worker."""
        ...

    def together(self, module: torch.nn.Module) -> torch.nn.Module:
        """The module with its gradients averaged over the workers, and its batch statistics taken over all."""
        ...

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over the workers."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """Every worker's value, by rank."""
        ...


class Alone:
    """A single worker, in the trial's own process."""

    rank, world = 0, 1

    def device(self) -> str:
        from datas3_ray.runtime import device

        return device()

    def together(self, module: torch.nn.Module) -> torch.nn.Module:
        return module

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def gather(self, value: Any) -> list[Any]:
        return [value]


class Workers:
    """One of several workers, in a process group that Ray Train has set up."""

    def __init__(self) -> None:
        import torch.distributed as dist

        self.rank, self.world = dist.get_rank(), dist.get_world_size()

    def device(self) -> str:
        from ray.train.torch import get_device

        return str(get_device())

    def together(self, module: torch.nn.Module) -> torch.nn.Module:
        import inspect

        from torch.nn.parallel import DistributedDataParallel

        from datas3_ray.training.batch_norm import synchronise

        synchronise(module, self.device())
        # Statistics are the same everywhere, so that buffers need not be sent around. Torch has renamed the switch.
        known = inspect.signature(DistributedDataParallel.__init__).parameters
        switch = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        switched: dict[str, Any] = {switch: False}
        return DistributedDataParallel(module, **switched)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        import torch.distributed as dist

        dist.all_reduce(tensor)
        return tensor

    def gather(self, value: Any) -> list[Any]:
        import torch.distributed as dist

        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values


Work = Callable[[Gang, Report], tuple[Outcome, dict[str, Any]]]
"""One worker's part of a trial. What it returns and reports, the outcome without its seconds and the checkpoint, is the
same in all workers."""


def run_trial(work: Work, config: SweepConfig, report: Report, path: str) -> Outcome:
    """Train one trial with ``config.workers`` workers and save its checkpoint.

    Parameters
    ----------
    work : callable
        Each worker's part; can be pickled, with references to Ray's objects and not the objects.
    config : SweepConfig
    report : callable
        Called after each epoch with its figures.
    path : str
        A file that ``torch.load(path, weights_only=True)`` opens.

    Raises
    ------
    Datas3Error
        The workers' own, or one that names what became of them.
    """
    import torch

    started = time.perf_counter()
    outcome, saved = work(Alone(), report) if config.workers == 1 else train_together(work, config, report)
    torch.save(saved, path)
    return replace(outcome, seconds=time.perf_counter() - started)


class Post:
    """The actor between trials and one run of workers: what these are to do, and what they have found.

    Works are numbered from 1, and so are the runs, of which a new one takes the place of one that has failed.
    """

    def __init__(self) -> None:
        self._number = self._taken = self._ended = 0
        self._work: Work | None = None
        self._looked = 0.0
        self._news: list[tuple[str, Any]] = []

    def give(self, work: Work) -> int | None:
        """Leave a trial's work; its number, or None while another trial waits for the workers."""
        if self._work is not None and time.monotonic() - self._looked < _STALE_SECONDS:
            return None
        self._number += 1
        self._work, self._taken, self._news, self._looked = work, 0, [], time.monotonic()
        return self._number

    def next(self, after: int, run: int) -> tuple[int, Work | None]:
        """The work after number ``after`` and its number; None while there is none."""
        if run <= self._ended:
            raise RuntimeError("this run of workers has ended")
        if self._work is None or self._number <= after:
            return after, None
        self._taken = run
        return self._number, self._work

    def tell(self, number: int, run: int, kind: str, what: Any) -> None:
        """Leave an ``epoch``, the ``end`` or an ``error`` of a work; RuntimeError where no trial waits for it."""
        if number != self._number or kind == "error":
            self._ended = run  # its other workers are to take nothing up any more
        if number != self._number:
            raise RuntimeError("the trial was stopped")
        self._news.append((kind, what))

    def died(self, run: int, why: str) -> None:
        """A run has failed: the trial whose work it had, or could not take, is told."""
        known, self._ended = run <= self._ended, run
        if not known and self._work is not None and self._taken in (0, run):
            self._news.append(("died", why))

    def news(self, number: int) -> list[tuple[str, Any]]:
        """What has come since the trial last looked."""
        if number != self._number:
            return [("died", "another trial has taken them")]
        self._looked = time.monotonic()
        news, self._news = self._news, []
        return news

    def done(self, number: int) -> None:
        """The trial waits no longer."""
        if number == self._number:
            self._work = None


@contextmanager
def standing(config: SweepConfig, runs: int = 1) -> Iterator[list[Any]]:
    """Runs of ``config.workers`` workers while the block lasts, as the actors that trials leave their works with."""
    import ray

    actor: Any = ray.remote(Post)
    posts = [actor.options(num_cpus=0).remote() for _ in range(runs)]
    closing = threading.Event()
    threads = [threading.Thread(target=_serve, args=(config, post, closing), daemon=True) for post in posts]
    for thread in threads:
        thread.start()
    try:
        yield posts
    finally:
        closing.set()
        for post in posts:
            ray.kill(post)  # which is how workers that wait for work learn that there is none
        for thread in threads:
            thread.join(_CLOSE_SECONDS)


_POSTS: list[Any] = []


def use(posts: Sequence[Any]) -> None:
    """Have this process's trials leave their works with these actors of :func:`standing`."""
    _POSTS[:] = posts


def train_together(work: Work, config: SweepConfig, report: Report) -> tuple[Outcome, dict[str, Any]]:
    """Have ``config.workers`` workers do their parts; see :func:`run_trial`."""
    if _POSTS:
        return _leave(work, list(_POSTS), config, report)
    with standing(config) as posts:
        return _leave(work, posts, config, report)


def _leave(work: Work, posts: list[Any], config: SweepConfig, report: Report) -> tuple[Outcome, dict[str, Any]]:
    """Leave a work with the first run that is free, and wait for what comes of it."""
    import ray

    while True:
        for post in posts:
            number = ray.get(post.give.remote(work))
            if number is not None:
                try:
                    return _listen(post, number, config, report)
                finally:
                    ray.get(post.done.remote(number))
        time.sleep(_LOOK_SECONDS)


def _listen(post: Any, number: int, config: SweepConfig, report: Report) -> tuple[Outcome, dict[str, Any]]:
    """Pass on what the workers tell until they are done; raises their error."""
    import ray

    while True:
        for kind, what in ray.get(post.news.remote(number)):
            if kind == "epoch":
                report(what)
            elif kind == "error":
                raise what
            elif kind == "died":
                raise Datas3Error(f"the {config.workers} workers of a trial did not finish ({what}).")
            else:
                end: tuple[Outcome, dict[str, Any]] = ray.get(what[0])
                return end
        time.sleep(_LOOK_SECONDS)


def _serve(config: SweepConfig, post: Any, closing: threading.Event) -> None:
    """One run after another, each until it fails or there is no more work."""
    import ray
    from ray.exceptions import RayActorError

    for run in itertools.count(1):
        with tempfile.TemporaryDirectory() as folder:
            failed = _run(config, post, run, folder)
        if closing.is_set():
            return
        try:
            ray.get(post.died.remote(run, _reason(failed) if failed is not None else "they ended early"))
        except RayActorError:
            return
        closing.wait(_LOOK_SECONDS)


def _reason(error: BaseException) -> str:
    """What became of the workers, in a line: Ray Train wraps each worker's error, which says more than its own."""
    failures = getattr(error, "worker_failures", None) or {}
    for each in failures.values():
        error = each
        break
    cause = getattr(error, "cause", None) or error.__cause__ or error
    lines = str(cause).strip().splitlines() or [""]
    return f"{type(cause).__name__}: {lines[-1]}"


def _run(config: SweepConfig, post: Any, run: int, folder: str) -> BaseException | None:
    """One Ray Train run; what ended it, if not the lack of work."""
    for name, value in _CONTROLLER.items():
        os.environ.setdefault(name, value)
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from datas3_ray.runtime import cluster_gpus

    gpus = config.gpus if cluster_gpus() else 0
    # NCCL wants a GPU for each worker alone.
    backend = TorchConfig(backend="nccl" if gpus >= 1 else "gloo")
    resources = {"CPU": 1.0, **({"GPU": gpus} if gpus else {})}
    try:
        TorchTrainer(
            _work,
            train_loop_config={"post": post, "run": run},
            torch_config=backend,
            scaling_config=ScalingConfig(
                num_workers=config.workers, use_gpu=bool(gpus), resources_per_worker=resources
            ),
            run_config=RunConfig(name="workers", storage_path=folder),
        ).fit()
    except BaseException as error:
        return error
    return None


def _work(given: dict[str, Any]) -> None:
    """One worker: one work after another, for as long as the sweep is there."""
    import ray
    from ray.exceptions import RayActorError

    post, run, gang, number = given["post"], given["run"], Workers(), 0

    def tell(kind: str, what: Any) -> None:
        ray.get(post.tell.remote(number, run, kind, what))

    def report(figures: dict[str, Any]) -> None:
        if gang.rank == 0:
            tell("epoch", figures)

    while True:
        try:
            number, work = ray.get(post.next.remote(number, run))
            if work is None:
                time.sleep(_LOOK_SECONDS)
                continue
            found = work(gang, report)
            if gang.rank == 0:
                tell("end", [ray.put(found)])
        except RayActorError:  # the sweep is over
            return
        except Datas3Error as error:
            tell("error", error)
            raise
