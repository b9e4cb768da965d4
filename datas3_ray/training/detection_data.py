"""What a detector learns from: places of images with the boxes of what is on them, split by the images' ids.

A pool's labelled rows go to Ray's object store once, without their images; a selection is a list of positions in them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datas3_ray.errors import UsageError
from datas3_ray.kernels.hashing import hash64, id_words, uniform
from datas3_ray.training import data
from datas3_ray.training.contract import TestSet, TrainingSet
from datas3_ray.training.image_rows import ImageRows, read_image_rows

if TYPE_CHECKING:
    from datas3_ray.lake import Lake, Selection, Table
    from datas3_ray.training.config import SweepConfig

_FIELDS = ("x", "y", "w", "h")


@dataclass(frozen=True)
class DetectionImages:
    """n images, sorted by id, and the m boxes on them.

    Attributes
    ----------
    rows : ImageRows
        The n images.
    owner : ndarray of shape (m,), int64
        Position of the image that each box is on, ascending.
    codes : ndarray of shape (m,), int64
        Class of each box, into ``classes``.
    places : ndarray of shape (m, 4), float32
        Left, top, width and height in pixels of the upright image, finite and with area; not clipped to the image.
    classes : tuple of str
        Sorted names.
    unlabelled, unusable : pyarrow.Array of string
        Ids of rows left out: without boxes (an empty list is no boxes to find, null is not labelled) or with a box that
        has no label; without an image.
    """

    rows: ImageRows
    owner: np.ndarray
    codes: np.ndarray
    places: np.ndarray
    classes: tuple[str, ...]
    unlabelled: pa.Array
    unusable: pa.Array

    def __len__(self) -> int:
        return len(self.rows)

    def boxes_of(self, position: int) -> slice:
        """Where the boxes of one image are."""
        low, high = np.searchsorted(self.owner, (position, position + 1))
        return slice(int(low), int(high))

    def on(self, positions: np.ndarray) -> np.ndarray:
        """Which boxes are on the images at ``positions``, bool (m,)."""
        return np.isin(self.owner, positions)


@dataclass(frozen=True)
class DetectionSplit:
    """One selection's images for one seed: positions (ascending int64), and the classes of the training boxes."""

    train: np.ndarray
    validation: np.ndarray
    classes: tuple[str, ...]


def read_detection_images(
    table: Table, label: str, keep: pa.Array | None = None, most_boxes: int = 1000
) -> DetectionImages:
    """The rows of ``keep`` (or all) that have an image and boxes, all of which have a label.

    Boxes that are not finite or have no area are passed over.

    Raises
    ------
    UsageError
        When the column is missing or holds no boxes, an image has more than ``most_boxes``, the table has no images, or
        lacks rows of ``keep``.
    """
    table.require_column(label)
    _require_boxes(table, label)
    rows, columns = read_image_rows(table, keep, (label,))
    by_id = pc.array_sort_indices(rows.ids).to_numpy().astype(np.int64)
    rows, lists = rows.take(by_id), columns.column(label).combine_chunks().take(pa.array(by_id))
    counts = pc.fill_null(pc.list_value_length(lists), 0).to_numpy().astype(np.int64)
    if len(counts) and counts.max() > most_boxes:
        raise UsageError(
            f"row '{rows.ids[int(counts.argmax())]}' of table '{table.name}' has {counts.max()} boxes, more than "
            f"options.max_boxes = {most_boxes}; raise that, which takes memory, or leave the row out."
        )
    owner = np.repeat(np.arange(len(rows)), counts)
    names, places = _flat(lists)
    complete = pc.is_valid(lists).to_numpy(zero_copy_only=False)
    complete[owner[pc.is_null(names).to_numpy(zero_copy_only=False)]] = False
    somewhere = rows.somewhere()
    kept = complete & somewhere
    sound = np.isfinite(places).all(axis=1) & (places[:, 2:] > 0).all(axis=1)
    used = np.flatnonzero(kept[owner] & sound)
    new_place = np.cumsum(kept) - 1
    names = names.take(pa.array(used))
    classes = names.unique().sort() if len(names) else names
    return DetectionImages(
        rows=rows.take(np.flatnonzero(kept)),
        owner=new_place[owner[used]],
        codes=pc.index_in(names, value_set=classes).to_numpy(zero_copy_only=False).astype(np.int64),
        places=places[used],
        classes=tuple(classes.to_pylist()),
        unlabelled=rows.ids.filter(pa.array(~complete)),
        unusable=rows.ids.filter(pa.array(complete & ~somewhere)),
    )


def training_sets(
    lake: Lake, config: SweepConfig, selections: Mapping[str, Selection], most_boxes: int, elsewhere: Sequence[str]
) -> dict[tuple[str, int], TrainingSet]:
    """By selection and seed: positions in the labelled images of the selection's pool, which is read once.

    A set's ``data`` is references to the :class:`DetectionImages` and the :class:`DetectionSplit`. ``elsewhere`` are
    the classes of the test tables.

    Raises
    ------
    UsageError
        When a column is missing or not of its kind, or a selection leaves nothing to learn.
    """
    import ray

    sets = {}
    for pool, members in data.by_pool(lake, selections.values(), "id", config.label):
        wanted = pa.concat_arrays([selection.ids() for selection in members]).unique()
        images = read_detection_images(pool, config.label, wanted, most_boxes)
        known = sorted({*images.classes, *elsewhere})
        stored = ray.put(images)
        for selection in members:
            for seed in config.seed:
                split, on = split_images(images, selection, validation=config.validation, seed=seed, known=known)
                kept = selection.ids()
                sets[selection.name, seed] = TrainingSet(
                    data=(stored, ray.put(split)),
                    classes=split.classes,
                    train_rows=len(split.train),
                    validation_rows=len(split.validation),
                    unlabelled=data.count_in(kept, images.unlabelled),
                    unusable=data.count_in(kept, images.unusable),
                    validation_on=on,
                    inputs={pool.name: pool.version},
                )
    return sets


def test_sets(
    config: SweepConfig, selections: Mapping[str, Selection], tests: Mapping[str, Table], most_boxes: int
) -> dict[str, TestSet]:
    """By table: its labelled images. ``data`` is a reference to the :class:`DetectionImages`.

    Raises
    ------
    UsageError
        When a table has no box on any image, or rows that a selection trains on.
    """
    import ray

    sets = {}
    for name, table in tests.items():
        images = read_detection_images(table, config.label, most_boxes=most_boxes)
        if not len(images.codes):
            raise UsageError(
                f"test table '{name}' has no labelled box on any image ({len(images)} labelled images, "
                f"{len(images.unlabelled)} without labels); there is nothing to score on."
            )
        for selection in selections.values():
            data.check_no_test_rows(selection, name, images.rows.ids)
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
    images: DetectionImages, selection: Selection, *, validation: float, seed: int, known: Sequence[str]
) -> tuple[DetectionSplit, str]:
    """A selection's images in two, and what those to choose by are: held out, or the training images themselves.

    One class is enough to detect where ``known``, the classes there are, has no other.

    Raises
    ------
    UsageError
        When the selection has no labelled image, no box, or one of several classes only.
    """
    chosen = images.rows.positions(selection.ids())
    if not len(chosen):
        raise UsageError(
            f"selection '{selection.name}' keeps {len(selection)} rows and none of them has both boxes and an image; "
            "there is nothing to train on."
        )
    mine = images.on(chosen)
    if not mine.any():
        raise UsageError(
            f"selection '{selection.name}' has {len(chosen)} labelled images and no box on any of them; a detector "
            "needs something to find."
        )
    present = np.unique(images.codes[mine])
    if len(present) < 2 and len(known) > 1:
        raise UsageError(
            f"selection '{selection.name}' has boxes of one class only ('{images.classes[present[0]]}', "
            f"{int(mine.sum())} boxes) of the {len(known)} there are; select rows of two or more."
        )
    place = np.searchsorted(chosen, images.owner[mine])
    held_out = hold_out(images.rows.ids.take(pa.array(chosen)), place, images.codes[mine], validation, seed)
    split = DetectionSplit(
        train=chosen[~held_out],
        validation=chosen[held_out] if held_out.any() else chosen,
        classes=tuple(images.classes[code] for code in present),
    )
    return split, data.HELD_OUT if held_out.any() else data.TRAINING_ROWS


def hold_out(ids: pa.Array, owner: np.ndarray, codes: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Mask (n,) of the images to validate on: those whose hash is below ``share``.

    Every class keeps an image to learn from (of those held out the one of largest hash, class after class). Where the
    images below the share have no box, the one of smallest hash that has any, and can be spared, is held out with them.
    Nothing is held out of fewer than ten images.

    Parameters
    ----------
    ids : pyarrow.Array of string, (n,)
    owner, codes : ndarray of shape (m,), int64
        Image and class of each box.

    Examples
    --------
    >>> ids = pa.array([f"image{i}" for i in range(20)])
    >>> mask = hold_out(ids, np.arange(20), np.arange(20) % 2, 0.2, seed=0)
    >>> bool(mask.any()), len(set((np.arange(20) % 2)[~mask]))
    (True, 2)
    """
    count = len(ids)
    if count < data.FEWEST_TO_HOLD_OUT:
        return np.zeros(count, dtype=bool)
    u = uniform(hash64(id_words(ids), seed=seed, stream="validation"))
    held_out = u < share
    classes = np.unique(codes)
    on_class = {code: np.unique(owner[codes == code]) for code in classes}
    for members in on_class.values():
        if held_out[members].all():
            held_out[members[np.argmax(u[members])]] = False
    if held_out[owner].any():
        return held_out
    spare = np.zeros(count, dtype=bool)
    spare[owner] = True
    for members in on_class.values():
        if len(left := members[~held_out[members]]) == 1:
            spare[left] = False
    if not spare.any():
        return np.zeros(count, dtype=bool)
    candidates = np.flatnonzero(spare)
    held_out[candidates[np.argmin(u[candidates])]] = True
    return held_out


def _require_boxes(table: Table, label: str) -> None:
    if _holds_boxes(table.schema.field(label).type):
        return
    known = [field.name for field in table.schema if _holds_boxes(field.type)]
    raise UsageError(
        f"column '{label}' of table '{table.name}' holds {table.schema.field(label).type}, not boxes (a list of label, "
        f"x, y, w and h in pixels); "
        + (f"name its column of boxes as 'label': {', '.join(known)}." if known else "it has no column of boxes.")
    )


def _holds_boxes(kind: pa.DataType) -> bool:
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)) or not pa.types.is_struct(kind.value_type):
        return False
    fields = {field.name: field.type for field in kind.value_type}
    text = fields.get("label")
    named = text is not None and (pa.types.is_string(text) or pa.types.is_large_string(text))
    numbers = [fields.get(name) for name in _FIELDS]
    return named and all(one is not None and (pa.types.is_floating(one) or pa.types.is_integer(one)) for one in numbers)


def _flat(lists: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """All boxes: their labels, null where missing or empty, and float32 (m, 4), NaN where a number is missing."""
    boxes = pc.list_flatten(lists)
    names = pc.struct_field(boxes, "label").cast(pa.string())
    names = pc.if_else(pc.equal(names, ""), pa.scalar(None, pa.string()), names)
    places = np.empty((len(boxes), 4), dtype=np.float32)
    for column, name in enumerate(_FIELDS):
        numbers = pc.struct_field(boxes, name).cast(pa.float32(), safe=False)
        places[:, column] = pc.fill_null(numbers, np.nan).to_numpy(zero_copy_only=False)
    return names, places
