"""Work ahead in threads of its own, in order, and go on when one piece of it hangs.

A damaged image can send a decoder into a loop that no exception ends, and a thread cannot be killed. So it is left
behind: its item is reported, another thread takes its place, and as these are daemon threads the process can still end.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from datas3_ray.errors import Datas3Error, UsageError

T = TypeVar("T")
R = TypeVar("R")

_LONGEST_WAIT = 60.0  # seconds between two looks at what is running
_SHORTEST_WAIT = 0.001
_UNTIL_BEGUN = 0.05


@dataclass(frozen=True)
class TimedOut(Generic[T]):
    """In the place of a result: ``item`` was worked on for more than ``seconds`` and was given up."""

    item: T
    seconds: float


class DecodePool:
    """Threads that work ahead. One thread at a time may take results from it.

    ``threads`` work at once, at least one; an item may take ``seconds`` of its own running time (waiting for its turn,
    or for the consumer, does not count); once ``max_abandoned`` threads hang, taking results raises Datas3Error.

    >>> pool = DecodePool(threads=2, seconds=10)
    >>> list(pool.map(str.upper, ["a", "b", "c"], window=2))
    ['A', 'B', 'C']
    >>> pool.close()
    """

    def __init__(self, threads: int, seconds: float, max_abandoned: int = 8) -> None:
        for name, value in (("threads", threads), ("seconds", seconds), ("max_abandoned", max_abandoned)):
            if not (value > 0 if name == "seconds" else value >= 1):
                least = "more than 0" if name == "seconds" else "at least 1"
                raise UsageError(f"DecodePool: {name} = {value!r} is not allowed: it has to be {least}.")
        self.seconds = seconds
        self.max_abandoned = max_abandoned
        self._queue: SimpleQueue[_Job | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._workers = [_start(self._queue) for _ in range(threads)]
        self._abandoned: list[_Worker] = []
        # The threads know the queue and not the pool, so that a pool nobody holds any more ends them.
        self._close = weakref.finalize(self, _dismiss, self._queue, threads)

    def map(self, work: Callable[[T], R], items: Iterable[T], window: int) -> Iterator[R | TimedOut[T]]:
        """``map(work, items)`` in order, with at most ``window`` items begun or done and not yet taken.

        ``items`` are drawn in the thread that takes the results. What ``work`` or ``items`` raise is raised in its
        place, after the results before it; that ends the iteration.

        Raises:
            UsageError: ``window`` is less than 1.
            Datas3Error: the pool is closed, or too many threads hang.
        """
        if window < 1:
            raise UsageError(f"DecodePool.map: window = {window!r} is not allowed: it has to be at least 1.")
        return self._map(work, items, window)

    def close(self) -> None:
        """End the threads once what they do is done; those that hang stay. Twice is as good as once."""
        self._close()

    def _map(self, work: Callable[[T], R], items: Iterable[T], window: int) -> Iterator[R | TimedOut[T]]:
        waiting: deque[_Job] = deque()
        failure: Exception | None = None
        source = iter(items)
        try:
            while True:
                while failure is None and len(waiting) < window:
                    try:
                        item = next(source)
                    except StopIteration:
                        window = 0
                        break
                    except Exception as error:
                        failure = error
                        break
                    waiting.append(self._submit(work, item))
                if not waiting:
                    break
                yield self._result(waiting.popleft())
        finally:
            for job in waiting:
                job.cancelled = True
        if failure is not None:
            raise failure

    def _submit(self, work: Callable[[Any], Any], item: Any) -> _Job:
        if not self._close.alive:
            raise Datas3Error("the pool of decoding threads is closed; make a new one.")
        job = _Job(work, item)
        self._queue.put(job)
        return job

    def _result(self, job: _Job) -> Any:
        if not job.done.acquire(blocking=False):
            while not job.done.acquire(timeout=self._patience(job)):
                self._relieve()
        if job.error is not None:
            raise job.error
        return job.result

    def _patience(self, job: _Job) -> float:
        """Seconds until the first of the running items may have had its time."""
        now = time.monotonic()
        running = [worker.job for worker in self._workers]
        left = [one.started + self.seconds - now for one in running if one is not None]
        if not job.started:
            left.append(_UNTIL_BEGUN)
        return max(_SHORTEST_WAIT, min([*left, _LONGEST_WAIT]))

    def _relieve(self) -> None:
        """Put new threads in the place of those whose item has had its time."""
        now = time.monotonic()
        with self._lock:
            for position, worker in enumerate(self._workers):
                job = worker.job
                if job is None or now - job.started < self.seconds or not job.claim.acquire(blocking=False):
                    continue
                self._workers[position] = _start(self._queue)
                self._abandoned = [*(one for one in self._abandoned if one.thread.is_alive()), worker]
                job.result = TimedOut(job.item, self.seconds)
                job.done.release()
            hung = len(self._abandoned)
        if hung >= self.max_abandoned:
            raise Datas3Error(
                f"{hung} threads hang in one process, each on an item that took more than {self.seconds:g} s; if the "
                "items are good and the machine is slow, allow more seconds, else take out what cannot be decoded."
            )


class _Job:
    """One item. ``claim`` goes to whoever ends it, its thread or the watchdog; ``done`` opens when it has ended."""

    __slots__ = ("cancelled", "claim", "done", "error", "item", "result", "started", "work")

    def __init__(self, work: Callable[[Any], Any], item: Any) -> None:
        self.work = work
        self.item = item
        self.started = 0.0
        self.cancelled = False
        self.result: Any = None
        self.error: BaseException | None = None
        self.claim = threading.Lock()
        self.done = threading.Lock()
        self.done.acquire()


class _Worker:
    """A thread and what it is doing."""

    __slots__ = ("job", "thread")

    def __init__(self) -> None:
        self.job: _Job | None = None
        self.thread: threading.Thread


def _start(queue: SimpleQueue[_Job | None]) -> _Worker:
    worker = _Worker()
    worker.thread = threading.Thread(target=_serve, args=(queue, worker), name="datas3-decode", daemon=True)
    worker.thread.start()
    return worker


def _serve(queue: SimpleQueue[_Job | None], worker: _Worker) -> None:
    while (job := queue.get()) is not None:
        if job.cancelled:
            continue
        job.started = time.monotonic()
        worker.job = job
        result, error = None, None
        try:
            result = job.work(job.item)
        except BaseException as raised:  # it is raised where the results are taken
            error = raised
        if not job.claim.acquire(blocking=False):
            return  # given up: another thread has this one's place
        worker.job = None
        job.result, job.error, job.item = result, error, None
        job.done.release()
        del job, result, error  # nothing is held while the thread waits for its next item


def _dismiss(queue: SimpleQueue[_Job | None], threads: int) -> None:
    for _ in range(threads):
        queue.put(None)
