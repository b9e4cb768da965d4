"""Deployments as files: what the query and the test of each is, and the expert's predicate. DataS3's twenty come along.

A file describes one data set and its deployments by name. What holds for all of them stands at the top and a deployment
may say otherwise; ``where`` says which rows are of the deployment, and query and test are drawn from those.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator

from datas3_ray.errors import UsageError, checked, did_you_mean
from datas3_ray.lake.splits import Split
from datas3_ray.selectors import Selector, make_selector
from datas3_ray.texts import load_yaml
from datas3_ray.training.config import Task

FOLDER = Path(__file__).with_name("deployments")


class PaperSizes(BaseModel):
    """Rows that the paper counts, to compare with: of the pool, the query and the expert's subset."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pool: int | None = None
    query: int | None = None
    expert: int | None = None


class Deployment(BaseModel):
    """One deployment of a data set.

    Attributes
    ----------
    dataset, name, title : str
    task, metric : str
        What its models are for, and what they are compared by.
    column : str
        The column of the label, the number or the boxes.
    where : str
        SQL predicate: which rows are of the deployment.
    query, test : mapping
        A split each (:class:`datas3_ray.lake.splits.Split`) of those rows.
    expert : mapping
        ``{METHOD: parameters}`` of a selector: what somebody who knows the deployment would choose. A method that
        needs a query gets the deployment's test table, which stands for all that is known of the deployment.
    caption : str, optional
        Template of captions (``columns: {caption: {template: ...}}``). Those of the paper hold the label, so methods
        that look at captions count as labelled.
    paper : PaperSizes
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: str
    name: str
    title: str
    task: Task
    metric: str
    column: str
    where: str
    query: dict[str, Any]
    test: dict[str, Any]
    expert: dict[str, dict[str, Any]]
    caption: str | None = None
    paper: PaperSizes = PaperSizes()

    @field_validator("expert")
    @classmethod
    def _one_method(cls, expert: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        if len(expert) != 1:
            raise ValueError("an expert is one method with its parameters, such as {expert: {where: ...}}")
        return expert

    def test_split(self) -> Split:
        """The rows that models are scored on."""
        return checked(Split, {"where": self.where, **self.test}, f"test of {self.dataset}/{self.name}")

    def query_split(self, test: str) -> Split:
        """The examples; where they are stratified, as the table ``test``."""
        values = {"where": self.where, **self.query}
        if values.get("stratify") and "like" not in values:
            values["like"] = test
        return checked(Split, values, f"query of {self.dataset}/{self.name}")

    def expert_selector(self) -> Selector:
        """The expert's method."""
        ((method, parameters),) = self.expert.items()
        return make_selector(method, dict(parameters))


class _File(BaseModel):
    """A file as it is written."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: str
    title: str = ""
    deployments: dict[str, dict[str, Any]] = Field(min_length=1)


def names(dataset: str | None = None, file: str | Path | None = None) -> list[str]:
    """Every deployment that comes with the package, of one data set, or of a file of yours, as ``dataset/name``.

    >>> names("geode")
    ['geode/indonesia', 'geode/nigeria', 'geode/indoor', 'geode/outdoor']
    >>> len(names())
    20
    """
    known = [dataset] if dataset is not None else sorted(path.stem for path in FOLDER.glob("*.yaml"))
    documents = [_read(str(path)) for path in ([file] if file is not None else map(_packaged, known))]
    return [f"{document['dataset']}/{name}" for document in documents for name in document["deployments"]]


def find_deployment(of: str, changes: Mapping[str, Any] | None = None, file: str | Path | None = None) -> Deployment:
    """A deployment by its name ``dataset/name``, of a file of yours where one is given.

    ``changes`` replace values by their dotted path: ``{"query.rows": 20, "test.share": [0.5, 1.0]}``.

    >>> find_deployment("iwildcam/se_asia", {"query.rows": 20}).query
    {'hash': 'sequence', 'share': [0.0, 0.3], 'stratify': 'label', 'rows': 20}

    Raises UsageError for a data set, a deployment, a key or a value that cannot be meant.
    """
    dataset, _, name = of.partition("/")
    where = str(file) if file is not None else str(_packaged(dataset))
    document = _read(where)
    if document.get("dataset") != dataset:
        raise UsageError(f"{where} describes the data set {document.get('dataset')!r}, not {dataset!r}.")
    known = document["deployments"]
    if name not in known:
        raise UsageError(f"no deployment '{of}'; {dataset} has {', '.join(known)}.{did_you_mean(name, known)}")
    values = {key: value for key, value in document.items() if key != "deployments"}
    for key, value in known[name].items():
        inner = values.get(key)
        values[key] = {**inner, **value} if isinstance(inner, dict) and key in ("query", "test", "paper") else value
    for path, value in (changes or {}).items():
        values = _changed(values, str(path).split("."), value, of, str(path))
    return checked(Deployment, {**values, "name": name}, of)


def _changed(values: dict[str, Any], path: list[str], value: Any, of: str, whole: str) -> dict[str, Any]:
    head, rest = path[0], path[1:]
    if not rest:
        return {**values, head: value}
    inner = values.get(head, {})
    if not isinstance(inner, dict):
        raise UsageError(f"{of}: '{whole}' cannot be set: {head} holds {inner!r} and has no keys.")
    return {**values, head: _changed(inner, rest, value, of, whole)}


def _packaged(dataset: str) -> Path:
    path = FOLDER / f"{dataset}.yaml"
    known = sorted(file.stem for file in FOLDER.glob("*.yaml"))
    if dataset not in known:
        raise UsageError(f"no data set '{dataset}'; there are: {', '.join(known)}.{did_you_mean(dataset, known)}")
    return path


@lru_cache(maxsize=32)
def _read(where: str) -> dict[str, Any]:
    try:
        document = load_yaml(Path(where).read_bytes())
    except (OSError, yaml.YAMLError) as error:
        raise UsageError(f"{where} cannot be read: {' '.join(str(error).split())}.") from None
    if not isinstance(document, dict):
        raise UsageError(f"{where}: a file of deployments is a mapping with the keys dataset and deployments.")
    checked(_File, {key: document[key] for key in ("dataset", "title", "deployments") if key in document}, where)
    return document
