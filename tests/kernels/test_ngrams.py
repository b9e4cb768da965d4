"""Hashed n-grams against the rule written out, and the weights' known answers."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from datas3_ray.kernels.ngrams import NgramHasher, bucket_log_ratio


def bucket(gram: str, buckets: int) -> int:
    return int(hashlib.sha256(gram.encode()).hexdigest(), 16) % buckets


@pytest.mark.parametrize("n", [1, 2, 3])
def test_words_and_their_runs_fall_into_buckets(n) -> None:
    grams = ["don", "'", "t", "stop", "!!", "über", "don '", "' t", "t stop", "stop !!", "!! über"]
    grams += ["don ' t", "' t stop", "t stop !!", "stop !! über"]
    expected = [bucket(gram, 97) for gram in grams if gram.count(" ") < n]
    assert sorted(NgramHasher(n, 97)("Don't  STOP!!\nÜber")) == sorted(expected)


def test_counts_and_weights_add_up() -> None:
    hasher = NgramHasher(2, 50)
    texts = ["a red car", "", "a red car on a road", "  "]
    counts = hasher.count(texts)
    assert counts.sum() == 5 + 11
    ratio = np.random.default_rng(0).normal(size=50)
    by_counts = [float(hasher.count([text]) @ ratio) for text in texts]
    np.testing.assert_allclose(hasher.log_weights(texts, ratio), by_counts, atol=1e-12)


def test_known_ratios() -> None:
    ratio = bucket_log_ratio([3, 1], [1, 3])
    np.testing.assert_allclose(ratio, [np.log(3), -np.log(3)], atol=1e-6)
    assert 2 * ratio[0] == pytest.approx(2.1972, abs=1e-4)
    np.testing.assert_allclose(bucket_log_ratio([3, 0], [1, 1])[1], np.log(1e-8) - np.log(0.5), atol=1e-6)
    np.testing.assert_allclose(bucket_log_ratio([3, 0], [1, 1], smoothing=1.0), np.log([1.6, 0.4]), atol=1e-6)


def test_nothing_to_compare_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one n-gram"):
        bucket_log_ratio([0, 0], [1, 1])
    with pytest.raises(ValueError, match="n and buckets of at least 1"):
        NgramHasher(0)


def test_forgetting_what_was_hashed_changes_nothing(monkeypatch) -> None:
    monkeypatch.setattr("datas3_ray.kernels.ngrams._REMEMBERED", 3)
    text = "one two three four five one two"
    assert NgramHasher()(text) == [bucket(word, 10_000) for word in text.split()] + [
        bucket(" ".join(pair), 10_000) for pair in zip(text.split(), text.split()[1:], strict=False)
    ]
