"""Which shards and files of a source an ingest has to read: the new ones, and those whose content changed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from datas3_ray.errors import UsageError
from datas3_ray.lake.ledger import Entered, Ledger, Replacement
from datas3_ray.lake.schemas import fingerprint
from datas3_ray.lake.storage import sql_string
from datas3_ray.sources import FileSource, Item, Shard, Source
from datas3_ray.sources.base import is_text

if TYPE_CHECKING:
    from datas3_ray.lake import Lake

_AT_ONCE = 500  # shards that one look at the table asks for


class Sorted(NamedTuple):
    """The shards to read, how many are there already, what changed and is left, and what takes the place of what."""

    todo: list[Shard]
    skipped: int
    changed: list[str]
    replacing: dict[str, Replacement]


def sort_shards(source: Source, lake: Lake, ledger: Ledger, take_changed: bool) -> Sorted:
    """The shards of a source by what the ledger says of them.

    Raises UsageError where a shard would have the ids of another that is in the table.
    """
    there = ledger.shards()
    shards = source.shards()
    odd = next((shard.uri for shard in shards if not is_text(shard.uri)), None)
    if odd is not None:
        raise UsageError(f"{source.name}: the file name {odd!r} is not UTF-8 and cannot be stored; rename the file.")
    new = [shard for shard in shards if shard.uri not in there]
    changed = [shard for shard in shards if there.get(shard.uri, shard.fingerprint) != shard.fingerprint]
    same = len(shards) - len(new) - len(changed)
    if source.own_prefix and not isinstance(source, FileSource):
        _check_ids(source, lake, ledger.table, new, there.keys() - {shard.uri for shard in shards})
    if not take_changed:
        return Sorted(new, same, [shard.uri for shard in changed], {})
    kept = _Kept(there, shards, ledger) if source.rows_elsewhere and changed else None
    replacing = {shard.uri: _replaced_shard(shard, kept) for shard in changed}
    return Sorted([*new, *changed], same, [], replacing)


class _Kept:
    """Rows of others whose ids may begin as those of a shard do."""

    def __init__(self, there: dict[str, str], shards: list[Shard], ledger: Ledger) -> None:
        self._prefixes = [f"{shard.prefix}/" for shard in shards]
        self._others = there.keys() - {shard.uri for shard in shards}
        self._files = list(ledger.items())

    def below(self, start: str) -> list[str]:
        """SQL predicates for those below ids that begin with ``start``."""
        found = [
            f"starts_with(id, {sql_string(prefix)})"
            for prefix in self._prefixes
            if prefix != start and prefix.startswith(start)
        ]
        name = start.rstrip("/").rpartition("/")[2]
        others = sorted(uri for uri in self._others if name in uri)
        files = [id for id in self._files if id.startswith(start)]
        for column, values in (("uri", others), ("id", files)):
            if values:
                found.append(f"{column} IN ({', '.join(map(sql_string, values))})")
        return found


def _replaced_shard(shard: Shard, kept: _Kept | None) -> Replacement:
    rows = f"uri = {sql_string(shard.uri)}"
    if kept is not None:  # rows have the uris of their images
        start = f"{shard.prefix}/"
        others = kept.below(start)
        but = f" AND NOT ({' OR '.join(others)})" if others else ""
        rows += f" OR (starts_with(id, {sql_string(start)}){but})"
    return Replacement(rows, f"shard = {sql_string(shard.uri)}")


def _check_ids(source: Source, lake: Lake, table: str, new: list[Shard], others: Iterable[str]) -> None:
    """Raise a UsageError where a new shard would have the ids of one that was ingested from another place.

    Such a shard has the same name, and as much more of its path as its ids begin with; the table then tells whether its
    ids really are there, as they may have had another prefix.
    """
    if not new or not lake.exists(table):
        return
    by_name: dict[str, list[str]] = {}
    for uri in others:
        by_name.setdefault(_parts(uri)[-1], []).append(uri)
    alike: list[tuple[Shard, list[str]]] = []
    for shard in new:
        end = _shared(shard)
        twins = [uri for uri in by_name.get(end[-1], ()) if _parts(uri)[-len(end) :] == end]
        if twins:
            alike.append((shard, twins))
    for at in range(0, len(alike), _AT_ONCE):
        some = alike[at : at + _AT_ONCE]
        asked = [f"({_ids_of(shard, () if source.rows_elsewhere else twins)})" for shard, twins in some]
        found = lake.table(table).dataset.to_table(columns=["id"], filter=" OR ".join(asked), limit=1)
        for id in found.column("id").to_pylist():
            shard, twins = next(pair for pair in some if id.startswith(f"{pair[0].prefix}/"))
            raise UsageError(
                f"{source.name}: {shard.uri!r} would have the ids of {twins[0]!r}, which is in table '{table}', "
                f"such as {id!r}. If it was moved, ingest it into a table of another name or drop this one first; if "
                "it is another, set an `id_prefix:`, or `id_folders:` so that ids keep more of the path."
            )


def _ids_of(shard: Shard, uris: Iterable[str]) -> str:
    text = f"starts_with(id, {sql_string(f'{shard.prefix}/')})"
    listed = ", ".join(map(sql_string, uris))
    return f"{text} AND uri IN ({listed})" if listed else text


def _parts(uri: str) -> list[str]:
    """The parts of a shard's path, its name without what is behind the first dot.

    >>> _parts("s3://bucket/shards/0.tar.gz"), _parts("https://host/a/0.tar?sign=1/2")
    (['s3:', '', 'bucket', 'shards', '0'], ['https:', '', 'host', 'a', '0'])
    """
    path = uri.partition("?")[0] if uri.startswith(("http://", "https://")) else uri
    *folders, name = path.split("/")
    return [*folders, name.partition(".")[0] or name]


def _shared(shard: Shard) -> list[str]:
    """The end of a shard's path that is the end of its prefix, too; its name at least.

    >>> _shared(Shard("/data/x/shards/0.tar", 0, "", "mine/shards/0"))
    ['shards', '0']
    """
    parts, prefix = _parts(shard.uri), _parts(shard.prefix)
    count = 1
    while count < min(len(parts), len(prefix)) and parts[-count - 1 :] == prefix[-count - 1 :]:
        count += 1
    return parts[-count:]


def sort_items(source: FileSource, ledger: Ledger, take_changed: bool) -> Sorted:
    """The files of a source by what the ledger says of them."""
    there = ledger.items()
    items = source.storable()
    new = [item for item in items if item.id not in there]
    changed = [item for item in items if item.id in there and there[item.id].fingerprint != item.fingerprint]
    same = len(items) - len(new) - len(changed)
    if not take_changed:
        return Sorted(source.group(new), same, [item.uri for item in changed], {})
    groups = [_renamed(group, there) for group in source.group(changed)]
    replacing = {group.uri: _replacement(group.items) for group in groups}
    return Sorted([*source.group(new), *groups], same, [], replacing)


def _renamed(group: Shard, there: dict[str, Entered]) -> Shard:
    """The group with a name of what it replaces, too: content that returns has its old name in the ledger already."""
    commits = sorted({there[item.id].commit for item in group.items})
    return replace(group, uri=f"{group.uri}-{fingerprint(commits)}")


def _replacement(items: Iterable[Item]) -> Replacement:
    items = list(items)
    ids = ", ".join(sql_string(item.id) for item in items)
    uris = ", ".join({sql_string(item.uri): None for item in items})
    # Lines without an id are of a whole file, or of an earlier version: those have an end of the id as key.
    keys = ", ".join({sql_string(key): None for item in items for key in ("", *_ends(item.id))})
    return Replacement(f"id IN ({ids})", f"id IN ({ids}) OR (id IS NULL AND uri IN ({uris}) AND key IN ({keys}))")


def _ends(id: str) -> list[str]:
    """What a source may have called an item of this id: the id without the first folders.

    >>> _ends("pets/cat/1")
    ['pets/cat/1', 'cat/1', '1']
    """
    parts = id.split("/")
    return ["/".join(parts[at:]) for at in range(len(parts))]
