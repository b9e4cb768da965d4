"""What a sweep is: a model, a grid of hyper-parameters and how a winner is chosen. Read from YAML."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from datas3_ray.errors import UsageError, did_you_mean, one_sentence
from datas3_ray.texts import load_yaml
from datas3_ray.training.initial_weights import known_by, known_by_folder
from datas3_ray.training.metrics import default_metric
from datas3_ray.training.metrics import metric as find_metric
from datas3_ray.training.models import model as find_model

Task = Literal["classification", "regression", "detection", "image_text"]


class SweepConfig(BaseModel):
    """One model trained at every point of a grid; see ``tune_configs/`` for commented examples.

    Attributes
    ----------
    model, task : str
        A model of :mod:`datas3_ray.training.models`, and which of its tasks; its first by default.
    column : str, optional
        The vector column of a model that trains on vectors (a table's only one by default).
    label : str
        The column with the class, or with the number to predict, or with the boxes.
    metric : str, optional
        What the winner is chosen by; the task's usual one by default.
    weights : str, optional
        Where the model starts from: a local file or a hub name. From scratch where it is empty.
    options : mapping
        The model's own settings.
    grid : mapping
        Values of each hyper-parameter; a trial a combination.
    search : {"grid", "random", "asha"}
        Every combination; ``trials`` of them, drawn with the first seed; or those with early stopping of the worse
        ones of each selection and seed (asynchronous successive halving).
    epochs, samples : int
        The budget of a trial: passes over its rows, or images seen in all, whatever the size of the subset.
    patience : int, optional
        Epochs without progress on validation before a trial stops; none stop early where a budget of samples is given.
    validation : float
        Share of a selection's labelled rows held out to choose the epoch and the hyper-parameters.
    validation_on : {"train", "query"}
        ``query``: the scores on each deployment's labelled query rows choose the hyper-parameters there; the held-out
        rows still choose the epoch.
    report_best : {"validation", "test"}
        ``test``: the winner is chosen by its test score, as published results often are; the results say so.
    sampling : {"shuffle", "balanced", "rs2"}
        Every row once an epoch; as many draws as rows, every class as often; or a fresh random part of the pool every
        epoch, as large as the selection (RS2).
    weight : str, optional
        A column of the selection that scales each row's loss.
    seed : tuple of int
        With several, every point is trained once for each.
    workers : int
        Processes that train one model together; ``gpus`` of a GPU for each where the cluster has any.
    retries : int
        How often a failed trial is tried again before it is recorded as failed.
    cache_gb : float
        Decoded images are kept in memory where they fit in this.

    >>> config = SweepConfig(grid={"batch_size": 64, "lr": [0.01, 0.001]})
    >>> config.points()
    [{'batch_size': 64, 'lr': 0.01}, {'batch_size': 64, 'lr': 0.001}]
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    model: str = "vit_linear_probe"
    task: Task = "classification"
    column: str | None = None
    label: str = Field("label", min_length=1)
    metric: str = ""
    weights: str | None = None
    options: dict[str, Any] = {}
    grid: dict[str, tuple[int | float, ...]] = {"batch_size": (32, 64, 128), "lr": (0.01, 0.001, 0.0001)}
    search: Literal["grid", "random", "asha"] = "grid"
    trials: int | None = Field(None, ge=1)
    epochs: int = Field(40, ge=1)
    samples: int | None = Field(None, ge=1)
    patience: int = Field(10, ge=1)
    validation: float = Field(0.1, gt=0, lt=1)
    validation_on: Literal["train", "query"] = "train"
    report_best: Literal["validation", "test"] = "validation"
    sampling: Literal["shuffle", "balanced", "rs2"] = "shuffle"
    weight: str | None = None
    seed: tuple[int, ...] = (0,)
    weight_decay: float = Field(0.0, ge=0)
    normalize: bool = True
    standardize: bool = False
    workers: int = Field(1, ge=1)
    gpus: float = Field(1.0, ge=0)
    retries: int = Field(1, ge=0)
    cache_gb: float = Field(2.0, ge=0)
    max_concurrent: int | None = Field(None, ge=1)

    @field_validator("model")
    @classmethod
    def _known_model(cls, name: str) -> str:
        find_model(name)
        return name

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: Any) -> Any:
        """Task, metric and options as the model has them."""
        if not isinstance(values, dict) or not isinstance(values.get("model", ""), str):
            return values
        found = find_model(values.get("model", cls.model_fields["model"].default))
        task = values.get("task") or found.tasks[0]
        if task not in found.tasks:
            raise UsageError(f"task: model {found.name} does {' and '.join(found.tasks)}, not {task!r}.")
        name = values.get("metric") or default_metric(task)
        if not isinstance(name, str):
            raise UsageError(f"metric: it must be the name of one, got {name!r}.")
        if find_metric(name).task != task:
            raise UsageError(f"metric: '{name}' is for {find_metric(name).task}, and this sweep's task is {task}.")
        options = values.get("options") or {}
        if isinstance(options, Mapping):
            with one_sentence(found.options, dict(options), f"options of {found.name}"):
                options = found.options.model_validate(dict(options)).model_dump(mode="json")
        return {**values, "task": task, "metric": name, "options": options}

    @field_validator("seed", mode="before")
    @classmethod
    def _several_seeds(cls, value: Any) -> Any:
        return value if isinstance(value, (list, tuple)) else (value,)

    @field_validator("seed")
    @classmethod
    def _good_seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0 or max(seeds) >= 1 << 63:
            raise ValueError(f"it needs one or more different whole numbers in [0, 2**63), got {list(seeds)}")
        return seeds

    @model_validator(mode="before")
    @classmethod
    def _parse_grid(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("grid"), Mapping):
            name = values.get("model", cls.model_fields["model"].default)
            return {**values, "grid": _grid(str(name), values["grid"])}
        return values

    @model_validator(mode="after")
    def _without_what_means_nothing(self) -> SweepConfig:
        for key in find_model(self.model).ignores:
            value = getattr(self, key)
            if value != type(self).model_fields[key].default:
                raise UsageError(f"{key} = {value!r} means nothing to model {self.model}; leave it out.")
        if self.search == "grid" and self.trials is not None:
            raise UsageError(
                f"trials = {self.trials} means nothing with search: grid, which trains every point; use search: random "
                "or asha."
            )
        return self

    def points(self) -> list[dict[str, int | float]]:
        """The points to train in the grid's order, the last hyper-parameter varying fastest."""
        every = [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]
        if self.search == "grid" or self.trials is None or self.trials >= len(every):
            return every
        drawn = random.Random(self.seed[0]).sample(range(len(every)), self.trials)
        return [every[place] for place in sorted(drawn)]

    def own(self) -> Any:
        """The model's options as its own class."""
        return find_model(self.model).options.model_validate(self.options)

    def by_content(self) -> SweepConfig:
        """The same with the sha256 of local weights in place of their names: another file's results are others."""
        weights, options = self.weights, self.options
        changed = {"weights": known_by(weights), "options": {key: known_by_folder(options[key]) for key in options}}
        return self.model_copy(update=changed)

    def settings(self) -> dict[str, Any]:
        """Everything that bears on a trial's result, as plain JSON values: not how many run at once.

        Local weights are there by name; see :meth:`by_content`.
        """
        return self.model_dump(mode="json", exclude={"max_concurrent", "gpus", "retries", "cache_gb"})


def load_sweep_config(
    source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None
) -> SweepConfig:
    """Read a sweep's configuration from a YAML file or a mapping.

    ``overrides`` replace single values: nested mappings and dotted keys both reach inside (``{"grid.lr": [0.1]}``).

    Raises
    ------
    UsageError
        When there is no such file, it is no YAML mapping, or a key or value cannot be meant; one sentence names it.

    Examples
    --------
    >>> load_sweep_config({"grid": {"batch_size": 64, "lr": 0.01}}, {"grid.lr": [0.1]}).grid
    {'batch_size': (64,), 'lr': (0.1,)}
    >>> load_sweep_config({"epoch": 5})
    Traceback (most recent call last):
    ...
    datas3_ray.errors.UsageError: sweep config: unknown key 'epoch'. Did you mean 'epochs'?
    """
    where = f"sweep config {source}" if isinstance(source, (str, Path)) else "sweep config"
    values = _read(Path(source), where) if isinstance(source, (str, Path)) else _merge({}, source)
    values = _merge(values, _nested(overrides or {}))
    try:
        return SweepConfig.model_validate(values)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
    except ValidationError as error:
        raise UsageError(f"{where}: {_sentence(error)}") from error


def _grid(model: str, grid: Mapping[str, Any]) -> dict[str, tuple[int | float, ...]]:
    """The grid with every value of its hyper-parameter's kind; a single value counts as a list of one."""
    known = find_model(model).hyperparameters
    for key in grid:
        if key not in known:
            raise UsageError(
                f"unknown key '{key}' in grid; model {model} has: {', '.join(known)}.{did_you_mean(str(key), known)}"
            )
    missing = [key for key, parameter in known.items() if parameter.required and key not in grid]
    if missing:
        raise UsageError(f"grid lacks '{missing[0]}', which model {model} needs.")
    parsed: dict[str, tuple[int | float, ...]] = {}
    for key, values in grid.items():
        listed = list(values) if isinstance(values, (list, tuple)) else [values]
        numbers = []
        for value in listed:
            number = known[key].parse(value)
            if number is None:
                raise UsageError(f"grid.{key} holds {value!r}; each value must be {known[key]}.")
            numbers.append(number)
        if not numbers or len(set(numbers)) != len(numbers):
            raise UsageError(f"grid.{key} needs one or more different values, got {listed}.")
        parsed[key] = tuple(numbers)
    return parsed


def _read(path: Path, where: str) -> dict[str, Any]:
    import yaml

    try:
        values = load_yaml(path.read_bytes())
    except FileNotFoundError:
        raise UsageError(f"{where}: there is no such file.") from None
    except OSError as error:
        raise UsageError(f"{where}: it cannot be read: {error.strerror}.") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{where}: it is not YAML: {' '.join(str(error).split())}.") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UsageError(f"{where}: it must hold keys and values, got {type(values).__name__}.")
    return values


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def _nested(overrides: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in overrides.items():
        for part in reversed(str(key).split(".")):
            value = {part: value}
        nested = _merge(nested, value)
    return nested


def _sentence(error: ValidationError) -> str:
    """The first complaint in one sentence."""
    first = error.errors()[0]
    key = str(first["loc"][0]) if first["loc"] else "it"
    if first["type"] == "extra_forbidden":
        return f"unknown key '{key}'.{did_you_mean(key, SweepConfig.model_fields)}"
    said = str(first.get("ctx", {}).get("error", first["msg"]))
    said = said[0].lower() + said[1:]
    given = "" if first["type"] == "value_error" else f", got {first['input']!r}"
    return f"{key}: {said}{given}."
