"""The model ``vit_lora``: a vision transformer of timm with low-rank adapters on its attention, through ``peft``."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field

from datas3_ray.errors import UsageError, did_you_mean
from datas3_ray.training.contract import Outcome, Point, Prepared, Report
from datas3_ray.training.finetune import HYPERPARAMETERS, FineTuneOptions, Network, fine_tune

if TYPE_CHECKING:
    import torch

    from datas3_ray.lake import Lake, Selection, Table
    from datas3_ray.training.config import SweepConfig
    from datas3_ray.training.initial_weights import Tensors

_WHAT = "model vit_lora"
_ADAPTED = r".*\.attn\.(qkv|proj)"


class VitLoraOptions(FineTuneOptions):
    """See :class:`FineTuneOptions`.

    Attributes
    ----------
    architecture : str
        A vision transformer of timm, by name.
    rank : int
        Rank of the matrices that are added to the attention's weights.
    alpha : float
        What they add is multiplied by ``alpha / rank``.
    dropout : float
        Share of the adapters' inputs that is set to 0 in training.
    """

    architecture: str = Field("vit_small_patch16_224", min_length=1)
    rank: int = Field(8, ge=1)
    alpha: float = Field(16.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)


@dataclass(frozen=True)
class _Adapted(Network):
    """A network whose saved state is that of the plain transformer: the adapters are added to its weights."""

    def plain(self) -> dict[str, torch.Tensor]:
        import copy

        return copy.deepcopy(self.module).merge_and_unload().state_dict()  # type: ignore[operator]


class VitLora:
    """Low-rank adaptation; keeps to :class:`datas3_ray.training.contract.Model`."""

    name = "vit_lora"
    checkpoint = "vit_lora.pt"
    tasks = ("classification", "regression")
    hyperparameters = HYPERPARAMETERS
    options = VitLoraOptions
    ignores = ("column", "normalize", "standardize")

    def prepare(
        self, lake: Lake, config: SweepConfig, selections: Mapping[str, Selection], tests: Mapping[str, Table]
    ) -> Prepared:
        """Look up the images' places and labels, and read the weights, once for all trials."""
        import ray

        from datas3_ray.training.image_data import test_sets, training_sets

        _require_peft()
        weights = self._check(config)
        scored = test_sets(config, selections, tests)
        training = training_sets(lake, config, selections, extra=(ray.put(weights),))
        return Prepared("", config.weights or "scratch", training, scored)

    def train(
        self, point: Point, config: SweepConfig, training: Any, tests: Mapping[str, Any], report: Report, folder: str
    ) -> Outcome:
        """Train one network in a worker, or several, and score it on each test table."""
        return fine_tune(point, config, training, tests, report, f"{folder}/{self.checkpoint}")

    def network(self, config: SweepConfig, outputs: int, weights: Any) -> Network:
        """A transformer with so many outputs: adapters and classifier are trained, the rest is frozen."""
        _require_peft()
        import peft

        options: VitLoraOptions = config.own()
        module = _transformer(options, outputs)
        if weights is not None:
            module.load_state_dict(_fitting(weights, module, options), strict=False)
        adapters = peft.LoraConfig(
            r=options.rank,
            lora_alpha=options.alpha,  # type: ignore[arg-type]
            lora_dropout=options.dropout,
            target_modules=_ADAPTED,
            modules_to_save=list(_heads(module)),
        )
        shown: Any = module.pretrained_cfg
        return _Adapted(peft.get_peft_model(module, adapters), tuple(shown["mean"]), tuple(shown["std"]))

    def _check(self, config: SweepConfig) -> Tensors | None:
        """The weights, where any are named, once they and the architecture are known to fit."""
        import torch

        from datas3_ray.training.initial_weights import read_weights

        options: VitLoraOptions = config.own()
        _check_name(options.architecture)
        with torch.device("meta"):
            module = _transformer(options, 2)
        if not config.weights:
            return None
        given = read_weights(config.weights, _WHAT, _from_hub)
        _fitting(given, module, options)
        return given


def _require_peft() -> None:
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise UsageError(f"{_WHAT} needs the package peft; pip install 'datas3-ray[lora]'.") from error


def _check_name(name: str) -> None:
    import timm

    base = name.partition(".")[0]
    if not timm.is_model(base):
        known = timm.list_models(module="vision_transformer")
        raise UsageError(f"{_WHAT}: timm has no architecture {name!r}.{did_you_mean(base, known)}")


def _transformer(options: VitLoraOptions, outputs: int) -> torch.nn.Module:
    """The plain network with torch's current random weights."""
    import timm
    from timm.models.vision_transformer import VisionTransformer

    name, size = options.architecture, options.image_size
    wrong = f"{_WHAT}: {name!r} is none of timm's plain vision transformers, such as vit_small_patch16_224."
    try:
        module = timm.create_model(name, pretrained=False, num_classes=outputs, img_size=size)
    except TypeError as error:  # a network that does not ask for the size of its images
        raise UsageError(wrong) from error
    except (AssertionError, ValueError, RuntimeError) as error:
        raise UsageError(f"{_WHAT}: {name!r} cannot have images of {size} pixels: {error}.") from error
    # Others have layers of these names that they do not call, so that adapters would do nothing.
    if not isinstance(module, VisionTransformer):
        raise UsageError(wrong)
    return module


def _fitting(weights: Tensors, module: Any, options: VitLoraOptions) -> dict[str, torch.Tensor]:
    """The weights under timm's own names, their position embedding scaled to the images' size."""
    from datas3_ray.training.initial_weights import fit_weights

    wanted = module.state_dict()
    given = dict(weights)
    heads = _heads(module)
    of_head = {name for name in given if name.rpartition(".")[0] in heads}
    if any(name not in given or given[name].shape != wanted[name].shape for name in wanted if name not in of_head):
        convert = getattr(sys.modules[type(module).__module__], "checkpoint_filter_fn", None)
        try:
            given = dict(convert(given, module)) if convert is not None else given
        except Exception as error:  # written for other checkpoints than this one
            raise UsageError(
                f"{_WHAT}: the weights are of another architecture than {options.architecture!r}: {error}."
            ) from error
    return fit_weights(given, wanted, heads, f"{_WHAT} ({options.architecture})")


def _heads(module: Any) -> tuple[str, ...]:
    """Names of the modules that classify."""
    heads = module.pretrained_cfg.get("classifier") or "head"
    named = (heads,) if isinstance(heads, str) else tuple(heads)
    return tuple(name for name in named if hasattr(module, name))


def _from_hub(name: str) -> Tensors:
    """Weights that timm knows by name, fetched unless they are in its cache."""
    import timm

    from datas3_ray.encoders.weights import HUB, not_fetched

    if not name.startswith((HUB, "hf_hub:")) and not timm.is_model(name.partition(".")[0]):
        raise UsageError(
            f"{_WHAT}: the weights {name!r} are neither a local .pt, .pth or .safetensors file nor a pretrained model "
            f"of timm nor {HUB}OWNER/NAME.{did_you_mean(name, timm.list_models('vit_*', pretrained=True))}"
        )
    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # every kind of network, cache and file trouble
        raise not_fetched(name, _WHAT, error) from error
