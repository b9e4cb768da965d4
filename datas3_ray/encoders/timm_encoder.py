"""Pooled features of any timm image model, with the model's own preprocessing."""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from pydantic import AfterValidator, Field

from datas3_ray.encoders.base import EncoderConfig, Input
from datas3_ray.encoders.folding import simplify
from datas3_ray.encoders.torch_encoder import MAX_ASPECT, Normalisation, Runtime, TorchEncoder, pixels_of
from datas3_ray.encoders.weights import (
    FOLDER,
    HUB,
    PACKAGES,
    WeightsSource,
    absolute_folder,
    find_weights,
    hash_tensors,
    load_weights,
    misfit,
    not_fetched,
    remap_by_position,
    require_hub,
)
from datas3_ray.errors import Datas3Error, UsageError, did_you_mean

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

logger = logging.getLogger(__name__)


class TimmConfig(EncoderConfig):
    """``{timm: resnet18, weights: ..., image_size: 128}``: a timm model by name, ``hf-hub:`` or ``local-dir:``.

    ``weights`` is a local file, a package that carries weights, ``random`` (seeded, for tests), or a pretrained tag of
    the model; without it the model's own are fetched. ``image_size`` replaces the size the model was trained at.
    """

    family: ClassVar[str] = "timm"

    timm: Annotated[str, Field(min_length=1), AfterValidator(absolute_folder)]

    @property
    def model(self) -> str:
        return self.timm

    @property
    def takes(self) -> Input:
        return "image"

    @property
    def _what(self) -> str:
        return f"encoder {self.alias!r} (timm {self.timm})"

    @property
    def _registered(self) -> bool:
        """Whether the model is named as timm's registry knows it, rather than by a hub or a folder."""
        return not self.timm.startswith((HUB, FOLDER))

    def validate_available(self) -> None:
        """See EncoderConfig. An ``image_size`` is tried on a model without memory, which takes part of a second."""
        source = find_weights(self.weights, self._what)
        if self._registered:
            self._check_name()
            self._check_weights(source)
        elif self.timm.startswith(FOLDER):
            folder = self.timm.removeprefix(FOLDER)
            if not os.path.isfile(os.path.join(folder, "config.json")):
                raise UsageError(f"{self._what}: the folder {folder!r} holds no config.json of a timm model.")
        if source.kind == "hub":
            self._require_hub(source)
        if self.image_size is not None and self._registered:
            self._check_size()

    def build(self) -> TimmEncoder:
        """Load the model; see EncoderConfig."""
        return TimmEncoder(self)

    def load(self) -> torch.nn.Module:
        """The model in float32 on the CPU, without its classifier, its weights loaded."""
        source = find_weights(self.weights, self._what)
        if self._registered:
            self._check_name()
            self._check_weights(source)
        if source.kind == "random":
            return self._create(self.timm, pretrained=False)
        if source.kind != "hub":
            model = self._create(self.timm, pretrained=False)
            self._fill(model, source)
            return model
        self._require_hub(source)
        name = self._hub_name(source)
        logger.info("loading the weights of timm %s, from its hub where they are not in the cache", name)
        try:
            return self._create(name, pretrained=True)
        except Datas3Error:
            raise
        except Exception as error:  # every kind of network, cache and file trouble
            raise not_fetched(name, self._what, error) from error

    def _create(self, name: str, pretrained: bool) -> torch.nn.Module:
        import timm
        import torch

        options: dict[str, Any] = {"num_classes": 0}
        if self.image_size is not None and self._fixed_size():
            options["img_size"] = self.image_size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            try:
                return timm.create_model(name, pretrained=pretrained, **options)
            except (AssertionError, TypeError) as error:
                if "img_size" not in options:
                    raise
                raise self._wrong_size(error) from error

    def _fixed_size(self) -> bool:
        """Whether the model is built for one image size, so that another has to be asked for when it is built."""
        import timm

        config = timm.get_pretrained_cfg(self.timm.split(".")[0]) if self._registered else None
        return bool(getattr(config, "fixed_input_size", False))

    def _fill(self, model: torch.nn.Module, source: WeightsSource) -> None:
        """Load weights from a file or package, which may hold the classifier that the model goes without."""
        import timm

        assert source.path is not None
        given = load_weights(source.path, self._what)
        if source.kind == "package":
            given = remap_by_position(given, timm.create_model(self.timm, pretrained=False).state_dict(), self._what)
        if not _fits(given, model):
            convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
            try:
                given = convert(given, model) if convert is not None else given
            except Exception as error:  # written for other checkpoints than this one
                raise Datas3Error(f"{self._what}: the weights do not fit the model: {error}.") from error
        config: Any = model.pretrained_cfg
        heads = config.get("classifier") or ()
        heads = (heads,) if isinstance(heads, str) else heads
        wanted = model.state_dict()
        surplus = [name for name in given if name not in wanted and name.rpartition(".")[0] not in heads]
        if surplus or wanted.keys() - given.keys():
            raise misfit(self._what, [name for name in wanted if name not in given], surplus)
        try:
            model.load_state_dict({name: given[name] for name in wanted})
        except RuntimeError as error:
            detail = str(error).splitlines()[-1].strip()
            raise Datas3Error(f"{self._what}: the weights do not fit the model: {detail}") from error

    def _check_name(self) -> None:
        import timm

        base, _, tag = self.timm.partition(".")
        if not timm.is_model(base):
            raise UsageError(f"{self._what}: timm has no model {base!r}.{did_you_mean(base, timm.list_models())}")
        tags = self._tags()
        if tag and tag not in tags:
            known = f"{base} has {', '.join(tags)}" if tags else f"{base} has none"
            raise UsageError(f"{self._what}: unknown pretrained tag {tag!r}; {known}.{did_you_mean(tag, tags)}")

    def _check_weights(self, source: WeightsSource) -> None:
        base, _, tag = self.timm.partition(".")
        if source.kind == "package" and base not in PACKAGES[source.name].models:
            fitting = ", ".join(PACKAGES[source.name].models)
            raise UsageError(f"{self._what}: the weights of the package {source.name!r} are for {fitting}.")
        if source.kind != "hub":
            return
        if not source.name:
            if not self._tags():
                raise UsageError(
                    f"{self._what}: timm has no weights for it; give `weights:` a local file, or 'random'."
                )
        elif source.name not in self._tags() or (tag and tag != source.name):
            known = f"a tag of {base} ({', '.join(self._tags()) or 'it has none'})"
            hint = did_you_mean(source.name, [*self._tags(), *PACKAGES, "random"])
            raise UsageError(
                f"{self._what}: the weights {source.name!r} are neither a local file nor a package known here "
                f"({', '.join(PACKAGES)}) nor 'random' nor {known}.{hint}"
            )

    def _tags(self) -> list[str]:
        import timm

        base = self.timm.split(".")[0]
        return [name.partition(".")[2] for name in timm.list_models(f"{base}.*", pretrained=True)]

    def _hub_name(self, source: WeightsSource) -> str:
        base, _, tag = self.timm.partition(".")
        return f"{base}.{source.name or tag}" if self._registered and (source.name or tag) else self.timm

    def _require_hub(self, source: WeightsSource) -> None:
        import timm

        if self.timm.startswith(HUB):
            repository: str | None = self.timm.removeprefix(HUB).split("@")[0]
        elif self.timm.startswith(FOLDER):
            return
        else:
            repository = getattr(timm.get_pretrained_cfg(self._hub_name(source)), "hf_hub_id", None)
        if repository:
            require_hub(repository, self._what)

    def _check_size(self) -> None:
        """Run the model at ``image_size`` on the meta device, which computes shapes and nothing else."""
        import timm
        import torch

        size = self.image_size or 0
        with torch.device("meta"):
            try:
                self._create(self.timm, pretrained=False).eval()(torch.empty(1, 3, size, size))
            except UsageError:
                raise
            except Exception as error:
                try:
                    model: Any = timm.create_model(self.timm, pretrained=False, num_classes=0).eval()
                    model(torch.empty(1, *model.pretrained_cfg["input_size"]))
                except Exception:  # this model cannot be tried without memory, whatever its size
                    return
                raise self._wrong_size(error) from error

    def _wrong_size(self, error: Exception) -> UsageError:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return UsageError(
            f"{self._what}: the model does not take image_size {self.image_size} ({reason}); "
            "leave it out for the model's own size."
        )


def _fits(given: dict[str, torch.Tensor], model: torch.nn.Module) -> bool:
    return all(name in given and given[name].shape == place.shape for name, place in model.state_dict().items())


class TimmEncoder(TorchEncoder):
    """A timm model without its classifier: uint8 (height, width, 3) images to pooled features."""

    input: Input = "image"

    def __init__(self, config: TimmConfig) -> None:
        import torch
        from timm.data import create_transform, resolve_model_data_config

        super().__init__(Runtime.resolve(config.device, config.precision, config._what), config.batch_size)
        model = config.load()
        size = config.image_size
        data = resolve_model_data_config(model, {"input_size": (3, size, size)} if size else None)
        # timm's own evaluation pipeline but for its last step, which would make a tensor of the image: normalising
        # is done in batches on the device.
        *self._steps, _ = create_transform(**data, is_training=False, use_prefetcher=True).transforms
        self._normalisation = Normalisation(tuple(data["mean"]), tuple(data["std"]))
        sha256 = hash_tensors(model.state_dict())
        height, width = data["input_size"][1:]
        noise = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1
        if not simplify(model.eval(), noise):
            model = config.load()
        self._model = self.runtime.place(model)
        self.dim = self.measure(np.zeros((height, width, 3), np.uint8), config._what)
        self.identity = {
            "family": config.family,
            "model": config.model,
            "weights": config.weights or "the model's own",
            "weights_sha256": sha256,
            "preprocessing": {
                "size": [height, width],
                "crop": data["crop_mode"],
                "crop_share": data["crop_pct"],
                "interpolation": data["interpolation"],
                "mean": list(data["mean"]),
                "std": list(data["std"]),
                "max_aspect": MAX_ASPECT,
            },
            "precision": self.runtime.label,
            "dim": self.dim,
            "input": self.input,
        }

    def prepare(self, item: Image | str) -> np.ndarray:
        """An image resized and cropped as the model wants it, uint8 (height, width, 3). Safe in several threads."""
        assert not isinstance(item, str)
        return pixels_of(item, self._crop)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Pooled features of uint8 images (n, height, width, 3), shape (n, dim)."""
        pixels = self._normalisation.apply(batch)
        features: torch.Tensor = self._model(self.runtime.lower(pixels))
        return features

    def _crop(self, image: Image) -> Image:
        for step in self._steps:
            image = step(image)
        return image
