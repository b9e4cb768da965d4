"""The model ``clip``: contrastive training of an image and a text encoder of open_clip on images with captions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from datas3_ray.errors import UsageError
from datas3_ray.training.contract import HyperParameter, Options, Outcome, Point, Prepared, Report

if TYPE_CHECKING:
    from datas3_ray.lake import Lake, Selection, Table
    from datas3_ray.training.config import SweepConfig

LABEL = "{label}"
"""What a prompt has in the place of a class's name."""


class ClipOptions(Options):
    """The model's ``options``.

    Attributes
    ----------
    architecture : str or mapping
        A name of open_clip's (``ViT-B-32``), ``hf-hub:OWNER/NAME``, ``local-dir:FOLDER``, a JSON file with a
        configuration as open_clip's own are, or that configuration itself. A file is read once, when the sweep's
        configuration is.
    caption : str
        The column with the captions. Rows without one are left out and counted.
    prompts : tuple of str
        Templates that describe a class in words, each with ``{label}`` where its name stands.
    image_size : int, optional
        Width and height of the square that the network sees, in pixels; the architecture's own by default.
    augment : {"none", "flip", "crop"}
        Random changes of the training images: none, mirroring, or a random crop and mirroring. Captions are not
        changed with them.
    warmup : float
        Share of the steps in which the learning rate rises to ``lr``; then it falls to 0 as half a cosine.
    threads : int
        CPU threads of one worker's arithmetic. Sums can differ in the last digits with their number.
    """

    architecture: str | dict[str, Any] = "ViT-B-32"
    caption: str = Field("caption", min_length=1)
    prompts: tuple[str, ...] = Field(("a photo of a {label}.",), min_length=1)
    image_size: int | None = Field(None, ge=8)
    augment: Literal["none", "flip", "crop"] = "none"
    warmup: float = Field(0.1, ge=0, lt=1)
    threads: int = Field(1, ge=1)

    @field_validator("architecture", mode="before")
    @classmethod
    def _configuration(cls, given: Any) -> Any:
        from datas3_ray.training.clip_architecture import read_architecture

        return read_architecture(given)

    @field_validator("prompts", mode="before")
    @classmethod
    def _several_prompts(cls, prompts: Any) -> Any:
        return (prompts,) if isinstance(prompts, str) else prompts

    @field_validator("prompts")
    @classmethod
    def _with_a_label(cls, prompts: tuple[str, ...]) -> tuple[str, ...]:
        for prompt in prompts:
            if LABEL not in prompt:
                raise ValueError(f"the template {prompt!r} lacks {LABEL}, where a class's name stands")
        return prompts


class Clip:
    """Contrastive image-text training; keeps to :class:`datas3_ray.training.contract.Model`."""

    name = "clip"
    checkpoint = "clip.pt"
    tasks = ("image_text",)
    hyperparameters: Mapping[str, HyperParameter] = {
        "batch_size": HyperParameter(int, 2),
        "lr": HyperParameter(float, 0, minimum_allowed=False),
        "weight_decay": HyperParameter(float, 0, required=False),
    }
    options = ClipOptions
    ignores = ("column", "normalize", "standardize")

    def prepare(
        self, lake: Lake, config: SweepConfig, selections: Mapping[str, Selection], tests: Mapping[str, Table]
    ) -> Prepared:
        """Look up the images' places and captions, and make or load the network, once for all trials."""
        import pyarrow as pa
        import ray

        from datas3_ray.training.clip_architecture import WHAT, Architecture, check_network, require_open_clip
        from datas3_ray.training.clip_data import test_sets, training_sets

        require_open_clip()
        if config.sampling == "balanced":
            raise UsageError(f"{WHAT}: sampling 'balanced' draws classes alike, and captions are none; use 'shuffle'.")
        options: ClipOptions = config.own()
        architecture = Architecture(options.architecture, options.image_size)
        start = _start(config, architecture.brings_weights)
        scratch = start == "scratch"
        model = architecture.scratch("meta") if scratch else architecture.pretrained(config.weights or None)
        check_network(model, architecture.tokens(pa.array([""])).shape[1])
        scored = test_sets(config, selections, tests, architecture)
        stored = ray.put(None if scratch else model)
        training = training_sets(lake, config, selections, architecture, extra=(stored,))
        return Prepared("", start, training, scored)

    def train(
        self, point: Point, config: SweepConfig, training: Any, tests: Mapping[str, Any], report: Report, folder: str
    ) -> Outcome:
        """Train one network in a worker, or several, and score it on each test table."""
        from datas3_ray.training.clip_engine import train_clip

        return train_clip(point, config, training, tests, report, f"{folder}/{self.checkpoint}")


def _start(config: SweepConfig, brings_weights: bool) -> str:
    """Where the weights come from: a hub's or a folder's model has its own."""
    if config.weights == "random" or not (config.weights or brings_weights):
        return "scratch"
    return config.weights or str(config.own().architecture)
