"""CaptionWords: words and phrases of a list, found in captions."""

from __future__ import annotations

import numpy as np
import pytest

from datas3_ray.errors import UsageError
from datas3_ray.selectors import CaptionWords

CAPTIONS = [
    "A Zebra, grazing",
    "zebras at night",
    "the polar  bear's cub",
    "a POLAR\tBEAR!",
    "polar, bear",
    "a bear and a zebra and another zebra",
    "",
    None,
    "«Löwe»",
]


@pytest.fixture
def pool(lake, make_pool):
    language = ["en"] * 8 + ["de"]
    ids = [str(i) for i in range(9)]
    make_pool(lake, "pool", ids, np.ones((9, 2)), fragments=2, caption=CAPTIONS, language=language)
    return lake


def test_known_answers(pool) -> None:
    selection = CaptionWords(words=["Zebra", "polar_bear", "bear", "löwe", " "]).select(pool, "pool")
    assert selection.to_arrow(["keep", "score", "word"]).to_pylist() == [
        {"keep": True, "score": 1.0, "word": "Zebra"},
        {"keep": False, "score": 0.0, "word": None},
        {"keep": False, "score": 0.0, "word": None},
        {"keep": True, "score": 2.0, "word": "polar_bear"},
        {"keep": True, "score": 2.0, "word": "polar_bear"},
        {"keep": True, "score": 2.0, "word": "bear"},
        {"keep": False, "score": 0.0, "word": None},
        {"keep": False, "score": 0.0, "word": None},
        {"keep": True, "score": 1.0, "word": "löwe"},
    ]
    assert selection.lineage()["report"] == {"entries": 4}
    english = CaptionWords(words=["zebra", "löwe"], language_column="language").select(pool, "pool")
    assert english.ids().to_pylist() == ["0", "5"]


def test_a_list_in_a_file_counts_by_its_content(pool, tmp_path) -> None:
    file = tmp_path / "words.txt"
    file.write_text("zebra\n\npolar bear\n")
    selector = CaptionWords(words=str(file))
    first = selector.select(pool, "pool", name="named")
    assert first.ids().to_pylist() == ["0", "3", "4", "5"]
    assert selector.is_current(pool, "pool", "named")
    file.write_text("zebra\n")
    assert not selector.is_current(pool, "pool", "named")
    assert selector.select(pool, "pool", name="named", replace=True).ids().to_pylist() == ["0", "5"]


def test_a_file_that_begins_with_a_byte_order_mark(pool, tmp_path) -> None:
    (tmp_path / "words.txt").write_bytes(b"\xef\xbb\xbfzebra\r\npolar bear\r\n")
    selection = CaptionWords(words=str(tmp_path / "words.txt")).select(pool, "pool")
    assert selection.ids().to_pylist() == ["0", "3", "4", "5"]


def test_mistakes(pool, tmp_path) -> None:
    (tmp_path / "empty.txt").write_text("\n  \n")
    for parameters, sentence in (
        ({"words": str(tmp_path / "none.txt")}, "the file words = '.*none.txt' cannot be read"),
        ({"words": str(tmp_path / "empty.txt")}, "words = '.*empty.txt' has no entry"),
        ({"words": ["!"]}, "has no entry"),
        ({"words": ["a"], "caption": "vec"}, "texts are needed"),
        ({"words": []}, "words = .* is not allowed"),
    ):
        with pytest.raises(UsageError, match=sentence):
            CaptionWords(**parameters).select(pool, "pool")
