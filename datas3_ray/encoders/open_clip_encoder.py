"""Image and caption vectors of CLIP-like models, by open_clip, with the model's own preprocessing and tokenizer."""

from __future__ import annotations

import logging
import os
import threading
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from pydantic import AfterValidator, Field

from datas3_ray.encoders.base import EncoderConfig, Input
from datas3_ray.encoders.torch_encoder import MAX_ASPECT, Normalisation, Runtime, TorchEncoder, pixels_of
from datas3_ray.encoders.weights import (
    FOLDER,
    HUB,
    SUFFIXES,
    WeightsSource,
    absolute_folder,
    find_weights,
    hash_tensors,
    not_fetched,
    require_hub,
)
from datas3_ray.errors import Datas3Error, UsageError, did_you_mean

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

logger = logging.getLogger(__name__)


class OpenClipConfig(EncoderConfig):
    """``{open_clip: ViT-B-32, weights: laion2b_s34b_b79k, input: image}``: by name, ``hf-hub:`` or ``local-dir:``.

    ``weights`` is a local checkpoint, a pretrained tag of the model, or ``random`` (seeded, for tests); ``hf-hub:`` and
    ``local-dir:`` models bring their own. ``input: caption`` encodes captions into the same space as the images.
    """

    family: ClassVar[str] = "open_clip"

    open_clip: Annotated[str, Field(min_length=1), AfterValidator(absolute_folder)]
    input: Input = "image"

    @property
    def model(self) -> str:
        return self.open_clip

    @property
    def takes(self) -> Input:
        return self.input

    @property
    def _what(self) -> str:
        return f"encoder {self.alias!r} (open_clip {self.open_clip})"

    @property
    def _named(self) -> bool:
        """Whether the model is one of open_clip's list, rather than a hub's or a folder's."""
        return not self.open_clip.startswith((HUB, FOLDER))

    def validate_available(self) -> None:
        """See EncoderConfig."""
        self._import()
        if self.image_size is not None and self.input == "caption":
            raise UsageError(f"{self._what}: image_size is given, but captions are encoded; leave it out.")
        source = self._source()
        if self.open_clip.startswith(FOLDER):
            self._check_folder(source)
        elif self._named:
            self._check_name()
            self._check_weights(source)
        if source.kind == "hub":
            self._require_hub(source)

    def build(self) -> OpenClipEncoder:
        """Load the model; see EncoderConfig."""
        return OpenClipEncoder(self)

    def load(self) -> torch.nn.Module:
        """The whole model in float32 on the CPU, its weights loaded."""
        import torch

        open_clip = self._import()
        self.validate_available()
        source = self._source()
        options: dict[str, Any] = {"pretrained_image": False, "pretrained_text": False}
        if source.kind == "random":
            options["load_weights"] = False
        elif self._named:
            options["pretrained"] = source.name
            # The activation that these weights were trained with, where the model's name does not say so.
            options["force_quick_gelu"] = bool(self._tag(source).get("quick_gelu"))
        logger.info("loading %s; its weights are fetched where they are neither local nor in the cache", self._what)
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                model: torch.nn.Module = open_clip.create_model(
                    self.open_clip,
                    force_image_size=self.image_size,
                    require_pretrained=source.kind != "random",
                    weights_only=True,
                    **options,
                )
        except Exception as error:  # every kind of network, cache, file and shape trouble
            raise self._failure(source, error) from error
        return model

    def tokenizer(self) -> Any:
        """The model's tokenizer: a list of strings to an int64 tensor (n, context length)."""
        try:
            return self._import().get_tokenizer(self.open_clip)
        except Exception as error:  # a tokenizer of a hub, or one that needs another package
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise Datas3Error(f"{self._what}: its tokenizer cannot be loaded: {lines[0]}.") from error

    def _import(self) -> Any:
        try:
            import open_clip
        except ImportError:
            raise UsageError(
                f"{self._what}: the package open_clip is not installed; pip install 'datas3-ray[clip]'."
            ) from None
        return open_clip

    def _source(self) -> WeightsSource:
        source = find_weights(self.weights, self._what)
        if source.kind == "package":
            raise UsageError(f"{self._what}: the weights of the package {source.name!r} are for timm models.")
        if not self._named and self.weights not in (None, "random"):
            raise UsageError(f"{self._what}: this model brings its own weights; leave `weights:` out.")
        if self.open_clip.startswith(FOLDER) and source.kind == "hub":
            return WeightsSource("file", self.open_clip)
        return source

    def _tag(self, source: WeightsSource) -> dict[str, Any]:
        """What open_clip knows of a pretrained tag; nothing for a file."""
        if source.kind != "hub":
            return {}
        tag: dict[str, Any] = self._import().get_pretrained_cfg(self.open_clip.replace("/", "-"), source.name)
        return tag

    def _check_folder(self, source: WeightsSource) -> None:
        folder = self.open_clip.removeprefix(FOLDER)
        if not os.path.isfile(os.path.join(folder, "open_clip_config.json")):
            raise UsageError(f"{self._what}: the folder {folder!r} holds no open_clip_config.json.")
        if source.kind != "random" and not any(name.endswith(SUFFIXES) for name in os.listdir(folder)):
            raise UsageError(f"{self._what}: the folder {folder!r} holds no weights ({', '.join(SUFFIXES)}).")

    def _check_name(self) -> None:
        models = self._import().list_models()
        name = self.open_clip.replace("/", "-")
        if name not in models:
            raise UsageError(f"{self._what}: open_clip has no model {name!r}.{did_you_mean(name, models)}")

    def _check_weights(self, source: WeightsSource) -> None:
        if source.kind != "hub":
            return
        tags = self._import().list_pretrained_tags_by_model(self.open_clip.replace("/", "-"))
        known = f"its pretrained tags are {', '.join(tags)}" if tags else "it has no pretrained tags"
        if not source.name:
            raise UsageError(f"{self._what}: give `weights:` a pretrained tag, a local file or 'random'; {known}.")
        if not self._tag(source):
            hint = did_you_mean(source.name, [*tags, "random"])
            neither = "neither a local file nor 'random' nor a tag"
            raise UsageError(f"{self._what}: the weights {source.name!r} are {neither}; {known}.{hint}")

    def _require_hub(self, source: WeightsSource) -> None:
        if self.open_clip.startswith(HUB):
            require_hub(self.open_clip.removeprefix(HUB), self._what)
        elif repository := self._tag(source).get("hf_hub", "").rstrip("/"):
            require_hub("/".join(repository.split("/")[:2]), self._what)

    def _failure(self, source: WeightsSource, error: Exception) -> Datas3Error:
        if source.kind == "hub":
            return not_fetched(source.name or self.open_clip, self._what, error)
        lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
        return Datas3Error(f"{self._what}: the model cannot be made with the weights {source.name!r}: {lines[-1]}")


class OpenClipEncoder(TorchEncoder):
    """One side of a CLIP-like model: images (uint8 height, width, 3) or captions (int64 tokens) to its shared space."""

    def __init__(self, config: OpenClipConfig) -> None:
        super().__init__(Runtime.resolve(config.device, config.precision, config._what), config.batch_size)
        self.input: Input = config.input
        model = config.load()
        sha256 = hash_tensors(model.state_dict())
        preprocessing = self._use_images(model) if self.input == "image" else self._use_captions(config)
        self._model: Any = self.runtime.place(model)
        self.dim = self.measure(self._blank, config._what)
        self.identity = {
            "family": config.family,
            "model": config.model,
            "weights": config.weights or "the model's own",
            "weights_sha256": sha256,
            "preprocessing": preprocessing,
            "precision": self.runtime.label,
            "dim": self.dim,
            "input": self.input,
        }

    def prepare(self, item: Image | str) -> np.ndarray:
        """An image as uint8 (height, width, 3), or a caption as int64 (context length,). Safe in several threads."""
        if isinstance(item, str):
            with self._tokenizing:
                tokens: np.ndarray = self._tokenizer([item])[0].numpy()
            return tokens
        return pixels_of(item, self._crop)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """The vectors of uint8 images (n, height, width, 3) or int64 tokens (n, context length), shape (n, dim)."""
        if self.input == "caption":
            vectors: torch.Tensor = self._model.encode_text(batch)
            return vectors
        vectors = self._model.encode_image(self.runtime.lower(self._normalisation.apply(batch)))
        return vectors

    def _use_images(self, model: Any) -> dict[str, Any]:
        from open_clip.transform import PreprocessCfg, image_transform_v2

        settings = PreprocessCfg(**model.visual.preprocess_cfg)
        # The model's own pipeline but for its last two steps, making a tensor and normalising it, which are done in
        # batches on the device.
        *self._steps, _, _ = image_transform_v2(settings, is_train=False).transforms
        self._normalisation = Normalisation(tuple(settings.mean), tuple(settings.std))
        _, height, width = settings.input_size
        self._blank = np.zeros((height, width, 3), np.uint8)
        return {
            "size": [height, width],
            "resize": settings.resize_mode,
            "interpolation": settings.interpolation,
            "mean": list(settings.mean),
            "std": list(settings.std),
            "max_aspect": MAX_ASPECT,
        }

    def _use_captions(self, config: OpenClipConfig) -> dict[str, Any]:
        self._tokenizer = config.tokenizer()
        self._tokenizing = threading.Lock()  # some tokenizers keep state while they work
        self._blank = self.prepare("")
        return {"tokenizer": type(self._tokenizer).__name__, "context_length": len(self._blank)}

    def _crop(self, image: Image) -> Image:
        for step in self._steps:
            image = step(image)
        return image
