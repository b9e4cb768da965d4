"""Starting or joining Ray quietly, and asking the cluster for what a task needs."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from datas3_ray.errors import Datas3Error

# Set before Ray is imported: Ray reads them once, at import or at start.
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    # The first failure of many tasks is raised; what the others failed with is not fetched, nor waited for.
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
}
# Ray's workers inherit these. Without the first two what threads allocate is spread over many arenas and heaps that
# keep their free memory, so that a worker's grows for a long time with the number of shards it has seen. The thresholds
# keep the memory of a few batches for the next ones (a second arena would give it back whatever they say), and large
# pages make what is fresh cheap: small ones, got one by one, cost as much as the arithmetic on a virtual machine.
_LEAN_WORKERS = {
    "MALLOC_ARENA_MAX": "1",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "MALLOC_MMAP_THRESHOLD_": str(256 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(384 << 20),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
# Ray ends workers that were idle for a second, and what they have imported takes seconds to import again: where one
# task has all CPUs for a while, as k-means does, the other workers are to be there still when it is done.
_WORKERS_STAY = {"RAY_idle_worker_killing_time_threshold_ms": "300000"}

WORKER_SETTINGS = _LEAN_WORKERS | _WORKERS_STAY
"""What Ray is to be started with, on a laptop and on every node of a cluster."""

HEARD_SECONDS = 0.5
"""How long it may take until the CPUs of tasks that are done count as idle."""


def prepare_environment() -> None:
    """Set what Ray and its workers read from the environment when they start, where the user has not set it."""
    for key, value in (_QUIET | WORKER_SETTINGS).items():
        os.environ.setdefault(key, value)


def ensure_ray(num_cpus: int | None = None) -> None:
    """Join the cluster named by ``RAY_ADDRESS`` (set inside a submitted job), or start Ray on this machine.

    Does nothing when Ray is already running in this process. ``num_cpus`` applies to a machine of our own only.
    """
    prepare_environment()
    # Lance warns whenever the process forks, which starting Ray's own programs does; they never touch Lance.
    warnings.filterwarnings("ignore", message="lance is not fork-safe")
    import ray

    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if not address:
        options |= {"num_cpus": num_cpus, "include_dashboard": False}
    try:
        with _native_stderr_aside():
            ray.init(address=address or "local", **options)
    except ConnectionError as error:
        raise Datas3Error(
            f"no Ray cluster answers at {address}; start it, or unset RAY_ADDRESS to work on this machine alone."
        ) from error
    quiet_ray_data()


@contextmanager
def _native_stderr_aside() -> Iterator[None]:
    """Keep what Ray's C++ core says while it starts off the terminal, unless starting fails."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as aside:
        terminal = os.dup(2)
        os.dup2(aside.fileno(), 2)
        failed = True
        try:
            yield
            failed = False
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
            if failed:
                aside.seek(0)
                sys.stderr.write(aside.read().decode(errors="replace"))


def quiet_ray_data() -> None:
    """Turn off Ray Data's own bars and plan print-outs: the project draws one bar of its own."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)


def cluster_cpus() -> int:
    """CPUs of the whole cluster, at least 1."""
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def idle_cpus() -> int:
    """CPUs that one task can have now, at least 1: the idle ones, but not more than the largest node has."""
    import ray

    largest = max((node["Resources"].get("CPU", 1) for node in ray.nodes() if node["Alive"]), default=1)
    # Ray hears of it a moment later when a task has given its CPU back.
    until = time.monotonic() + HEARD_SECONDS
    while (idle := ray.available_resources().get("CPU", 1)) < largest and time.monotonic() < until:
        time.sleep(0.02)
    return max(1, int(min(largest, idle)))


def cluster_gpus() -> int:
    """GPUs of the whole cluster."""
    import ray

    return int(ray.cluster_resources().get("GPU", 0))


def matrix_task() -> dict[str, float]:
    """Ray resources of a task that multiplies matrices: one GPU where the cluster has any, else one CPU."""
    return {"num_gpus": 1, "num_cpus": 1} if cluster_gpus() else {"num_cpus": 1}


def device() -> str:
    """The torch device of this worker process."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@cache
def remote(function: Callable[..., Any]) -> Any:
    """``ray.remote(function)``, made once a process: each new one is sent to every worker again."""
    import ray

    return ray.remote(function)


def settled(refs: list[Any]) -> list[Any]:
    """The same references once their tasks are done or have failed; nothing is fetched.

    For tasks that fetch references themselves, one after another: a task that waits for others inside its worker makes
    Ray start another worker meanwhile.
    """
    import ray

    if refs:
        ray.wait(refs, num_returns=len(refs), fetch_local=False)
    return refs


def gather(refs: Iterable[Any]) -> list[Any]:
    """All results in order; a task's own exception is raised as itself, not as a RayTaskError."""
    import ray
    from ray.exceptions import RayTaskError

    try:
        return ray.get(list(refs))
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, Exception):
            raise cause from error
        raise
