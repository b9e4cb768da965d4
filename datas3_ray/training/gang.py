"""The workers that train one model: how they are started, and what they say to each other.

One worker trains in the trial's own process. Several are a Ray Train run that the trial starts. Ray Train's own reports
wait for its controller to look, so the first worker tells the trial through an actor of its own what each epoch gave.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from datas3_ray.errors import Datas3Error
from datas3_ray.training.contract import Outcome, Report

if TYPE_CHECKING:
    import torch

    from datas3_ray.training.config import SweepConfig

_LOOK_SECONDS = 0.1
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
    """The actor between a trial and its workers: what they are to do, and what they have found."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._news: list[tuple[str, Any]] = []

    def work(self) -> Work:
        """What each worker is to do."""
        return self._work

    def tell(self, kind: str, what: Any) -> None:
        """Leave an ``epoch``, the ``end`` or an ``error``."""
        self._news.append((kind, what))

    def news(self) -> list[tuple[str, Any]]:
        """What has come since the last time."""
        news, self._news = self._news, []
        return news


def train_together(work: Work, config: SweepConfig, report: Report) -> tuple[Outcome, dict[str, Any]]:
    """Have ``config.workers`` workers do their parts; see :func:`run_trial`."""
    import ray

    actor: Any = ray.remote(Post)
    post = actor.options(num_cpus=0).remote(work)
    failed: list[BaseException] = []
    with tempfile.TemporaryDirectory() as folder:
        run = threading.Thread(target=_run, args=(config, post, folder, failed), daemon=True)
        run.start()
        try:
            end, error = _listen(post, run, report)
        finally:
            ray.kill(post)
            run.join()
    if error is not None:
        raise error
    if end is None:
        why = _reason(failed[0]) if failed else "they ended early"
        raise Datas3Error(f"the {config.workers} workers of a trial did not finish ({why}).")
    found: tuple[Outcome, dict[str, Any]] = end
    return found


def _reason(error: BaseException) -> str:
    """What became of the workers, in a line: Ray Train wraps each worker's error, which says more than its own."""
    failures = getattr(error, "worker_failures", None) or {}
    for each in failures.values():
        error = each
        break
    cause = getattr(error, "cause", None) or error.__cause__ or error
    lines = str(cause).strip().splitlines() or [""]
    return f"{type(cause).__name__}: {lines[-1]}"


def _listen(post: Any, run: threading.Thread, report: Report) -> tuple[Any, Exception | None]:
    """Pass on what the workers tell until they are done: the end, or the first error."""
    import ray

    end, error = None, None
    while True:
        running = run.is_alive()
        for kind, what in ray.get(post.news.remote()):
            if kind == "epoch":
                report(what)
            elif kind == "end":
                end = ray.get(what[0])
            elif error is None:
                error = what
        if not running:
            return end, error
        run.join(_LOOK_SECONDS)


def _run(config: SweepConfig, post: Any, folder: str, failed: list[BaseException]) -> None:
    """The Ray Train run, in a thread of its own."""
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
            train_loop_config={"post": post},
            torch_config=backend,
            scaling_config=ScalingConfig(
                num_workers=config.workers, use_gpu=bool(gpus), resources_per_worker=resources
            ),
            run_config=RunConfig(name="workers", storage_path=folder),
        ).fit()
    except BaseException as error:
        failed.append(error)


def _work(given: dict[str, Any]) -> None:
    """One worker."""
    import ray

    post, gang = given["post"], Workers()

    def tell(figures: dict[str, Any]) -> None:
        if gang.rank == 0:
            ray.get(post.tell.remote("epoch", figures))

    try:
        found = ray.get(post.work.remote())(gang, tell)
        if gang.rank == 0:
            ray.get(post.tell.remote("end", [ray.put(found)]))
    except Datas3Error as error:
        ray.get(post.tell.remote("error", error))
        raise
