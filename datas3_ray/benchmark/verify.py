"""Checks a submission: that it is whole, that its parts agree, and that its claims follow from its trials.

Without the lake it was made from that is all that can be known. With a lake the ids, tables, selections and scores are
compared with those there as well.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from datas3_ray.benchmark.archive import Fault, read_members
from datas3_ray.benchmark.leaderboard import leaderboard
from datas3_ray.benchmark.submission import (
    FORMAT,
    MANIFEST,
    TRIALS,
    VERSION,
    claims,
    contents,
    ids_member,
    lineage_member,
    plain_trial,
    table_of,
)
from datas3_ray.errors import Datas3Error
from datas3_ray.lake.lake import check_name

if TYPE_CHECKING:
    from datas3_ray.lake import Lake, Table

_NEEDED = (
    "trial",
    "run",
    "deployment",
    "method",
    "selection",
    "selection_fingerprint",
    "model",
    "hyperparameters",
    "seed",
    "metric",
    "higher_is_better",
    "best",
    "subset_size",
    "pool_size",
    "train_rows",
    "missing_classes",
    "test_rows",
    "lineage",
    "created",
)
MAX_LINES = 20_000_000
"""Ids of all selections together."""
MAX_GRID = 1_000_000

_WRONG_FORM = (
    KeyError,
    TypeError,
    ValueError,
    AttributeError,
    IndexError,
    RecursionError,
    OverflowError,
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


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Member(_Form):
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class _Selection(_Form):
    rows: int = Field(ge=0)
    fingerprint: str


class _Deployment(_Form):
    test: str
    query: str | None


class _Table(_Form):
    role: str
    version: int
    rows: int = Field(ge=0)
    columns: list[str] = Field(min_length=1)
    fingerprint: str


class _Manifest(_Form):
    format: str
    version: int
    project: str
    created: str
    method: str
    deployments: dict[str, _Deployment]
    tables: dict[str, _Table]
    selections: dict[str, _Selection]
    members: dict[str, _Member]
    cells: list[dict[str, Any]]


@dataclass(frozen=True)
class _Submission:
    """A submission whose form is right."""

    manifest: _Manifest
    trials: list[dict[str, Any]]
    table: pa.Table
    ids: dict[str, list[str]]
    lineages: dict[str, dict[str, Any]]

    def of(self, selection: str) -> list[dict[str, Any]]:
        """The trials of a selection."""
        return [trial for trial in self.trials if trial["selection"] == selection]


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
        parts["manifest"] = found = _manifest(members)
        return f"{found.project} made it of method '{found.method}' at {found.created}, and it lists every member"

    def hashes() -> str:
        return _hashes(members, parts["manifest"])

    def form() -> str:
        parts["submission"] = found = _parsed(members, parts["manifest"])
        return f"{len(found.trials)} trials and {len(found.ids)} selections are of the form of version {VERSION}"

    for name, check in (("archive", archive), ("manifest", manifest), ("hashes", hashes), ("form", form)):
        checks.append(_made(name, check))
        # Of a file with a wrong hash everything else is still worth knowing.
        if checks[-1].holds is False and name != "hashes":
            return checks
    submission: _Submission = parts["submission"]
    inner: list[tuple[str, Callable[[_Submission], str]]] = [
        ("ids", _ids),
        ("lineage", _lineage),
        ("grid", _grid),
        ("winners", _winners),
        ("cells", _cells),
    ]
    checks += [_made(name, lambda check=check: check(submission)) for name, check in inner]  # type: ignore[misc]
    if lake is not None:
        outer: list[tuple[str, Callable[[_Submission, Lake], str | None]]] = [
            ("tables in the lake", _same_tables),
            ("ids in the lake", _eligible),
            ("selections in the lake", _same_selections),
            ("trials in the lake", _same_trials),
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


def _manifest(members: Mapping[str, bytes]) -> _Manifest:
    if MANIFEST not in members:
        raise Fault(f"there is no {MANIFEST}")
    raw = _json(members[MANIFEST], MANIFEST)
    if not isinstance(raw, dict) or raw.get("format") != FORMAT or raw.get("version") != VERSION:
        raise Fault(f"{MANIFEST} is not of the format {FORMAT}, version {VERSION}, which this program reads")
    try:
        found = _Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        raise Fault(f"{MANIFEST}: {'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from None
    scored = [name for one in found.deployments.values() for name in (one.test, one.query) if name is not None]
    for name in (*found.tables, *found.selections, *scored):
        check_name(name)  # a name of another program's making could be a path
    wanted = {TRIALS, *(make(name) for name in found.selections for make in (ids_member, lineage_member))}
    if set(found.members) != wanted:
        raise Fault(f"it should list {_some(wanted ^ set(found.members))}, or should not")
    there = set(members) - {MANIFEST}
    for what, names in (("is not listed in the manifest", there - wanted), ("is missing", wanted - there)):
        if names:
            raise Fault(f"the member {_some(names)} {what}")
    return found


def _hashes(members: Mapping[str, bytes], manifest: _Manifest) -> str:
    for name, known in manifest.members.items():
        if len(members[name]) != known.bytes or hashlib.sha256(members[name]).hexdigest() != known.sha256:
            raise Fault(f"the member {name} is not the one that the manifest describes: its SHA-256 or size differs")
    return f"all {len(manifest.members)} members have the SHA-256 that the manifest says"


def _parsed(members: Mapping[str, bytes], manifest: _Manifest) -> _Submission:
    trials = _json_lines(members[TRIALS], TRIALS)
    table = table_of(trials)
    for name in _NEEDED:
        if table.column(name).null_count:
            raise Fault(f"{TRIALS}: {table.column(name).null_count} trials have no {name}")
    if not trials:
        raise Fault("there is no trial in it")
    lines = sum(members[ids_member(name)].count(b"\n") for name in manifest.selections)
    if lines > MAX_LINES:
        raise Fault(f"its selections have {lines:,} ids; {MAX_LINES:,} are allowed")
    ids, lineages = {}, {}
    for name in manifest.selections:
        ids[name] = _json_lines(members[ids_member(name)], ids_member(name))
        if not all(isinstance(each, str) for each in ids[name]):
            raise Fault(f"{ids_member(name)}: an id is not a text")
        lineages[name] = _json(members[lineage_member(name)], lineage_member(name))
        if not isinstance(lineages[name], dict):
            raise Fault(f"{lineage_member(name)} holds no object")
    return _Submission(manifest, trials, table, ids, lineages)


def _ids(submission: _Submission) -> str:
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


def _lineage(submission: _Submission) -> str:
    """Trials, selections, deployments and tables speak of the same things."""
    manifest = submission.manifest
    used = {trial["selection"] for trial in submission.trials}
    if used != set(manifest.selections):
        raise Fault(f"selections and trials do not belong together: {_some(used ^ set(manifest.selections))}")
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
    return "every trial has the fingerprint of its selection, and the test table of its deployment"


def _grid(submission: _Submission) -> str:
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


def _winners(submission: _Submission) -> str:
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


def _cells(submission: _Submission) -> str:
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


def _same_tables(submission: _Submission, lake: Lake) -> str:
    for name, known in submission.manifest.tables.items():
        if not lake.exists(name):
            raise Fault(f"the lake has no table '{name}'")
        found = [_contents(table, known.columns) for table in _versions(lake, name, known.version)]
        wanted = (known.rows, known.fingerprint)
        if wanted not in found:
            rows = found[0][0]
            raise Fault(
                f"table '{name}' of the lake holds other rows: {rows:,} there, {known.rows:,} in the submission"
            )
    return f"{len(submission.manifest.tables)} tables hold the rows that the submission was made from"


def _eligible(submission: _Submission, lake: Lake) -> str:
    """Every id is a row of its pool, and of no split, test or query table."""
    from datas3_ray.lake.splits import splits_of

    manifest = submission.manifest
    for name, ids in submission.ids.items():
        pool = submission.lineages[name]["table"]
        if pool not in manifest.tables:
            raise Fault(f"selection '{name}' was made from table '{pool}', of which the manifest says nothing")
        wanted = pa.array(ids, pa.string())
        strange = _absent(lake.image_table(pool), wanted)
        if strange:
            raise Fault(f"selection '{name}': {len(strange):,} ids are not in table '{pool}', {strange[0]!r} for one")
        scored = {table for one in manifest.deployments.values() for table in (one.test, one.query) if table}
        for table in sorted(scored | {split.name for split in splits_of(lake, pool)} - {pool}):
            if lake.exists(table) and table != pool:
                held = len(wanted) - len(_absent(lake.image_table(table), wanted))
                if held:
                    raise Fault(f"selection '{name}': {held:,} ids are in '{table}', from which none may be chosen")
    return "every id is in its pool, and in no test, query or split table"


def _same_selections(submission: _Submission, lake: Lake) -> str | None:
    """Where the lake has the selection, it keeps the same rows."""
    names = set(lake.names("selection")) & set(submission.ids)
    for name in sorted(names):
        selection = lake.selection(name)
        if selection.fingerprint != submission.manifest.selections[name].fingerprint:
            raise Fault(f"selection '{name}' of the lake is another one: the fingerprints differ")
        theirs = sorted(selection.ids().to_pylist())
        if theirs != submission.ids[name]:
            apart = set(theirs) ^ set(submission.ids[name])
            raise Fault(f"selection '{name}' of the lake has other ids: {len(apart):,} are in one and not the other")
    missing = len(submission.ids) - len(names)
    return (
        f"{len(names)} selections have the same ids there" + (f", {missing} are not there" if missing else "")
        if names
        else None
    )


def _same_trials(submission: _Submission, lake: Lake) -> str | None:
    """Where the lake has the trial, it has the same scores."""
    every = lake.results()
    if not every.num_rows:
        return None
    mine = {_trial_key(trial): trial for trial in submission.trials}
    found = 0
    rows = every.filter(pc.is_in(every.column("trial"), value_set=pa.array([key[0] for key in mine], pa.string())))
    for row in rows.to_pylist():
        theirs = plain_trial(row)
        same = mine.get(_trial_key(theirs))
        if same is None:
            continue
        found += 1
        for key in sorted({*theirs, *same} - {"run", "created"}):
            if json.dumps(theirs.get(key), sort_keys=True) != json.dumps(same.get(key), sort_keys=True):
                raise Fault(f"trial {theirs['trial']} in {theirs['deployment']}: {key} is another one in the lake")
    missing = len(mine) - found
    return f"{found} trials are the same there" + (f", {missing} are not there" if missing else "") if found else None


def _trial_key(trial: Mapping[str, Any]) -> tuple[str, ...]:
    return trial["trial"], trial["deployment"], trial["method"], trial["created"]


def _sweeps(submission: _Submission) -> dict[tuple[str, str, str], list[dict[str, Any]]]:
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


def _versions(lake: Lake, name: str, version: int) -> Iterable[Table]:
    """The table as it is, and as it was when the submission was made, where that is still there."""
    yield lake.table(name)
    try:
        yield lake.table(name, version)
    except (Datas3Error, ValueError, OSError):
        return


def _contents(table: Table, columns: list[str]) -> tuple[int, str]:
    absent = [name for name in columns if name not in table.schema.names]
    if absent:
        raise Fault(f"table '{table.name}' of the lake has no column '{absent[0]}'")
    found = contents(table, columns)
    return found["rows"], found["fingerprint"]


def _absent(table: Table, ids: pa.Array) -> list[str]:
    """Ids that are not in a table, which is streamed."""
    there = [
        pc.filter(batch.column("id"), pc.is_in(batch.column("id"), value_set=ids))
        for batch in table.dataset.scanner(columns=["id"]).to_batches()
    ]
    found = pa.concat_arrays([each.cast(pa.string()) for each in there]) if there else pa.array([], pa.string())
    absent: list[str] = pc.filter(ids, pc.invert(pc.is_in(ids, value_set=found))).to_pylist()
    return absent


def _json(data: bytes, where: str) -> Any:
    try:
        return json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise Fault(f"{where} is not JSON: {' '.join(str(error).split())[:100]}") from None


def _json_lines(data: bytes, where: str) -> list[Any]:
    return [_json(line, f"{where}, line {number}") for number, line in enumerate(data.splitlines(), 1)]


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")
