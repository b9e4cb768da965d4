"""Adapters on a vision transformer: only they and the classifier learn, and what is saved is the plain transformer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from datas3_ray.errors import UsageError
from datas3_ray.training.config import SweepConfig
from datas3_ray.training.models.vit_lora import VitLora, _fitting, _transformer

OPTIONS = {"architecture": "test_vit", "image_size": 32, "rank": 2, "alpha": 4.0}


def config(**settings: Any) -> SweepConfig:
    options = OPTIONS | settings.pop("options", {})
    return SweepConfig(model="vit_lora", grid={"batch_size": 4, "lr": 0.1}, options=options, **settings)


def test_only_adapters_and_the_classifier_learn() -> None:
    torch.manual_seed(0)
    network = VitLora().network(config(), 5, None)
    plain = timm.create_model("test_vit", img_size=32, num_classes=5)
    trained = {name for name, value in network.module.named_parameters() if value.requires_grad}
    blocks = len(plain.blocks)
    assert len(trained) == blocks * 4 + 2
    assert all("lora_" in name and ".attn." in name for name in trained if ".head." not in name)
    before = network.plain()
    assert before.keys() == plain.state_dict().keys()
    images = torch.randn(6, 3, 32, 32)
    optimizer = torch.optim.SGD([value for value in network.module.parameters() if value.requires_grad], lr=0.5)
    for _ in range(2):  # the first step moves one half of each adapter, which is 0, the second the other
        optimizer.zero_grad()
        network.module(images).square().sum().backward()
        optimizer.step()
    after = network.plain()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    adapted = {f"blocks.{block}.attn.{name}.weight" for block in range(blocks) for name in ("qkv", "proj")}
    assert changed == adapted | {"head.weight", "head.bias"}
    network.module.eval()
    plain.load_state_dict(after)
    assert torch.allclose(plain.eval()(images), network.module(images), atol=1e-4)


def test_weights_of_another_image_size(tmp_path: Path) -> None:
    given = timm.create_model("test_vit", img_size=48, num_classes=7).state_dict()
    network = VitLora().network(config(), 5, given)
    found = network.plain()
    assert torch.equal(found["blocks.0.mlp.fc1.weight"], given["blocks.0.mlp.fc1.weight"])
    assert found["pos_embed"].shape != given["pos_embed"].shape and found["head.weight"].shape[0] == 5
    same = VitLora().network(config(), 7, timm.create_model("test_vit", img_size=32, num_classes=7).state_dict())
    assert same.plain()["head.weight"].shape[0] == 7


@pytest.mark.parametrize("architecture", ["test_vit2", "resnet18"])
def test_weights_of_another_architecture(tmp_path: Path, architecture: str) -> None:
    path = tmp_path / "weights.pt"
    torch.save(timm.create_model(architecture).state_dict(), path)
    with pytest.raises(UsageError, match=r"model vit_lora.*the weights are of another architecture") as error:
        VitLora()._check(config(weights=str(path)))
    assert "\n" not in str(error.value)
    mine = timm.create_model("test_vit", img_size=32)
    torch.save(mine.state_dict(), path)
    found = VitLora()._check(config(weights=str(path)))
    assert found is not None and found.keys() == mine.state_dict().keys()
    options = config().own()
    assert len(_fitting(found, _transformer(options, 3), options)) == len(found) - 2


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"options": {"architecture": "vit_tini_patch16_224"}}, "no architecture 'vit_tini_patch16_224'.*Did you mean"),
        ({"options": {"architecture": "resnet18"}}, "'resnet18' is none of timm's plain vision transformers"),
        ({"options": {"architecture": "beit_base_patch16_224"}}, "'beit_base_patch16_224' is none of timm's plain"),
        ({"weights": "no_such_name"}, "'no_such_name' are neither a local .* file nor a pretrained model of timm"),
        ({"weights": "gone.pt"}, "'gone.pt': that file does not exist"),
        ({"options": {"rnak": 2}}, "options of vit_lora: unknown key 'rnak'.*Did you mean 'rank'?"),
    ],
)
def test_what_cannot_be_meant(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence) as error:
        VitLora()._check(config(**settings))
    assert "\n" not in str(error.value)


def test_without_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UsageError, match=r"needs the package peft; pip install 'datas3-ray\[lora\]'"):
        VitLora().network(config(), 2, None)
