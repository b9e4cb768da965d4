"""What every encoder has in common, and how a recipe's mapping becomes one."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from datas3_ray.encoders.weights import FOLDER, absolute, find_weights, hash_file, hash_folder
from datas3_ray.errors import UsageError, checked, did_you_mean
from datas3_ray.sources.columns import RESERVED

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

Input = Literal["image", "caption"]


class Encoder(ABC):
    """Turns images or captions into vectors; made by ``EncoderConfig.build`` in the process that uses it.

    ``identity`` is what the vectors' field keeps about their making: family, model, weights as they were named and
    their sha256, preprocessing, precision, dim and input. JSON can hold it.
    """

    dim: int
    input: Input
    identity: dict[str, Any]

    @abstractmethod
    def prepare(self, item: Image | str) -> np.ndarray:
        """One image (RGB) or caption as an array of fixed shape and dtype. Safe to call from several threads."""

    @abstractmethod
    def encode(self, batch: list[np.ndarray]) -> np.ndarray:
        """The vectors of any number of prepared items, shape (n, dim), float32, in their order.

        A row's vector does not depend on the rows beside it. Call it from one thread at a time.
        """


class EncoderConfig(BaseModel, ABC):
    """One encoder of a recipe: ``alias`` names its vector column. Picklable; nothing is loaded by making it."""

    family: ClassVar[str]
    model_config = ConfigDict(frozen=True, extra="forbid")

    alias: str
    weights: Annotated[str | None, AfterValidator(absolute)] = None
    image_size: Annotated[int, Field(ge=8, le=4096)] | None = None
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    batch_size: Annotated[int, Field(ge=1, le=65536)] = 64
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @property
    @abstractmethod
    def model(self) -> str:
        """The model's name in its family."""

    @property
    @abstractmethod
    def takes(self) -> Input:
        """What is encoded."""

    @abstractmethod
    def validate_available(self) -> None:
        """Check on the driver, before any work and without loading weights, that ``build`` can be expected to succeed.

        Raises UsageError for an unknown model, weights that are not there or a package that is not installed, and
        Datas3Error for a hub that cannot be reached.
        """

    @abstractmethod
    def build(self) -> Encoder:
        """Load the model. Raises Datas3Error where the weights cannot be fetched or do not fit."""

    def fingerprint(self) -> str:
        """A string that is the same wherever and whenever the same vectors would be made (batch size and device aside).

        Weights in a local file or an installed package count by their content; ``precision: auto`` counts as written.
        """
        in_folder = self.model.startswith(FOLDER)
        made = {
            "family": self.family,
            "model": FOLDER if in_folder else self.model,
            "weights": self._weights_fingerprint(),
            "image_size": self.image_size,
            "precision": self.precision,
            "input": self.takes,
        }
        return json.dumps(made, sort_keys=True, separators=(",", ":"))

    def describe(self) -> str:
        """One line for the plan."""
        weights = "of the model's own" if self.weights is None else self.weights
        size = f", {self.image_size} px" if self.image_size else ""
        what = f"{self.alias}: {self.family} {self.model}, weights {weights}{size}"
        return f"{what}, precision {self.precision}, batches of {self.batch_size}"

    def _weights_fingerprint(self) -> str:
        if self.model.startswith(FOLDER):
            folder = Path(self.model.removeprefix(FOLDER))
            content = hash_folder(folder) if folder.is_dir() else "missing"
            return f"{self.weights or ''}sha256:{content}"
        found = find_weights(self.weights, f"encoder {self.alias!r}")
        return f"sha256:{hash_file(found.path)}" if found.path is not None else f"{found.kind}:{found.name}"


_FAMILIES = {
    "timm": ("datas3_ray.encoders.timm_encoder", "TimmConfig"),
    "open_clip": ("datas3_ray.encoders.open_clip_encoder", "OpenClipConfig"),
}
_ALIAS = re.compile(r"[a-z][a-z0-9_]*")
_TAKEN = (*RESERVED, "caption", "label", "target", "split", "boxes")


def parse_encoder(alias: str, spec: Mapping[str, Any]) -> EncoderConfig:
    """The encoder that an entry of a recipe's ``encoders:`` mapping describes.

    The entry has one key that names the family (``timm``, ``open_clip``) with the model's name, and the family's
    options. Raises UsageError for an alias that cannot be a column, an unknown family or option, or a bad value.

    >>> parse_encoder("e", {"tim": "x"})
    Traceback (most recent call last):
    datas3_ray.errors.UsageError: encoder 'e': unknown family 'tim'; it is one of timm, open_clip. Did you mean 'timm'?
    """
    if not isinstance(alias, str) or not _ALIAS.fullmatch(alias):
        raise UsageError(
            f"encoder {alias!r}: the name becomes a column; use small letters, digits and _, a letter first."
        )
    if alias in _TAKEN:
        raise UsageError(f"encoder {alias!r}: the table has a column of that name already; choose another.")
    what = f"encoder {alias!r}"
    if not isinstance(spec, Mapping):
        raise UsageError(f"{what}: expected a mapping such as {{timm: resnet18}}, got {spec!r}.")
    families = [key for key in spec if key in _FAMILIES]
    if len(families) > 1:
        raise UsageError(f"{what}: both {families[0]!r} and {families[1]!r} are given; an encoder has one family.")
    if not families:
        named = next((str(key) for key in spec if did_you_mean(str(key), _FAMILIES)), str(next(iter(spec), "")))
        hint = did_you_mean(named, _FAMILIES)
        raise UsageError(f"{what}: unknown family {named!r}; it is one of {', '.join(_FAMILIES)}.{hint}")
    module, attribute = _FAMILIES[families[0]]
    config: type[EncoderConfig] = getattr(import_module(module), attribute)
    return checked(config, spec, what, filled={"alias": alias})
