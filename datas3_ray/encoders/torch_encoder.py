"""Running a torch model over prepared batches: device, precision, fixed batch shapes."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
from PIL import Image

from datas3_ray.encoders.base import Encoder
from datas3_ray.errors import Datas3Error

if TYPE_CHECKING:
    import torch

    Lowered = TypeVar("Lowered", torch.Tensor, torch.nn.Module)

MAX_ASPECT = 16
"""Longer images lose their far ends before they are resized: a 1 x 60,000 pixel strip would need gigabytes."""

_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # x86 with AVX-512 or AMX, ARM


@dataclass(frozen=True)
class Runtime:
    """Where and how a model runs. ``bfloat16`` is weights of that type on a CPU, and autocast on a GPU."""

    device: Literal["cpu", "cuda"]
    precision: Literal["float32", "bfloat16"]

    @classmethod
    def resolve(cls, device: str, precision: str, what: str) -> Runtime:
        """``auto`` resolved for this process: a GPU if there is one, bfloat16 where the hardware computes in it.

        Raises Datas3Error where ``cuda`` is asked for and there is none.
        """
        import torch

        cuda = torch.cuda.is_available()
        if device == "cuda" and not cuda:
            raise Datas3Error(f"{what}: device is 'cuda', and this process sees no GPU; use 'auto' or 'cpu'.")
        on_gpu = cuda and device != "cpu"
        if precision == "auto":
            fast = torch.cuda.is_bf16_supported() if on_gpu else cpu_has_bf16()
            precision = "bfloat16" if fast else "float32"
        return cls("cuda" if on_gpu else "cpu", "bfloat16" if precision == "bfloat16" else "float32")

    @property
    def label(self) -> str:
        """The precision as an encoder's identity records it."""
        return "bfloat16-autocast" if (self.device, self.precision) == ("cuda", "bfloat16") else self.precision

    def lower(self, what: Lowered) -> Lowered:
        """A model or tensor in bfloat16 where the weights themselves are; autocast takes care of it on a GPU."""
        import torch

        return what.to(torch.bfloat16) if self.device == "cpu" and self.precision == "bfloat16" else what

    def place(self, model: torch.nn.Module) -> torch.nn.Module:
        """The model on its device, for inference, in the memory layout that convolutions are fastest in."""
        import torch

        model = model.eval().requires_grad_(False)
        model = model.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return self.lower(model)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """The context of a forward pass. float32 on a GPU means float32: no TensorFloat-32 inside convolutions."""
        import torch

        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            if self.device == "cuda":
                stack.enter_context(torch.backends.cudnn.flags(enabled=True, allow_tf32=False))
                if self.precision == "bfloat16":
                    stack.enter_context(torch.autocast("cuda", torch.bfloat16))
            yield


def cpu_has_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this CPU multiplies in bfloat16; without such units it is slower there than in float32."""
    try:
        text = cpuinfo.read_text()
    except OSError:
        return False
    return not _BF16_FLAGS.isdisjoint(text.split())


@dataclass(frozen=True)
class Normalisation:
    """What is done to 0..255 pixels on the device: ``(x / 255 - mean) / std`` a channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def apply(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 (n, height, width, 3) to float32 (n, 3, height, width), in channels-last memory without a copy."""
        import torch

        mean = torch.tensor(self.mean, device=pixels.device).view(1, 3, 1, 1)
        std = torch.tensor(self.std, device=pixels.device).view(1, 3, 1, 1)
        return pixels.permute(0, 3, 1, 2).to(torch.float32).div_(255).sub_(mean).div_(std)


class TorchEncoder(Encoder):
    """Batches of one fixed shape through a model; families say how an item is prepared and what the model does."""

    def __init__(self, runtime: Runtime, batch_size: int) -> None:
        self.runtime = runtime
        self.batch_size = batch_size

    @abstractmethod
    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """The vectors of a full batch on the device, shape (batch_size, dim)."""

    def encode(self, batch: list[np.ndarray]) -> np.ndarray:
        """The vectors of any number of prepared items, shape (n, dim), float32, in their order.

        The model only ever sees full batches, the last one filled up, because its kernels and so the last bits of its
        results depend on the shape.
        """
        vectors = np.empty((len(batch), self.dim), np.float32)
        for start in range(0, len(batch), self.batch_size):
            part = batch[start : start + self.batch_size]
            vectors[start : start + len(part)] = self._run(part)[: len(part)]
        return vectors

    def _run(self, items: list[np.ndarray]) -> np.ndarray:
        import torch

        full = np.stack(items + items[:1] * (self.batch_size - len(items)))
        with self.runtime.running():
            vectors = self.forward(torch.from_numpy(full).to(self.runtime.device))
            return vectors.to(torch.float32).cpu().numpy()

    def measure(self, item: np.ndarray, what: str) -> int:
        """The dimension of the vectors, from encoding one item; a Datas3Error where the model gives no vectors."""
        shape = self._run([item]).shape
        if len(shape) != 2:
            raise Datas3Error(f"{what}: the model gives arrays of shape {shape[1:]} instead of one vector an item.")
        return int(shape[1])


def pixels_of(image: Image.Image, crop: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """An image resized and cropped by ``crop``, as uint8 (height, width, 3)."""
    if image.mode != "RGB":
        image = image.convert("RGB")
    return np.asarray(crop(_bounded(image)))


def _bounded(image: Image.Image) -> Image.Image:
    """The middle of an image that is more than MAX_ASPECT times longer than wide; any other as it is."""
    width, height = image.size
    longest = MAX_ASPECT * min(width, height)
    if max(width, height) <= longest:
        return image
    if width > height:
        left = (width - longest) // 2
        return image.crop((left, 0, left + longest, height))
    top = (height - longest) // 2
    return image.crop((0, top, width, top + longest))
