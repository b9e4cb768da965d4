"""What an ingest would do, worked out and checked before any work starts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from datas3_ray.encoders import EncoderConfig, parse_encoder
from datas3_ray.errors import UsageError, checked
from datas3_ray.lake.lake import check_name
from datas3_ray.lake.ledger import Entered, Ledger, Replacement
from datas3_ray.lake.schemas import fingerprint
from datas3_ray.lake.storage import sql_string
from datas3_ray.sources import FileSource, Item, Shard, Source, VectorSource, parse_source
from datas3_ray.sources.decode import MAX_PIXELS
from datas3_ray.sources.features import feature_fields

if TYPE_CHECKING:
    from datas3_ray.lake import Lake


class IngestConfig(BaseModel):
    """How images, or ready vectors, come into a table.

    ``source`` and ``encoders`` are written as in a recipe: ``{"webdataset": "shards/*.tar", "columns": {...}}`` and
    ``{"lite": {"timm": "tf_efficientnet_lite0", ...}}``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: dict[str, Any] = Field(repr=False)
    encoders: dict[str, dict[str, Any]] | None = None
    """By alias. Left out for ready vectors; ``{}`` brings images in without vectors, to be embedded later."""
    on_error: Literal["quarantine", "fail"] = "quarantine"
    store: Literal["auto", "uri", "bytes"] = "auto"
    """``bytes`` keeps the encoded image in the table; ``auto`` does so where it cannot be fetched by range again."""
    features: tuple[str, ...] = ()
    """Cheap columns to compute while the pixels are at hand: sha256, phash, brightness, ..."""
    thumbnail: int | None = Field(default=None, ge=16, le=1024)
    """Longest side in pixels of a small JPEG kept in the column ``thumbnail``; none by default."""
    workers: int | None = Field(default=None, ge=1)
    commit_shards: int = Field(default=64, ge=1)
    commit_seconds: float = Field(default=60.0, gt=0)
    max_pixels: int = Field(default=MAX_PIXELS, ge=1)
    decode_seconds: float = Field(default=30.0, gt=0)
    """An image that takes longer to decode is set aside."""
    decode_to: int | None = Field(default=None, ge=8)
    """Decode JPEGs that are at least twice this size (pixels of the shorter side) at a reduced size: faster, and not
    exactly the same pixels."""
    replace: bool = False
    """Take the new content of shards and files that changed since they were ingested; they are only reported else."""
    compact: bool = True
    """Merge small fragments into large ones when the ingest ends."""


def parse_config(values: dict[str, Any]) -> IngestConfig:
    """A configuration from a recipe's mapping; a UsageError names the first key or value that cannot be meant."""
    config = checked(IngestConfig, values, "ingest")
    feature_fields(config.features)
    return config


@dataclass(frozen=True)
class Plan:
    """The shards to read, those that are there, and those whose content is no longer what was ingested."""

    table: str
    source: Source
    encoders: dict[str, EncoderConfig]
    config: IngestConfig
    config_fingerprint: str
    stores_bytes: bool
    todo: list[Shard]
    skipped: int
    """Shards (of a source of files: files) that are in the table with the content they have now."""
    changed: list[str]
    """Shards or files that changed and are left as they are, since ``replace`` is not asked for."""
    replacing: dict[str, Replacement] = field(default_factory=dict)
    """Of the shards to read, those whose rows replace others."""

    @property
    def unit(self) -> str:
        """What is counted: shards or files."""
        return "files" if isinstance(self.source, FileSource) else "shards"

    def describe(self) -> str:
        """One line for a dry run."""
        size = sum(shard.size for shard in self.todo) / 1e6
        count = sum(len(shard.items) for shard in self.todo) if self.unit == "files" else len(self.todo)
        text = f"{count} {self.unit} to ingest ({size:.1f} MB), {self.skipped} there already"
        if self.replacing:
            text += f", {len(self.replacing)} shards replace earlier content"
        if self.changed:
            text += f", {len(self.changed)} changed and left as they were (--replace takes them anew)"
        return text


def plan_ingest(lake: Lake, name: str, config: IngestConfig) -> Plan:
    """Validate everything that can be validated without work: names, patterns, encoders, earlier ingests.

    Raises
    ------
    UsageError
        For a pattern that matches nothing, an unknown encoder or missing weights, encoders or columns other than
        those the table was ingested with. The lake is left as it was.
    """
    check_name(name)
    source = parse_source(config.source)
    encoders = _encoders(config, source)
    stores_bytes = _stores_bytes(config, source)
    _check_columns(config, source, encoders)
    ledger = Ledger(lake, name)
    if isinstance(source, FileSource):
        shards, skipped, changed, replacing = _sort_items(source, ledger, config.replace)
    else:
        shards, skipped, changed, replacing = _sort_shards(source, ledger, config.replace)
    identity = _identity(config, source, encoders, stores_bytes)
    ledger.check_config(identity)
    if lake.exists(name) and not lake.exists(ledger.name):
        raise UsageError(f"table '{name}' was not made by an ingest and cannot take shards; choose another name.")
    return Plan(name, source, encoders, config, identity, stores_bytes, shards, skipped, changed, replacing)


def _encoders(config: IngestConfig, source: Source) -> dict[str, EncoderConfig]:
    vectors = isinstance(source, VectorSource)
    if config.encoders is None and not vectors:
        raise UsageError(
            "an ingest of images needs encoders, such as {lite: {timm: tf_efficientnet_lite0}}; "
            "write `encoders: {}` to bring them in without vectors and embed them later."
        )
    if config.encoders and vectors:
        raise UsageError(f"the source '{source.name}' has vectors and no images, so it takes no encoders.")
    encoders = {alias: parse_encoder(alias, spec) for alias, spec in (config.encoders or {}).items()}
    for encoder in encoders.values():
        encoder.validate_available()
    return encoders


def _stores_bytes(config: IngestConfig, source: Source) -> bool:
    if isinstance(source, VectorSource):
        if config.store == "bytes" or config.features or config.thumbnail:
            raise UsageError(f"the source '{source.name}' has no images: leave out store, features and thumbnail.")
        return False
    return config.store == "bytes" or (config.store == "auto" and not source.ranged)


def _check_columns(config: IngestConfig, source: Source, encoders: dict[str, EncoderConfig]) -> None:
    own = {field.name: "a column of the source" for field in source.own_fields()}
    own |= {field.name: "a feature" for field in feature_fields(config.features)}
    if config.thumbnail:
        own["thumbnail"] = "the thumbnail"
    mapped = set(source.columns.fields_by_name())
    clash = sorted(mapped & own.keys())
    if clash:
        raise UsageError(f"'{clash[0]}' names both a column and {own[clash[0]]}; rename the column.")
    clash = sorted(encoders.keys() & (mapped | own.keys()))
    if clash:
        raise UsageError(f"'{clash[0]}' names both an encoder and a column; rename one of them.")


def _identity(config: IngestConfig, source: Source, encoders: dict[str, EncoderConfig], stores_bytes: bool) -> str:
    """Changes when rows of this configuration would not fit beside rows of another."""
    fields = [*source.columns.fields(), *source.own_fields(), *feature_fields(config.features)]
    if isinstance(source, VectorSource):
        fields += source.vector_fields()
    return fingerprint(
        {
            "encoders": {alias: encoder.fingerprint() for alias, encoder in encoders.items()},
            "columns": [(column.name, str(column.type)) for column in fields],
            "store": "bytes" if stores_bytes else "uri",
            "thumbnail": config.thumbnail,
            "decode_to": config.decode_to,
        }
    )


_Sorted = tuple[list[Shard], int, list[str], dict[str, Replacement]]


def _sort_shards(source: Source, ledger: Ledger, replace: bool) -> _Sorted:
    there = ledger.shards()
    shards = source.shards()
    new = [shard for shard in shards if shard.uri not in there]
    changed = [shard for shard in shards if there.get(shard.uri, shard.fingerprint) != shard.fingerprint]
    same = len(shards) - len(new) - len(changed)
    if not replace:
        return new, same, [shard.uri for shard in changed], {}
    replacing = {
        shard.uri: Replacement(f"uri = {sql_string(shard.uri)}", f"shard = {sql_string(shard.uri)}")
        for shard in changed
    }
    return [*new, *changed], same, [], replacing


def _sort_items(source: FileSource, ledger: Ledger, replace: bool) -> _Sorted:
    there = ledger.items()
    items = source.items()
    new = [item for item in items if item.id not in there]
    changed = [item for item in items if item.id in there and there[item.id].fingerprint != item.fingerprint]
    same = len(items) - len(new) - len(changed)
    if not replace:
        return source.group(new), same, [item.uri for item in changed], {}
    groups = [_renamed(group, there) for group in source.group(changed)]
    return [*source.group(new), *groups], same, [], {group.uri: _replacement(group.items) for group in groups}


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
