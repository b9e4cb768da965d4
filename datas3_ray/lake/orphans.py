"""Files that killed runs left behind: found by what no version of a table refers to, and removed.

A file is an orphan when it lies in one of a table's folders for data, deletions, transactions or indexes, no version
of the table refers to it, no cut-short ingest or embed will still commit it, and it is older than asked: a run that is
under way writes files first and commits them later.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from datas3_ray.errors import Datas3Error, UsageError
from datas3_ray.lake.references import pending_fragments
from datas3_ray.lake.storage import dataset_uri, is_local

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from datas3_ray.lake.lake import Lake

FOLDERS = ("data/", "_deletions/", "_transactions/", "_indices/")
"""Where orphans are looked for; manifests, tags and everything else are never touched."""

DAY = timedelta(days=1)
_AGE = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw]?)")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_S3 = {
    "access_key_id": "key",
    "secret_access_key": "secret",
    "session_token": "token",
    "token": "token",
    "endpoint": "endpoint_url",
    "endpoint_url": "endpoint_url",
}
_OTHERS = {
    "gs": {"google_service_account": "token", "service_account": "token", "google_application_credentials": "token"},
    "az": {
        "account_name": "account_name",
        "azure_storage_account_name": "account_name",
        "account_key": "account_key",
        "azure_storage_account_key": "account_key",
        "azure_storage_sas_token": "sas_token",
        "azure_storage_sas_key": "sas_token",
    },
}


@dataclass(frozen=True)
class Orphan:
    """A file below a table's folder: ``path`` is relative to that."""

    path: str
    bytes: int


@dataclass
class OrphanReport:
    """The orphans of one table, removed or (``dry_run``) only found; ``committed`` is False for a folder without one
    version, which is no table yet."""

    table: str
    orphans: list[Orphan] = field(default_factory=list)
    committed: bool = True
    dry_run: bool = False

    @property
    def bytes(self) -> int:
        """Their size together."""
        return sum(orphan.bytes for orphan in self.orphans)

    def sentence(self) -> str:
        """The report for a person."""
        done = "would be removed" if self.dry_run else "removed"
        what = "" if self.committed else " of a table that was never committed"
        return f"{len(self.orphans)} files{what}, {self.bytes / 1e6:.1f} MB {done}."


def remove_orphans(
    lake: Lake, names: list[str] | None = None, *, older_than: timedelta = DAY, dry_run: bool = False
) -> list[OrphanReport]:
    """Remove the orphans of the named tables, or of all; returns the tables that had any.

    Parameters
    ----------
    older_than : timedelta
        Only files that were last written longer ago. With less than the longest time between a run's writing and its
        commit, files of a run under way may go.
    dry_run : bool
        Only find them.

    Raises
    ------
    UsageError
        For a name that is neither a table nor a folder that a killed run began.
    """
    if older_than < timedelta(0):
        raise UsageError(f"older_than must not be negative, got {older_than}.")
    filesystem, root = lake_filesystem(lake.uri, lake.options)
    begun = _begun(filesystem, root)
    tables = lake.names()
    for name in names or []:
        if name not in begun:
            lake.table(name)
    pending: dict[str, set[str]] = {}
    for table, text in pending_fragments(lake):
        pending.setdefault(table, set()).update(_files(text))
    before = datetime.now(timezone.utc) - older_than
    reports = []
    for name in sorted({*tables, *begun} if names is None else set(names)):
        folder = f"{root}/{name}.lance"
        spared = pending.get(name, set())
        found = _of_folder(filesystem, folder, before) if name in begun else _of_table(lake, name, before)
        orphans = [orphan for orphan in found if orphan.path.startswith(FOLDERS) and orphan.path not in spared]
        report = OrphanReport(name, sorted(orphans, key=lambda o: o.path), name not in begun, dry_run)
        if not report.orphans:
            continue
        if not dry_run:
            filesystem.rm([f"{folder}/{orphan.path}" for orphan in report.orphans])
            if name in begun and is_local(lake.uri):
                _remove_empty(folder)
        reports.append(report)
    return reports


def parse_age(text: str) -> timedelta:
    """An age as a person writes it: ``30m``, ``12h``, ``7d``, ``2w``, or 0.

    >>> parse_age("12h")
    datetime.timedelta(seconds=43200)
    >>> parse_age("7")
    Traceback (most recent call last):
    datas3_ray.errors.UsageError: an age is written like 30m, 12h or 7d (or 0), got '7'.
    """
    match = _AGE.fullmatch(text.strip().lower())
    if not match or (not match.group(2) and float(match.group(1))):
        raise UsageError(f"an age is written like 30m, 12h or 7d (or 0), got {text!r}.")
    return timedelta(seconds=float(match.group(1)) * _UNITS.get(match.group(2), 0))


def lake_filesystem(uri: str, options: Mapping[str, str] | None = None) -> tuple[Any, str]:
    """The fsspec filesystem of a lake and the lake's path in it, from LanceDB's storage options.

    ``aws_access_key_id``, ``aws_secret_access_key``, ``aws_session_token``, ``aws_endpoint``, ``aws_region`` and
    ``allow_http`` (with or without ``aws_``, any case) and their like for ``gs://`` and ``az://`` are understood; what
    is not given comes from the environment, as ever.

    Raises
    ------
    Datas3Error
        When the package for this kind of object store is not installed.
    """
    import fsspec

    scheme = "file" if is_local(uri) else uri.split("://", 1)[0]
    try:
        filesystem, path = fsspec.core.url_to_fs(uri, **_fsspec_options(scheme, options or {}))
    except ImportError as error:
        raise Datas3Error(f"{scheme}:// needs a package that is not installed: {error}") from None
    return filesystem, str(path).rstrip("/")


def _fsspec_options(scheme: str, options: Mapping[str, str]) -> dict[str, Any]:
    given = {key.lower(): value for key, value in options.items()}
    if scheme not in ("s3", "s3a"):
        known = _OTHERS.get({"gcs": "gs", "abfs": "az", "abfss": "az"}.get(scheme, scheme), {})
        return {known[key]: value for key, value in given.items() if key in known}
    plain = {key.removeprefix("aws_"): value for key, value in given.items()}
    made: dict[str, Any] = {_S3[key]: value for key, value in plain.items() if key in _S3}
    region = plain.get("region") or plain.get("default_region")
    if region:
        made["client_kwargs"] = {"region_name": region}
    if str(plain.get("allow_http", "")).lower() in ("true", "1") and "endpoint_url" not in made:
        made["use_ssl"] = False
    if str(plain.get("skip_signature", "")).lower() in ("true", "1"):
        made["anon"] = True
    return made


def _begun(filesystem: Any, root: str) -> set[str]:
    """Names of the folders that look like tables and have no version."""
    if not filesystem.exists(root):
        return set()
    entries = [entry for entry in filesystem.ls(root, detail=True) if entry["type"] == "directory"]
    folders = [str(entry["name"]).rstrip("/") for entry in entries]
    tables = [folder for folder in folders if folder.endswith(".lance")]
    return {_base(folder) for folder in tables if not filesystem.exists(f"{folder}/_versions")}


def _base(folder: str) -> str:
    return folder.replace("\\", "/").rsplit("/", 1)[-1].removesuffix(".lance")


def _of_table(lake: Lake, name: str, before: datetime) -> Iterator[Orphan]:
    dataset = lake.table(name).dataset
    # Files first: one that is committed between the two listings is then found to be in use.
    there = dataset.all_files().read_all()
    import lance

    fresh = lance.dataset(dataset_uri(lake.uri, name), storage_options=lake.options)
    used = set(fresh.tracked_files().read_all().column("path").to_pylist())
    rows = there.select(["path", "size_bytes", "last_modified"]).to_pylist()
    return (
        Orphan(row["path"], int(row["size_bytes"]))
        for row in rows
        if row["path"] not in used and row["last_modified"] <= before
    )


def _of_folder(filesystem: Any, folder: str, before: datetime) -> Iterator[Orphan]:
    for path, info in filesystem.find(folder, detail=True).items():
        if _modified(filesystem, path) <= before:
            yield Orphan(str(path)[len(folder) + 1 :], int(info["size"]))


def _modified(filesystem: Any, path: str) -> datetime:
    moment: datetime = filesystem.modified(path)
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)


def _files(text: str) -> Iterator[str]:
    """Paths that a fragment's metadata names."""
    fragment = json.loads(text)
    for file in fragment.get("files", []):
        yield f"data/{file['path']}"


def _remove_empty(folder: str) -> None:
    import os

    for parent, _, _ in os.walk(folder, topdown=False):
        if not os.listdir(parent):
            os.rmdir(parent)
