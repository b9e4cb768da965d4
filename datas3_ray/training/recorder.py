"""A recorder: each training row's logits after each epoch of a run, in files that need not fit in memory.

A record is a folder: ``logits.npy`` (epochs, n, c), ``seen.npy`` (epochs, n; which rows have been written),
``rows.arrow`` (``id`` and ``label``, a code) and ``record.json``. Whatever trains writes blocks of rows, in any order
and from any process of the machine; a record scores itself when it is done, again and again, without training.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from datas3_ray.errors import Datas3Error, UsageError
from datas3_ray.kernels.training_scores import DECAY, EARLY, WINDOW, Rows, TrainingScores

BLOCK_ROWS = 8192

_RECORD, _ROWS, _LOGITS, _SEEN = "record.json", "rows.arrow", "logits.npy", "seen.npy"
_FILES = {_RECORD, _ROWS, _LOGITS, _SEEN}


class Recorder:
    """Writes a record.

    Parameters
    ----------
    folder : str or Path
        A new folder, or one that holds a record that was never completed: it is then begun anew.
    ids : pyarrow.Array of string (n,)
        The training rows, in the order in which rows are counted from here on.
    labels : int (n,)
        Codes into ``classes``.
    classes : sequence of str (c,)
        Names of the classes, in the order of the logits.
    epochs : int
        Epochs that will come.
    dtype : {"float16", "float32"}
        How logits are kept. No score sees a number that is added to all of a row, so float16 logits are kept less
        their row's largest, where float16 is finest; below -65504 they end.
    replace : bool
        Begin anew even where there is a whole record.
    made : str
        What the logits come from, for :func:`has_record`.

    Raises
    ------
    UsageError
        When the shapes do not fit, the folder holds something else, or the disk has not the room.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.mkdtemp() + "/record"
    >>> recorder = Recorder(folder, pa.array(["a", "b"]), [0, 1], ["cat", "dog"], epochs=1)
    >>> recorder.record(1, slice(0, 2), [[2.0, 0.0], [1.0, 0.0]])
    >>> read_record(folder).scores(["aum"])["aum"].tolist()
    [2.0, -1.0]
    """

    def __init__(
        self,
        folder: str | Path,
        ids: pa.Array,
        labels: npt.ArrayLike,
        classes: Sequence[str],
        *,
        epochs: int,
        dtype: Literal["float16", "float32"] = "float16",
        replace: bool = False,
        made: str = "",
    ) -> None:
        path, codes = Path(folder), np.asarray(labels, np.int64)
        _check(path, ids, codes, classes, epochs, dtype, replace)
        path.mkdir(parents=True, exist_ok=True)
        for name in _FILES:
            (path / name).unlink(missing_ok=True)
        shape = (epochs, len(ids), len(classes))
        _fits(path, shape, np.dtype(dtype))
        _new(path / _LOGITS, np.dtype(dtype), shape)
        _new(path / _SEEN, np.dtype(np.bool_), shape[:2])
        with pa.OSFile(str(path / _ROWS), "wb") as file:
            rows = pa.table({"id": ids.cast(pa.string()), "label": codes})
            with pa.ipc.new_file(file, rows.schema) as writer:
                writer.write_table(rows)
        # Written last: a folder without it holds no record.
        about = {"classes": [str(name) for name in classes], "epochs": epochs, "made": made}
        (path / _RECORD).write_text(json.dumps(about))
        self._open(path)

    @classmethod
    def attach(cls, folder: str | Path) -> Recorder:
        """The recorder of a record that another process of this machine has begun, to write other rows of it."""
        recorder = cls.__new__(cls)
        recorder._open(_existing(Path(folder)))
        return recorder

    def _open(self, path: Path) -> None:
        self.folder = path
        self._logits = np.load(path / _LOGITS, mmap_mode="r+", allow_pickle=False)
        self._seen = np.load(path / _SEEN, mmap_mode="r+", allow_pickle=False)

    def record(self, epoch: int, rows: Rows, logits: npt.ArrayLike) -> None:
        """Keep the logits (b, c) of some rows after an epoch (from 1), instead of those that were kept before.

        ``rows`` is a slice or an int array (b,) of places in ``ids``.

        Raises
        ------
        ValueError
            When there is no such epoch, or the shapes do not fit.
        Datas3Error
            When a logit is not finite.
        """
        epochs, _, classes = self._logits.shape
        if not 1 <= epoch <= epochs:
            raise ValueError(f"epoch must be in 1..{epochs}, not {epoch}")
        values = np.asarray(logits, np.float32)
        count = len(self._seen[epoch - 1, rows])
        if values.shape != (count, classes):
            raise ValueError(f"logits of shape {values.shape} do not fit {count} rows of {classes} classes")
        if not np.isfinite(values).all():
            raise Datas3Error(f"a training row's logits are not finite after epoch {epoch}; lower the learning rate.")
        if self._logits.dtype == np.float16:
            values = np.maximum(values - values.max(axis=1, keepdims=True), np.finfo(np.float16).min)
        self._logits[epoch - 1, rows] = values
        self._seen[epoch - 1, rows] = True

    def flush(self) -> None:
        """Wait until what was recorded is on the disk."""
        self._logits.flush()
        self._seen.flush()


class Record:
    """A record as it is read: ``ids`` (n,), ``labels`` int64 (n,), ``classes`` (c,), ``logits`` (epochs, n, c).

    ``logits`` is mapped, not read; ``epochs`` counts the leading epochs that every row has.
    """

    def __init__(self, folder: str | Path) -> None:
        path = _existing(Path(folder))
        about = json.loads((path / _RECORD).read_text())
        with pa.memory_map(str(path / _ROWS)) as file:
            rows = pa.ipc.open_file(file).read_all()
        self.folder = path
        self.ids: pa.Array = rows.column("id").combine_chunks()
        self.labels: npt.NDArray[np.int64] = rows.column("label").to_numpy()
        self.classes = tuple(about["classes"])
        self.logits: np.ndarray = np.load(path / _LOGITS, mmap_mode="r", allow_pickle=False)
        self.asked_epochs = int(about["epochs"])
        self.made = str(about.get("made", ""))
        seen = np.load(path / _SEEN, mmap_mode="r", allow_pickle=False)
        whole = [bool(epoch.all()) for epoch in seen]
        self.epochs = whole.index(False) if False in whole else len(whole)

    @property
    def complete(self) -> bool:
        """Whether every row has every epoch."""
        return self.epochs == self.asked_epochs

    def blocks(self, epoch: int) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
        """The rows and logits (b, c) of an epoch (from 1), one block after another."""
        if not 1 <= epoch <= self.epochs:
            raise ValueError(f"epoch must be in 1..{self.epochs}, not {epoch}")
        for first in range(0, len(self.ids), BLOCK_ROWS):
            rows = slice(first, min(first + BLOCK_ROWS, len(self.ids)))
            yield rows, np.asarray(self.logits[epoch - 1, rows], np.float32)

    def scores(
        self,
        names: Sequence[str],
        *,
        norms: npt.ArrayLike | None = None,
        early: int = EARLY,
        window: int = WINDOW,
        decay: float = DECAY,
    ) -> dict[str, npt.NDArray[np.float64]]:
        """Scores (n,) by name, of the epochs that every row has; see :mod:`datas3_ray.kernels.training_scores`.

        ``norms`` (n,) are the lengths of the last layer's features, for ``grand``.
        """
        lengths = None if norms is None else np.asarray(norms, np.float64)
        scores = TrainingScores(self.labels, len(self.classes), list(names), early=early, window=window, decay=decay)
        for epoch in range(1, self.epochs + 1):
            for rows, logits in self.blocks(epoch):
                scores.update(rows, logits, None if lengths is None else lengths[rows])
        return scores.results()


def read_record(folder: str | Path) -> Record:
    """The record in a folder.

    Raises
    ------
    UsageError
        When there is none.
    """
    return Record(folder)


def has_record(folder: str | Path, made: str | None = None) -> bool:
    """Whether a folder holds a record that has every epoch, and comes from what ``made`` says."""
    if not (Path(folder) / _RECORD).is_file():
        return False
    record = Record(folder)
    return record.complete and made in (None, record.made)


def _check(
    path: Path, ids: pa.Array, labels: np.ndarray, classes: Sequence[str], epochs: int, dtype: str, replace: bool
) -> None:
    if dtype not in ("float16", "float32"):
        raise UsageError(f"a record keeps logits as float16 or float32, not as {dtype!r}.")
    if epochs < 1 or not len(ids) or len(classes) < 2:
        raise UsageError(
            f"a record needs an epoch, a row and two classes or more, got {epochs} epochs, {len(ids)} rows and "
            f"{len(classes)} classes."
        )
    if labels.shape != (len(ids),) or labels.min() < 0 or labels.max() >= len(classes):
        raise UsageError(
            f"a record of {len(ids)} rows and {len(classes)} classes needs a label in 0..{len(classes) - 1} for each "
            f"row, got {len(labels)} labels in {labels.min()}..{labels.max()}."
        )
    if not path.exists():
        return
    others = sorted(p.name for p in path.iterdir() if p.name not in _FILES) if path.is_dir() else [path.name]
    if others:
        raise UsageError(f"{path} holds something else ('{others[0]}'); name a new folder for the record.")
    if not replace and has_record(path):
        raise UsageError(f"{path} holds a whole record already; name a new folder, or pass replace=True.")


def _fits(path: Path, shape: tuple[int, int, int], dtype: np.dtype[Any]) -> None:
    epochs, rows, classes = shape
    needed = epochs * rows * (classes * dtype.itemsize + 1)
    free = shutil.disk_usage(path).free
    if needed > free:
        raise UsageError(
            f"a record of {epochs} epochs of {rows} rows and {classes} classes takes {needed / 1e9:.1f} GB, and the "
            f"disk of {path} has {free / 1e9:.1f} GB free; keep fewer epochs, or name a folder on another disk."
        )


def _new(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    """A file of zeros, which takes its room on the disk as it is filled."""
    np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape).flush()


def _existing(path: Path) -> Path:
    if not (path / _RECORD).is_file():
        raise UsageError(f"there is no record in {path}.")
    return path
