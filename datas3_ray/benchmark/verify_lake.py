"""What a submission says, compared with a lake."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from datas3_ray.benchmark.archive import Fault
from datas3_ray.benchmark.submission import cleaned, contents, plain_trial
from datas3_ray.benchmark.submission_form import Submission
from datas3_ray.errors import Datas3Error

if TYPE_CHECKING:
    from datas3_ray.lake import Lake, Table

_MADE_BY = ("method", "parameters", "table", "within", "query", "size", "counts")
"""Of a lineage what the selection of one fingerprint has but one of."""


def same_tables(submission: Submission, lake: Lake) -> str:
    """Pool, test and query tables hold the same rows, in any order."""
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


def eligible(submission: Submission, lake: Lake) -> str:
    """Every id is a row of its pool, and of no split of it, nor of a test or query table of its deployments."""
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
        # Query tables of two deployments may share rows, and one of them may be the pool of a selection for its own.
        uses = [manifest.deployments[trial["deployment"]] for trial in submission.of(name)]
        scored = {table for one in uses for table in (one.test, one.query) if table}
        for table in sorted(scored | {split.name for split in splits_of(lake, pool)} - {pool}):
            if lake.exists(table) and table != pool:
                held = len(wanted) - len(_absent(lake.image_table(table), wanted))
                if held:
                    raise Fault(f"selection '{name}': {held:,} ids are in '{table}', from which none may be chosen")
    return "every id is in its pool, and in no test, query or split table"


def same_selections(submission: Submission, lake: Lake) -> str | None:
    """Where the lake has the selection, it keeps the same rows; and is made in the same way, if it is the very same."""
    names = set(lake.names("selection")) & set(submission.ids)
    for name in sorted(names):
        # Other fingerprints tell nothing here: those of another lake that was made of the same data are other ones.
        known = lake.selection(name)
        theirs = sorted(known.ids().to_pylist())
        if theirs != submission.ids[name]:
            apart = set(theirs) ^ set(submission.ids[name])
            raise Fault(f"selection '{name}' of the lake has other ids: {len(apart):,} are in one and not the other")
        mine, made = submission.lineages[name], cleaned(known.lineage())
        other = _other_key(*({key: each.get(key) for key in _MADE_BY} for each in (mine, made)))
        if other is not None and mine["fingerprint"] == made["fingerprint"]:
            raise Fault(f"selection '{name}': {other} of its lineage is another one in the lake")
    missing = len(submission.ids) - len(names)
    return (
        f"{len(names)} selections have the same ids there" + (f", {missing} are not there" if missing else "")
        if names
        else None
    )


def same_trials(submission: Submission, lake: Lake) -> str | None:
    """The lake has the same trials; of sweeps and settings that it knows it has every one."""
    theirs: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
    known: set[tuple[str, ...]] = set()
    for row in lake.results().to_pylist():
        trial = plain_trial(row)
        theirs[_trial_key(trial)].append(trial)
        known |= _contests(trial)
    found = 0
    for mine in submission.trials:
        where = f"trial {mine['trial']} in {mine['deployment']}"
        same = theirs.get(_trial_key(mine))
        if same is not None:
            found += 1
            others = [_other_key(mine, each) for each in same]
            if all(others):
                raise Fault(f"{where}: {others[0]} is another one in the lake")
        elif known & _contests(mine):
            raise Fault(
                f"{where}: the lake has trials of its sweep, or of its selection and settings, and not this one"
            )
    missing = len(submission.trials) - found
    return f"{found} trials are the same there" + (f", {missing} are not there" if missing else "") if found else None


def _other_key(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> str | None:
    """The first value in which two trials differ."""
    for key in sorted({*theirs, *mine}):
        if json.dumps(theirs.get(key), sort_keys=True) != json.dumps(mine.get(key), sort_keys=True):
            return key
    return None


def _trial_key(trial: Mapping[str, Any]) -> tuple[str, ...]:
    """What a trial is of. Its own name and time are left out: whoever invents scores may choose those."""
    hyperparameters = {key: float(value) for key, value in trial["hyperparameters"].items()}
    return (
        str(trial["lineage"].get("sweep")),
        trial["deployment"],
        trial["method"],
        trial["selection"],
        str(trial["seed"]),
        json.dumps(hyperparameters, sort_keys=True),
    )


def _contests(trial: Mapping[str, Any]) -> set[tuple[str, ...]]:
    """The sweep that a trial belongs to, and what it would share with one that was run again."""
    lineage = trial["lineage"]
    again = (trial["selection_fingerprint"], lineage.get("settings"), lineage.get("test"))
    found = {("sweep", str(lineage["sweep"]))} if lineage.get("sweep") else set()
    return found | ({("again", *map(str, again))} if all(again) else set())


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
