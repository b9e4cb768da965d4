"""Weights to start from: files that are weights, of this architecture, and one sentence for all others."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from datas3_ray.errors import UsageError
from datas3_ray.training.initial_weights import fit_weights, read_weights

BODY = {"layer.weight": torch.arange(6.0).view(2, 3), "norm.bias": torch.ones(2)}
HEAD = {"fc.weight": torch.ones(5, 2), "fc.bias": torch.ones(5)}


def nowhere(name: str) -> dict:
    raise AssertionError(f"the hub was asked for {name}")


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    save_file(BODY, path) if suffix == ".safetensors" else torch.save({"state_dict": BODY, "epoch": 3}, path)
    found = read_weights(str(path), "model m", nowhere)
    assert list(found) == sorted(BODY) or list(found) == list(BODY)
    assert all(torch.equal(found[name], BODY[name]) for name in BODY)
    assert read_weights("NAME_V1", "model m", lambda name: {name: torch.ones(1)}) == {"NAME_V1": torch.ones(1)}


class Evil:
    """Pickled, it makes a file in the working directory of whoever unpickles it."""

    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("was-here"),))


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("gone.pt", None, "that file does not exist"),
        ("w.onnx", b"x", "are not a .safetensors or .pth or .pt or .bin file"),
        ("w.pt", b"junk", "cannot be read as weights"),
        ("w.pt", pickle.dumps(Evil(), protocol=2), "cannot be read as weights"),
    ],
)
def test_files_that_are_no_weights(
    tmp_path: Path, name: str, content: bytes | None, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=f"model m: .*{sentence}") as error:
        read_weights(str(path), "model m", nowhere)
    assert "\n" not in str(error.value)
    assert not Path("was-here").exists()


def test_random_is_said_otherwise() -> None:
    with pytest.raises(UsageError, match="leave `weights:` empty to start from scratch"):
        read_weights("random", "model m", nowhere)


def test_a_head_is_taken_over_where_it_fits() -> None:
    given = BODY | HEAD
    assert list(fit_weights(given, given, ["fc"], "m")) == list(given)
    assert list(fit_weights(BODY, given, ["fc"], "m")) == list(BODY)
    assert list(fit_weights(given, BODY, ["fc"], "m")) == list(BODY)
    other = BODY | {"fc.weight": torch.ones(3, 2), "fc.bias": torch.ones(3)}
    fitting = fit_weights(given, other, ["fc"], "m")
    assert list(fitting) == list(BODY) and fitting["layer.weight"] is BODY["layer.weight"]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"layer.weight": BODY["layer.weight"]}, "they lack 'norm.bias'$"),
        (BODY | {"a.b": torch.ones(1), "c.d": torch.ones(1)}, "they have 'a.b' and 1 more beyond it"),
        ({"x": torch.ones(1)}, "they lack 'layer.weight' and 1 more and have 'x' beyond it"),
        (BODY | {"norm.bias": torch.ones(3)}, r"'norm.bias' has the shape \(3,\) there and \(2,\) in the model"),
    ],
)
def test_another_architecture(given: dict, sentence: str) -> None:
    with pytest.raises(UsageError, match="model m: the weights are of another architecture: " + sentence.rstrip("$")):
        fit_weights(given, BODY | HEAD, ["fc"], "model m")
