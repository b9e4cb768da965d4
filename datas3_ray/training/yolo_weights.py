"""A detector's network and weights: built, read from files without running their code, and built again from tensors."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datas3_ray.encoders.weights import find_weights, load_weights
from datas3_ray.errors import Datas3Error, UsageError
from datas3_ray.training.initial_weights import fit_weights
from datas3_ray.training.yolo_offline import WHAT, offline

if TYPE_CHECKING:
    import torch

ARCHITECTURE = "yolov8n.yaml"
"""ultralytics' name of the network."""

_CLASSES = "model.22.cv3.0.2.weight"  # (classes, width, 1, 1): the last layer of one of the branches that classify
_WIDTH = "model.22.cv3.0.0.conv.weight"  # (width, 64, 3, 3): its first layer


@dataclass(frozen=True)
class DetectorWeights:
    """A detector's tensors by name, on the CPU, and its classes' names in order where they are known."""

    tensors: dict[str, torch.Tensor]
    classes: tuple[str, ...] = ()


def detector(classes: Sequence[str], weights: DetectorWeights | None = None) -> Any:
    """ultralytics' YOLOv8n for ``classes``, with random weights of torch's generator or from ``weights``.

    What classifies is taken over too, class by class, where the names agree. To be called inside :func:`offline`.

    Returns
    -------
    ultralytics.nn.tasks.DetectionModel

    Raises
    ------
    UsageError
        When the weights are of no YOLOv8n.
    """
    from ultralytics.nn.tasks import DetectionModel

    network = DetectionModel(ARCHITECTURE, nc=len(classes), verbose=False)
    network.names = dict(enumerate(classes))
    if weights is not None:
        network.load(rebuilt(weights), verbose=False)
    return network


def rebuilt(weights: DetectorWeights) -> Any:
    """The network that the weights are of, an ``ultralytics.nn.tasks.DetectionModel``.

    To be called inside :func:`offline`. Classes without known names are called by their numbers.

    Raises
    ------
    UsageError
        When that is no YOLOv8n.
    """
    from ultralytics.nn.tasks import DetectionModel

    tensors = weights.tensors
    if any(name not in tensors or tensors[name].ndim != 4 for name in (_CLASSES, _WIDTH)):
        raise UsageError(f"{WHAT}: the weights are of another architecture: they lack its layers that classify.")
    count, width = tensors[_CLASSES].shape[0], tensors[_WIDTH].shape[0]
    network = DetectionModel(ARCHITECTURE, nc=count, verbose=False)
    if network.state_dict()[_WIDTH].shape[0] != width:
        # Fine-tuned from weights for more classes: the branches have kept the width that those had.
        network.load(DetectionModel(ARCHITECTURE, nc=width, verbose=False), verbose=False)
    network.load_state_dict(fit_weights(tensors, network.state_dict(), (), WHAT))
    named = len(weights.classes) == count
    network.names = dict(enumerate(weights.classes)) if named else {code: str(code) for code in range(count)}
    return network


def read_detector_weights(weights: str) -> DetectorWeights:
    """The weights of a local file: a checkpoint of this model's, ultralytics' own ``.pt``, or ``.safetensors``.

    Raises
    ------
    UsageError
        When the file is missing, holds no weights, or those of another architecture. No pickled code is run.
    """
    source = find_weights(weights, WHAT)
    if source.path is None:
        raise UsageError(
            f"{WHAT}: the weights {weights!r} are no local .pt or .safetensors file, and none are downloaded; name "
            "one, or leave `weights:` empty to start from scratch."
        )
    try:
        found = _read(source.path)
    except UsageError:
        raise
    except Datas3Error as error:
        raise UsageError(str(error)) from error
    with offline():
        rebuilt(found)
    return found


def load_detector(path: str | Path) -> Any:
    """The network of a checkpoint that a trial left: an ``ultralytics.nn.tasks.DetectionModel`` that knows its classes.

    Raises
    ------
    UsageError
        When the file is no such checkpoint.
    """
    found = read_detector_weights(str(path))
    with offline():
        return rebuilt(found).eval()


def _read(path: Path) -> DetectorWeights:
    import torch

    if path.suffix == ".safetensors":
        return DetectorWeights(load_weights(path, WHAT))
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # more than tensors and plain values: ultralytics' own keep the network itself
        return _read_ultralytics(path)
    except Exception:
        content = None
    tensors = load_weights(path, WHAT)  # tells what is wrong with the file
    classes = content.get("classes") if isinstance(content, Mapping) else None
    return DetectorWeights(tensors, tuple(map(str, classes)) if isinstance(classes, (list, tuple)) else ())


def _read_ultralytics(path: Path) -> DetectorWeights:
    """A checkpoint of ultralytics', of whose classes only the layers of its networks are made."""
    with offline():
        try:
            from ultralytics.nn.tasks import _SafeLoad, torch_safe_load

            if not _SafeLoad.SUPPORTED:
                raise ImportError("torch is too old")
        except ImportError as error:
            raise UsageError(
                f"{WHAT}: {str(path)!r} is a checkpoint of ultralytics' that this version of it reads only by running "
                "the file's code; pip install -U ultralytics torch, or save its tensors as .safetensors."
            ) from error
        try:
            content, _ = torch_safe_load(str(path), safe_only=True)
            network = content.get("ema") or content["model"]
            tensors = {name: tensor.float() for name, tensor in network.state_dict().items()}
        except Exception as error:  # the file decides what is raised
            raise UsageError(
                f"{WHAT}: {str(path)!r} cannot be read as weights: it holds more than tensors, and is no .pt file that "
                "ultralytics wrote."
            ) from error
    names = getattr(network, "names", None)
    return DetectorWeights(tensors, tuple(str(name) for name in names.values()) if isinstance(names, dict) else ())
