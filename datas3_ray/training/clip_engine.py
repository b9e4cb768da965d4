"""Contrastive training of an image-text model: a trial from its references to its outcome.

One worker trains in the trial's own process; several are a Ray Train run that the trial starts. Either way the global
batches, their loss and their order are the same, and so are the results, up to rounding.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from datas3_ray.errors import Datas3Error
from datas3_ray.training.clip_data import Captioned, TestImages
from datas3_ray.training.clip_trainer import Trainer
from datas3_ray.training.contract import Outcome, Point, Report
from datas3_ray.training.finetune import _seeded
from datas3_ray.training.gang import Alone, Gang, Post, Workers, _listen
from datas3_ray.training.image_data import ImageSplit

if TYPE_CHECKING:
    from datas3_ray.training.config import SweepConfig


@dataclass(frozen=True)
class Job:
    """Everything a worker needs to train one trial; ``model`` is None where it starts from scratch."""

    point: Point
    config: SweepConfig
    images: Captioned
    split: ImageSplit
    tests: Mapping[str, TestImages]
    model: Any = None


def train_clip(
    point: Point, config: SweepConfig, training: Any, tests: Mapping[str, Any], report: Report, path: str
) -> Outcome:
    """Train one trial, save its best epoch's network to ``path`` and score it on each test table.

    Parameters
    ----------
    point, config
        The trial and its sweep; ``config.workers`` processes train it.
    training, tests
        References as :mod:`datas3_ray.training.clip_data` makes them.
    report : callable
        Called after each epoch with its figures.
    path : str
        A checkpoint of open_clip's: ``state_dict``, and what is needed to use it.

    Raises
    ------
    Datas3Error
        When the loss becomes infinite or not a number, or the training images cannot be read.
    """
    started = time.perf_counter()
    if config.workers > 1:
        outcome, saved = train_together(point, config, training, tests, report)
    else:
        outcome, saved = train(open_job(point, config, training, tests), Alone(), report)
    torch.save(saved, path)
    return replace(outcome, seconds=time.perf_counter() - started)


def open_job(point: Point, config: SweepConfig, training: Any, tests: Mapping[str, Any]) -> Job:
    """The trial's data out of the object store; arrays stay in its shared memory."""
    import ray

    images, split, model = ray.get(list(training))
    return Job(point, config, images, split, {name: ray.get(ref) for name, ref in tests.items()}, model)


def train(job: Job, gang: Gang, report: Report) -> tuple[Outcome, dict[str, Any]]:
    """One worker's part of a trial; what it returns, and reports, is the same in all workers.

    Returns
    -------
    Outcome
        Without its seconds.
    dict
        The checkpoint: tensors on the CPU and plain values.
    """
    torch.set_num_threads(job.config.own().threads)
    with _seeded(job.point.seed):
        trainer = Trainer(job, gang)
        best, epochs = trainer.run(report)
        scores = {name: trainer.score(test) for name, test in job.tests.items()}
    outcome = Outcome(best.number, epochs, trainer.worth(best), best.validation_loss, 0.0, scores)
    return outcome, trainer.checkpoint(best)


def train_together(
    point: Point, config: SweepConfig, training: Any, tests: Mapping[str, Any], report: Report
) -> tuple[Outcome, dict[str, Any]]:
    """Train one trial with ``config.workers`` workers, which a Ray Train run starts; see :func:`train`.

    Raises
    ------
    Datas3Error
        The workers' own, or one that names what became of them.
    """
    import ray

    actor: Any = ray.remote(Post)
    # References inside a list stay references.
    post = actor.options(num_cpus=0).remote([point, config, training, tests])
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
        why = f"{type(failed[0]).__name__}: {failed[0]}".splitlines()[0] if failed else "they ended early"
        raise Datas3Error(f"the {config.workers} workers of a trial did not finish ({why}).")
    found: tuple[Outcome, dict[str, Any]] = end
    return found


def _run(config: SweepConfig, post: Any, folder: str, failed: list[BaseException]) -> None:
    """The Ray Train run, in a thread of its own."""
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from datas3_ray.runtime import cluster_gpus

    gpus = config.gpus if cluster_gpus() else 0
    resources = {"CPU": 1.0, **({"GPU": gpus} if gpus else {})}
    try:
        TorchTrainer(
            _work,
            train_loop_config={"post": post},
            # NCCL wants a GPU for each worker alone.
            torch_config=TorchConfig(backend="nccl" if gpus >= 1 else "gloo"),
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
        found = train(open_job(*ray.get(post.job.remote())), gang, tell)
        if gang.rank == 0:
            ray.get(post.tell.remote("end", [ray.put(found)]))
    except Datas3Error as error:
        ray.get(post.tell.remote("error", error))
        raise
