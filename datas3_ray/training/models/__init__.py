"""The models a sweep can train, one file each, by name."""

from __future__ import annotations

from importlib import import_module

from datas3_ray.errors import UsageError, did_you_mean
from datas3_ray.training.contract import Model

MODELS = {
    "clip": "Clip",
    "resnet50": "ResNet50",
    "vit_lora": "VitLora",
    "vit_linear_probe": "VitLinearProbe",
    "yolov8n": "Yolov8n",
}
"""Name of each model, which is its file's, and its class."""


def model(name: str) -> Model:
    """The model ``name``; a UsageError says which there are when it is not one.

    >>> model("vit_linear_probe").checkpoint
    'probe.pt'
    """
    if name not in MODELS:
        raise UsageError(f"no model '{name}'; there are: {', '.join(MODELS)}.{did_you_mean(name, MODELS)}")
    found: Model = getattr(import_module(f"{__name__}.{name}"), MODELS[name])()
    return found
