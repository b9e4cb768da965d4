"""What an embed is asked for, and what of it there is to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, field_serializer

from datas3_ray.encoders import EncoderConfig, parse_encoder
from datas3_ray.errors import UsageError, checked
from datas3_ray.lake.schemas import vector_columns
from datas3_ray.lake.staged import Stage, field_ids, file_of
from datas3_ray.sources.decode import MAX_PIXELS

if TYPE_CHECKING:
    from datas3_ray.lake import Lake, Table


class EmbedConfig(BaseModel):
    """Which encoders, and how images are fetched.

    ``encoders`` is written as in an ingest: ``{"dino": {"timm": ..., "weights": ...}}``. ``storage_options`` are given
    to fsspec for the images' files. A row that an earlier embed could make no vector of is tried again with
    ``retry_failed`` only.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    encoders: dict[str, dict[str, Any]]
    storage_options: dict[str, Any] | None = Field(default=None, repr=False)
    retry_failed: bool = False
    workers: int | None = Field(default=None, ge=1)
    max_pixels: int = Field(default=MAX_PIXELS, ge=1)
    decode_seconds: float = Field(default=30.0, gt=0)
    record_seconds: float = Field(default=5.0, ge=0)
    """How often finished fragments are written down."""

    @field_serializer("storage_options")
    def _unseen(self, value: dict[str, Any] | None) -> str | None:
        return "..." if value else None


def parse_config(values: dict[str, Any]) -> EmbedConfig:
    """A configuration from a recipe's mapping; a UsageError names the first key or value that cannot be meant."""
    return checked(EmbedConfig, values, "embed")


@dataclass(frozen=True)
class Phase:
    """Columns that are made in one commit: new ones, or those of which fragments lack vectors."""

    encoders: dict[str, EncoderConfig]
    add: bool
    fragments: list[int]

    @property
    def columns(self) -> tuple[str, ...]:
        """The encoders' aliases."""
        return tuple(self.encoders)

    @property
    def made(self) -> dict[str, Any]:
        """What the vectors are made with: a finished fragment is only used again for the same."""
        return {"add": self.add, **{alias: encoder.fingerprint() for alias, encoder in self.encoders.items()}}


@dataclass(frozen=True)
class EmbedPlan:
    """What an embed would do, worked out before any work starts."""

    table: str
    rows: int
    fragments: int
    phases: list[Phase]

    def describe(self) -> str:
        """One line for a dry run."""
        if not self.phases:
            return "up to date"
        parts = []
        for phase in self.phases:
            what, todo = ("new column ", "") if phase.add else ("", " to look through for missing vectors")
            count = f"{len(phase.fragments)} of {self.fragments} fragments{todo}"
            parts.append(f"{what}{', '.join(phase.columns)}: {count}")
        return f"{'; '.join(parts)} ({self.rows} rows in all)"


def plan_embed(lake: Lake, name: str, config: EmbedConfig) -> EmbedPlan:
    """Validate everything that can be validated without loading a model, and find the fragments to work on.

    Raises
    ------
    UsageError
        For an unknown table or encoder, an alias that is a column of another kind, a table without what the encoder
        takes, or an empty table.
    """
    if not config.encoders:
        raise UsageError("an embed needs at least one encoder, such as {dino: {timm: vit_small_patch14_dinov2}}.")
    table = lake.image_table(name)
    encoders = {alias: parse_encoder(alias, spec) for alias, spec in config.encoders.items()}
    for alias, encoder in encoders.items():
        _check_column(table, alias, encoder)
        encoder.validate_available()
    fragments = table.fragment_ids()
    if not fragments:
        raise UsageError(f"table '{name}' has no rows yet; ingest first.")
    new = {alias: encoder for alias, encoder in encoders.items() if alias not in table.schema.names}
    phases = [Phase(new, True, fragments)] if new else []
    known = Stage(lake, name).known()
    for alias, encoder in encoders.items():
        if alias in new:
            continue
        lacking = lacking_fragments(table, alias, known["missing"].get(alias, {}), config.retry_failed)
        if lacking or known["encoders"].get(alias) != encoder.fingerprint():
            phases.append(Phase({alias: encoder}, False, lacking))
    return EmbedPlan(name, table.count_rows(), len(fragments), phases)


def lacking_fragments(table: Table, alias: str, known: Mapping[str, int], retry_failed: bool) -> list[int]:
    """Fragments that came without the column, or of which it is not known that every vector is there."""
    field_id = field_ids(table)[alias]
    lacking = []
    for fragment in table.dataset.get_fragments():
        path = file_of(fragment.metadata, field_id)
        if path is None or path not in known or (retry_failed and known[path]):
            lacking.append(fragment.fragment_id)
    return lacking


def _check_column(table: Table, alias: str, encoder: EncoderConfig) -> None:
    names = table.schema.names
    if alias in names and alias not in vector_columns(table.schema):
        raise UsageError(f"table '{table.name}' has a column '{alias}' that holds no vectors; choose another name.")
    if encoder.takes == "caption" and "caption" not in names:
        raise UsageError(f"encoder '{alias}' takes captions, and table '{table.name}' has no column 'caption'.")
    if encoder.takes == "image" and "image" not in names and not {"uri", "offset", "length"} <= set(names):
        raise UsageError(
            f"encoder '{alias}' takes images, and table '{table.name}' does not say where they are: it has neither "
            "uri, offset and length nor image."
        )
