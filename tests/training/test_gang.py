"""What trials and workers say to each other, without workers."""

from __future__ import annotations

from typing import Any

import pytest

from datas3_ray.training import gang
from datas3_ray.training.gang import Post


def work(*_: Any) -> Any:
    raise AssertionError("nobody does it here")


def test_a_work_goes_to_the_workers_and_its_end_to_the_trial() -> None:
    post = Post()
    assert post.next(0, 1) == (0, None)
    number = post.give(work)
    assert post.give(work) is None  # another trial has to wait
    assert [post.next(0, 1) for _ in range(2)] == [(number, work)] * 2 and post.next(number, 1) == (number, None)
    post.tell(number, 1, "epoch", {"epoch": 1})
    post.tell(number, 1, "end", ["found"])
    assert post.news(number) == [("epoch", {"epoch": 1}), ("end", ["found"])] and post.news(number) == []
    post.done(number)
    following = post.give(work)
    assert following == number + 1 and post.next(number, 1) == (following, work)


def test_a_run_that_fails_fails_the_trial_whose_work_it_had_and_no_other() -> None:
    post = Post()
    number = post.give(work)
    post.next(0, 1)
    post.tell(number, 1, "error", "mistake")
    assert post.news(number) == [("error", "mistake")]
    post.done(number)
    # The next trial's work is not for the run that is about to end, and its end is not that trial's.
    following = post.give(work)
    with pytest.raises(RuntimeError, match="this run of workers has ended"):
        post.next(number, 1)
    post.died(1, "mistake")
    assert post.news(following) == []
    assert post.next(0, 2) == (following, work)
    post.died(2, "out of memory")
    assert post.news(following) == [("died", "out of memory")]


def test_workers_that_cannot_start_fail_the_trial_that_waits() -> None:
    post = Post()
    number = post.give(work)
    post.died(1, "no such node")
    assert post.news(number) == [("died", "no such node")]


def test_workers_of_a_trial_that_was_stopped_are_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    post = Post()
    stopped = post.give(work)
    post.next(0, 1)
    monkeypatch.setattr(gang, "_STALE_SECONDS", -1.0)
    taken = post.give(work)
    assert taken == stopped + 1
    with pytest.raises(RuntimeError, match="the trial was stopped"):
        post.tell(stopped, 1, "epoch", {})
    assert post.news(stopped) == [("died", "another trial has taken them")]
    post.died(1, "the trial was stopped")
    assert post.news(taken) == [] and post.next(0, 2) == (taken, work)
