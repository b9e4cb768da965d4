"""What a model that is trained on images learns from: places of images with a class or a number, split by their ids.

A pool's labelled rows go to Ray's object store once, without their images; a selection is a list of positions in them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datas3_ray.errors import UsageError
from datas3_ray.training import data
from datas3_ray.training.contract import TestSet, TrainingSet
from datas3_ray.training.image_rows import ImageRows, read_image_rows

if TYPE_CHECKING:
    from datas3_ray.lake import Lake, Selection, Table
    from datas3_ray.training.config import SweepConfig


@dataclass(frozen=True)
class LabelledImages:
    """n rows with an image and a label, sorted by id.

    Attributes
    ----------
    rows : ImageRows
    y : ndarray of shape (n,)
        int64 codes into ``classes``, or float64 targets, which are finite.
    classes : tuple of str
        Sorted names; empty for regression.
    unlabelled, unusable : pyarrow.Array of string
        Ids left out: without a label, or without an image.
    """

    rows: ImageRows
    y: np.ndarray
    classes: tuple[str, ...]
    unlabelled: pa.Array
    unusable: pa.Array

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, rows: np.ndarray) -> LabelledImages:
        """The rows at positions ``rows`` (k,)."""
        return replace(self, rows=self.rows.take(rows), y=self.y[rows])


@dataclass(frozen=True)
class ImageSplit:
    """One selection's rows of a :class:`LabelledImages`, for one seed.

    Attributes
    ----------
    train, validation : ndarray of int64
        Positions, ascending. With RS2 ``train`` are all the rows that an epoch's are drawn from.
    classes : tuple of str
        Names of the classes there are to learn, sorted; empty for regression.
    weights : ndarray of shape (len(train),), float64, optional
        What each row's loss is multiplied by; 1 on average.
    draws : int, optional
        Rows of an epoch with RS2.
    """

    train: np.ndarray
    validation: np.ndarray
    classes: tuple[str, ...]
    weights: np.ndarray | None = None
    draws: int | None = None


def read_labelled_images(table: Table, label: str, task: str, keep: pa.Array | None = None) -> LabelledImages:
    """The rows of ``keep`` (or all) that have an image and a label: a class, or for ``regression`` a finite number.

    Raises
    ------
    UsageError
        When the label's column is missing or not of its kind, the table has no images, or lacks rows of ``keep``.
    """
    numbers = task == "regression"
    data.require_label(table, label, numbers)
    rows, columns = read_image_rows(table, keep, (label,))
    by_id = pc.array_sort_indices(rows.ids).to_numpy().astype(np.int64)
    rows, given = rows.take(by_id), columns.column(label).combine_chunks().take(pa.array(by_id))
    values = data.as_labels(given, numbers)
    labelled = pc.is_valid(values).to_numpy(zero_copy_only=False)
    somewhere = rows.somewhere()
    kept = np.flatnonzero(labelled & somewhere)
    y, classes = data.coded(values.take(pa.array(kept)))
    return LabelledImages(
        rows=rows.take(kept),
        y=y,
        classes=classes,
        unlabelled=rows.ids.filter(pa.array(~labelled)),
        unusable=rows.ids.filter(pa.array(labelled & ~somewhere)),
    )


def training_sets(
    lake: Lake, config: SweepConfig, selections: Mapping[str, Selection], extra: Sequence[Any] = ()
) -> dict[tuple[str, int], TrainingSet]:
    """By selection and seed: positions in the labelled images of the selection's pool, which is read once.

    A set's ``data`` is references to the :class:`LabelledImages` and the :class:`ImageSplit`, followed by ``extra``.

    Raises
    ------
    UsageError
        When a column is missing or not of its kind, or a selection leaves nothing to learn.
    """
    import ray

    if config.sampling == "balanced" and config.task == "regression":
        raise UsageError("sampling 'balanced' needs classes, and the task is regression; choose 'shuffle' or 'rs2'.")
    sets = {}
    for pool, members in data.by_pool(lake, selections.values(), "id", config.label):
        wanted = pa.concat_arrays([eligible(config, selection) for selection in members]).unique()
        images = read_labelled_images(pool, config.label, config.task, wanted)
        stored = ray.put(images)
        for selection in members:
            for seed in config.seed:
                split, on = split_images(images, selection, config, seed)
                kept = selection.ids()
                sets[selection.name, seed] = TrainingSet(
                    data=(stored, ray.put(split), *extra),
                    classes=split.classes,
                    train_rows=split.draws if split.draws is not None else len(split.train),
                    validation_rows=len(split.validation),
                    unlabelled=data.count_in(kept, images.unlabelled),
                    unusable=data.count_in(kept, images.unusable),
                    validation_on=on,
                    inputs={pool.name: pool.version},
                )
    return sets


def test_sets(
    config: SweepConfig, selections: Mapping[str, Selection], tests: Mapping[str, Table]
) -> dict[str, TestSet]:
    """By table: its labelled images. ``data`` is a reference to the :class:`LabelledImages`.

    Raises
    ------
    UsageError
        When a table has no row with both a label and an image, or rows that a selection trains on.
    """
    import ray

    sets = {}
    for name, table in tests.items():
        images = read_labelled_images(table, config.label, config.task)
        if not len(images):
            raise UsageError(
                f"test table '{name}' has no row with both a label and an image "
                f"({len(images.unlabelled)} without a label); there is nothing to score on."
            )
        for selection in selections.values():
            data.check_no_test_rows(selection, name, images.rows.ids)
            if config.sampling == "rs2":
                check_pool(selection, name, images.rows.ids)
        sets[name] = TestSet(
            data=ray.put(images),
            classes=images.classes,
            rows=len(images),
            unlabelled=len(images.unlabelled),
            unusable=len(images.unusable),
            version=table.version,
        )
    return sets


test_sets.__test__ = False  # type: ignore[attr-defined]


def split_images(
    images: LabelledImages, selection: Selection, config: SweepConfig, seed: int
) -> tuple[ImageSplit, str]:
    """A selection's rows in two, and what the validation rows are: held out, or the training rows themselves.

    Raises
    ------
    UsageError
        When the selection has no labelled image, one class or number only, or weights that are none.
    """
    chosen = images.rows.positions(selection.ids())
    if not len(chosen):
        raise UsageError(
            f"selection '{selection.name}' keeps {len(selection)} rows and none of them has both a label and an image; "
            "there is nothing to train on."
        )
    ids = images.rows.ids.take(pa.array(chosen))
    held_out = data.hold_out(ids, images.y[chosen], validation=config.validation, seed=seed)
    split, on = divided(images.rows, selection, config, chosen, held_out)
    return replace(split, classes=data.classes_to_learn(images.y[split.train], images.classes, selection.name)), on


def divided(
    rows: ImageRows, selection: Selection, config: SweepConfig, chosen: np.ndarray, held_out: np.ndarray
) -> tuple[ImageSplit, str]:
    """The split of positions ``chosen`` (k,) by a mask (k,) of those held out, without classes; see ImageSplit.

    With RS2 an epoch's rows are drawn from all that the selection chose from, but for the held-out ones.
    """
    train, validation = chosen[~held_out], chosen[held_out] if held_out.any() else chosen
    draws = None
    if config.sampling == "rs2":
        draws = len(train)
        every = rows.positions(eligible(config, selection))
        train = every[~np.isin(every, validation)] if held_out.any() else every
    weights = weights_of(rows, selection, config.weight, train) if config.weight and len(train) else None
    on = data.HELD_OUT if held_out.any() else data.TRAINING_ROWS
    return ImageSplit(train, validation, (), weights, draws), on


def eligible(config: SweepConfig, selection: Selection) -> pa.Array:
    """Ids of the rows that the training may see: those kept, or with RS2 all that the selection chose from."""
    if config.sampling != "rs2":
        return selection.ids()
    return selection.to_arrow(["id"]).column("id").combine_chunks()


class _Images(Protocol):
    def __len__(self) -> int: ...

    def take(self, rows: np.ndarray) -> Any: ...


def in_memory(images: _Images, split: ImageSplit, each: int, most: float) -> tuple[Any, np.ndarray, np.ndarray]:
    """The pool's images where they fit in memory together, which all selections then share; else those of the split.

    Parameters
    ----------
    images
        The pool's.
    each, most : int, float
        Bytes of a decoded image, and of all.

    Returns
    -------
    The images, and the positions in them to train and to validate on.
    """
    if len(images) * each <= most:
        return images, split.train, split.validation
    used = np.union1d(split.train, split.validation)
    return images.take(used), np.searchsorted(used, split.train), np.searchsorted(used, split.validation)


def weights_of(rows: ImageRows, selection: Selection, column: str, train: np.ndarray) -> np.ndarray:
    """The selection's column for the rows at positions ``train`` (k,), scaled to a mean of 1; float64 (k,).

    Raises
    ------
    UsageError
        When there is no such column, or a weight is missing, negative, or every one 0.
    """
    selection.table.require_column(column)
    kind = selection.table.schema.field(column).type
    what = f"column '{column}' of selection '{selection.name}'"
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise UsageError(f"{what} holds {kind}, not numbers; name a numeric column as 'weight'.")
    table = selection.to_arrow(["id", column])
    place = pc.index_in(rows.ids.take(pa.array(train)), value_set=table.column("id").combine_chunks())
    values = data.as_labels(table.column(column).combine_chunks().take(place), numbers=True)
    weights = pc.fill_null(values, np.nan).to_numpy(zero_copy_only=False)
    wrong = ~(np.isfinite(weights) & (weights >= 0))
    if wrong.any():
        first = rows.ids[int(train[np.flatnonzero(wrong)[0]])]
        raise UsageError(
            f"{what} has no weight of 0 or more for {int(wrong.sum())} of {len(train)} training rows "
            f"('{first}' for one)."
        )
    if not weights.any():
        raise UsageError(f"{what} is 0 for every training row; nothing would be learnt.")
    return weights / weights.mean()


def check_pool(selection: Selection, test: str, test_ids: pa.Array) -> None:
    """RS2 trains on rows that the selection did not keep; none of them may be tested on."""
    eligible = selection.to_arrow(["id"]).column("id")
    shared = pc.filter(eligible, pc.is_in(eligible, value_set=test_ids))
    if len(shared):
        raise UsageError(
            f"selection '{selection.name}' was made from a pool that holds {len(shared)} rows of test table '{test}' "
            f"('{shared[0]}' for one), and sampling 'rs2' trains on the whole pool; set the test rows aside first and "
            "make the selection again."
        )
