"""Several encoders over the same images: one decoded image goes through each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from datas3_ray.encoders.base import EncoderConfig

if TYPE_CHECKING:
    from PIL.Image import Image

Inputs = dict[str, "np.ndarray | None"]
"""What each encoder was given for one row; None where the row has nothing for it (no caption)."""


class EncoderBank:
    """The encoders of a table by alias, loaded in the process that uses them."""

    def __init__(self, configs: Mapping[str, EncoderConfig]) -> None:
        self.encoders = {alias: config.build() for alias, config in configs.items()}
        self.batch_size = max((config.batch_size for config in configs.values()), default=1)

    def prepare(self, image: Image | None, caption: str | None) -> Inputs:
        """One row's image and caption as every encoder wants them. Safe to call from several threads."""
        inputs: Inputs = {}
        for alias, encoder in self.encoders.items():
            thing = image if encoder.input == "image" else caption
            inputs[alias] = encoder.prepare(thing) if thing is not None else None
        return inputs

    def encode(self, batch: Sequence[Inputs]) -> list[dict[str, np.ndarray | None]]:
        """The vectors of every row: alias -> float32 array of shape (dim,), None where there was nothing to encode."""
        made: list[dict[str, np.ndarray | None]] = [dict.fromkeys(self.encoders) for _ in batch]
        for alias, encoder in self.encoders.items():
            there = [(position, row[alias]) for position, row in enumerate(batch) if row[alias] is not None]
            if there:
                vectors = encoder.encode([value for _, value in there if value is not None])
                for (position, _), vector in zip(there, vectors, strict=True):
                    made[position][alias] = vector
        return made


def broken(vectors: Mapping[str, np.ndarray | None]) -> str | None:
    """The first alias whose vector has NaN or infinite values, or None.

    >>> broken({"a": None, "b": np.array([1.0, np.nan])})
    'b'
    """
    bad = (alias for alias, vector in vectors.items() if vector is not None and not np.isfinite(vector).all())
    return next(bad, None)
