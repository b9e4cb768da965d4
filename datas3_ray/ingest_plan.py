"""What an ingest would do, worked out and checked before any work starts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from datas3_ray.encoders import EncoderConfig, parse_encoder
from datas3_ray.errors import UsageError, checked
from datas3_ray.ingest_shards import sort_items, sort_shards
from datas3_ray.lake.lake import check_own_name
from datas3_ray.lake.ledger import Ledger, Replacement, quarantine_name
from datas3_ray.lake.schemas import fingerprint
from datas3_ray.sources import FileSource, Shard, Source, VectorSource, parse_source
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
        those the table was ingested with, shards with the ids of others, and a table of which only the ledger is left.
        The lake is left as it was.
    """
    check_own_name(name)
    source = parse_source(config.source)
    encoders = _encoders(config, source)
    _check_columns(config, source, encoders)
    ledger = Ledger(lake, name)
    check_whole(lake, name, ledger)
    if isinstance(source, FileSource):
        found = sort_items(source, ledger, config.replace)
    else:
        found = sort_shards(source, lake, ledger, config.replace)
    stores_bytes = _stores_bytes(config, source)
    identity = _identity(config, source, encoders, stores_bytes)
    if config.store == "auto" and ledger.has_config(other := _identity(config, source, encoders, not stores_bytes)):
        stores_bytes, identity = not stores_bytes, other  # as the table has it: compressed shards may come later
    ledger.check_config(identity)
    identity = f"{identity}{_mapping(source)}"
    ledger.check_mapping(identity)
    if lake.exists(name) and not lake.exists(ledger.name):
        raise UsageError(f"table '{name}' was not made by an ingest and cannot take shards; choose another name.")
    return Plan(name, source, encoders, config, identity, stores_bytes, *found)


def _mapping(source: Source) -> str:
    """Behind the identity: which source this is, and from where its columns come.

    Sources of other kinds or prefixes may have other records, and so other mappings to the same columns.
    """
    columns = source.columns
    mapped = [(column.name, column.source.replace("row.", "json.", 1)) for column in columns.mapped]
    template = columns.template.text if columns.template else None
    kind = fingerprint([source.name, getattr(source, "id_prefix", "")])
    return f"/{kind}/{fingerprint([sorted(mapped), sorted(columns.dropped), template])}"


def check_whole(lake: Lake, name: str, ledger: Ledger) -> None:
    """Raise a UsageError where the ledger speaks of rows of a table that is gone: they would never come back."""
    if lake.exists(name):
        return
    lost = ledger.rows(["rows"], "rows > 0").num_rows
    if lost:
        raise UsageError(
            f"table '{name}' is gone, but its ledger '{ledger.name}' says that {lost} shards are in it; delete "
            f"'{ledger.name}' and '{quarantine_name(name)}', too, to ingest them anew, or bring the table back."
        )


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
