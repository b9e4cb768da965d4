"""The model ``vit_linear_probe``: a linear probe on a vector column, one trial in a second or so."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from datas3_ray.training.contract import (
    HyperParameter,
    Options,
    Outcome,
    Point,
    Prepared,
    Report,
    TestSet,
    TrainingSet,
)
from datas3_ray.training.metrics import recode
from datas3_ray.training.scoring import score_classes, score_numbers

if TYPE_CHECKING:
    from datas3_ray.lake import Lake, Selection, Table
    from datas3_ray.training.config import SweepConfig
    from datas3_ray.training.data import LabelledVectors
    from datas3_ray.training.probe import Epoch


class VitLinearProbe:
    """Logistic or linear regression on an encoder's vectors; keeps to :class:`datas3_ray.training.contract.Model`."""

    name = "vit_linear_probe"
    checkpoint = "probe.pt"
    tasks = ("classification", "regression")
    options = Options
    ignores = ("weights", "samples", "sampling", "weight", "cache_gb", "workers")
    hyperparameters: Mapping[str, HyperParameter] = {
        "batch_size": HyperParameter(int, 1),
        "lr": HyperParameter(float, 0, minimum_allowed=False),
        "weight_decay": HyperParameter(float, 0, required=False),
    }

    def prepare(
        self, lake: Lake, config: SweepConfig, selections: Mapping[str, Selection], tests: Mapping[str, Table]
    ) -> Prepared:
        """Read each pool's labelled vectors once (the rows that some selection kept) and each test table's.

        The matrices go to Ray's object store, where every trial of a machine reads the same memory; this process holds
        one of them at a time.
        """
        from datas3_ray.training import data

        first = next(iter(selections.values()))
        column = data.default_column(config.column, lake.table(str(first.lineage()["table"])))
        pools: dict[tuple[str, int], _Pool] = {}
        for selection in selections.values():
            table = data.pool_of(lake, selection, column, config.label)
            pools.setdefault((table.name, table.version), _Pool(table, [])).members.append(selection)
        for pool in pools.values():
            for test in tests.values():
                data.check_same_vectors(column, pool.table, test)
        test_sets: dict[str, TestSet] = {}
        for name, test in tests.items():
            vectors = data.read_labelled(test, column, config.label, numbers=config.task == "regression")
            _check_test(name, vectors, selections.values())
            test_sets[name] = _test_set(vectors, test.version)
        training: dict[tuple[str, int], TrainingSet] = {}
        for pool in pools.values():
            training.update(_training_sets(pool, column, config))
        return Prepared(column, "scratch", training, test_sets)

    def train(
        self, point: Point, config: SweepConfig, training: Any, tests: Mapping[str, Any], report: Report, folder: str
    ) -> Outcome:
        """Train one probe in a worker and score it on each test table."""
        import ray
        import torch

        from datas3_ray.training.probe import ProbeSettings, fit_probe, save_probe

        # One thread a trial: several run side by side, and sums are then the same however many cores there are.
        torch.set_num_threads(1)
        started = time.perf_counter()
        stored, split_ref = training
        (x, codes, names), split = ray.get(stored), ray.get(split_ref)
        settings = ProbeSettings(
            batch_size=int(point.hyperparameters["batch_size"]),
            lr=float(point.hyperparameters["lr"]),
            epochs=config.epochs,
            patience=config.patience,
            weight_decay=float(point.hyperparameters.get("weight_decay", config.weight_decay)),
            normalize=config.normalize,
            standardize=config.standardize,
            metric=config.metric,
            seed=point.seed,
        )

        def on_epoch(epoch: Epoch) -> None:
            report(
                {
                    "epoch": epoch.epoch,
                    "train": {"loss": epoch.train_loss},
                    "validation": {"loss": epoch.validation_loss, config.metric: epoch.validation},
                }
            )

        regression = config.task == "regression"
        fit = fit_probe(
            x,
            codes if regression else recode(codes, names, split.classes),
            split.train,
            split.validation,
            classes=split.classes,
            settings=settings,
            on_epoch=on_epoch,
        )
        save_probe(fit.probe, f"{folder}/{self.checkpoint}")
        scores = {}
        for name, ref in tests.items():
            test_x, test_codes, test_names = ray.get(ref)
            predicted = fit.probe.predict(test_x)
            if regression:
                scores[name] = score_numbers(predicted, test_codes, config.metric)
            else:
                scores[name] = score_classes(predicted, test_codes, test_names, fit.probe.classes, config.metric)
        loss = fit.history[fit.epoch - 1].validation_loss
        return Outcome(fit.epoch, len(fit.history), fit.validation, loss, time.perf_counter() - started, scores)


@dataclass(frozen=True)
class _Pool:
    """One version of a pool and the selections made from it."""

    table: Table
    members: list[Selection]


def _training_sets(pool: _Pool, column: str, config: SweepConfig) -> dict[tuple[str, int], TrainingSet]:
    """By selection and seed: rows of one matrix, which holds every row that some member kept."""
    import pyarrow as pa
    import ray

    from datas3_ray.training.data import read_labelled, split_selection

    wanted = pa.concat_arrays([selection.ids() for selection in pool.members]).unique()
    vectors = read_labelled(pool.table, column, config.label, keep=wanted, numbers=config.task == "regression")
    stored = ray.put((vectors.x, vectors.y, vectors.classes))
    sets = {}
    for selection in pool.members:
        for seed in config.seed:
            split = split_selection(vectors, selection, validation=config.validation, seed=seed)
            sets[selection.name, seed] = TrainingSet(
                data=(stored, ray.put(split)),
                classes=split.classes,
                train_rows=len(split.train),
                validation_rows=len(split.validation),
                unlabelled=split.unlabelled,
                unusable=split.unusable,
                validation_on=split.validation_on,
                inputs={pool.table.name: pool.table.version},
            )
    return sets


def _check_test(name: str, vectors: LabelledVectors, selections: Iterable[Selection]) -> None:
    from datas3_ray.errors import UsageError
    from datas3_ray.training.data import check_no_test_rows

    if not len(vectors):
        raise UsageError(
            f"test table '{name}' has no row with both a label and a vector "
            f"({len(vectors.unlabelled)} without a label); there is nothing to score on."
        )
    for selection in selections:
        check_no_test_rows(selection, name, vectors.ids)


def _test_set(vectors: LabelledVectors, version: int) -> TestSet:
    import ray

    return TestSet(
        data=ray.put((vectors.x, vectors.y, vectors.classes)),
        classes=vectors.classes,
        rows=len(vectors),
        unlabelled=len(vectors.unlabelled),
        unusable=len(vectors.unusable),
        version=version,
    )
