"""Who is filling a table: one run at a time, seen by all, and free again as soon as its process is gone.

The lease is a row of the table's ledger under a name that no shard has. Taking it is a conditional merge, of which
Lance lets one of several that try at once win. The holder renews it while it lives. A holder on this machine whose
process has ended is dead at once, one on another machine when it has been silent for ``SILENT`` seconds.
"""

from __future__ import annotations

import os
import socket
import threading
import uuid
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa

from datas3_ray.errors import Datas3Error
from datas3_ray.lake.lake import Lake
from datas3_ray.lake.schemas import LEDGER, with_kind
from datas3_ray.lake.storage import create_dataset, dataset_uri, open_dataset
from datas3_ray.retry import with_backoff

LEASE = ""
"""What the lease's row has in place of a shard's name."""
STATE = "lease"
BEAT = 20.0
"""Seconds between two signs of life."""
SILENT = 120.0
"""Seconds without a sign of life after which a holder on another machine counts as dead."""
_HELD: set[str] = set()
"""Tokens of the leases that this process holds: one whose row could not be removed is held by nobody."""


class Lease:
    """Holds the right to fill ``table`` for the time of a ``with`` block.

    Raises
    ------
    Datas3Error
        On entering, when a living run holds it: the sentence says who and since when it was last seen.
    """

    def __init__(self, lake: Lake, table: str, ledger: str) -> None:
        self.table = table
        self.uri = dataset_uri(lake.uri, ledger)
        self.options = lake.options
        self.token = uuid.uuid4().hex
        self._stop = threading.Event()
        self._lost = False
        self._thread = threading.Thread(target=self._renew, name="datas3-lease", daemon=True)

    def __enter__(self) -> Lease:
        create_dataset(self.uri, with_kind(LEDGER, "ledger"), self.options)
        held = _held(self._dataset())
        if held is not None and _lives(held):
            raise Datas3Error(_sentence(self.table, held))
        if not self._take(held):
            raise Datas3Error(_sentence(self.table, _held(self._dataset())))
        _HELD.add(self.token)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        _HELD.discard(self.token)
        if not self._lost:
            with suppress(Datas3Error):  # what the run itself ended with is what counts
                with_backoff(
                    lambda: self._dataset().delete(f"shard = '{LEASE}' AND commit = '{self.token}'"),
                    f"letting table '{self.table}' go",
                )

    def check(self) -> None:
        """Raise a Datas3Error when another run has taken the table over, because this one was silent for too long."""
        if self._lost:
            raise Datas3Error(
                f"another run has taken table '{self.table}' over, because this one gave no sign of life for "
                f"{SILENT:.0f} s; what it committed stays. Run the same command again when the other has ended."
            )

    def _dataset(self) -> Any:
        return open_dataset(self.uri, options=self.options)

    def _take(self, held: dict[str, Any] | None) -> bool:
        row = dict.fromkeys(LEDGER.names) | {
            "shard": LEASE,
            "config": _me(),
            "commit": self.token,
            "state": STATE,
            "created": datetime.now(timezone.utc),
        }

        def attempt() -> Any:
            merge = self._dataset().merge_insert("shard").when_not_matched_insert_all()
            if held is not None:
                merge = merge.when_matched_update_all(f"target.commit = '{held['commit']}'")
            return merge.execute(pa.Table.from_pylist([row], LEDGER))

        with_backoff(attempt, f"taking table '{self.table}' for this run")
        # An attempt that failed without an answer may have succeeded.
        now = _held(self._dataset())
        return now is not None and now["commit"] == self.token

    def _renew(self) -> None:
        while not self._stop.wait(BEAT):
            now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f")
            try:
                done = self._dataset().update(
                    {"created": f"arrow_cast('{now}', 'Timestamp(Microsecond, Some(\"UTC\"))')"},
                    where=f"shard = '{LEASE}' AND commit = '{self.token}'",
                )
            except Exception:  # a store that does not answer now may answer at the next beat
                continue
            if not done["num_rows_updated"]:
                self._lost = True
                return


def holder(lake: Lake, ledger: str) -> str | None:
    """The living run that fills the table of this ledger, for a sentence; None where there is none."""
    dataset = open_dataset(dataset_uri(lake.uri, ledger), options=lake.options)
    held = _held(dataset) if dataset is not None else None
    return _who(held) if held is not None and _lives(held) else None


def _held(dataset: Any) -> dict[str, Any] | None:
    rows = dataset.to_table(columns=["config", "commit", "created"], filter=f"shard = '{LEASE}'").to_pylist()
    return rows[0] if rows else None


def _me() -> str:
    pid = os.getpid()
    return f"{socket.gethostname()} {pid} {_started(pid)}"


def _started(pid: int) -> str:
    """When a process began, in the kernel's ticks, so that a new process with an old number is not taken for it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return "-"


def _lives(held: dict[str, Any]) -> bool:
    host, pid, started = held["config"].split(" ")
    if held["config"] == _me():
        return held["commit"] in _HELD
    if host == socket.gethostname():
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        return started in ("-", _started(int(pid)))
    return bool(datetime.now(timezone.utc) - held["created"] < timedelta(seconds=SILENT))


def _who(held: dict[str, Any]) -> str:
    host, pid, _ = held["config"].split(" ")
    seen = max(0.0, (datetime.now(timezone.utc) - held["created"]).total_seconds())
    return f"process {pid} on {host}, which gave its last sign of life {seen:.0f} s ago"


def _sentence(table: str, held: dict[str, Any] | None) -> str:
    who = _who(held) if held is not None else "another run"
    return (
        f"table '{table}' is being filled by {who}; run this again when that has ended. If it is dead, "
        f"the table is free {SILENT:.0f} s after its last sign of life."
    )
