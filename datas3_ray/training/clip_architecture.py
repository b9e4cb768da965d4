"""The network of an image-text model: any of open_clip's by name, or one that a configuration describes."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from datas3_ray.encoders.open_clip_encoder import OpenClipConfig
from datas3_ray.encoders.weights import FOLDER, HUB, absolute_folder
from datas3_ray.errors import Datas3Error, UsageError
from datas3_ray.lake.schemas import fingerprint
from datas3_ray.runtime import remote

if TYPE_CHECKING:
    import torch

WHAT = "model clip"
NEEDED = ("embed_dim", "vision_cfg", "text_cfg")
"""Keys of every configuration of open_clip's."""

_CHUNK = 16384  # captions that one task tokenizes


class _Named(OpenClipConfig):
    """open_clip's model of a name; its errors speak of the model and not of an encoder."""

    @property
    def _what(self) -> str:
        return WHAT if self.open_clip.startswith("datas3-") else f"{WHAT} ({self.open_clip})"


@dataclass(frozen=True)
class Architecture:
    """Which network, with which images: what is needed to make it in any process.

    Attributes
    ----------
    given : str or mapping
        A name of open_clip's, ``hf-hub:OWNER/NAME`` or ``local-dir:FOLDER``, or a configuration as in its JSON files.
    image_size : int, optional
        Width and height of its images in pixels, where not the architecture's own.
    """

    given: str | Mapping[str, Any]
    image_size: int | None = None

    def named(self, weights: str | None) -> OpenClipConfig:
        """The model as the encoders know it, to be had by its name in this process from now on."""
        return _Named(alias="clip", open_clip=self._name(), weights=weights, image_size=self.image_size)

    @property
    def brings_weights(self) -> bool:
        """Whether the name is that of a hub's or a folder's model, which has weights of its own."""
        return isinstance(self.given, str) and self.given.startswith((HUB, FOLDER))

    def scratch(self, device: str = "cpu") -> torch.nn.Module:
        """The network with weights drawn from torch's current seed; on the device ``meta`` only its shapes.

        Raises
        ------
        UsageError
            When open_clip has no such model, or cannot make it.
        """
        import open_clip
        import torch

        config = self.named("random")
        config.validate_available()
        try:
            with _quiet(), torch.device(device):
                model: torch.nn.Module = open_clip.create_model(
                    config.open_clip,
                    load_weights=False,
                    pretrained_image=False,
                    pretrained_text=False,
                    force_image_size=self.image_size,
                    device=device,
                )
        except Exception as error:  # whatever a wrong key or size leads to in there
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise UsageError(
                f"{config._what}: open_clip cannot make this architecture: {lines[0].rstrip('.')}."
            ) from error
        return model

    def pretrained(self, weights: str | None) -> torch.nn.Module:
        """The network with weights from a local file, a pretrained tag, or its own hub or folder.

        Raises
        ------
        UsageError
            When there are no such weights, or a file's are of another architecture.
        Datas3Error
            When a hub cannot be reached.
        """
        config = self.named(weights)
        config.validate_available()
        try:
            return config.load()
        except UsageError:
            raise
        except Datas3Error as error:
            if weights is not None and os.path.isfile(weights):
                raise UsageError(f"{error} (are they of another architecture?)") from error
            raise

    def tokens(self, texts: pa.Array) -> np.ndarray:
        """Texts (n,) as the network reads them, uint16 or int32 (n, context length). Many are done by Ray tasks."""
        if len(texts) <= _CHUNK:
            return _tokens(self, texts)
        import ray

        task = remote(_tokens)
        parts = [task.remote(self, texts.slice(start, _CHUNK)) for start in range(0, len(texts), _CHUNK)]
        return np.concatenate(ray.get(parts))

    def _name(self) -> str:
        """open_clip's name of it; a configuration is registered under one that no other has."""
        if isinstance(self.given, str):
            return self.given
        import open_clip

        name = f"datas3-{fingerprint(dict(self.given))[:16]}"
        if name not in open_clip.list_models():
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / f"{name}.json"
                path.write_text(json.dumps(self.given))
                open_clip.add_model_config(path)
        return name


@dataclass(frozen=True)
class Eye:
    """What a network's images are like: width and height in pixels, and each channel's mean and deviation in [0, 1]."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @staticmethod
    def of(model: Any) -> Eye:
        """That of a model of open_clip's; a UsageError where its images are not square."""
        shown = model.visual.preprocess_cfg
        size = shown["size"]
        height, width = (size, size) if isinstance(size, int) else size
        if height != width:
            raise UsageError(f"{WHAT}: its images are {width} x {height} pixels, and only square ones can be read.")
        return Eye(int(height), tuple(shown["mean"]), tuple(shown["std"]))


def check_network(model: Any, length: int) -> Eye:
    """What the network's images are like, once it is known to take them, and captions of ``length`` tokens.

    Raises
    ------
    UsageError
        When it does not, or its images are not square.
    """
    import torch

    eye = Eye.of(model)
    device = model.logit_scale.device
    model.eval()
    try:
        with torch.no_grad():
            model.encode_image(torch.zeros(2, 3, eye.size, eye.size, device=device))
            model.encode_text(torch.zeros(2, length, dtype=torch.int64, device=device))
    except Exception as error:  # each kind of network has its own
        raise UsageError(
            f"{WHAT}: the network cannot be used with images of {eye.size} pixels and captions of {length} tokens: "
            f"{_said(error)}."
        ) from error
    return eye


def read_architecture(given: Any) -> Any:
    """A configuration out of the local JSON file that ``given`` names; any other name, or a mapping, as it is.

    Raises
    ------
    ValueError
        When the file is not there, or neither it nor the mapping is a configuration of open_clip's.

    Examples
    --------
    >>> read_architecture("ViT-B-32")
    'ViT-B-32'
    """
    if isinstance(given, str):
        if not given.endswith(".json"):
            return absolute_folder(given)
        path = Path(given).expanduser()
        try:
            given = json.loads(path.read_text(encoding="utf-8"))
        except OSError:
            raise ValueError("there is no such file") from None
        except ValueError:
            raise ValueError("that file is no JSON") from None
    if isinstance(given, Mapping):
        missing = [key for key in NEEDED if key not in given]
        if missing:
            raise ValueError(f"a configuration of open_clip's has {', '.join(NEEDED)}, and this one lacks {missing[0]}")
        return dict(given)
    raise ValueError("expected a name of open_clip's, a JSON file or a mapping")


def require_open_clip() -> None:
    """Raise a UsageError unless the package is installed."""
    try:
        import open_clip  # noqa: F401
    except ImportError:
        raise UsageError(f"{WHAT} needs the package open_clip; pip install 'datas3-ray[clip]'.") from None


def _said(error: Exception) -> str:
    """An error's first line, to end a sentence with."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without open_clip's warning that there are no pretrained weights, which is what was asked for."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _tokens(architecture: Architecture, texts: pa.Array) -> np.ndarray:
    tokenizer = architecture.named("random").tokenizer()
    if not len(texts):
        return np.zeros((0, tokenizer([""]).shape[1]), np.uint16)
    parts = [tokenizer(texts.slice(start, 1024).to_pylist()).numpy() for start in range(0, len(texts), 1024)]
    tokens = np.concatenate(parts)
    return tokens.astype(np.uint16 if tokens.max() < 1 << 16 else np.int32)
