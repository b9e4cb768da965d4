"""What a user with one deployment and no time would run: try many selections cheaply, train on the best in full.

The query is split in two by a hash of its ids. Selectors look at one half; a linear probe trained on each selection is
judged on the other, labelled half. The selection with the best probe is what the real model is then trained on. The
test table takes no part in the choice.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from datas3_ray.errors import UsageError
from datas3_ray.kernels.hashing import hash64, id_words, uniform
from datas3_ray.lake.schemas import fingerprint
from datas3_ray.selectors import Selector, make_selector
from datas3_ray.training.config import SweepConfig
from datas3_ray.training.metrics import metric as find_metric
from datas3_ray.training.progress import Listener
from datas3_ray.training.sweep import Deployment, run_sweep

if TYPE_CHECKING:
    from datas3_ray.lake import Lake

SHARES = (0.1, 0.25, 0.5)


class AutoConfig(BaseModel):
    """What to try, and what to train on the winner.

    Attributes
    ----------
    pool, query, test : str
        Image tables; the query's and the test's rows are labelled.
    column : str
        The vector column that selectors and probe look at.
    candidates : sequence of mappings, optional
        ``{METHOD: {parameter: value or list of values}}``; every combination of listed values is a candidate. By
        default random, image_align, near_neighbors and importance_resampling at a tenth, a quarter and a half.
    probe, final : SweepConfig
        The judge's sweep, a linear probe, and the sweep on the winner.
    seed : int
        Of the query's split.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    pool: str
    query: str
    test: str
    column: str
    candidates: tuple[dict[str, dict[str, Any]], ...] = ()
    probe: SweepConfig
    final: SweepConfig
    seed: int = Field(0, ge=0)

    def selectors(self) -> dict[str, Selector]:
        """Label of each candidate, its method and what varies, and its selector."""
        asked: list[_Asked] = []
        for candidate in self.candidates or default_candidates(self.column):
            if len(candidate) != 1:
                raise UsageError(f"a candidate names one method, got {', '.join(candidate) or 'none'}.")
            ((method, parameters),) = candidate.items()
            for varied, values in _combinations(parameters):
                made = _Asked(method, values, set(varied), make_selector(method, values))
                # As text, since a size of 1 is a row and one of 1.0 is all.
                if all(repr(made.selector) != repr(other.selector) for other in asked):
                    asked.append(made)
        return {one.label: one.selector for one in _told_apart(asked)}


@dataclass
class _Asked:
    """A candidate, and the parameters that its label shows."""

    method: str
    values: dict[str, Any]
    shown: set[str]
    selector: Selector

    @property
    def label(self) -> str:
        parameters = [f"{key}={value}" for key, value in self.values.items() if key in self.shown]
        return " ".join([self.method, *parameters])


def _told_apart(asked: list[_Asked]) -> list[_Asked]:
    """The candidates, those of one label showing the parameters that differ among them as well."""
    while True:
        same: dict[str, list[_Asked]] = defaultdict(list)
        for one in asked:
            same[one.label].append(one)
        alike = [group for group in same.values() if len(group) > 1]
        if not alike:
            return asked
        for group in alike:
            keys = dict.fromkeys(key for one in group for key in one.values)
            differ = {key for key in keys if len({repr(one.values.get(key)) for one in group}) > 1}
            if all(differ & one.values.keys() <= one.shown for one in group):
                raise UsageError(f"two candidates would both be called '{group[0].label}'; leave one out.")
            for one in group:
                one.shown |= differ


@dataclass(frozen=True)
class Candidate:
    """One selection that was tried: its label and name, the rows it kept, and its probe's score on the judging half."""

    label: str
    selection: str
    rows: int
    score: float


@dataclass(frozen=True)
class Auto:
    """The candidates, best first, and the rows of the winner's sweep."""

    candidates: tuple[Candidate, ...]
    results: pa.Table

    @property
    def winner(self) -> Candidate:
        """The best candidate."""
        return self.candidates[0]


def default_candidates(column: str) -> tuple[dict[str, dict[str, Any]], ...]:
    """What is tried where nothing is asked for."""
    shares = list(SHARES)
    return (
        {"random": {"size": shares}},
        {"image_align": {"column": column, "x": [1, 10], "size": shares}},
        {"near_neighbors": {"column": column, "reading": "ranked", "size": shares}},
        {"importance_resampling": {"column": column, "size": shares}},
    )


def run_auto(lake: Lake, config: AutoConfig, *, name: str, storage: str, progress: Listener | None = None) -> Auto:
    """Select by every candidate, judge by probes, and train on the best.

    Leaves the two halves of the query as tables ``NAME.ask`` and ``NAME.judge``, the probes' trials in ``NAME.probes``,
    and the final trials, as deployment ``NAME``, in the results table. What is there already is not done again.

    Raises
    ------
    UsageError
        For tables, columns and parameters that do not fit; before anything is selected.
    """
    selectors = config.selectors()
    pool = lake.image_table(config.pool)
    lake.image_table(config.test)
    ask, judge = split_query(lake, config.query, name, config.probe.label, config.seed)
    for selector in selectors.values():
        selector.check(lake, pool, lake.table(ask) if selector.needs_query else None)
    selections = {
        label: selector.select(lake, config.pool, query=ask if selector.needs_query else None).name
        for label, selector in selectors.items()
    }
    judged = {"judge": Deployment("judge", test=judge, query=ask, selections=selections)}
    probes = run_sweep(
        lake,
        config.probe.model_copy(update={"column": config.column}),
        name=f"{name}.probes",
        deployments=judged,
        storage=storage,
        progress=progress,
        results=f"{name}.probes",
    )
    candidates = ranked(probes)
    deployment = Deployment(name, config.test, config.query, {"auto": candidates[0].selection})
    results = run_sweep(
        lake, config.final, name=name, deployments={name: deployment}, storage=storage, progress=progress
    )
    return Auto(candidates, results)


def split_query(lake: Lake, query: str, name: str, label: str, seed: int) -> tuple[str, str]:
    """Two tables: a half of the query's rows to look at, and the labelled rows of the other half to judge by."""
    table = lake.image_table(query)
    table.require_column(label)
    rows = table.to_arrow()
    draw = uniform(hash64(id_words(rows.column("id")), seed=seed, stream="auto"))
    first = draw <= np.median(draw)
    labelled = rows.column(label).is_valid().to_numpy()
    if not first.any() or not (~first & labelled).any():
        raise UsageError(
            f"query table '{query}' has {rows.num_rows} rows, {int(labelled.sum())} with a '{label}'; it needs one "
            "labelled row at least in each half."
        )
    identity = {"query": query, "version": table.content_mark, "seed": seed}
    # Which rows can judge depends on the label; selections need not be made again where it changes.
    parts = (("ask", first, identity), ("judge", ~first & labelled, {**identity, "label": label}))
    for part, keep, known in parts:
        there, mark = f"{name}.{part}", fingerprint(known)
        if lake.exists(there) and lake.table(there).lineage().get("fingerprint") == mark:
            continue
        lineage = {"method": "auto", "table": query, "inputs": {query: table.version}, "fingerprint": mark}
        lake.write(there, rows.filter(pa.array(keep)), kind="image", lineage=lineage)
    return f"{name}.ask", f"{name}.judge"


def ranked(probes: pa.Table) -> tuple[Candidate, ...]:
    """Candidates by the mean score of their winning probes on the judging half; of equals the smaller, then by name."""
    best: dict[str, list[dict[str, Any]]] = {}
    for row in probes.to_pylist():
        if row["best"]:
            best.setdefault(row["method"], []).append(row)
    sign = 1 if find_metric(probes.column("metric")[0].as_py()).higher_is_better else -1
    found = [
        Candidate(
            label,
            rows[0]["selection"],
            rows[0]["subset_size"],
            float(np.mean([row["test"] for row in rows])),
        )
        for label, rows in best.items()
    ]
    return tuple(sorted(found, key=lambda one: (-sign * one.score, one.rows, one.label)))


def _combinations(parameters: Mapping[str, Any]) -> Sequence[tuple[dict[str, Any], dict[str, Any]]]:
    """Of parameters with lists in them: what varies, and all values, of each combination."""
    lists = {key: value for key, value in parameters.items() if isinstance(value, (list, tuple))}
    return [
        (varied, {**parameters, **varied})
        for values in itertools.product(*lists.values())
        for varied in [dict(zip(lists, values, strict=True))]
    ]
