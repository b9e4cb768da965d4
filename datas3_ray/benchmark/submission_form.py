"""A submission's members as what they should be: the manifest, the trials, ids and lineages."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from datas3_ray.benchmark.archive import Fault
from datas3_ray.benchmark.submission import FORMAT, MANIFEST, TRIALS, VERSION, ids_member, lineage_member, table_of
from datas3_ray.lake.lake import check_name

MAX_LINES = 20_000_000
"""Ids of all selections together."""

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


class Manifest(_Form):
    """What a submission says of itself."""

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
class Submission:
    """A submission whose form is right."""

    manifest: Manifest
    trials: list[dict[str, Any]]
    table: pa.Table
    ids: dict[str, list[str]]
    lineages: dict[str, dict[str, Any]]

    def of(self, selection: str) -> list[dict[str, Any]]:
        """The trials of a selection."""
        return [trial for trial in self.trials if trial["selection"] == selection]


def read_manifest(members: Mapping[str, bytes]) -> Manifest:
    """The manifest, which lists every other member and no more. Raises a :class:`Fault` where it does not."""
    if MANIFEST not in members:
        raise Fault(f"there is no {MANIFEST}")
    raw = _json(members[MANIFEST], MANIFEST)
    if not isinstance(raw, dict) or raw.get("format") != FORMAT or raw.get("version") != VERSION:
        raise Fault(f"{MANIFEST} is not of the format {FORMAT}, version {VERSION}, which this program reads")
    try:
        found = Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        raise Fault(f"{MANIFEST}: {'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from None
    scored = [name for one in found.deployments.values() for name in (one.test, one.query) if name is not None]
    for name in (*found.tables, *found.selections, *scored):
        check_name(name)  # a name of another program's making could be a path
    wanted = {TRIALS, *(make(name) for name in found.selections for make in (ids_member, lineage_member))}
    if set(found.members) != wanted:
        raise Fault(f"it should list {some(wanted ^ set(found.members))}, or should not")
    there = set(members) - {MANIFEST}
    for what, names in (("is not listed in the manifest", there - wanted), ("is missing", wanted - there)):
        if names:
            raise Fault(f"the member {some(names)} {what}")
    return found


def check_hashes(members: Mapping[str, bytes], manifest: Manifest) -> str:
    """Whether every member is the one that the manifest describes."""
    for name, known in manifest.members.items():
        if len(members[name]) != known.bytes or hashlib.sha256(members[name]).hexdigest() != known.sha256:
            raise Fault(f"the member {name} is not the one that the manifest describes: its SHA-256 or size differs")
    return f"all {len(manifest.members)} members have the SHA-256 that the manifest says"


def parse(members: Mapping[str, bytes], manifest: Manifest) -> Submission:
    """The trials, ids and lineages. Raises a :class:`Fault`, or what Python and Arrow raise, for another form."""
    trials = _json_lines(members[TRIALS], TRIALS)
    table = table_of(trials)
    for name in _NEEDED:
        if table.column(name).null_count:
            raise Fault(f"{TRIALS}: {table.column(name).null_count} trials have no {name}")
    if not trials:
        raise Fault("there is no trial in it")
    ((trial, deployment), times), *_ = Counter((each["trial"], each["deployment"]) for each in trials).most_common(1)
    if times > 1:
        raise Fault(f"{TRIALS}: trial {trial} in {deployment} is there {times} times")
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
    return Submission(manifest, trials, table, ids, lineages)


def some(names: Iterable[str]) -> str:
    """The first few of some names."""
    listed = sorted(names)
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")


def _json(data: bytes, where: str) -> Any:
    try:
        return json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise Fault(f"{where} is not JSON: {' '.join(str(error).split())[:100]}") from None


def _json_lines(data: bytes, where: str) -> list[Any]:
    return [_json(line, f"{where}, line {number}") for number, line in enumerate(data.splitlines(), 1)]
