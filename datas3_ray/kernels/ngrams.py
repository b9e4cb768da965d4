"""Hashed n-grams of captions and their importance weights (DSIR, arXiv 2302.03169, section 4).

A text's words are its lower-cased runs of word characters and of punctuation. Every word, and every n-gram up to the
longest, joined with single spaces, falls into the bucket SHA-256(text) mod B. With the shares of the buckets in the
query and in the pool, the log-weight of a text is the sum over its n-grams of log(query + 1e-8) - log(pool + 1e-8).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

_WORDS = re.compile(r"\w+|[^\w\s]+")
_TINY = 1e-8
_REMEMBERED = 1 << 20


class NgramHasher:
    """Buckets of the n-grams of texts; what was hashed is remembered, as captions repeat themselves.

    Args:
        n: the longest n-gram, at least 1.
        buckets: B, at least 1.

    >>> len(NgramHasher(n=2, buckets=10_000)("A red car."))    # a, red, car, "." and three bigrams
    7
    """

    def __init__(self, n: int = 2, buckets: int = 10_000) -> None:
        if n < 1 or buckets < 1:
            raise ValueError(f"n-grams need n and buckets of at least 1, not {n} and {buckets}")
        self.n, self.buckets = n, buckets
        self._known: dict[str, int] = {}

    def __call__(self, text: str) -> list[int]:
        """The bucket of every n-gram of a text, with repetition."""
        words = _WORDS.findall(text.lower())
        found = [self._bucket(word) for word in words]
        for length in range(2, self.n + 1):
            found += [self._bucket(" ".join(words[i : i + length])) for i in range(len(words) - length + 1)]
        return found

    def count(self, texts: Iterable[str]) -> Int64:
        """int64 (B,): n-grams of all texts in each bucket.

        >>> int(NgramHasher(n=1).count(["a b", "b"]).max())
        2
        """
        counts = np.zeros(self.buckets, np.int64)
        for text in texts:
            np.add.at(counts, self(text), 1)
        return counts

    def log_weights(self, texts: Iterable[str], log_ratio: Float64) -> Float64:
        """float64 (texts,): the sum of the log-ratios of each text's n-grams; 0 for a text without words."""
        ratio = log_ratio.tolist()
        return np.array([sum([ratio[bucket] for bucket in self(text)]) for text in texts], np.float64)

    def _bucket(self, gram: str) -> int:
        bucket = self._known.get(gram)
        if bucket is None:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            digest = hashlib.sha256(gram.encode("utf-8", "surrogatepass")).digest()
            bucket = self._known[gram] = int.from_bytes(digest, "big") % self.buckets
        return bucket


def bucket_log_ratio(query: npt.ArrayLike, pool: npt.ArrayLike, smoothing: float = 0.0) -> Float64:
    """log(query share + 1e-8) - log(pool share + 1e-8) of every bucket.

    Args:
        query: (B,) counts, with a positive sum after smoothing.
        pool: (B,) counts, with a positive sum.
        smoothing: added to every count of the query.

    Raises:
        ValueError: the shapes differ, a count or the smoothing is negative, or a sum is 0.

    >>> bucket_log_ratio([3, 1], [1, 3]).round(4).tolist()
    [1.0986, -1.0986]
    """
    asked, there = np.asarray(query, np.float64), np.asarray(pool, np.float64)
    if asked.shape != there.shape or asked.ndim != 1:
        raise ValueError(f"query and pool must have the same buckets, not {asked.shape} and {there.shape}")
    if (asked < 0).any() or (there < 0).any() or not smoothing >= 0:
        raise ValueError("counts and smoothing must not be negative")
    asked = asked + smoothing
    if not asked.sum() > 0 or not there.sum() > 0:
        raise ValueError("query and pool need at least one n-gram each")
    return np.log(asked / asked.sum() + _TINY) - np.log(there / there.sum() + _TINY)
