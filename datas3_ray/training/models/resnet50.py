"""The model ``resnet50``: torchvision's ResNet50, every weight of it trained."""

from __future__ import annotations

from collections.abc import Mapping
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

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_WHAT = "model resnet50"


class ResNet50Options(FineTuneOptions):
    """See :class:`FineTuneOptions`. Below 33 pixels the last stage has one pixel, and one row no batch statistics."""

    image_size: int = Field(224, ge=33)


class ResNet50:
    """Full fine-tuning; keeps to :class:`datas3_ray.training.contract.Model`."""

    name = "resnet50"
    checkpoint = "resnet50.pt"
    tasks = ("classification", "regression")
    hyperparameters = HYPERPARAMETERS
    options = ResNet50Options
    ignores = ("column", "normalize", "standardize")

    def prepare(
        self, lake: Lake, config: SweepConfig, selections: Mapping[str, Selection], tests: Mapping[str, Table]
    ) -> Prepared:
        """Look up the images' places and labels, and read the weights, once for all trials."""
        import ray

        from datas3_ray.training.image_data import test_sets, training_sets

        weights = self._weights(config.weights) if config.weights else None
        scored = test_sets(config, selections, tests)
        training = training_sets(lake, config, selections, extra=(ray.put(weights),))
        return Prepared("", config.weights or "scratch", training, scored)

    def train(
        self, point: Point, config: SweepConfig, training: Any, tests: Mapping[str, Any], report: Report, folder: str
    ) -> Outcome:
        """Train one network in a worker, or several, and score it on each test table."""
        return fine_tune(point, config, training, tests, report, f"{folder}/{self.checkpoint}")

    def network(self, config: SweepConfig, outputs: int, weights: Any) -> Network:
        """A ResNet50 with so many outputs; its classifier begins anew unless the weights' has as many."""
        module = _resnet50(outputs)
        if weights is not None:
            from datas3_ray.training.initial_weights import fit_weights

            module.load_state_dict(fit_weights(weights, module.state_dict(), ("fc",), _WHAT), strict=False)
        return Network(module, _MEAN, _STD)

    def _weights(self, name: str) -> Tensors:
        import torch

        from datas3_ray.training.initial_weights import fit_weights, read_weights

        given = read_weights(name, _WHAT, _from_hub)
        with torch.device("meta"):
            fit_weights(given, _resnet50(2).state_dict(), ("fc",), _WHAT)
        return given


def _resnet50(outputs: int) -> torch.nn.Module:
    from torchvision.models import resnet50

    # Blocks that begin as the identity: otherwise the first gradients are a hundred times as large, and a rounding in
    # the last digit (another number of workers, another machine) is a difference of percents after one step.
    return resnet50(weights=None, num_classes=outputs, zero_init_residual=True)


def _from_hub(name: str) -> Tensors:
    """Weights that torchvision publishes, fetched unless they are in its cache."""
    from torchvision.models import ResNet50_Weights

    from datas3_ray.encoders.weights import not_fetched

    known = list(ResNet50_Weights.__members__)
    if name not in known:
        raise UsageError(
            f"{_WHAT}: the weights {name!r} are neither a local .pt, .pth or .safetensors file nor one of "
            f"torchvision's: {', '.join(known)}.{did_you_mean(name, known)}"
        )
    try:
        return ResNet50_Weights[name].get_state_dict(progress=False, check_hash=True)
    except Exception as error:  # every kind of network, cache and file trouble
        raise not_fetched(name, _WHAT, error) from error
