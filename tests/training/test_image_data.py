"""Which rows a model of images learns from, validates and is scored on, and what is told before anything is trained."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from training.pictures import CLASSES, rows, select

from datas3_ray import Lake
from datas3_ray.errors import UsageError
from datas3_ray.selectors import Everything
from datas3_ray.training.config import SweepConfig
from datas3_ray.training.image_data import read_labelled_images, split_images, test_sets, training_sets
from datas3_ray.training.models import model as find_model

CONFIG = SweepConfig(model="resnet50", validation=0.2)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """A pool of 60 of which two have no label, selections of it, and a test table of 12."""
    lake = Lake(tmp_path / "lake")
    pool = rows(60, "p", 0)
    labels = pool.column("label").to_pylist()
    labels[10], labels[20] = None, ""
    numbers = pool.column("number").to_pylist()
    numbers[3] = float("nan")
    pool = pool.set_column(1, "label", pa.array(labels)).set_column(2, "number", pa.array(numbers))
    lake.add("pool", pool)
    lake.add("test", rows(12, "t", 1))
    place = np.arange(60)
    select(lake, "half", place < 30, weight=np.where(place % 2, 3.0, 1.0))
    select(lake, "ants", place % 3 == 0)
    select(lake, "none", place < 0)
    return lake


def test_labels_and_numbers(lake: Lake) -> None:
    classes = read_labelled_images(lake.table("pool"), "label", "classification")
    assert len(classes) == 58 and classes.classes == CLASSES
    assert classes.unlabelled.to_pylist() == ["p0010", "p0020"] and len(classes.unusable) == 0
    ids = classes.rows.ids.to_pylist()
    assert ids == sorted(ids) and classes.y.tolist() == [int(i[1:]) % 3 for i in ids]
    numbers = read_labelled_images(lake.table("pool"), "number", "regression")
    pool = lake.table("pool").to_arrow(["id", "number"])
    truth = dict(zip(pool.column("id").to_pylist(), pool.column("number").to_pylist(), strict=True))
    assert numbers.unlabelled.to_pylist() == ["p0003"] and numbers.classes == ()
    assert [truth[i] for i in numbers.rows.ids.to_pylist()] == numbers.y.tolist()


def test_a_row_without_an_image_is_counted(lake: Lake, tmp_path: Path) -> None:
    lake.add("places", pa.table({"id": ["a", "b"], "label": ["ant", "bee"], "uri": ["/x.png", None]}))
    images = read_labelled_images(lake.table("places"), "label", "classification")
    assert images.rows.ids.to_pylist() == ["a"] and images.unusable.to_pylist() == ["b"]


def test_a_split_keeps_to_its_selection(lake: Lake) -> None:
    images = read_labelled_images(lake.table("pool"), "label", "classification")
    split, on = split_images(images, lake.selection("half"), CONFIG, seed=0)
    both = np.concatenate([split.train, split.validation])
    assert on == "held out" and split.draws is None and split.weights is None and split.classes == CLASSES
    assert sorted(images.rows.ids[int(row)].as_py() for row in both) == [
        f"p{i:04d}" for i in range(30) if i not in (10, 20)
    ]
    assert 1 <= len(split.validation) <= 14
    again, _ = split_images(images, lake.selection("half"), CONFIG, seed=0)
    other, _ = split_images(images, lake.selection("half"), CONFIG, seed=1)
    assert np.array_equal(again.validation, split.validation) and not np.array_equal(other.train, split.train)


def test_weights_have_a_mean_of_one(lake: Lake) -> None:
    images = read_labelled_images(lake.table("pool"), "label", "classification")
    config = CONFIG.model_copy(update={"weight": "weight"})
    split, _ = split_images(images, lake.selection("half"), config, seed=0)
    assert split.weights is not None and split.weights.mean() == pytest.approx(1)
    odd = np.array([int(images.rows.ids[int(row)].as_py()[1:]) % 2 for row in split.train], dtype=bool)
    assert np.allclose(split.weights[odd], 3 * split.weights[~odd][0])


def test_rs2_draws_from_the_pool_but_never_validation_rows(lake: Lake) -> None:
    images = read_labelled_images(lake.table("pool"), "label", "classification")
    config = CONFIG.model_copy(update={"sampling": "rs2"})
    plain, _ = split_images(images, lake.selection("half"), CONFIG, seed=0)
    split, _ = split_images(images, lake.selection("half"), config, seed=0)
    assert np.array_equal(split.validation, plain.validation) and split.draws == len(plain.train)
    assert sorted([*split.train, *split.validation]) == list(range(58))
    ants, _ = split_images(images, lake.selection("ants"), config, seed=0)
    assert ants.classes == CLASSES  # what the pool has, not what the selection kept


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ([1.0] * 29 + [None] * 31, r"has no weight of 0 or more for 1 of \d+ training rows \('p0029' for one\)"),
        ([-1.0] * 60, r"has no weight of 0 or more for (\d+) of \1 training rows"),
        ([0.0] * 60, "is 0 for every training row"),
        (["x"] * 60, "holds string, not numbers"),
    ],
)
def test_weights_that_are_none(lake: Lake, weights: list, sentence: str) -> None:
    select(lake, "odd", np.arange(60) < 30, weight=pa.array(weights))
    images = read_labelled_images(lake.table("pool"), "label", "classification")
    config = CONFIG.model_copy(update={"weight": "weight", "validation": 1e-9})
    with pytest.raises(UsageError, match=f"column 'weight' of selection 'odd' {sentence}"):
        split_images(images, lake.selection("odd"), config, seed=0)
    with pytest.raises(UsageError, match="table 'half' has no column 'wight'.*Did you mean 'weight'?"):
        split_images(images, lake.selection("half"), config.model_copy(update={"weight": "wight"}), seed=0)


def test_sets_of_a_sweep(lake: Lake, ray_session: None) -> None:
    import ray

    config = CONFIG.model_copy(update={"seed": (0, 1)})
    selections = {name: lake.selection(name) for name in ("half",)}
    sets = training_sets(lake, config, selections, extra=(ray.put("more"),))
    assert list(sets) == [("half", 0), ("half", 1)]
    one = sets["half", 0]
    assert (one.train_rows + one.validation_rows, one.unlabelled, one.unusable) == (28, 2, 0)
    assert one.inputs == {"pool": 1} and one.validation_on == "held out"
    images, split, more = ray.get(list(one.data))
    assert len(images) == 28 and more == "more" and len(split.train) == one.train_rows
    assert sets["half", 1].data[0] is one.data[0]  # the pool's rows are there once
    scored = test_sets(config, selections, {"test": lake.table("test")})["test"]
    assert (scored.rows, scored.classes, scored.version) == (12, CLASSES, 1)


@pytest.mark.parametrize(
    ("selection", "test", "config", "sentence"),
    [
        ("none", "test", {}, "selection 'none' keeps 0 rows and none of them has both a label and an image"),
        ("ants", "test", {}, r"selection 'ants' holds one class only \('ant', \d+ rows\); training needs two or more"),
        ("half", "test", {"label": "labl"}, "table 'test' has no column 'labl'.*Did you mean 'label'?"),
        ("half", "blank", {}, r"test table 'blank' has no row with both a label and an image \(12 without a label\)"),
        ("half", "part", {}, "selection 'half' keeps 5 rows of test table 'part'"),
        ("half", "rest", {"sampling": "rs2"}, "made from a pool that holds 5 rows of test table 'rest'"),
        ("half", "test", {"task": "regression"}, "column 'label' of table 'test' holds string, not numbers to predict"),
        ("half", "vectors", {}, "table 'vectors' has no images"),
    ],
)
def test_what_does_not_fit_is_one_sentence(
    lake: Lake, ray_session: None, selection: str, test: str, config: dict, sentence: str
) -> None:
    twelve = rows(12, "b", 5)
    lake.add("blank", twelve.set_column(1, "label", pa.nulls(12, pa.string())))
    lake.add("part", rows(60, "p", 0).slice(25, 5))
    lake.add("rest", rows(60, "p", 0).slice(35, 5))
    lake.add("vectors", twelve.drop_columns(["image"]))
    asked = SweepConfig(model="resnet50", **config)
    selections = {selection: lake.selection(selection)}
    with pytest.raises(UsageError, match=sentence) as error:
        test_sets(asked, selections, {test: lake.table(test)})
        training_sets(lake, asked, selections)
    assert "\n" not in str(error.value)


def test_a_pool_that_was_made_anew_is_told_before_training(ray_session: None, lake: Lake) -> None:
    # The same ids, other pictures and labels, and version 1 again.
    chosen = Everything().select(lake, "pool", name="old")
    shutil.rmtree(lake.table("pool").uri)
    lake.add("pool", rows(60, "p", 9))
    assert lake.table("pool").version == chosen.lineage()["inputs"]["pool"]
    for name, column in (("resnet50", None), ("vit_linear_probe", "vec")):
        config = SweepConfig(model=name, column=column)
        with pytest.raises(UsageError, match="table 'pool' was deleted and made anew since selection 'old' was made"):
            find_model(name).prepare(lake, config, {"old": chosen}, {"test": lake.table("test")})
    # One that was made by hand does not say which table it is of.
    made_by_hand = lake.selection("half")
    assert training_sets(lake, CONFIG, {"half": made_by_hand})["half", 0].inputs == {"pool": 1}
