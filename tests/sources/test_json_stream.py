"""JSON files of millions of objects, read one at a time."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from datas3_ray.errors import UsageError
from datas3_ray.sources.json_stream import read_list, read_pairs, read_value


def write(path: Path, value: Any) -> str:
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return str(path)


def test_lists_and_objects(tmp_path: Path) -> None:
    rows = [{"id": 1, "x": 0.5, "deep": {"a": [1, None, True]}}, {"id": "é"}]
    assert list(read_list(write(tmp_path / "a.json", rows))) == rows
    document = {"info": {"images": [9]}, "empty": [], "images": rows, "annotations": [1, 2.5]}
    uri = write(tmp_path / "b.json", document)
    assert list(read_list(uri, "images")) == rows
    assert [type(value) for value in read_list(uri, "annotations")] == [int, float]
    assert list(read_list(uri, "empty")) == []
    assert list(read_list(write(tmp_path / "c.json", []))) == []
    assert list(read_pairs(uri)) == list(document.items())
    assert list(read_pairs(write(tmp_path / "d.json", {}))) == []


@pytest.mark.parametrize(
    ("text", "key", "said"),
    [
        ("{}", "images", "has no list 'images'"),
        ('{"images": {"a": 1}}', "images", "has no list 'images'"),
        ('{"images": 3}', "images", "has no list 'images'"),
        ('{"other": {"images": [1]}}', "images", "has no list 'images'"),
        ('{"a": 1}', None, "is no list"),
        ('[{"a": 1}, {"b": ', None, "breaks off"),
        ("", None, "breaks off"),
        ("<html>", "images", "is not JSON"),
        ('{"a": "\\ud8"}', "a", "is not JSON"),
    ],
)
def test_what_is_no_such_list_is_one_sentence(tmp_path: Path, text: str, key: str | None, said: str) -> None:
    uri = write(tmp_path / "a.json", text)
    with pytest.raises(UsageError, match=said) as caught:
        list(read_list(uri, key, what="cameras"))
    assert str(caught.value).startswith("cameras: ") and "\n" not in str(caught.value) and uri in str(caught.value)


def test_a_missing_file_and_an_object_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"json: '.*gone.json' is not there"):
        list(read_list(str(tmp_path / "gone.json")))
    with pytest.raises(UsageError, match="no object"):
        list(read_pairs(write(tmp_path / "a.json", [1])))
    with pytest.raises(UsageError, match="breaks off"):
        list(read_pairs(write(tmp_path / "b.json", '{"a": 1, ')))


def test_a_list_that_may_be_missing(tmp_path: Path) -> None:
    uri = write(tmp_path / "a.json", {"images": [1], "info": {"annotations": [2]}})
    assert list(read_list(uri, "annotations", optional=True)) == []
    assert list(read_list(uri, "images", optional=True)) == [1]
    for text in ('{"annotations": 3}', '{"annotations": {}}', "[]", "3"):
        with pytest.raises(UsageError, match="has no list 'annotations'"):
            list(read_list(write(tmp_path / "b.json", text), "annotations", optional=True))


def test_one_value_before_or_behind_long_lists(tmp_path: Path) -> None:
    uri = write(tmp_path / "a.json", {"first": {"1": "a"}, "images": [{"last": 4}], "last": {"2": [1.5]}})
    assert read_value(uri, "first") == {"1": "a"}
    assert read_value(uri, "last") == {"2": [1.5]}
    assert read_value(uri, "gone") is None
    with pytest.raises(UsageError, match="cameras: .* is not JSON, or breaks off"):
        read_value(write(tmp_path / "b.json", '{"a": '), "b", what="cameras")


def test_memory_stays_flat(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        text = ",".join(json.dumps({"id": number, "name": "x" * 100}) for number in range(count))
        uri = write(tmp_path / "many.json", f'{{"images": [{text}]}}')
        tracemalloc.start()
        assert sum(1 for _ in read_list(uri, "images")) == count
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    assert peak(60_000) < peak(20_000) + 500_000
