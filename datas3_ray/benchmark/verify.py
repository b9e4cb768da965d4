"""Checks a submission: that it is whole, that its parts agree, and that its claims follow from its trials.

Without the lake it was made from that is all that can be known. With a lake the ids, tables, selections and scores are
compared with those there as well.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from datas3_ray.benchmark.archive import Fault, read_members
from datas3_ray.benchmark.leaderboard import leaderboard
from datas3_ray.benchmark.submission import VERSION, claims
from datas3_ray.benchmark.submission_form import Submission, check_hashes, parse, read_manifest, some
from datas3_ray.benchmark.verify_figures import figures
from datas3_ray.benchmark.verify_lake import eligible, same_selections, same_tables, same_trials
from datas3_ray.errors import Datas3Error

if TYPE_CHECKING:
    from datas3_ray.lake import Lake

MAX_GRID = 1_000_000

_WRONG_FORM = (
    KeyError,
    TypeError,
    ValueError,
    AttributeError,
    IndexError,
    RecursionError,
    ArithmeticError,
    pa.ArrowException,
)


@dataclass(frozen=True)
class Check:
    """One thing that was checked; ``holds`` is None where there was nothing to compare it with."""

    name: str
    holds: bool | None
    sentence: str

    def line(self) -> str:
        """For people."""
        mark = {True: "✓", False: "✗", None: "–"}[self.holds]
        return f"{mark} {self.name}: {self.sentence}"


def verify(path: str | Path, lake: Lake | None = None) -> list[Check]:
    """Every check of a submission, in order. Where the form is wrong those that need it are not made.

    Parameters
    ----------
    path : str or Path
        A file of :func:`datas3_ray.benchmark.submission.pack`, from anyone: nothing in it is run, unpickled or unpacked
        to the disk, and there are limits on its size.
    lake : Lake, optional
        To compare it with: the lake it was made from, or another with the same tables.

    Raises
    ------
    UsageError
        When there is no such file.
    """
    checks: list[Check] = []
    members: dict[str, bytes] = {}
    parts: dict[str, Any] = {}

    def archive() -> str:
        members.update(read_members(Path(path)))
        return f"a zip archive of {len(members)} members, {sum(map(len, members.values())):,} bytes unpacked"

    def manifest() -> str:
        parts["manifest"] = found = read_manifest(members)
        return f"{found.project} made it of method '{found.method}' at {found.created}, and it lists every member"

    def hashes() -> str:
        return check_hashes(members, parts["manifest"])

    def form() -> str:
        parts["submission"] = found = parse(members, parts["manifest"])
        return f"{len(found.trials)} trials and {len(found.ids)} selections are of the form of version {VERSION}"

    for name, check in (("archive", archive), ("manifest", manifest), ("hashes", hashes), ("form", form)):
        checks.append(_made(name, check))
        # Of a file with a wrong hash everything else is still worth knowing.
        if checks[-1].holds is False and name != "hashes":
            return checks
    submission: Submission = parts["submission"]
    inner: list[tuple[str, Callable[[Submission], str]]] = [
        ("ids", _ids),
        ("lineage", _lineage),
        ("figures", figures),
        ("grid", _grid),
        ("winners", _winners),
        ("cells", _cells),
    ]
    checks += [_made(name, lambda check=check: check(submission)) for name, check in inner]  # type: ignore[misc]
    if lake is not None:
        outer: list[tuple[str, Callable[[Submission, Lake], str | None]]] = [
            ("tables in the lake", same_tables),
            ("ids in the lake", eligible),
            ("selections in the lake", same_selections),
            ("trials in the lake", same_trials),
        ]
        checks += [_made(name, lambda check=check: check(submission, lake)) for name, check in outer]  # type: ignore[misc]
    return checks


def _made(name: str, check: Callable[[], str | None]) -> Check:
    """A check's outcome. One that gives None had nothing to compare with."""
    try:
        said = check()
    except Fault as fault:
        return Check(name, False, f"{_printable(str(fault))}.")
    except Datas3Error as error:
        if name == "archive":  # there is no such file
            raise
        return Check(name, False, _printable(str(error)))
    except _WRONG_FORM as error:
        return Check(name, False, f"something there is not of the form: {_printable(str(error))[:200]}.")
    if said is None:
        return Check(name, None, "the lake has none of them, so that there is nothing to compare.")
    return Check(name, True, f"{_printable(said)}.")


def _printable(text: str) -> str:
    """One line that does nothing to a terminal, whatever the file holds."""
    plain = " ".join(text.split())[:600]
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in plain)


def _ids(submission: Submission) -> str:
    """Distinct, ascending, and as many as everything else says."""
    for name, ids in submission.ids.items():
        for before, after in zip(ids, ids[1:], strict=False):
            if before >= after:
                what = "is there twice" if before == after else "is not in ascending order"
                raise Fault(f"selection '{name}': the id {after!r} {what}")
        kept = submission.lineages[name]["counts"]["kept"]
        told = {"lineage": kept, "manifest": submission.manifest.selections[name].rows}
        told |= {f"trial {trial['trial']}": trial["subset_size"] for trial in submission.of(name)}
        for where, rows in told.items():
            if rows != len(ids):
                raise Fault(f"selection '{name}' has {len(ids):,} ids, and its {where} says {rows:,}")
    total = sum(len(ids) for ids in submission.ids.values())
    return f"{total:,} ids, distinct within their selections, ascending, and as many as lineage and trials say"


def _lineage(submission: Submission) -> str:
    """Trials, selections, deployments and tables speak of the same things."""
    manifest = submission.manifest
    used = {trial["selection"] for trial in submission.trials}
    if used != set(manifest.selections):
        raise Fault(f"selections and trials do not belong together: {some(used ^ set(manifest.selections))}")
    if {trial["deployment"] for trial in submission.trials} != set(manifest.deployments):
        raise Fault("the manifest's deployments are not those of the trials")
    for trial in submission.trials:
        name, lineage = trial["selection"], trial["lineage"]
        where = f"trial {trial['trial']}"
        known, made = manifest.selections[name], submission.lineages[name]
        if not trial["selection_fingerprint"] == made["fingerprint"] == known.fingerprint:
            raise Fault(f"{where} was trained on another selection '{name}': the fingerprints differ")
        if trial["method"] != manifest.method:
            raise Fault(f"{where} is of method '{trial['method']}', not of '{manifest.method}'")
        if lineage["test"] != manifest.deployments[trial["deployment"]].test:
            raise Fault(f"{where} was scored on table '{lineage['test']}', which is not its deployment's")
        for table in (made["table"], lineage["test"]):
            if table not in manifest.tables or table not in lineage["inputs"]:
                raise Fault(f"{where} does not say which version of table '{table}' it read, or the manifest does not")
        rows = manifest.tables[lineage["test"]].rows
        if trial["test_rows"] > rows or not 0 <= (trial.get("test_dropped") or 0) <= trial["test_rows"]:
            raise Fault(f"{where} has {trial['test_rows']:,} test rows, of a table of {rows:,}")
        if not 0 < trial["train_rows"] <= trial["subset_size"]:
            raise Fault(f"{where} was trained on {trial['train_rows']:,} of the {trial['subset_size']:,} rows it chose")
    for name, tables in manifest.deployments.items():
        scored = [trial for trial in submission.trials if trial["deployment"] == name]
        made = submission.lineages
        asked = {trial["lineage"].get("query") or made[trial["selection"]].get("query") for trial in scored}
        if tables.query not in asked:
            raise Fault(f"the query of deployment '{name}' is said to be '{tables.query}', which no trial of it had")
    return "every trial has the fingerprint of its selection, and the test table of its deployment"


def _grid(submission: Submission) -> str:
    """No trial was left out: every point of every sweep's grid is there for every seed, once."""
    from datas3_ray.training.config import SweepConfig

    sweeps = _sweeps(submission)
    for (sweep, deployment, selection), trials in sweeps.items():
        where = f"sweep {sweep} of '{selection}' in {deployment}"
        settings = trials[0]["lineage"]["config"]
        if any(trial["lineage"]["config"] != settings for trial in trials):
            raise Fault(f"{where}: its trials have different settings")
        try:
            config = SweepConfig.model_validate(settings)
        except Datas3Error as error:
            raise Fault(f"{where}: its settings cannot be meant: {str(error).rstrip('.')}") from None
        size = math.prod(len(values) for values in config.grid.values()) * len(config.seed)
        if size > MAX_GRID:
            raise Fault(f"{where}: its grid has {size:,} points, which no one has trained")
        wanted = sorted(_point(seed, point) for seed in config.seed for point in config.points())
        found = sorted(_point(trial["seed"], trial["hyperparameters"]) for trial in trials)
        if found != wanted:
            raise Fault(f"{where}: its grid has {len(wanted)} points and seeds, and the trials are not those")
        if any(trial["metric"] != config.metric or trial["model"] != config.model for trial in trials):
            raise Fault(f"{where}: a trial has another model or metric than its settings")
    return f"each of {len(sweeps)} grids has a trial for every point and seed, and no other"


def _winners(submission: Submission) -> str:
    """The marked trials are those that are best on what the sweep chose by."""
    from datas3_ray.training.results import Candidate, winners

    for (sweep, deployment, selection), trials in _sweeps(submission).items():
        ordered = sorted(trials, key=lambda trial: (len(trial["trial"]), trial["trial"]))
        candidates = [
            Candidate(
                index=place,
                selection=selection,
                hyperparameters=tuple(trial["hyperparameters"].items()),
                worth=_worth(trial),
                loss=trial["lineage"].get("validation_loss"),
            )
            for place, trial in enumerate(ordered)
        ]
        best = winners(candidates, ordered[0]["higher_is_better"])
        marked = {place for place, trial in enumerate(ordered) if trial["best"]}
        if best != marked:
            names = ", ".join(ordered[place]["trial"] for place in sorted(best)) or "none"
            raise Fault(f"sweep {sweep} of '{selection}' in {deployment}: the best is {names}, and another is marked")
    chosen = sorted({trial.get("chosen_on") or "validation" for trial in submission.trials})
    return f"the marked trials are the best of their grids on {' or '.join(chosen)}"


def _cells(submission: Submission) -> str:
    """The claimed cells are what the leaderboard makes of the trials."""
    made = claims(leaderboard(submission.table))
    claimed = submission.manifest.cells
    if len(made) != len(claimed):
        raise Fault(f"{len(claimed)} cells are claimed, and the trials give {len(made)}")
    for mine, theirs in zip(made, claimed, strict=True):
        for key in sorted({*mine, *theirs}):
            if json.dumps(mine.get(key)) != json.dumps(theirs.get(key)):  # as text, since NaN is not itself
                cell = f"{mine['deployment']}, {mine['model']}"
                raise Fault(
                    f"{cell}: {key} is claimed to be {theirs.get(key)!r:.100}, the trials give {mine.get(key)!r:.100}"
                )
    return f"all {len(made)} claimed cells follow from the trials"


def _sweeps(submission: Submission) -> dict[tuple[str, str, str], list[dict[str, Any]]]:
    """Trials that were chosen from together."""
    found: dict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)
    for trial in submission.trials:
        found[str(trial["lineage"]["sweep"]), trial["deployment"], trial["selection"]].append(trial)
    return found


def _worth(trial: Mapping[str, Any]) -> float | None:
    """What a trial's point is chosen by; None where it did not finish."""
    if trial["test"] is None:
        return None
    worth: Mapping[str, Callable[[], Any]] = {
        "validation": lambda: trial["validation"],
        "query": lambda: trial["lineage"]["query_score"],
        "test": lambda: trial["test"],
    }
    value = worth[trial.get("chosen_on") or "validation"]()
    return None if value is None else float(value)


def _point(seed: int, hyperparameters: Mapping[str, Any]) -> tuple[int, str]:
    return seed, json.dumps({key: float(value) for key, value in hyperparameters.items()}, sort_keys=True)
