"""Random: a uniform sample, the baseline that is hard to beat."""

from __future__ import annotations

from typing import ClassVar

import pyarrow as pa

from datas3_ray.kernels.hashing import hash64, id_words, uniform
from datas3_ray.lake.view import Fragment
from datas3_ray.selectors.base import Inputs, Outcome, Seed, Selector, Size, score_table


class Random(Selector):
    """Keep ``size`` rows drawn uniformly without replacement.

    Each row's draw is a hash of (seed, id), so the sample is the same whatever the partitions, and a larger sample
    with the same seed contains the smaller one.

    Parameters
    ----------
    size : int or float
        A count, or a share of the eligible rows.
    seed : int

    >>> Random(size=100, seed=1).size
    100
    """

    method: ClassVar[str] = "random"

    size: Size
    seed: Seed = 0

    def choose(self, inputs: Inputs) -> Outcome:
        """Score = -u, with u the row's uniform number: the smallest u are kept."""
        return Outcome(inputs.view.map(_draw, self.seed), size=self.size, resizable=True)


def _draw(fragment: Fragment, seed: int) -> pa.Table:
    ids = fragment.ids()
    return score_table(ids, -uniform(hash64(id_words(ids), seed=seed, stream="random")))
