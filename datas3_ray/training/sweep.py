"""A sweep: one model at every point of a grid on every selection, scored on every deployment.

A model trained on a selection is the same whichever deployment asks for it, so each (selection, seed, grid point) is
trained once and scored on the test table of every deployment that lists the selection. Results appear in the lake in
one commit, or not at all; a sweep whose results are there already is not run again, and of one that was cut short only
the trials that had not finished are.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from datas3_ray.errors import UsageError
from datas3_ray.lake.lake import RESULTS_TABLE
from datas3_ray.training.config import SweepConfig
from datas3_ray.training.contract import Point
from datas3_ray.training.epochs import epochs_of
from datas3_ray.training.models import model as find_model
from datas3_ray.training.progress import Listener, SweepProgress, listening
from datas3_ray.training.results import Sweep, finished_rows, result_rows, scored_tables

if TYPE_CHECKING:
    from datas3_ray.lake import Lake, Table

__all__ = ["Deployment", "SweepConfig", "SweepProgress", "run_sweep", "sweep_is_done"]


@dataclass(frozen=True)
class Deployment:
    """One place where a model will be used.

    ``test`` is the image table it is scored on, ``query`` the table of examples the selections looked at (kept in the
    lineage; nothing is trained on it), ``selections`` those to compare there, by the label a leaderboard shows.
    """

    name: str
    test: str
    query: str | None = None
    selections: Mapping[str, str] = field(default_factory=dict)


def run_sweep(
    lake: Lake,
    config: SweepConfig,
    *,
    name: str,
    deployments: Mapping[str, Deployment],
    storage: str,
    progress: Listener | None = None,
    results: str = RESULTS_TABLE,
) -> pa.Table:
    """Train and score everything asked for, and return its rows of the results table.

    Parameters
    ----------
    lake : Lake
    config : SweepConfig
    name : str
        Names the run in the results and in ``storage``.
    deployments : mapping of str to Deployment
    storage : str
        A folder or object-store uri for Ray Tune's own files: event files for TensorBoard, and checkpoints.
    progress : callable, optional
        Called with a :class:`SweepProgress` whenever a trial gets on; by default a table on the terminal.
    results : str
        The table of the lake that gets the rows.

    Returns
    -------
    pyarrow.Table
        ``datas3_ray.lake.schemas.RESULTS``: deployments x their selections x seeds x grid points. Exactly one grid
        point of each deployment and selection has ``best``, chosen on validation rows of the selection, or as
        ``config`` says. A trial that failed has its error in place of scores.

    Raises
    ------
    UsageError
        For names, columns or tables that do not fit; before anything is trained.
    Datas3Error
        When every trial fails, or the sweep is interrupted; the results table is then as it was.
    """
    sweep = _open(lake, config, name, deployments)
    finished = finished_rows(lake, sweep, results)
    if finished is not None:
        return finished
    from datas3_ray.runtime import ensure_ray

    ensure_ray()
    from datas3_ray.training.keeper import Work
    from datas3_ray.training.tuning import folder_name, run_trials

    tests = {each: lake.table(each, version) for each, version in sweep.scored_versions.items()}
    _check_queries(sweep, tests)
    prepared = find_model(config.model).prepare(lake, config, sweep.selections, tests)
    points = _points(sweep)
    work = Work(
        training={key: one.data for key, one in prepared.training.items()},
        tests={each: one.data for each, one in prepared.tests.items()},
        tests_of={
            each: sorted({t for d in deployments.values() if each in d.selections.values() for t in sweep.scored(d)})
            for each in sweep.selections
        },
        epochs={key: epochs_of(config, one.train_rows) for key, one in prepared.training.items()},
    )
    root = storage if "://" in storage else os.path.abspath(os.path.expanduser(storage))
    folder = folder_name(name, sweep.fingerprint)
    with listening(name, len(points), progress) as listener:
        trials = run_trials(folder, points, config, work, storage=root, listener=listener)
    rows = result_rows(lake, sweep, prepared, trials, f"{root.rstrip('/')}/{folder}")
    lake.append_results(rows, results)
    return rows


def sweep_is_done(lake: Lake, config: SweepConfig, *, name: str, deployments: Mapping[str, Deployment]) -> bool:
    """Whether :func:`run_sweep` would find its results in the lake and train nothing."""
    return finished_rows(lake, _open(lake, config, name, deployments), RESULTS_TABLE) is not None


def _open(lake: Lake, config: SweepConfig, name: str, deployments: Mapping[str, Deployment]) -> Sweep:
    """Look up every table and selection, so that a wrong name is told before anything runs."""
    if not deployments:
        raise UsageError(f"sweep '{name}' has no deployments; name at least one with its test table and selections.")
    for label, deployment in deployments.items():
        if label != deployment.name:
            raise UsageError(f"sweep '{name}' lists deployment '{deployment.name}' under the name '{label}'; use one.")
        if not deployment.selections:
            raise UsageError(f"deployment '{label}' of sweep '{name}' has no selections; name at least one.")
        if deployment.query is not None:
            lake.image_table(deployment.query)
        elif config.validation_on == "query":
            raise UsageError(
                f"deployment '{label}' of sweep '{name}' has no query table; validation_on: query chooses on its rows."
            )
    scored = list(dict.fromkeys(each for d in deployments.values() for each in scored_tables(config, d)))
    wanted = dict.fromkeys(chosen for d in deployments.values() for chosen in d.selections.values())
    return Sweep(
        name=name,
        config=config.by_content(),
        deployments=deployments,
        selections={chosen: lake.selection(chosen) for chosen in wanted},
        scored_versions={each: lake.image_table(each).version for each in scored},
        scored_contents={each: lake.image_table(each).content_mark for each in scored},
    )


def _check_queries(sweep: Sweep, tests: Mapping[str, Table]) -> None:
    """Raise a UsageError where query rows that choose a deployment's winner are rows of its test table."""
    if sweep.config.validation_on != "query":
        return
    for label, deployment in sweep.deployments.items():
        test, query = (tests[name].to_arrow(["id"]).column("id") for name in sweep.scored(deployment))
        shared = query.filter(pc.is_in(query, value_set=test))
        if len(shared):
            raise UsageError(
                f"query table '{deployment.query}' of deployment '{label}' has {len(shared)} rows of its test table "
                f"'{deployment.test}' ('{shared[0]}' for one), and with validation_on: query they would choose what "
                "they test; use other rows for one of them."
            )


def _points(sweep: Sweep) -> list[Point]:
    """Trials in order: selections as first listed, then seeds, then the grid."""
    every = [
        (selection, seed, grid)
        for selection in sweep.selections
        for seed in sweep.config.seed
        for grid in sweep.config.points()
    ]
    return [Point(index, selection, seed, grid) for index, (selection, seed, grid) in enumerate(every)]
