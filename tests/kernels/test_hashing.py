from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datas3_ray.kernels.hashing import gumbel, hash64, id_words, uniform

IDS = st.lists(st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=30), max_size=20)


def plain_words(text: str, width: int) -> list[int]:
    data = text.encode().ljust(width * 8, b"\0")
    return [int.from_bytes(data[i : i + 8], "big") for i in range(0, width * 8, 8)]


def numbered(n: int, prefix: str = "train/part-00017/image_") -> pa.Array:
    return pa.array([f"{prefix}{i:07d}.jpg" for i in range(n)])


@given(IDS)
@settings(max_examples=100, deadline=None)
def test_words_are_the_padded_bytes_and_sort_like_them(ids: list[str]) -> None:
    words = id_words(ids)
    width = max(1, max((-(-len(text.encode()) // 8) for text in ids), default=1))
    assert words.shape == (len(ids), width)
    assert words.tolist() == [plain_words(text, width) for text in ids]
    assert sorted(range(len(ids)), key=lambda i: (tuple(words[i]), i)) == sorted(
        range(len(ids)), key=lambda i: (ids[i].encode(), i)
    )


@given(IDS, st.data())
@settings(max_examples=60, deadline=None)
def test_every_arrow_form_gives_the_same_words(ids: list[str], data: st.DataObject) -> None:
    expected = id_words(ids)
    start = data.draw(st.integers(0, len(ids)))
    assert np.array_equal(id_words(pa.array(ids, pa.string())), expected)
    assert np.array_equal(id_words(pa.array(ids, pa.large_string())), expected)
    assert np.array_equal(id_words(pa.array(ids, pa.string_view())), expected)
    assert np.array_equal(id_words(pa.array(ids, pa.string()).dictionary_encode()), expected)
    padded = pa.array(["before", *ids, "after", "é"], pa.string())
    assert np.array_equal(id_words(padded.slice(1, len(ids))), expected)
    chunked = pa.chunked_array([pa.array(ids[:start], pa.string()), pa.array(ids[start:], pa.string())])
    assert np.array_equal(id_words(chunked), expected)
    assert np.array_equal(id_words(chunked.slice(start)), id_words(ids[start:]))


def test_no_ids_and_empty_ids() -> None:
    assert id_words([]).shape == (0, 1)
    assert id_words(pa.chunked_array([], pa.string())).shape == (0, 1)
    assert id_words(["", ""]).tolist() == [[0], [0]]
    assert hash64(id_words([]), 0, "x").shape == (0,)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["a", "b\0c"], "row 1"),
        (["\0"], "row 0"),
        (pa.array(["a", None]), "null"),
        (["a", None], "null"),
        (pa.array([1, 2]), "int64"),
        ([1, 2], "strings"),
    ],
)
def test_bad_ids_are_refused(ids: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        id_words(ids)


def test_bad_words_and_seeds_are_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        hash64(np.zeros(3, np.uint64), 0, "x")
    for seed in (-1, 2**64, 1.5, True, None):
        with pytest.raises(ValueError, match="seed"):
            hash64(id_words(["a"]), seed, "x")  # type: ignore[arg-type]


@given(IDS, st.integers(0, 2**64 - 1), st.text(max_size=12))
@settings(max_examples=60, deadline=None)
def test_the_same_number_in_any_batch(ids: list[str], seed: int, stream: str) -> None:
    whole = hash64(id_words([*ids, "x" * 100]), seed, stream)[:-1]
    alone = [hash64(id_words([text]), seed, stream)[0] for text in ids]
    assert whole.tolist() == [int(value) for value in alone]


def test_the_hash_does_not_change_between_releases() -> None:
    # A selection made with a seed must be made again by a later version.
    hashes = hash64(id_words(["", "a", "train/0000001.jpg"]), 7, "order")
    assert hashes.tolist() == [9856628749378574508, 128458101245001688, 14316223407385125874]


def test_sequential_ids_are_uniform() -> None:
    u = uniform(hash64(id_words(numbered(100_000)), 0, "order"))
    for bins in (2, 16, 1000):
        counts = np.bincount((u * bins).astype(int), minlength=bins)
        chi_square = float((((counts - 1e5 / bins) ** 2) / (1e5 / bins)).sum())
        assert abs(chi_square - (bins - 1)) < 5 * np.sqrt(2 * (bins - 1))
    low_bits = hash64(id_words(numbered(100_000)), 0, "order") & np.uint64(1023)
    counts = np.bincount(low_bits.astype(int), minlength=1024)
    assert abs(float((((counts - 1e5 / 1024) ** 2) / (1e5 / 1024)).sum()) - 1023) < 5 * np.sqrt(2 * 1023)


def test_no_collisions_and_no_serial_correlation() -> None:
    u = uniform(hash64(id_words(numbered(100_000)), 3, "order"))
    assert len(np.unique(u)) == 100_000
    for lag in (1, 10, 256, 1000):
        assert abs(np.corrcoef(u[:-lag], u[lag:])[0, 1]) < 0.016


@pytest.mark.parametrize("position", [0, 5, 9, 20])
def test_one_flipped_bit_flips_half_of_the_hash(position: int) -> None:
    ids = numbered(2000)
    words = id_words(ids)
    column, shift = position // 8, np.uint64(8 * (7 - position % 8))
    for bit in range(3):
        changed = words.copy()
        changed[:, column] ^= np.uint64(1 << bit) << shift
        difference = hash64(words, 1, "s") ^ hash64(changed, 1, "s")
        flips = np.unpackbits(difference.view(np.uint8)).reshape(len(ids), 64)
        assert abs(flips.mean() - 0.5) < 0.01
        assert np.abs(flips.mean(0) - 0.5).max() < 0.06


def test_seeds_and_streams_are_independent() -> None:
    words = id_words(numbered(50_000))
    draws = [uniform(hash64(words, seed, stream)) for seed in (0, 1, 2, 2**63) for stream in ("", "a", "b", "a\0")]
    correlations = np.asarray(np.corrcoef(draws))[np.triu_indices(len(draws), 1)]
    assert np.abs(correlations).max() < 0.02


def test_uniform_and_gumbel_stay_finite_at_both_ends() -> None:
    ends = np.array([0, 1, 2**63, 2**64 - 1024, 2**64 - 1], np.uint64)
    u = uniform(ends)
    assert u.min() > 0 and u.max() < 1 and (np.diff(u) >= 0).all()
    assert u[0] == 2.0**-65
    assert np.isfinite(gumbel(ends)).all()
    assert np.array_equal(gumbel(ends), -np.log(-np.log(u)))


def test_gumbel_maximum_draws_in_proportion_to_weight() -> None:
    words = id_words(["a", "b", "c"])
    log_weights = np.log([2.0, 1.0, 1.0])
    winners = [int(np.argmax(log_weights + gumbel(hash64(words, seed, "draw")))) for seed in range(20_000)]
    shares = np.bincount(winners, minlength=3) / 20_000
    assert np.abs(shares - [0.5, 0.25, 0.25]).max() < 0.015
