"""Work ahead in order: results, exceptions, what hangs, what is given up, and that the process still ends."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator

import pytest

from datas3_ray.errors import Datas3Error, UsageError
from datas3_ray.sources.watchdog import DecodePool, TimedOut

SHORT = 0.25  # seconds after which the pools of these tests give an item up


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """What hanging work waits for; the threads are let go when the test is over."""
    event = threading.Event()
    yield event
    event.set()


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("window", [1, 2, 7, 1000])
def test_results_are_in_order(threads: int, window: int) -> None:
    pool = DecodePool(threads, 60)
    assert list(pool.map(lambda n: n * n, range(100), window)) == [n * n for n in range(100)]
    assert list(pool.map(str, [], window)) == []
    assert list(pool.map(str, iter([None, 1]), window)) == ["None", "1"]
    pool.close()


@pytest.mark.parametrize("threads", [1, 3])
def test_no_more_than_the_window_is_ahead_and_one_thread_is_ahead_too(threads: int) -> None:
    pool, drawn, done = DecodePool(threads, 60), [], []

    def items() -> Iterator[int]:
        for n in range(20):
            drawn.append(n)
            yield n

    def work(n: int) -> int:
        done.append(n)
        return n

    results = pool.map(work, items(), window=4)
    assert not drawn
    for taken in range(1, 16):
        next(results)
        assert len(drawn) <= taken + 3
    deadline = time.monotonic() + 30
    while len(done) < 18 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert len(done) == 18  # 15 were taken, three more are ready although nobody asked for them
    assert list(results) == [15, 16, 17, 18, 19]
    pool.close()


def test_what_work_raises_is_raised_in_its_place() -> None:
    pool = DecodePool(2, 60)
    results = pool.map(lambda n: 10 // n, [5, 2, 0, 1], window=4)
    assert next(results) == 2 and next(results) == 5
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert list(results) == []
    assert list(pool.map(abs, [-1], window=1)) == [1]
    pool.close()


def test_what_the_items_raise_comes_after_the_results_before() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise OSError("the shard ends here")

    pool, got = DecodePool(2, 60), []
    with pytest.raises(OSError, match="ends here"):
        for result in pool.map(abs, items(), window=8):
            got.append(result)
    assert got == [1, 2]
    pool.close()


@pytest.mark.parametrize("threads", [1, 2])
def test_what_hangs_is_given_up_in_its_place(threads: int, release: threading.Event) -> None:
    pool = DecodePool(threads, SHORT)

    def work(n: int) -> int:
        if n in (0, 4, 5, 9):
            release.wait(60)
        return n

    expected = [TimedOut(n, SHORT) if n in (0, 4, 5, 9) else n for n in range(10)]
    assert list(pool.map(work, range(10), window=6)) == expected
    assert list(pool.map(work, [1, 2, 3], window=2)) == [1, 2, 3]
    pool.close()


def test_only_an_items_own_time_counts() -> None:
    pool = DecodePool(1, 0.4)
    results = pool.map(lambda n: time.sleep(0.05) or n, range(12), window=12)  # the last waits for 11 others
    assert next(results) == 0
    time.sleep(0.7)  # and the consumer takes its time as well
    assert list(results) == list(range(1, 12))
    pool.close()


def test_a_slow_thread_that_was_given_up_does_no_more_work(release: threading.Event) -> None:
    pool, names = DecodePool(1, SHORT), []

    def work(n: int) -> int:
        names.append(threading.current_thread())
        if n == 0:
            release.wait(60)
        return n

    assert list(pool.map(work, [0, 1], window=2)) == [TimedOut(0, SHORT), 1]
    release.set()
    names[0].join(30)
    assert not names[0].is_alive() and names[1] is not names[0]
    assert list(pool.map(work, [2, 3], window=2)) == [2, 3]
    assert names[2] is names[3] is names[1]
    pool.close()


def test_a_thread_left_hanging_by_an_earlier_map_does_not_stop_the_next(release: threading.Event) -> None:
    pool = DecodePool(1, SHORT)
    stopped = pool.map(lambda n: n if n == 0 else release.wait(60), range(9), window=3)
    assert next(stopped) == 0
    stopped.close()  # the second item hangs, and nobody will ever ask for it
    assert list(pool.map(abs, [-7, -8], window=2)) == [7, 8]
    pool.close()


def test_too_many_hung_threads_end_the_run(release: threading.Event) -> None:
    pool = DecodePool(2, SHORT, max_abandoned=3)
    got = []
    with pytest.raises(Datas3Error, match="[34] threads hang"):
        for result in pool.map(lambda n: release.wait(60), range(10), window=4):
            got.append(result)
    assert len(got) <= 3 and all(isinstance(one, TimedOut) for one in got)
    pool.close()


def test_threads_that_came_back_are_not_counted_as_hung() -> None:
    pool = DecodePool(1, SHORT, max_abandoned=2)
    for n in range(3):
        event = threading.Event()
        (result,) = pool.map(lambda item, event=event: event.wait(60), [n], window=1)
        assert result == TimedOut(n, SHORT)
        event.set()
        deadline = time.monotonic() + 30
        while any(one.thread.is_alive() for one in pool._abandoned) and time.monotonic() < deadline:
            time.sleep(0.001)
    pool.close()


def test_closing_ends_the_threads_and_refuses_more() -> None:
    pool = DecodePool(3, 60)
    threads = [worker.thread for worker in pool._workers]
    pool.close()
    pool.close()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    with pytest.raises(Datas3Error, match="closed"):
        list(pool.map(abs, [1], window=1))


def test_a_pool_that_nobody_holds_ends_its_threads_and_keeps_nothing() -> None:
    class Thing:
        pass

    pool = DecodePool(2, 60)
    threads = [worker.thread for worker in pool._workers]
    thing = Thing()
    gone = weakref.ref(thing)
    (result,) = pool.map(lambda one: [one], [thing], window=1)
    del thing, result
    deadline = time.monotonic() + 30
    while gone() is not None and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.001)
    assert gone() is None
    del pool
    gc.collect()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)


def test_bad_parameters_are_refused() -> None:
    for parameters in (
        {"threads": 0, "seconds": 1},
        {"threads": 1, "seconds": 0},
        {"threads": 1, "seconds": float("nan")},
    ):
        with pytest.raises(UsageError, match="is not allowed"):
            DecodePool(**parameters)
    with pytest.raises(UsageError, match="window = 0"):
        DecodePool(1, 1).map(abs, [1], window=0)
    assert list(DecodePool(1, float("inf")).map(abs, [-1], window=1)) == [1]


def test_the_interpreter_ends_although_a_thread_hangs() -> None:
    program = """
import threading
from datas3_ray.sources.watchdog import DecodePool
pool = DecodePool(1, 0.1)
print(list(pool.map(lambda n: threading.Event().wait() if n == 1 else n, range(3), window=3)))
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == "[0, TimedOut(item=1, seconds=0.1), 2]"
