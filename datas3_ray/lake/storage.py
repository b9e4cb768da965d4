"""Opening Lance datasets, writing fragments in workers, and the one committer on the driver."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from typing import Any, Literal

import pyarrow as pa

from datas3_ray.errors import Datas3Error
from datas3_ray.retry import with_backoff

StorageOptions = dict[str, str]
Mode = Literal["create", "append", "overwrite"]

# Lance logs "no existing dataset" as a warning whenever a table is made.
os.environ.setdefault("LANCE_LOG", "error")

URI = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*://[^\s'\"<>]+")
"""A uri within a text."""
COMMIT_ID = "datas3:commit"
MAX_ROWS_PER_FRAGMENT = 1 << 20
COMMIT_RETRIES = 20
KEPT = "what was committed before stays"


class TableExists(Datas3Error):
    """A table that was to be made was made by another program meanwhile; nothing was written to it."""


def is_local(uri: str) -> bool:
    """Whether a lake's uri is a folder on this machine."""
    return "://" not in uri


def dataset_uri(lake_uri: str, name: str) -> str:
    """Where the table ``name`` of a lake is."""
    return f"{lake_uri.rstrip('/')}/{name}.lance"


def open_dataset(uri: str, version: int | None = None, options: StorageOptions | None = None) -> Any:
    """The Lance dataset at ``uri``, or None where there is none."""
    import lance

    if is_local(uri) and not os.path.isdir(os.path.join(uri, "_versions")):
        return None

    def attempt() -> Any:
        try:
            return lance.dataset(uri, version=version, storage_options=options)
        except ValueError as error:
            if "not found" in str(error).lower():
                return None
            raise

    return with_backoff(attempt, f"opening {uri} (version {version or 'latest'})")


def create_dataset(uri: str, schema: pa.Schema, options: StorageOptions | None = None) -> bool:
    """Make an empty dataset; False where there is one already. Of several that try at once, one makes it."""
    import lance

    def attempt() -> bool:
        try:
            lance.write_dataset(schema.empty_table(), uri, mode="create", storage_options=options)
        except OSError as error:
            if "already exists" in str(error).lower():
                return False
            raise
        return True

    return with_backoff(attempt, f"making {uri}")


def write_fragments(
    data: pa.Table | pa.RecordBatchReader, uri: str, *, append: bool, options: StorageOptions | None = None
) -> list[str]:
    """Write rows as new Lance fragments that nothing refers to yet; returns their metadata as JSON.

    ``append`` when they will join the rows of an existing table (its field ids are then used), not when they will
    start or replace one. Safe to retry: only fragments whose metadata reaches ``commit`` become rows. A table is tried
    again while the store fails for a reason that may go away; a reader is read once, so its caller has to.
    """
    from lance.fragment import write_fragments as lance_write

    def attempt() -> Any:
        return lance_write(
            data,
            uri,
            schema=data.schema,
            mode="append" if append else "overwrite",
            max_rows_per_file=MAX_ROWS_PER_FRAGMENT,
            storage_options=options,
        )

    if isinstance(data, pa.RecordBatchReader):
        return [json.dumps(fragment.to_json()) for fragment in attempt() if fragment.physical_rows]
    if data.num_rows == 0:
        return []
    written = with_backoff(attempt, f"writing rows to {uri}", after=KEPT)
    rows = sum(fragment.physical_rows for fragment in written)
    if rows != data.num_rows:
        raise Datas3Error(f"{uri}: {data.num_rows} rows were handed over but {rows} were written; nothing is committed")
    return [json.dumps(fragment.to_json()) for fragment in written]


def commit(
    uri: str,
    fragments: Sequence[str],
    schema: pa.Schema,
    *,
    mode: Mode,
    commit_id: str | None = None,
    retried: bool = False,
    replaces: str | None = None,
    options: StorageOptions | None = None,
) -> int:
    """Make fragments visible in one transaction and return the new version.

    Of several programs that ``create`` a table at once one makes it, and the others get a TableExists: Lance itself
    would let the last one's rows take the place of the others'.

    ``commit_id`` is kept in the transaction. A commit that may have happened already is ``retried``: it is then looked
    for in the table's history first and not done twice, since Lance itself would add the rows again. Rows that match
    the SQL predicate ``replaces`` leave in the same transaction.
    """
    import lance

    parsed = [lance.FragmentMetadata.from_json(text) for text in fragments]
    looked_for = retried

    def attempt() -> int:
        nonlocal looked_for
        dataset = open_dataset(uri, options=options)
        if looked_for and commit_id is not None and dataset is not None:
            there = committed(dataset, commit_id)
            if there is not None:
                return there
        looked_for = True  # an attempt that failed without an answer may have succeeded
        create = mode == "create"
        if create and dataset is not None:
            raise TableExists(f"{uri} was made by another program meanwhile; run the same command again.")
        if dataset is None or mode == "overwrite":
            operation: Any = lance.LanceOperation.Overwrite(schema, parsed)
        elif replaces is not None:
            operation = _replacement(dataset, parsed, replaces)
        else:
            operation = lance.LanceOperation.Append(parsed)
        transaction = lance.Transaction(
            read_version=dataset.version if dataset is not None else 0,
            operation=operation,
            transaction_properties={COMMIT_ID: commit_id} if commit_id else {},
        )
        try:
            # Without a retry Lance overwrites no version that it has not read.
            retries = 0 if create else COMMIT_RETRIES
            return int(
                lance.LanceDataset.commit(uri, transaction, storage_options=options, max_retries=retries).version
            )
        except OSError:
            if create and open_dataset(uri, options=options) is not None:
                return attempt()
            raise

    return with_backoff(attempt, f"the commit to {uri}", after=KEPT)


def _replacement(dataset: Any, fragments: list[Any], where: str) -> Any:
    """The operation that takes out the rows that match and brings the new fragments in."""
    import lance

    removed, updated = [], []
    for fragment in dataset.get_fragments():
        if fragment.count_rows(where):
            left = fragment.delete(where)
            if left is None:
                removed.append(fragment.fragment_id)
            else:
                updated.append(left)
    return lance.LanceOperation.Update(
        removed_fragment_ids=removed, updated_fragments=updated, new_fragments=fragments, fields_modified=[]
    )


def committed(dataset: Any, commit_id: str) -> int | None:
    """The version that the transaction with this id made; None where it is not in the dataset's history."""
    history = dataset.get_transactions(recent_transactions=dataset.version)
    for age, transaction in enumerate(history):
        if transaction is not None and (transaction.transaction_properties or {}).get(COMMIT_ID) == commit_id:
            return int(dataset.version) - age
    return None


def take_back(uri: str, version: int, options: StorageOptions | None = None) -> None:
    """Take the fragments that the commit of this version appended out again."""
    import lance

    then = {fragment.fragment_id for fragment in open_dataset(uri, version - 1, options).get_fragments()}
    now = {fragment.fragment_id for fragment in open_dataset(uri, version, options).get_fragments()}
    operation = lance.LanceOperation.Delete([], sorted(now - then), "true")
    transaction = lance.Transaction(read_version=version, operation=operation)
    with_backoff(
        lambda: lance.LanceDataset.commit(uri, transaction, storage_options=options), f"taking rows back from {uri}"
    )


def sql_string(text: str) -> str:
    """A text as a SQL literal.

    >>> sql_string("it's")
    "'it''s'"
    """
    return "'" + text.replace("'", "''") + "'"


def public_uri(uri: str) -> str:
    """A uri without what may be secret: user, password and a signed link's query.

    >>> public_uri("https://me:key@host/a.tar?X-Signature=1")
    'https://host/a.tar'
    >>> public_uri("/data/a?b.tar")
    '/data/a?b.tar'
    """
    scheme, there, rest = uri.partition("://")
    if not there:
        return uri
    host, slash, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def public_text(text: str) -> str:
    """A text whose uris are without what may be secret.

    >>> public_text("'s3://me:key@bucket/a.tar' is not there")
    "'s3://bucket/a.tar' is not there"
    """
    return URI.sub(lambda found: public_uri(found.group(0)), text)
