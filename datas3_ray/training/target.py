"""The number that a regression learns: scaled to mean 0 and deviation 1, so that one learning rate fits every unit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Target:
    """Mean and standard deviation of a target over the training rows, in its unit.

    >>> target = Target.of(np.array([10.0, 20.0, 30.0]))
    >>> target.scaled(np.array([20.0])), target.unscaled(np.array([0.0]))
    (array([0.], dtype=float32), array([20.]))
    """

    mean: float = 0.0
    std: float = 1.0

    @staticmethod
    def of(values: np.ndarray) -> Target:
        """Those of ``values`` (n,); a target that never varies keeps its scale."""
        # The deviation of equal numbers need not be 0 in floating point.
        return Target(float(values.mean()), float(values.std()) if values.min() < values.max() else 1.0)

    def scaled(self, values: np.ndarray) -> np.ndarray:
        """Values (n,) as the model learns them, float32."""
        return ((values - self.mean) / self.std).astype(np.float32)

    def unscaled(self, outputs: np.ndarray) -> np.ndarray:
        """A model's outputs (n,) in the target's unit, float64."""
        return outputs.astype(np.float64) * self.std + self.mean
