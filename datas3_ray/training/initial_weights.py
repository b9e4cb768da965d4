"""The weights that training starts from: read once on the driver, and checked against the model before any trial."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datas3_ray.encoders.weights import FOLDER, find_weights, hash_file, hash_folder, load_weights
from datas3_ray.errors import Datas3Error, UsageError

if TYPE_CHECKING:
    import torch

Tensors = Mapping[str, "torch.Tensor"]


def read_weights(weights: str, what: str, from_hub: Callable[[str], Tensors]) -> Tensors:
    """The tensors of a local ``.pt``, ``.pth`` or ``.safetensors`` file; any other name is ``from_hub``'s to resolve.

    Raises
    ------
    UsageError
        When the file is missing or holds no weights. No pickled code is run.
    """
    source = find_weights(weights, what)
    if source.kind == "hub":
        return from_hub(weights)
    if source.path is None:
        raise UsageError(f"{what}: weights {weights!r}; leave `weights:` empty to start from scratch.")
    try:
        return load_weights(source.path, what)
    except UsageError:
        raise
    except Datas3Error as error:
        raise UsageError(str(error)) from error


def known_by(weights: str | None) -> str | None:
    """``sha256:`` and a local file's content, for it may be written over; any other name as it is.

    >>> known_by("IMAGENET1K_V2"), known_by(None)
    ('IMAGENET1K_V2', None)
    """
    if not weights:
        return weights
    try:
        found = find_weights(weights, "weights")
    except UsageError:  # told when they are read; a finished sweep does not read them
        return weights
    return weights if found.path is None else f"sha256:{hash_file(found.path)}"


def known_by_folder(option: Any) -> Any:
    """The same for a model's option that names a folder with a network and its weights."""
    if not isinstance(option, str) or not option.startswith(FOLDER):
        return option
    folder = Path(option.removeprefix(FOLDER))
    return f"sha256:{hash_folder(folder)}" if folder.is_dir() else option


def fit_weights(given: Tensors, wanted: Tensors, heads: Collection[str], what: str) -> dict[str, torch.Tensor]:
    """The tensors that a model takes over: all of its own but those of its classifier, which is trained anew.

    Parameters
    ----------
    given : mapping of str to tensor
        The weights.
    wanted : mapping of str to tensor
        The model's state; only names and shapes are looked at.
    heads : collection of str
        Names of the modules that classify. Theirs are taken over where their shapes agree.
    what : str
        Begins the sentence of an error.

    Raises
    ------
    UsageError
        When the weights are of another architecture.

    Examples
    --------
    >>> import torch
    >>> body, head = torch.zeros(2), torch.zeros(3)
    >>> list(fit_weights({"body": body, "fc.bias": head}, {"body": body, "fc.bias": torch.zeros(4)}, ["fc"], "m"))
    ['body']
    """

    def of_head(name: str) -> bool:
        return name.rpartition(".")[0] in heads

    missing = [name for name in wanted if name not in given and not of_head(name)]
    surplus = [name for name in given if name not in wanted and not of_head(name)]
    if missing or surplus:
        parts = [f"lack {missing[0]!r}" + _more(missing)] if missing else []
        parts += [f"have {surplus[0]!r}" + _more(surplus) + " beyond it"] if surplus else []
        raise UsageError(f"{what}: the weights are of another architecture: they {' and '.join(parts)}.")
    fitting = {}
    for name, tensor in wanted.items():
        if name in given and given[name].shape == tensor.shape:
            fitting[name] = given[name]
        elif not of_head(name):
            theirs, ours = tuple(given[name].shape), tuple(tensor.shape)
            raise UsageError(
                f"{what}: the weights are of another architecture: {name!r} has the shape {theirs} there and {ours} "
                "in the model."
            )
    return fitting


def _more(names: Collection[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""
