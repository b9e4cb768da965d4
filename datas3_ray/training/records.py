"""What finished trials leave beside Tune's own files: a checkpoint and a record, so that no trial is trained twice.

``STORAGE/RUN/trials/0003/`` has the checkpoint's file and then ``record.json``: a trial with a record is whole. A run
that was killed finds the records of the trials that had finished.
"""

from __future__ import annotations

import json
import posixpath
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any

import fsspec

from datas3_ray.training.contract import Outcome, TestScore

RECORD = "record.json"


def keep_trial(root: str, index: int, folder: str, outcome: Outcome) -> None:
    """Store the files that a trial left in ``folder``, and its record last.

    Parameters
    ----------
    root : str
        The run's folder, local or an fsspec uri.
    """
    target = _place(root, index)
    system, path = fsspec.core.url_to_fs(target)
    system.makedirs(path, exist_ok=True)
    for file in sorted(Path(folder).rglob("*")):
        if file.is_file():
            name = posixpath.join(path, *file.relative_to(folder).parts)
            system.makedirs(posixpath.dirname(name), exist_ok=True)
            system.put_file(str(file), name)
    text = json.dumps(asdict(outcome))
    # Written under another name first: a record that is there is whole.
    aside = posixpath.join(path, f".{uuid.uuid4().hex}")
    system.pipe_file(aside, text.encode())
    system.mv(aside, posixpath.join(path, RECORD))


def read_trial(root: str, index: int) -> Outcome | None:
    """What a trial found, or None when it has not finished."""
    system, path = fsspec.core.url_to_fs(posixpath.join(_place(root, index), RECORD))
    try:
        return parse_outcome(json.loads(system.cat_file(path)))
    except (FileNotFoundError, ValueError):
        return None


def checkpoint_uri(root: str, index: int, file: str) -> str:
    """Where the checkpoint of a trial is."""
    return posixpath.join(_place(root, index), file)


def parse_outcome(found: dict[str, Any]) -> Outcome:
    """An outcome as ``dataclasses.asdict`` gave it, from JSON. Records of earlier versions counted no dropped rows."""
    tests = {
        name: TestScore(
            **{"dropped": None, **score, "interval": tuple(score["interval"]) if score["interval"] else None}
        )
        for name, score in found["tests"].items()
    }
    return Outcome(**{**found, "tests": tests})


def _place(root: str, index: int) -> str:
    return posixpath.join(root.rstrip("/"), "trials", f"{index:04d}")
