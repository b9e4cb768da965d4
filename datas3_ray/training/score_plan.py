"""What a scoring is asked for, and which of its columns are to be made: a column is made once for the same inputs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from datas3_ray.errors import UsageError, checked, did_you_mean
from datas3_ray.kernels.hashing import hash64, id_words
from datas3_ray.kernels.training_scores import DECAY, EARLY, HARDEST, LEAST_WINDOW, WINDOW
from datas3_ray.lake.row_columns import inputs_version, made_from
from datas3_ray.lake.schemas import fingerprint
from datas3_ray.lake.splits import held_out_ids, splits_of
from datas3_ray.training.data import default_column, require_label
from datas3_ray.training.recorder import has_record

if TYPE_CHECKING:
    import pyarrow as pa

    from datas3_ray.lake import Lake, Table

_PREFIX = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)?")
_OPTIONS = {
    "el2n": ("early",),
    "grand": ("early",),
    "dyn_unc": ("window",),
    "tdds": ("window", "decay"),
}
"""Settings that bear on these scores only."""
_OF_PROXY = {"column", "label", "epochs", "batch_size", "lr", "weight_decay", "normalize", "standardize"}
"""Settings that bear on the logits of each seed."""


class ScoreConfig(BaseModel):
    """Which scores, and how the proxies are trained that they come from.

    Parameters
    ----------
    scores : tuple of str
        Of el2n, grand, forgetting, aum, entropy, dyn_unc and tdds.
    column : str, optional
        The vector column that the proxy, a linear probe, learns from; the table's only one by default.
    label : str
        The column of classes.
    epochs : int
        Passes over the rows. The logits of every row are looked at after each.
    runs : int
        Proxies, with the seeds ``seed``, ``seed + 1``, ...; a score is the mean over them.
    seed : int
    early : int
        ``el2n`` and ``grand`` are means over the first this many epochs.
    window : int, optional
        Epochs of a window of ``dyn_unc`` and ``tdds``; 10 by default, or all where there are fewer.
    decay : float
        Weight of the latest window in ``tdds``.
    batch_size, lr, weight_decay, normalize, standardize
        As of :class:`datas3_ray.training.probe.ProbeSettings`.
    prefix : str
        Put before the scores' names to make the columns' names, so that other settings have other columns.
    record : str, optional
        A folder in which each proxy's logits are kept as well; see :mod:`datas3_ray.training.recorder`.
    record_dtype : {"float16", "float32"}

    >>> ScoreConfig(scores=("el2n", "aum"), prefix="dino_").columns
    {'el2n': 'dino_el2n', 'aum': 'dino_aum'}
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    scores: tuple[str, ...]
    column: str | None = None
    label: str = "label"
    epochs: int = Field(default=10, ge=1)
    runs: int = Field(default=1, ge=1)
    seed: int = Field(default=0, ge=0, lt=1 << 62)
    early: int = Field(default=EARLY, ge=1)
    window: int | None = Field(default=None, ge=2)
    decay: float = Field(default=DECAY, gt=0, le=1)
    batch_size: int = Field(default=64, ge=1)
    lr: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    normalize: bool = True
    standardize: bool = False
    prefix: str = ""
    record: str | None = Field(default=None, min_length=1)
    record_dtype: Literal["float16", "float32"] = "float16"

    @field_validator("scores", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, (list, tuple)) or not names:
            raise ValueError(f"name one or more of {', '.join(HARDEST)}")
        for name in names:
            if name not in HARDEST:
                raise ValueError(
                    f"no score {name!r}; there are: {', '.join(HARDEST)}.{did_you_mean(str(name), HARDEST)}"
                )
        if len(set(names)) != len(names):
            raise ValueError("a score is named twice")
        return tuple(names)

    @field_validator("prefix")
    @classmethod
    def _good_prefix(cls, value: str, info: ValidationInfo) -> str:
        if not _PREFIX.fullmatch(value):
            raise ValueError("a column's name has letters, digits and '_', and begins with no digit")
        return value

    @model_validator(mode="after")
    def _enough_epochs(self) -> ScoreConfig:
        for name in self.scores:
            least = LEAST_WINDOW.get(name, 1)
            if self.used_window < least:
                raise ValueError(f"{name} needs windows of {least} epochs or more, got {self.used_window}")
            if name in LEAST_WINDOW and self.epochs < self.used_window:
                raise ValueError(f"{name} needs {self.used_window} epochs, one window, got {self.epochs}")
        return self

    @property
    def used_window(self) -> int:
        """The window, the default one cut to the epochs there are."""
        return self.window if self.window is not None else min(WINDOW, self.epochs)

    @property
    def columns(self) -> dict[str, str]:
        """Score -> the column it is written to."""
        return {name: f"{self.prefix}{name}" for name in self.scores}

    def settings(self, score: str) -> dict[str, Any]:
        """Everything that bears on one score's numbers, as plain JSON values."""
        others = {"scores", "prefix", "record", "record_dtype", "early", "window", "decay"}
        options = {"early": self.early, "window": self.used_window, "decay": self.decay}
        mine = {name: options[name] for name in _OPTIONS.get(score, ())}
        return {"score": score, **self.model_dump(mode="json", exclude=others), **mine}


def parse_config(values: Mapping[str, Any]) -> ScoreConfig:
    """A configuration from a recipe's mapping; a UsageError names the first key or value that cannot be meant."""
    return checked(ScoreConfig, dict(values))


@dataclass(frozen=True)
class ScorePlan:
    """What a scoring would do, worked out before any work starts.

    ``todo`` has the columns to write by score, and ``unrecorded`` says whether logits are still to be recorded.
    ``inputs`` is the version of the table that the numbers are made from, ``marks`` what tells each score's inputs and
    settings from others, ``recorded`` what tells the logits'.
    """

    table: Table
    column: str
    held_out: pa.Array | None
    inputs: int
    todo: dict[str, str]
    replaced: tuple[str, ...]
    unrecorded: bool
    marks: dict[str, str]
    recorded: str
    config: ScoreConfig

    @property
    def is_done(self) -> bool:
        """Whether there is nothing to do."""
        return not self.todo and not self.unrecorded

    def describe(self) -> str:
        """One line for a dry run."""
        if self.is_done:
            return "up to date"
        config = self.config
        proxies = f"{config.runs} proxies" if config.runs > 1 else "a proxy"
        parts = [f"train {proxies} on {self.column} for {config.epochs} epochs"]
        new = [column for column in self.todo.values() if column not in self.replaced]
        parts += [f"add {', '.join(new)} to {self.table.name}"] if new else []
        parts += [f"replace {', '.join(self.replaced)} in {self.table.name}"] if self.replaced else []
        parts += [f"record logits in {config.record}"] if self.unrecorded else []
        return ", ".join(parts)


def plan_scores(lake: Lake, name: str, config: ScoreConfig) -> ScorePlan:
    """Check what can be checked before work starts, and find the columns that are not there or not up to date.

    Raises
    ------
    UsageError
        For an unknown table or column, a label that is no class, or a column of a score's name that no scoring made.
    """
    table = lake.image_table(name)
    column = default_column(config.column, table)
    table.require_vector(column)
    require_label(table, config.label)
    config = config.model_copy(update={"column": column})
    held_out = held_out_ids(splits_of(lake, name))
    inputs = inputs_version(table)
    rows = {"table": name, "inputs": inputs, "held_out": _ids_mark(held_out)}
    marks, todo, replaced = {}, {}, []
    for score, target in config.columns.items():
        marks[score] = fingerprint({**rows, **config.settings(score)})
        made = made_from(table, target)
        if target in table.schema.names and (made is None or "score" not in made):
            raise UsageError(
                f"table '{name}' has a column '{target}' that no scoring made; choose other names with 'prefix'."
            )
        if made is not None and made.get("mark") == marks[score]:
            continue
        todo[score] = target
        replaced += [target] if made is not None else []
    recorded = fingerprint({**rows, **config.model_dump(mode="json", include=_OF_PROXY | {"record_dtype"})})
    lacks = _lacks_record(config, recorded)
    return ScorePlan(table, column, held_out, inputs, todo, tuple(replaced), lacks, marks, recorded, config)


def record_folder(config: ScoreConfig, run: int) -> str:
    """Where the logits of one of the proxies (from 0) are kept."""
    return f"{config.record}/seed-{config.seed + run}"


def _lacks_record(config: ScoreConfig, made: str) -> bool:
    if config.record is None:
        return False
    return not all(has_record(Path(record_folder(config, run)), made) for run in range(config.runs))


def _ids_mark(ids: pa.Array | None) -> list[int]:
    """Changes when the set of ids does; indifferent to their order and to how often they were written."""
    if ids is None or not len(ids):
        return [0, 0]
    words = hash64(id_words(ids), seed=0, stream="held out")
    return [len(ids), int(np.bitwise_xor.reduce(words))]
