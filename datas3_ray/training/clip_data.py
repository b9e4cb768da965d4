"""What an image-text model learns from: places of images with their captions, and test images with captions or labels.

A pool's captioned rows go to Ray's object store once, without their images and with their captions as tokens; a
selection is a list of positions in them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datas3_ray.errors import UsageError
from datas3_ray.training import data, image_data
from datas3_ray.training.clip_architecture import Architecture
from datas3_ray.training.clip_scoring import ZERO_SHOT
from datas3_ray.training.contract import TestSet, TrainingSet
from datas3_ray.training.image_data import ImageSplit
from datas3_ray.training.image_rows import ImageRows, read_image_rows

if TYPE_CHECKING:
    from datas3_ray.lake import Lake, Selection, Table
    from datas3_ray.training.config import SweepConfig

MOST_HELD_OUT = 5000
"""Rows that a selection validates on at most, or about as many: retrieval among them is quadratic."""


@dataclass(frozen=True)
class Coded:
    """A column of n texts as int64 codes into its different ``values``; -1 where there is none."""

    codes: np.ndarray
    values: pa.Array

    @property
    def there(self) -> np.ndarray:
        """Which rows have one, bool (n,)."""
        return self.codes >= 0

    def take(self, rows: np.ndarray) -> Coded:
        """The rows at positions ``rows``; of the values those that are left."""
        used, codes = np.unique(self.codes[rows], return_inverse=True)
        none = int(len(used) > 0 and used[0] < 0)
        return Coded(codes.astype(np.int64) - none, self.values.take(pa.array(used[none:])))


@dataclass(frozen=True)
class Captioned:
    """n rows with an image, sorted by id, each with its caption: ``text`` is int64 (n,) rows of ``tokens`` (m, L), -1
    where a test row has none."""

    rows: ImageRows
    text: np.ndarray
    tokens: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, rows: np.ndarray) -> Captioned:
        """The rows at positions ``rows`` (k,), with the tokens of all."""
        return Captioned(self.rows.take(rows), self.text[rows], self.tokens)


@dataclass(frozen=True)
class TestImages:
    """A test table's rows with an image and a caption or a class.

    ``label`` is int64 (n,) codes into ``classes``, -1 where a row has none; ``prompts`` are the classes' prompts as
    tokens (c, p, L), no classes where the table is not scored by them.
    """

    __test__ = False

    images: Captioned
    label: np.ndarray
    classes: tuple[str, ...]
    prompts: np.ndarray


def training_sets(
    lake: Lake,
    config: SweepConfig,
    selections: Mapping[str, Selection],
    architecture: Architecture,
    extra: Sequence[Any] = (),
) -> dict[tuple[str, int], TrainingSet]:
    """By selection and seed: positions in the captioned images of the selection's pool, which is read once.

    A set's ``data`` is references to the :class:`Captioned` and the
    :class:`~datas3_ray.training.image_data.ImageSplit`, followed by ``extra``.

    Raises
    ------
    UsageError
        When a column is missing or not of its kind, or a selection leaves nothing to learn.
    """
    import ray

    caption = config.own().caption
    sets = {}
    for pool, members in data.by_pool(lake, selections.values(), "id", caption):
        wanted = pa.concat_arrays([image_data.eligible(config, selection) for selection in members]).unique()
        _require_caption(pool, caption)
        rows, (texts,), somewhere = _read(pool, wanted, (caption,))
        kept = np.flatnonzero(texts.there & somewhere)
        used = texts.take(kept)
        images = Captioned(rows.take(kept), used.codes, architecture.tokens(used.values))
        stored = ray.put(images)
        without, unusable = rows.ids.filter(pa.array(~texts.there)), rows.ids.filter(pa.array(~somewhere))
        for selection in members:
            for seed in config.seed:
                split, on = split_captioned(images, used.values, selection, config, seed)
                ids = selection.ids()
                sets[selection.name, seed] = TrainingSet(
                    data=(stored, ray.put(split), *extra),
                    classes=(),
                    train_rows=split.draws if split.draws is not None else len(split.train),
                    validation_rows=len(split.validation),
                    unlabelled=data.count_in(ids, without),
                    unusable=data.count_in(ids, unusable),
                    validation_on=on,
                    inputs={pool.name: pool.version},
                )
    return sets


def split_captioned(
    images: Captioned, texts: pa.Array, selection: Selection, config: SweepConfig, seed: int
) -> tuple[ImageSplit, str]:
    """A selection's rows in two, and what the validation rows are: held out, or the training rows themselves.

    Raises
    ------
    UsageError
        When there are not two rows with different captions to learn from, or weights that are none.
    """
    chosen = images.rows.positions(selection.ids())
    if not len(chosen):
        raise UsageError(
            f"selection '{selection.name}' keeps {len(selection)} rows and none of them has both a caption and an "
            "image; there is nothing to train on."
        )
    share = min(config.validation, MOST_HELD_OUT / len(chosen))
    one_class = np.zeros(len(chosen), dtype=np.int64)
    held_out = data._held_out(images.rows.ids.take(pa.array(chosen)), one_class, share, seed)
    split, on = image_data.divided(images.rows, selection, config, chosen, held_out)
    train = split.train
    if len(train) < 2 or len(np.unique(images.text[train])) < 2:
        what = "1 row" if len(train) == 1 else f"{len(train)} rows with one caption"
        raise UsageError(
            f"selection '{selection.name}' leaves {what} to train on ('{texts[int(images.text[train[0]])]}'); a "
            "caption is learnt by telling it from others, which needs two or more."
        )
    return split, on


def test_sets(
    config: SweepConfig,
    selections: Mapping[str, Selection],
    tests: Mapping[str, Table],
    architecture: Architecture,
) -> dict[str, TestSet]:
    """By table: its images with captions, classes or both. ``data`` is a reference to the :class:`TestImages`.

    What the sweep's metric needs must be there; what the other metrics need is used where it is.

    Raises
    ------
    UsageError
        When a table lacks it, or has rows that a selection trains on.
    """
    import ray

    sets = {}
    for name, table in tests.items():
        caption, label = _columns(config, table)
        names = list(dict.fromkeys(column for column in (caption, label) if column is not None))
        rows, coded, somewhere = _read(table, None, names)
        found = dict(zip(names, coded, strict=True))
        needed = found[str(label if config.metric == ZERO_SHOT else caption)].there
        _check_test(config, name, needed, somewhere, found.get(str(label)))
        for selection in selections.values():
            data.check_no_test_rows(selection, name, rows.ids)
            if config.sampling == "rs2":
                image_data.check_pool(selection, name, rows.ids)
        kept = np.flatnonzero(np.any([each.there for each in coded], axis=0) & somewhere)
        texts, classes = (
            found[column].take(kept) if column is not None else _nothing(len(kept)) for column in (caption, label)
        )
        images = Captioned(rows.take(kept), texts.codes, architecture.tokens(texts.values))
        sets[name] = TestSet(
            data=ray.put(_test_images(config, images, classes, architecture)),
            # Prompts are made for every class of the table, so that none is missing in a subset.
            classes=(),
            rows=int((needed & somewhere).sum()),
            unlabelled=int((~needed).sum()),
            unusable=int((needed & ~somewhere).sum()),
            version=table.version,
        )
    return sets


test_sets.__test__ = False  # type: ignore[attr-defined]


def _test_images(config: SweepConfig, images: Captioned, classes: Coded, architecture: Architecture) -> TestImages:
    """Classes in the order of their names, each with its prompts."""
    order = pc.array_sort_indices(classes.values).to_numpy().astype(np.int64)
    place = np.empty(len(order) + 1, dtype=np.int64)
    place[order], place[-1] = np.arange(len(order)), -1
    names = classes.values.take(pa.array(order)).to_pylist()
    templates = config.own().prompts
    prompts = [template.replace("{label}", name) for name in names for template in templates]
    tokens = architecture.tokens(pa.array(prompts, pa.string()))
    return TestImages(
        images, place[classes.codes], tuple(names), tokens.reshape(len(names), len(templates), tokens.shape[1])
    )


def _columns(config: SweepConfig, table: Table) -> tuple[str | None, str | None]:
    """The test table's columns of captions and classes; None for one that is not needed and does not hold any."""
    caption, label = config.own().caption, config.label
    if config.metric == ZERO_SHOT:
        data.require_label(table, label)
        return (caption if _holds_text(table, caption) else None), label
    _require_caption(table, caption)
    return caption, (label if _holds_text(table, label) else None)


def _check_test(
    config: SweepConfig, name: str, needed: np.ndarray, somewhere: np.ndarray, classes: Coded | None
) -> None:
    word = "label" if config.metric == ZERO_SHOT else "caption"
    if not (needed & somewhere).any():
        raise UsageError(
            f"test table '{name}' has no row with both a {word} and an image ({int((~needed).sum())} without a "
            f"{word}); there is nothing to score on."
        )
    if config.metric == ZERO_SHOT and classes is not None and len(classes.values) < 2:
        raise UsageError(
            f"test table '{name}' holds one class only ('{classes.values[0]}'), and zero-shot classification needs "
            "two or more to choose from."
        )


def _require_caption(table: Table, caption: str) -> None:
    table.require_column(caption)
    if not _holds_text(table, caption):
        kind = table.schema.field(caption).type
        raise UsageError(
            f"column '{caption}' of table '{table.name}' holds {kind}, not captions; name the column of texts as "
            "'caption' in the sweep's options."
        )


def _holds_text(table: Table, column: str) -> bool:
    """Whether the table has the column, and it is one of texts."""
    if column not in table.schema.names:
        return False
    kind = table.schema.field(column).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _read(table: Table, keep: pa.Array | None, columns: Sequence[str]) -> tuple[ImageRows, list[Coded], np.ndarray]:
    """The rows of ``keep``, sorted by id, the columns as texts, and which rows say where their image is, bool (n,)."""
    rows, given = read_image_rows(table, keep, tuple(columns))
    by_id = pc.array_sort_indices(rows.ids).to_numpy().astype(np.int64)
    rows = rows.take(by_id)
    somewhere = rows.somewhere()
    return rows, [_coded(given.column(column).combine_chunks().take(pa.array(by_id))) for column in columns], somewhere


def _coded(values: pa.Array) -> Coded:
    """Texts with the blanks at their ends taken off; one that is then empty is none."""
    texts = pc.utf8_trim_whitespace(values.cast(pa.string()))
    texts = pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.string()), texts)
    different = texts.drop_null().unique()
    codes = pc.fill_null(pc.index_in(texts, value_set=different, skip_nulls=True), -1)
    return Coded(codes.to_numpy(zero_copy_only=False).astype(np.int64), different)


def _nothing(count: int) -> Coded:
    return Coded(np.full(count, -1, dtype=np.int64), pa.array([], pa.string()))
