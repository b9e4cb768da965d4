"""Batches of images in an order that depends on nothing but the seed, the epoch and the rows' ids.

A global batch is the same however many workers share it, whether pixels come from memory or are decoded anew, and in
whatever order the rows were stored. What is drawn for a row (its place in the epoch, its crop, whether it is mirrored)
is a hash of its id, the seed and the epoch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datas3_ray.kernels.hashing import hash64, id_words, uniform
from datas3_ray.runtime import remote
from datas3_ray.training.image_rows import ImageRows
from datas3_ray.training.pixels import CHUNK, cpus, decode_rows, margin, pixels

if TYPE_CHECKING:
    import torch

    from datas3_ray.training.config import SweepConfig

AUGMENT = ("none", "flip", "crop")
SAMPLING = ("shuffle", "balanced", "rs2")
CROP_AREA = (0.25, 1.0)
"""Share of an image's area that a random crop has."""
CROP_RATIO = (3 / 4, 4 / 3)
"""Width over height of a random crop."""

_BATCHES_AHEAD = 2
_MOST_THREADS = 8


@dataclass(frozen=True)
class LoaderSettings:
    """What batches are like.

    Attributes
    ----------
    size : int
        Width and height of an image in a batch, in pixels.
    batch_size : int
        Rows of a global batch, over all workers. The last one of an epoch has what is left.
    seed : int
    augment : {"none", "flip", "crop"}
        ``flip`` mirrors half of the images; ``crop`` also cuts a random part out of each (of :data:`CROP_AREA`, at
        :data:`CROP_RATIO`) and scales it to ``size``.
    sampling : {"shuffle", "balanced", "rs2"}
        Every row once an epoch; as many draws as rows, each class as often; ``draws`` rows anew every epoch (RS2).
    cache_bytes : int
        Decoded images are kept where all of them fit in this, one copy a machine.
    draws : int, optional
        Rows of an epoch with ``rs2``.
    tasks : int
        Ray tasks that decode at once; with 0 it is threads of this process.
    """

    size: int
    batch_size: int
    seed: int = 0
    augment: str = "none"
    sampling: str = "shuffle"
    cache_bytes: int = 2 << 30
    draws: int | None = None
    tasks: int = 0

    def __post_init__(self) -> None:
        if self.size < 1 or self.batch_size < 1:
            raise ValueError(f"size and batch_size must be at least 1, got {self.size} and {self.batch_size}")
        if self.augment not in AUGMENT or self.sampling not in SAMPLING:
            raise ValueError(f"augment is one of {AUGMENT} and sampling one of {SAMPLING}")
        if (self.sampling == "rs2") != (self.draws is not None):
            raise ValueError("draws and sampling 'rs2' belong together")


@dataclass
class Batch:
    """One worker's part of a global batch of b rows.

    Attributes
    ----------
    rows : ndarray of shape (b,), int64
        Positions in the loader's :class:`ImageRows`.
    images : torch.Tensor of shape (b, 3, size, size), uint8
        RGB; in memory the channels come last, as convolutions like it.
    everyone : ndarray of shape (B,), int64
        Positions of the global batch, over all workers.
    """

    rows: np.ndarray
    images: torch.Tensor
    everyone: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)


class Loader:
    """Images of ``rows`` as batches.

    Making one reads every image once on this machine, to keep the pixels where they fit and to leave out what cannot
    be read.

    Parameters
    ----------
    rows : ImageRows
    settings : LoaderSettings
    classes : ndarray of shape (n,), int, optional
        Class of each of the n rows; needed for ``balanced``.
    rank, world : int
        Which worker this is, of how many.
    only : ndarray of int64, optional
        Positions in ``rows`` to use; the pixels of all rows are kept, so that several loaders can share them.

    Examples
    --------
    >>> rows = ImageRows(pa.array(["a"]), pa.table({"uri": ["nowhere.jpg"], "offset": [0], "length": [9]}))
    >>> loader = Loader(rows, LoaderSettings(size=8, batch_size=2))
    >>> loader.unreadable, [len(batch) for batch in loader.epoch(1)]
    (1, [])
    """

    def __init__(
        self,
        rows: ImageRows,
        settings: LoaderSettings,
        *,
        classes: np.ndarray | None = None,
        rank: int = 0,
        world: int = 1,
        only: np.ndarray | None = None,
    ) -> None:
        if settings.sampling == "balanced" and classes is None:
            raise ValueError("balanced sampling needs the rows' classes")
        self.rows, self.settings, self.rank, self.world = rows, settings, rank, world
        self.edge = margin(settings.size) if settings.augment == "crop" else settings.size
        self._pixels = pixels(rows, settings.size, self.edge, settings.cache_bytes)
        wanted = np.arange(len(rows)) if only is None else np.asarray(only, dtype=np.int64)
        self.positions = wanted[self._pixels.readable[wanted]]
        """The rows that can be read, int64, as they were given."""
        self._left_out = len(wanted) - len(self.positions)
        self._lost: set[int] = set()
        self._classes = classes[self.positions] if classes is not None else None
        ids = rows.ids.take(pa.array(self.positions))
        self._hashes = hash64(id_words(ids), seed=settings.seed, stream="loader")
        # Places in positions, in the order of the ids.
        self._by_id = pc.array_sort_indices(ids).to_numpy().astype(np.int64)

    @property
    def cached(self) -> bool:
        """Whether the pixels are in memory, and nothing is decoded during an epoch."""
        return self._pixels.squares is not None

    @property
    def unreadable(self) -> int:
        """Rows left out because their images cannot be read: found when the loader was made, or lost since."""
        return self._left_out + len(self._lost)

    def __len__(self) -> int:
        """Rows of an epoch."""
        draws = self.settings.draws
        return len(self.positions) if draws is None else min(draws, len(self.positions))

    def order(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions in the order of epoch ``number``, int64 (n,), and which draw of its row each is, from 0, (n,)."""
        places, copies = self._draws(number)
        by_hash = np.lexsort((copies, self._hashes[places], self._drawn("order", number, places, copies)))
        return self.positions[places[by_hash]], copies[by_hash]

    def epoch(self, number: int, limit: int | None = None) -> Iterator[Batch]:
        """This worker's parts of the global batches of epoch ``number``: augmented, in that epoch's order.

        With a ``limit`` the epoch ends after so many rows. Every worker gets a part of every batch; with fewer rows in
        the last batch than workers, some parts have no rows.
        """
        positions, copies = self.order(number)
        place_of = np.zeros(len(self.rows), dtype=np.int64)
        place_of[self.positions] = np.arange(len(self.positions))
        batches = []
        end = len(positions) if limit is None else min(limit, len(positions))
        for start in range(0, end, self.settings.batch_size):
            part = slice(start, min(start + self.settings.batch_size, end))
            mine = slice(part.start + self.rank, part.stop, self.world)
            changes = self._changes(number, place_of[positions[mine]], copies[mine])
            batches.append(_Wanted(positions[mine], positions[part], changes))
        yield from self._load(batches)

    def plain(self) -> Iterator[Batch]:
        """This worker's parts of all rows once, in the order they were given, without augmentation."""
        batches = []
        for start in range(0, len(self.positions), self.settings.batch_size):
            part = self.positions[start : start + self.settings.batch_size]
            mine = part[self.rank :: self.world]
            batches.append(_Wanted(mine, part, _Changes.none(len(mine))))
        yield from self._load(batches)

    def _draws(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Places in ``positions`` that an epoch draws, in the order of ids, and which draw of its row each is."""
        every, sampling = self._by_id, self.settings.sampling
        once = np.zeros(len(every), dtype=np.int64)
        if sampling == "balanced" and len(every):
            return self._balanced(number)
        if sampling == "rs2":
            drawn = np.lexsort((np.arange(len(every)), self._drawn("rs2", number, every, once)))[: len(self)]
            every = every[np.sort(drawn)]
        return every, once[: len(every)]

    def _balanced(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """As many draws as rows. A class's rows are drawn in turns, so that none is drawn twice more than another."""
        assert self._classes is not None
        classes, sizes = np.unique(self._classes, return_counts=True)
        share, left = divmod(len(self.positions), len(classes))
        # Which classes get one draw more than the others changes from epoch to epoch.
        more = (np.arange(len(classes)) + number) % len(classes) < left
        places, copies = [], []
        for one, size, extra in zip(classes, sizes, more, strict=True):
            members = self._by_id[self._classes[self._by_id] == one]
            shuffled = members[np.argsort(self._drawn("class", number, members, np.zeros(size)), kind="stable")]
            turns = np.arange(share + extra)
            places.append(shuffled[turns % size])
            copies.append(turns // size)
        return np.concatenate(places), np.concatenate(copies)

    def _drawn(self, what: str, number: int, places: np.ndarray, copies: np.ndarray) -> np.ndarray:
        """A 64-bit hash of each draw for one purpose, uint64 (n,)."""
        words = np.empty((len(places), 3), dtype=np.uint64)
        # Zero words do not count in a hash, so epochs and copies are numbered from 1 here.
        words[:, 0], words[:, 1], words[:, 2] = self._hashes[places], number + 1, copies + 1
        return hash64(words, seed=self.settings.seed, stream=what)

    def _changes(self, number: int, places: np.ndarray, copies: np.ndarray) -> _Changes:
        """What is done to each image in this epoch."""
        if self.settings.augment == "none":
            return _Changes.none(len(places))
        u = {
            name: uniform(self._drawn(name, number, places, copies))
            for name in (("mirror",) if self.settings.augment == "flip" else ("mirror", "area", "ratio", "left", "top"))
        }
        boxes = None
        if self.settings.augment == "crop":
            area = CROP_AREA[0] + u["area"] * (CROP_AREA[1] - CROP_AREA[0])
            low, high = np.log(CROP_RATIO)
            ratio = np.exp(low + u["ratio"] * (high - low))
            width, height = np.minimum(np.sqrt(area * ratio), 1), np.minimum(np.sqrt(area / ratio), 1)
            left, top = u["left"] * (1 - width), u["top"] * (1 - height)
            boxes = self.edge * np.stack([left, top, left + width, top + height], axis=1)
        return _Changes(u["mirror"] < 0.5, boxes)

    def _load(self, batches: list[_Wanted]) -> Iterator[Batch]:
        """Batches in order, with the next ones on their way."""
        import torch

        jobs = deque((wanted, start) for wanted in batches for start in range(0, max(len(wanted.rows), 1), CHUNK))
        with _workers(self.settings.tasks if not self.cached else 0) as (submit, at_once):
            ahead = max(at_once + 1, -(-_BATCHES_AHEAD * self.settings.batch_size // (CHUNK * self.world)))
            running: deque[Callable[[], Any]] = deque()
            for wanted in batches:
                parts = []
                for _ in range(0, max(len(wanted.rows), 1), CHUNK):
                    while jobs and len(running) < ahead:
                        running.append(self._start(submit, *jobs.popleft()))
                    parts.append(running.popleft()())
                readable = np.concatenate([part[1] for part in parts])
                self._lost.update(wanted.rows[~readable].tolist())
                images = np.concatenate([part[0] for part in parts])
                yield Batch(wanted.rows[readable], torch.from_numpy(images).permute(0, 3, 1, 2), wanted.everyone)

    def _start(self, submit: Callable[..., Callable[[], Any]], wanted: _Wanted, start: int) -> Callable[[], Any]:
        """Begin one job: the images of some rows of a batch."""
        rows = wanted.rows[start : start + CHUNK]
        changes = wanted.changes.part(start)
        if self._pixels.squares is not None:
            return submit(_from_memory, self._pixels.squares, rows, changes, self.settings.size)
        return submit(_from_store, self.rows.take(rows), self.settings.size, self.edge, changes)


@dataclass(frozen=True)
class _Changes:
    """What is done to m images: mirrored or not, bool (m,), and the box that is cut out, float (m, 4), in pixels."""

    mirror: np.ndarray
    boxes: np.ndarray | None

    @staticmethod
    def none(count: int) -> _Changes:
        return _Changes(np.zeros(count, dtype=bool), None)

    def part(self, start: int) -> _Changes:
        return self.take(slice(start, start + CHUNK))

    def take(self, which: slice | np.ndarray) -> _Changes:
        return _Changes(self.mirror[which], self.boxes[which] if self.boxes is not None else None)


@dataclass(frozen=True)
class _Wanted:
    """One worker's part of a batch before it is loaded."""

    rows: np.ndarray
    everyone: np.ndarray
    changes: _Changes


def _from_memory(squares: np.ndarray, rows: np.ndarray, changes: _Changes, size: int) -> tuple[np.ndarray, np.ndarray]:
    return _changed(squares[rows], changes, size), np.ones(len(rows), dtype=bool)


def _from_store(rows: ImageRows, size: int, edge: int, changes: _Changes) -> tuple[np.ndarray, np.ndarray]:
    squares, readable = decode_rows(rows, size, edge)
    return _changed(squares, changes.take(readable), size), readable


def _changed(squares: np.ndarray, changes: _Changes, size: int) -> np.ndarray:
    """Squares uint8 (m, edge, edge, 3) cut to (m, size, size, 3): their centre, or the box that was drawn."""
    if changes.boxes is None:
        low = (squares.shape[1] - size) // 2
        images = squares[:, low : low + size, low : low + size]
    else:
        images = _cropped(squares, changes.boxes, size)
    return np.where(changes.mirror[:, None, None, None], images[:, :, ::-1], images)


def _cropped(squares: np.ndarray, boxes: np.ndarray, size: int) -> np.ndarray:
    from PIL import Image

    images = np.empty((len(squares), size, size, 3), dtype=np.uint8)
    for place, (pixels_of_one, box) in enumerate(zip(squares, boxes.tolist(), strict=True)):
        cut = Image.fromarray(pixels_of_one).resize((size, size), Image.Resampling.BILINEAR, box=tuple(box))
        images[place] = np.asarray(cut)
    return images


@contextmanager
def _workers(tasks: int) -> Iterator[tuple[Callable[..., Callable[[], Any]], int]]:
    """A function that starts a job and gives back how to wait for it, and how many jobs run at once."""
    if tasks:
        import ray

        # Tasks take no CPUs of Ray's: the trials may have all of them, and would wait for their own decoders for ever.
        call = remote(_call).options(num_cpus=0, scheduling_strategy="SPREAD")

        def start(job: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
            reference = call.remote(job, *arguments)
            return lambda: ray.get(reference)

        yield start, tasks
        return
    at_once = min(cpus(), _MOST_THREADS)
    threads = ThreadPoolExecutor(at_once)

    def begin(job: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
        future: Future[Any] = threads.submit(job, *arguments)
        return future.result

    try:
        yield begin, at_once
    finally:
        threads.shutdown(wait=True, cancel_futures=True)


def _call(job: Callable[..., Any], *arguments: Any) -> Any:
    return job(*arguments)


def decoding_tasks(config: SweepConfig) -> int:
    """CPUs of the cluster that no trial needs, for each worker that trains; 0 where Ray is not running."""
    import ray

    if not ray.is_initialized():
        return 0
    from datas3_ray.runtime import cluster_cpus, cluster_gpus

    workers = max(1, config.max_concurrent or int(cluster_gpus() / max(config.gpus, 0.25))) * config.workers
    return min(16, max(0, cluster_cpus() - workers) // workers)
