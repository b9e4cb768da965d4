"""A method's selections and results in one file that others can verify: see :mod:`datas3_ray.benchmark.verify`.

The file is a zip archive of plain text, the same bytes for the same lake and time:

=============================  ===================================================================================
``manifest.json``              format, method, deployments, tables with versions and fingerprints, each other
                               member's SHA-256, and the leaderboard's cells that are claimed
``trials.jsonl``               every trial of the sets behind those cells, one JSON object a line
``selections/NAME/ids.jsonl``  the ids that a selection kept, ascending, one JSON string a line
``selections/NAME/lineage.json``  what made it
=============================  ===================================================================================

No storage options, checkpoints, folders of this machine, or secrets of uris are in it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from datas3_ray import __version__
from datas3_ray.benchmark.leaderboard import Leaderboard, counted, leaderboard, plain_cell, set_key
from datas3_ray.errors import UsageError, did_you_mean, require_file_name
from datas3_ray.lake.schemas import RESULTS
from datas3_ray.lake.storage import URI, public_uri

if TYPE_CHECKING:
    from datas3_ray.lake import Lake, Selection, Table

FORMAT, VERSION = "datas3-submission", 1
MANIFEST, TRIALS = "manifest.json", "trials.jsonl"
LEFT_OUT = ("checkpoint", "error")
"""Columns of the results that say nothing to others, or name this machine's folders."""

_SECRET = re.compile(
    r"(.*[_-])?(secrets?|tokens?|passwords?|passwd|credentials?|api_?key|access_?key(_id)?|secret_access_key|sas)", re.I
)
_LOCAL = re.compile(
    r"(?:file:(?://[^/]*)?|(?P<scheme>local-dir:|(?!file:)[a-z][\w+.\-]*:(?!//[^/]))?)(?P<path>~[^/]*/.*|/.*)",
    re.I | re.S,
)
"""A path of this machine: from the root or a home, as a uri, or after a word such as ``local-dir:``."""
_BY_CLASS = ("recall", "missing_classes")
_IDENTIFYING = ("label", "target", "sha256")


@dataclass(frozen=True)
class Packed:
    """What :func:`pack` wrote."""

    path: str
    method: str
    deployments: tuple[str, ...]
    selections: tuple[str, ...]
    trials: int
    bytes: int
    sha256: str

    def sentence(self) -> str:
        """For people."""
        return (
            f"written: {self.path} ({self.bytes:,} bytes, sha256 {self.sha256}): method '{self.method}' in "
            f"{', '.join(self.deployments)}; {len(self.selections)} selections, {self.trials} trials."
        )

    def to_row(self) -> dict[str, Any]:
        """For programs."""
        return {**vars(self), "deployments": list(self.deployments), "selections": list(self.selections)}


def pack(lake: Lake, method: str, path: str | Path, *, model: str | None = None, now: datetime | None = None) -> Packed:
    """Write a method's selections, all trials behind its cells of the leaderboard, and those cells to one file.

    Parameters
    ----------
    lake : Lake
    method : str
        As the leaderboard names it.
    path : str or Path
        The zip file; one that is there is replaced in one step.
    model : str, optional
        Only the results of this model.
    now : datetime, optional
        The time to note; the present by default.

    Raises
    ------
    UsageError
        When the method has no results (of the model), one of its selections was made anew since, or no file can be
        written there.
    """
    require_file_name(Path(path))
    if not Path(path).parent.is_dir():
        raise UsageError(f"there is no folder {Path(path).parent} for {Path(path).name}.")
    trials = [plain_trial(trial) for trial in _trials(lake, method, model)]
    for trial in trials:
        if not {"sweep", "config", "inputs", "test"} <= set(trial["lineage"]):
            raise UsageError(
                f"trial {trial['trial']} of method '{method}' does not say what it read; an earlier version or another "
                f"program wrote it. Run sweep '{trial['run']}' again first."
            )
    selections = {name: _selection(lake, name, trials) for name in sorted({trial["selection"] for trial in trials})}
    members: dict[str, bytes] = {TRIALS: _lines(trials)}
    for name, selection in selections.items():
        members[ids_member(name)] = _lines(sorted(selection.ids().to_pylist()))
        members[lineage_member(name)] = _text(cleaned(selection.lineage()))
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "project": f"datas3-ray {__version__}",
        "created": (now or datetime.now(timezone.utc)).astimezone(timezone.utc).isoformat(timespec="seconds"),
        "method": method,
        **_tables(lake, trials, selections),
        "selections": {
            name: {"rows": len(selection), "fingerprint": selection.fingerprint}
            for name, selection in selections.items()
        },
        "members": {
            name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
            for name, data in sorted(members.items())
        },
        "cells": claims(leaderboard(table_of(trials))),
    }
    data = _zipped({MANIFEST: _text(manifest), **members})
    _write(Path(path), data)
    return Packed(
        path=str(path),
        method=method,
        deployments=tuple(sorted({trial["deployment"] for trial in trials})),
        selections=tuple(selections),
        trials=len(trials),
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )


def ids_member(selection: str) -> str:
    """The member with a selection's ids."""
    return f"selections/{selection}/ids.jsonl"


def lineage_member(selection: str) -> str:
    """The member with a selection's lineage."""
    return f"selections/{selection}/lineage.json"


def claims(board: Leaderboard) -> list[dict[str, Any]]:
    """A leaderboard's cells as a submission claims them, without what depends on the other methods."""
    found = []
    for row in board.rows:
        for name in board.deployments:
            if name not in row.cells:
                continue
            cell = plain_cell(row.cells[name])
            # The content's mark is of this lake alone, and earlier submissions claim none.
            del cell["best"], cell["outdated"], cell["test_content"]
            if cell["paper_style"] is not None:
                del cell["paper_style"]["best"]
            found.append({"deployment": name, "model": row.model, "vector": row.vector, "method": row.method, **cell})
    return sorted(found, key=lambda cell: (cell["deployment"], cell["model"], cell["vector"]))


def plain_trial(trial: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the results as JSON holds it in a submission: the texts of JSON as objects, nothing secret."""
    plain = {name: trial[name] for name in RESULTS.names if name not in LEFT_OUT}
    plain["created"] = trial["created"].isoformat()
    plain["hyperparameters"] = json.loads(trial["hyperparameters"])
    plain["lineage"] = {key: value for key, value in json.loads(trial["lineage"] or "{}").items() if key != "tune"}
    found: dict[str, Any] = cleaned(plain)
    return found


def table_of(trials: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Trials of a submission as a results table again.

    Raises
    ------
    KeyError, TypeError, ValueError
        (Arrow's errors among them) when a trial is not of the form.
    """
    rows = []
    for trial in trials:
        unknown = set(trial) - set(RESULTS.names)
        if unknown or not isinstance(trial["lineage"], dict) or not isinstance(trial["hyperparameters"], dict):
            raise ValueError(f"a trial is not of the form of the results: {sorted(unknown) or 'its JSON'}")
        created = datetime.fromisoformat(trial["created"])
        texts = {name: json.dumps(trial[name]) for name in ("hyperparameters", "lineage")}
        rows.append({**trial, **texts, "created": created})
    return pa.Table.from_pylist(rows, schema=RESULTS)


def contents(table: Table, columns: Sequence[str]) -> dict[str, Any]:
    """What a table holds, whatever the order of its rows: how many, and a fingerprint of these columns.

    The fingerprint is the sum of the rows' 128-bit BLAKE2b hashes, as 32 hexadecimal digits.
    """
    total, rows = 0, 0
    for batch in table.dataset.scanner(columns=list(columns)).to_batches():
        rows += batch.num_rows
        lists = [batch.column(name).to_pylist() for name in columns]
        for values in zip(*lists, strict=True):
            text = json.dumps(values, default=str, separators=(",", ":"))
            total += int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "big")
    return {"rows": rows, "columns": list(columns), "fingerprint": f"{total % (1 << 128):032x}"}


def cleaned(value: Any) -> Any:
    """JSON values without secrets: keys that name one are dropped, uris lose user, password and query, and the paths of
    this machine all but the file's name. What is kept by class stays as it is, whatever the classes are called.

    >>> cleaned({"storage_options": {}, "hf_token": "x", "of": "https://me:key@host/a?sig=1", "w": "/home/me/w.pt"})
    {'of': 'https://host/a', 'w': 'w.pt'}
    >>> cleaned({"start": "local-dir:/home/me/clip", "weights": "~/w.pt", "recall": {"token": 0.5, "/a/b": 1.0}})
    {'start': 'local-dir:clip', 'weights': 'w.pt', 'recall': {'token': 0.5, '/a/b': 1.0}}
    """
    if isinstance(value, Mapping):
        kept = {
            key: each for key, each in value.items() if key != "storage_options" and not _SECRET.fullmatch(str(key))
        }
        return {key: each if key in _BY_CLASS else cleaned(each) for key, each in kept.items()}
    if isinstance(value, (list, tuple)):
        return [cleaned(each) for each in value]
    if isinstance(value, str):
        local = _LOCAL.fullmatch(value)
        if local is not None:
            return (local["scheme"] or "") + local["path"].rstrip("/").rpartition("/")[2]
        return URI.sub(lambda found: _public(found.group(0)), value)
    return value


def _public(uri: str) -> str:
    """A uri that lost its secrets; of a file of this machine its name."""
    return uri.rpartition("/")[2] if uri.lower().startswith("file:") else public_uri(uri)


def _trials(lake: Lake, method: str, model: str | None) -> list[dict[str, Any]]:
    """The trials behind the method's cells, in a fixed order."""
    every = lake.results().to_pylist()
    known = sorted({trial["method"] for trial in every})
    if method not in known:
        raise UsageError(
            f"no results of method '{method}' in lake {lake.uri}; there are results of: {', '.join(known) or 'none'}."
            + did_you_mean(method, known)
        )
    sets: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for trial in every:
        if trial["method"] == method and model in (None, trial["model"]):
            sets[(trial["deployment"], set_key(trial))].append(trial)
    found = [one for each in sets.values() if any(t["best"] for t in each) for one in counted(each)]
    if not found:
        of = f" of model '{model}'" if model is not None else ""
        raise UsageError(f"method '{method}' has no results{of} in lake {lake.uri}.")
    return sorted(
        found,
        key=lambda trial: (
            trial["deployment"],
            trial["model"],
            trial["vector"] or "",
            trial["created"],
            trial["trial"],
        ),
    )


def _selection(lake: Lake, name: str, trials: Sequence[Mapping[str, Any]]) -> Selection:
    selection = lake.selection(name)
    for trial in trials:
        if trial["selection"] == name and trial["selection_fingerprint"] != selection.fingerprint:
            raise UsageError(
                f"selection '{name}' was made anew since {trial['model']} was trained on it; run sweep "
                f"'{trial['run']}' again first, or name another --model."
            )
    return selection


def _tables(
    lake: Lake, trials: Sequence[Mapping[str, Any]], selections: Mapping[str, Selection]
) -> dict[str, dict[str, Any]]:
    """``deployments`` with their test and query tables, and ``tables`` with the contents of each that was read."""
    deployments: dict[str, dict[str, Any]] = {}
    wanted: dict[str, dict[str, Any]] = {}
    labels: dict[str, set[str]] = defaultdict(set)
    for trial in sorted(trials, key=lambda trial: trial["created"]):
        lineage = trial["lineage"]
        chosen = selections[trial["selection"]].lineage()
        read = {**chosen.get("inputs", {}), **lineage["inputs"]}
        tables = {"test": lineage["test"], "query": lineage.get("query") or chosen.get("query")}
        deployments[trial["deployment"]] = tables
        for role, name in {"pool": chosen["table"], **tables}.items():
            if name is not None:
                wanted[name] = {"role": role, "version": read.get(name)}
                labels[name].add(lineage.get("config", {}).get("label", "label"))
    found = {}
    for name, known in sorted(wanted.items()):
        table = _as_it_was(lake, name, known["version"])
        columns = [each for each in dict.fromkeys((*_IDENTIFYING, *sorted(labels[name]))) if each in table.schema.names]
        found[name] = {"role": known["role"], "version": table.version, **contents(table, ["id", *columns])}
    return {"deployments": dict(sorted(deployments.items())), "tables": found}


def _as_it_was(lake: Lake, name: str, version: int | None) -> Table:
    """A table in the version that was read, or as it is now where that has been pruned."""
    try:
        return lake.table(name, version)
    except UsageError:
        return lake.table(name)


def _lines(values: Iterable[Any]) -> bytes:
    return "".join(f"{json.dumps(value)}\n" for value in values).encode()


def _text(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def _zipped(members: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in sorted(members.items()):
            info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            info.compress_type, info.create_system, info.external_attr = zipfile.ZIP_DEFLATED, 3, 0o100644 << 16
            archive.writestr(info, data, compresslevel=6)
    return out.getvalue()


def _write(path: Path, data: bytes) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
