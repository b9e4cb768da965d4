"""The recipe's ``columns:`` mapping: sources, types, defaults, what is left for meta, and what is refused."""

from __future__ import annotations

import json
import math
import pickle
from datetime import datetime, timezone
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datas3_ray.errors import UsageError
from datas3_ray.sources import Columns, Sample, parse_source
from datas3_ray.sources.columns import RESERVED, TYPES, BadValue

UTC = timezone.utc


def sample(document: dict[str, Any] | None = None, key: str = "a/1", **members: str) -> Sample:
    if document is not None:
        members["json"] = document  # type: ignore[assignment]
    return Sample(f"pool/00000/{key}", key, "pool/00000.tar", 512, 3, b"...", dict(members))


def value(document: dict[str, Any], type: str) -> Any:
    return Columns.parse({"x": {"from": "json.x", "type": type}}).extract(sample(document))["x"]


def test_defaults_take_caption_and_label_from_json_first() -> None:
    columns = Columns.parse(None)
    assert [field.name for field in columns.fields()] == ["caption", "label", "meta"]
    row = columns.extract(sample({"caption": "a cat", "label": "cat", "w": 1}, txt="text", cls="7"))
    assert row == {"caption": "a cat", "label": "cat", "meta": '{"w":1}'}
    row = columns.extract(sample({"caption": None}, txt=" text\n", cls="7\n"))
    assert row == {"caption": "text", "label": "7", "meta": None}
    assert columns.extract(sample()) == {"caption": None, "label": None, "meta": None}
    assert columns.extract(sample(txt="\n", cls="")) == {"caption": None, "label": None, "meta": None}
    assert columns.extract(sample({"label": 3}))["label"] == "3"


def test_meta_is_json_even_where_a_number_is_beyond_every_float() -> None:
    row = Columns.parse(None).extract(sample(json.loads('{"a": 1e999, "b": [{"c": -1e999}, 2.5], "label": "x"}')))
    assert row["meta"] == '{"a":null,"b":[{"c":null},2.5]}'


def test_mapping_replaces_the_defaults() -> None:
    columns = Columns.parse({"label": "json.species", "caption": "txt", "target": "json.age"})
    assert [field.name for field in columns.fields()] == ["caption", "label", "target", "meta"]
    assert columns.fields_by_name()["target"].type == pa.float64()
    row = columns.extract(
        sample({"caption": "unused", "label": "unused", "species": "lynx", "age": "3"}, txt="t", cls="1")
    )
    assert row == {
        "caption": "t",
        "label": "lynx",
        "target": 3.0,
        "meta": '{"caption":"unused","label":"unused"}',
    }
    assert columns.extract(sample(cls="1"))["label"] is None


def test_every_source_of_a_value() -> None:
    mapping = {"deep": "json.a.b.c", "text": "txt", "split": "cls", "name": "key", "part": "shard"}
    row = Columns.parse(mapping).extract(sample({"a": {"b": {"c": 5}, "d": 6}}, txt="t", cls="train\n"))
    assert {name: row[name] for name in mapping} == {
        "deep": "5",
        "text": "t",
        "split": "train",
        "name": "a/1",
        "part": "pool/00000",
    }
    assert row["meta"] == '{"a":{"d":6}}'
    missing = Columns.parse(mapping).extract(sample({"a": {"b": "text"}}))
    assert missing["deep"] is None and missing["meta"] == '{"a":{"b":"text"}}'


@pytest.mark.parametrize(
    ("type", "given_value", "expected"),
    [
        ("string", "é", "é"),
        ("string", "", ""),
        ("string", 5, "5"),
        ("string", 0.5, "0.5"),
        ("string", True, "true"),
        ("string", [1, {"b": 2, "a": 1}], '[1,{"a":1,"b":2}]'),
        ("string", "half \ud83d of a pair", "half \ufffd of a pair"),
        ("int", 5, 5),
        ("int", 5.0, 5),
        ("int", " -12 ", -12),
        ("int", "", None),
        ("int", -(2**63), -(2**63)),
        ("float", 5, 5.0),
        ("float", "1e-3", 0.001),
        ("float", ".5", 0.5),
        ("bool", False, False),
        ("bool", 1, True),
        ("bool", "TRUE", True),
        ("bool", "0", False),
        ("timestamp", "2024-02-29T12:30:00Z", datetime(2024, 2, 29, 12, 30, tzinfo=UTC)),
        ("timestamp", "2024-02-29T12:30:00.25+02:00", datetime(2024, 2, 29, 10, 30, 0, 250000, tzinfo=UTC)),
        ("timestamp", "2024-02-29T12:30:00.123456789Z", datetime(2024, 2, 29, 12, 30, 0, 123456, tzinfo=UTC)),
        ("timestamp", "2024-02-29 12:30:00", datetime(2024, 2, 29, 12, 30, tzinfo=UTC)),
        ("timestamp", "2024-02-29", datetime(2024, 2, 29, tzinfo=UTC)),
        ("timestamp", 86400, datetime(1970, 1, 2, tzinfo=UTC)),
        ("timestamp", "-86400.5", datetime(1969, 12, 30, 23, 59, 59, 500000, tzinfo=UTC)),
        ("strings", ["a", 1, None, {"b": 2}], ["a", "1", None, '{"b":2}']),
        ("ints", [1, "2", 3.0, None], [1, 2, 3, None]),
        ("floats", [1, "0.5", None], [1.0, 0.5, None]),
        ("strings", [], []),
        *[(type, None, None) for type in TYPES],
    ],
)
def test_values_that_fit(type: str, given_value: Any, expected: Any) -> None:
    got = value({"x": given_value}, type)
    assert got == expected and (got is None) == (expected is None)
    assert pa.array([got], TYPES[type]).to_pylist() == [expected]


@pytest.mark.parametrize(
    ("type", "given_value", "words"),
    [
        ("int", "twelve", "is not a whole number"),
        ("int", 1.5, "is not a whole number"),
        ("int", True, "is not a whole number"),
        ("int", "1_000", "is not a whole number"),
        ("int", 2**63, "64 bits"),
        ("int", "9" * 5000, "64 bits"),
        ("float", "nan", "is not a number"),
        ("float", "1e999", "is not finite"),
        ("float", 10**400, "too large"),
        ("float", [1.0], "is not a number"),
        ("bool", 2, "neither true nor false"),
        ("bool", {}, "neither true nor false"),
        ("timestamp", "yesterday", "ISO 8601"),
        ("timestamp", 1_700_000_000_000, "seconds since 1970"),
        ("timestamp", {}, "ISO 8601"),
        ("strings", "a,b", "is not a list"),
        ("ints", [1, "two"], "is not a whole number"),
        ("floats", {"a": 1.0}, "is not a list"),
    ],
)
def test_values_that_do_not_fit_name_column_and_value(type: str, given_value: Any, words: str) -> None:
    with pytest.raises(BadValue) as error:
        value({"x": given_value}, type)
    assert error.value.reason == "bad_value"
    message = str(error.value)
    assert "'x'" in message and type in message and words in message and repr(given_value)[:20] in message
    assert len(message) < 250


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=10,
)


@given(document=st.dictionaries(st.sampled_from(["a", "b", "caption", "label", "x"]) | st.text(), _JSON, max_size=5))
def test_any_json_becomes_text_that_arrow_holds_and_loses_nothing(document: dict[str, Any]) -> None:
    columns = Columns.parse({"a": "json.a", "inner": "json.b.x"})
    row = columns.extract(sample(document))
    pa.table({name: pa.array([row[name]], field.type) for name, field in columns.fields_by_name().items()})
    meta = json.loads(row["meta"] or "{}")
    inner = document.get("b")
    for name, given_value in document.items():
        if name not in ("a", "b", "caption", "label"):
            assert meta[name] == given_value or isinstance(given_value, float) and math.isclose(meta[name], given_value)
    assert not {"a", "caption", "label"} & set(meta)
    if isinstance(inner, dict) and inner.keys() - {"x"}:
        assert meta["b"] == {key: item for key, item in inner.items() if key != "x"}


def test_the_samples_json_is_left_as_it_was() -> None:
    document = {"a": {"b": 1, "c": 2}, "label": "x"}
    Columns.parse({"b": "json.a.b"}).extract(sample(document))
    assert document == {"a": {"b": 1, "c": 2}, "label": "x"}


def test_row_and_json_are_the_same_place() -> None:
    document = {"where": {"site": "A", "x": 1}, "w": "2"}
    for place in ("json", "row"):
        columns = Columns.parse({"site": f"{place}.where.site", "w": {"from": f"{place}.w", "type": "int"}})
        row = columns.extract(sample(document))
        assert row == {"caption": None, "label": None, "site": "A", "w": 2, "meta": '{"where":{"x":1}}'}
    with pytest.raises(BadValue, match="from row.w"):
        Columns.parse({"w": {"from": "row.w", "type": "int"}}).extract(sample({"w": "two"}))


def test_null_drops_a_key_of_the_record() -> None:
    columns = Columns.parse({"email": None, "exif.gps": None, "width": None, "_private": None, "gone": None})
    assert [field.name for field in columns.fields()] == ["caption", "label", "meta"]
    document = {"email": "a@b", "exif": {"gps": [1, 2], "iso": 100}, "width": 5, "_private": 1, "Email": "kept"}
    row = columns.extract(sample(document))
    assert row == {"caption": None, "label": None, "meta": '{"Email":"kept","exif":{"iso":100}}'}
    assert document["email"] == "a@b"


def test_null_of_a_fixed_column_leaves_it_empty() -> None:
    document = {"caption": "c", "label": "l", "x": 1}
    given = sample(document, txt="text", cls="3")
    for name, left in (("caption", '{"x":1}'), ("label", '{"x":1}'), ("meta", None)):
        columns = Columns.parse({name: None})
        assert [field.name for field in columns.fields()] == ["caption", "label", "meta"]
        expected = {"caption": "c", "label": "l", "meta": left, name: None}
        assert columns.extract(given) == expected
    everything = Columns.parse({"caption": None, "label": None, "meta": None, "x": "row.x"})
    assert everything.extract(given) == {"caption": None, "label": None, "x": "1", "meta": None}


def test_a_dropped_key_can_still_be_mapped_under_another_name() -> None:
    columns = Columns.parse({"email": None, "contact": "row.email"})
    assert columns.extract(sample({"email": "a@b"})) == {
        "caption": None,
        "label": None,
        "contact": "a@b",
        "meta": None,
    }


def test_values_of_other_types_than_before_are_rejects_or_text() -> None:
    """JSON of one key may be a number in one row and a list in the next."""
    typed = Columns.parse({"x": {"from": "row.x", "type": "int"}})
    plain = Columns.parse({"x": "row.x"})
    assert typed.extract(sample({"x": 1}))["x"] == 1
    for other in ([1], {"a": 1}, "one", 1.5, True):
        with pytest.raises(BadValue):
            typed.extract(sample({"x": other}))
    assert [plain.extract(sample({"x": other}))["x"] for other in (1, [1], {"a": 1}, "one", 1.5, True)] == [
        "1",
        "[1]",
        '{"a":1}',
        "one",
        "1.5",
        "true",
    ]


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ({"": None}, "this is no key"),
        ({"a..b": None}, "this is no key"),
        ({5: None}, "this is no key"),
        ({"Label": None}, "write 'label'"),
        ({"x": "row"}, "unknown source 'row'"),
        ({"x": "row.a..b"}, "unknown source"),
        *[({name: "json.x"}, "the lake fills itself") for name in RESERVED],
        ({"Width": "json.w"}, "the lake fills itself"),
        ({"_x": "json.x"}, "underscore"),
        ({"a b": "json.x"}, "letters, digits"),
        ({5: "json.x"}, "cannot be a column name"),
        ({"Label": "json.x"}, "write 'label'"),
        ({"x": "jsn.x"}, "unknown source 'jsn.x'"),
        ({"x": "json"}, "unknown source 'json'"),
        ({"x": "json.a..b"}, "unknown source"),
        ({"x": 5}, "unknown source 5"),
        ({"x": {"from": "json.x", "type": "flaot"}}, "Did you mean 'float'"),
        ({"x": {"from": "json.x", "typ": "float"}}, "Did you mean 'type'"),
        ({"x": {"type": "float"}}, "'from' is missing"),
        ({"label": {"from": "json.x", "type": "int"}}, "label is always a string"),
        ({"target": {"from": "json.x", "type": "string"}}, "target is always a float"),
        ({"site": "json.a", "Site": "json.b"}, "differ only in case"),
        ("json.x", "expected a mapping"),
    ],
)
def test_wrong_mappings_give_one_sentence(mapping: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words) as error:
        Columns.parse(mapping)
    assert "\n" not in str(error.value) and str(error.value)[-1] in ".?"


def test_columns_travel_and_compare() -> None:
    columns = Columns.parse({"x": {"from": "json.x", "type": "int"}})
    assert pickle.loads(pickle.dumps(columns)) == columns == Columns.parse(columns)
    assert hash(columns) == hash(Columns.parse({"x": {"from": "json.x", "type": "int"}}))


def test_captions_are_made_of_other_columns() -> None:
    columns = Columns.parse(
        {
            "caption": {"template": "a {label} in {country}, {speed:.0f} km/h {{as is}}"},
            "country": "json.where",
            "speed": {"from": "json.v", "type": "float"},
        }
    )
    assert [field.name for field in columns.fields()] == ["caption", "label", "country", "speed", "meta"]

    def caption(record: dict[str, Any], **extra: Any) -> Any:
        return columns.extract(Sample("s/1", "1", "s.tar", 0, 3, b"...", {"json": record}, extra))["caption"]

    record = {"label": "road_sign", "where": "South Africa", "v": 12.6, "caption": "what the file says"}
    assert caption(record) == "a road sign in South Africa, 13 km/h {as is}"
    assert caption({**record, "v": None}) is None
    assert caption({**record, "v": None}, speed=3.0) == "a road sign in South Africa, 3 km/h {as is}"
    words = Columns.parse({"caption": {"template": "{label:.0f}"}, "label": "json.label"})
    assert words.extract(Sample("s/1", "1", "s.tar", 0, 3, b"...", {"json": {"label": "a"}}))["caption"] == "a"


@pytest.mark.parametrize(
    ("mapping", "said"),
    [
        ({"caption": {"template": "a photo"}}, "names no column"),
        ({"caption": {"template": "a {label"}}, "cannot be read"),
        ({"caption": {"template": "a {label.x}"}}, r"\{label.x\} in the template"),
        ({"caption": {"template": "a {0}"}}, "no column's name"),
        ({"caption": {"template": "a {label}", "type": "int"}}, "a template is one text"),
        ({"caption": {"template": ["a {label}"]}}, "a template is one text"),
        ({"caption": {"template": "a {lable}"}}, "reads 'lable'.*mean 'label'"),
        ({"caption": {"template": "a {caption}"}}, "reads 'caption', which is no column"),
    ],
)
def test_a_template_that_cannot_be_meant_is_one_sentence(mapping: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_source({"webdataset": "a.tar", "columns": mapping})


def test_ready_vectors_take_no_template() -> None:
    with pytest.raises(UsageError, match="brings its captions"):
        parse_source({"vectors": "a.parquet", "columns": {"caption": {"template": "{label}"}}})


def test_a_value_that_takes_no_such_format_sets_the_row_aside() -> None:
    columns = Columns.parse({"caption": {"template": "{n:%Q}"}, "n": {"from": "json.n", "type": "int"}})
    with pytest.raises(BadValue, match="the caption's template"):
        columns.extract(Sample("s/1", "1", "s.tar", 0, 3, b"...", {"json": {"n": 3}}))
