"""The kinds of step that bring images in: synthetic draws a world, ingest reads shards."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from datas3_ray.ingest import IngestConfig, ingest, plan_ingest
from datas3_ray.lake.ledger import Ledger
from datas3_ray.steps import Context, Names, Outcome, Step


def files_in(folder: str) -> str:
    """How a plan calls what is in a folder."""
    return f"the files in {os.path.abspath(folder)}"


class SyntheticStep(Step):
    """``synthetic: {folder: data, images: 2400, seed: 0}``: draw the camera-trap world as WebDataset shards."""

    kind: ClassVar[str] = "synthetic"
    folder: str
    images: int = Field(default=2400, ge=100)
    seed: int = Field(default=0, ge=0)

    def changes(self, context: Context, because: Names) -> Names:
        """The folder's files."""
        return {self.name, files_in(self.folder)}

    def plan(self, context: Context) -> str:
        """Whether the world is there."""
        return "up to date" if self._is_there() else f"draw {self.images} images into {self.folder}"

    def run(self, context: Context) -> Outcome:
        """Draw the shards, unless they are there."""
        from datas3_ray.sources.synthetic import generate

        skipped = self._is_there()
        summary = generate(self.folder, self._world())
        text = f"{summary.images} images and {summary.corrupt} broken files in {self.folder}"
        return Outcome(("up to date: " if skipped else "") + text, skipped=skipped)

    def _world(self) -> Any:
        from datas3_ray.sources.synthetic import World

        return World(images=self.images, seed=self.seed)

    def _is_there(self) -> bool:
        from datas3_ray.sources.synthetic import is_complete

        return is_complete(Path(self.folder), self._world())


class IngestStep(Step):
    """``ingest: {source: ..., encoders: ...}``: bring a source's shards into the table of the step's name."""

    kind: ClassVar[str] = "ingest"
    config: IngestConfig

    def mentions(self) -> set[str]:
        """The folders that its source may read."""
        return {files_in(folder) for text in _texts(self.config.source) for folder in _folders(text)}

    def plan(self, context: Context) -> str:
        """How many shards are missing, and what a run that was cut short left to be committed."""
        plan = plan_ingest(context.lake, self.name, self._config(context))
        left = Ledger(context.lake, self.name).prepared().num_rows
        if left:
            return f"commit {left} shards of a run that was cut short; {plan.describe()}"
        return plan.describe() if plan.todo else f"up to date ({plan.describe()})"

    def run(self, context: Context) -> Outcome:
        """Ingest what is missing, and commit what a run that was cut short left."""
        left = Ledger(context.lake, self.name).prepared().num_rows
        summary = ingest(context.lake, self.name, self._config(context), progress=context.progress)
        text = f"{left} shards of a run that was cut short committed; " if summary.recovered else ""
        return Outcome(text + summary.sentence(), skipped=not summary.shards and not summary.recovered)

    def _config(self, context: Context) -> IngestConfig:
        return self.config.model_copy(update={"replace": True}) if context.replace else self.config


def _texts(value: Any) -> list[str]:
    """Every string in nested mappings and lists."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [text for item in value for text in _texts(item)]
    return [value] if isinstance(value, str) else []


def _folders(path: str) -> list[str]:
    """A path and the folders above it."""
    return [path, *map(str, Path(os.path.abspath(path)).parents)]
