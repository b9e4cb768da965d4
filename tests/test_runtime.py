"""What the project asks of Ray."""

from __future__ import annotations

import gc
import os
import time
from typing import Any

import pytest
import ray

from datas3_ray import runtime
from datas3_ray.runtime import gather, idle_cpus, prepare_environment, remote, settled


def _sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def _fail() -> None:
    raise KeyError("no such row")


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "7")
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    prepare_environment()
    assert os.environ["MALLOC_ARENA_MAX"] == "7"
    assert os.environ["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"


def test_a_function_is_sent_to_the_workers_once(ray_session: None) -> None:
    assert remote(_sleep) is remote(_sleep) is not remote(_fail)
    assert gather(remote(_sleep).remote(seconds) for seconds in (0.0, 0.01)) == [0.0, 0.01]


def test_settled_waits_for_all_and_a_failure_shows_when_it_is_fetched(ray_session: None) -> None:
    started = time.monotonic()
    refs: list[Any] = [remote(_sleep).remote(0.3), remote(_fail).remote()]
    assert settled(refs) is refs
    assert time.monotonic() - started >= 0.25
    ready, _ = ray.wait(refs, num_returns=2, timeout=0)
    assert len(ready) == 2
    with pytest.raises(KeyError, match="no such row"):
        gather(refs)
    assert settled([]) == []


def test_one_failure_is_told_of_many_and_ray_says_nothing(ray_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the other tasks failed with is never fetched: Ray would print it with its traces."""
    from ray._private import worker

    said: list[Exception] = []
    monkeypatch.setattr(worker, "_unhandled_error_handler", said.append)
    failing = [remote(_fail).remote() for _ in range(8)]
    with pytest.raises(KeyError, match="no such row"):
        gather(failing)
    time.sleep(1.0)  # until the others have failed, too
    failing.clear()
    gc.collect()
    gather([remote(_sleep).remote(0.0)])
    assert said == []


def test_the_cpus_of_tasks_that_are_done_are_idle(ray_session: None) -> None:
    """Ray counts them late: asked at once, it says that there is one."""
    every = int(max(node["Resources"].get("CPU", 1) for node in ray.nodes() if node["Alive"]))
    for _ in range(5):
        gather(remote(_sleep).remote(0.01) for _ in range(4 * every))
        assert idle_cpus() == every


def test_a_busy_cluster_is_not_waited_for(ray_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "HEARD_SECONDS", 0.1)
    busy = remote(_sleep).remote(2.0)
    time.sleep(0.5)
    started = time.monotonic()
    assert idle_cpus() >= 1
    assert time.monotonic() - started < 1.0
    gather([busy])
