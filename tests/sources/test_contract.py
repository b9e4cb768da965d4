"""What holds of every source, over a tiny data set of every format."""

from __future__ import annotations

import json
import pickle
import re
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest
import yaml

from datas3_ray.errors import UsageError
from datas3_ray.sources import (
    REASONS,
    Columns,
    FileSource,
    Reject,
    Sample,
    SampleError,
    Source,
    VectorSource,
    decode_image,
    parse_source,
)
from datas3_ray.sources.fetch import fetch_images

SECRET = "open-sesame-4711"


BUILDERS: dict[str, Callable[[Path], Any]] = {
    name: builder
    for path in sorted((Path(__file__).parents[1] / "tiny").glob("*.py"))
    for name, builder in import_module(f"tiny.{path.stem}").BUILDERS.items()
}
every_format = pytest.mark.parametrize("built", sorted(BUILDERS), indirect=True)


@pytest.fixture
def built(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    made = BUILDERS[request.param](tmp_path)
    if isinstance(parse_source(made.spec), VectorSource):
        pytest.skip("ready vectors have no images; they have tests of their own")
    return made


def everything(source: Source) -> list[Sample | Reject]:
    return [item for shard in source.shards() for item in source.read(shard)]


def samples(source: Source) -> dict[str, Sample]:
    return {item.id: item for item in everything(source) if isinstance(item, Sample)}


@every_format
def test_every_image_comes_out_under_its_id_with_what_is_known_of_it(built: Any) -> None:
    source = parse_source(built.spec)
    found = samples(source)
    assert sorted(found) == sorted(built.expected)
    for id, expected in built.expected.items():
        row = source.columns.extract(found[id])
        assert found[id].image == expected.image, id
        assert decode_image(found[id].image).width > 0
        if expected.caption is not None:
            assert row["caption"] == expected.caption
        if expected.label is not None:
            assert row["label"] == expected.label
        if expected.record is not None:
            record = found[id].members["json"]
            assert {key: record.get(key) for key in expected.record} == expected.record


@every_format
def test_nothing_is_lost(built: Any) -> None:
    items = everything(parse_source(built.spec))
    rejects = [item for item in items if isinstance(item, Reject)]
    assert sorted(reject.reason for reject in rejects) == sorted(built.rejects)
    assert len(items) == len(built.expected) + len(built.rejects)
    for reject in rejects:
        assert reject.reason in REASONS and reject.error and "\n" not in reject.error and reject.uri
    assert max(Counter(item.id for item in items if isinstance(item, Sample)).values()) == 1


@every_format
def test_reading_again_gives_the_same(built: Any) -> None:
    first, second = parse_source(built.spec), parse_source(built.spec)
    assert first.shards() == second.shards() and everything(first) == everything(second)
    if isinstance(first, FileSource) and isinstance(second, FileSource):
        assert first.items() == second.items()


@every_format
def test_sources_travel_to_workers_that_run_elsewhere(
    built: Any, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = parse_source(built.spec)
    shards = source.shards()
    expected = everything(source)
    copy = pickle.loads(pickle.dumps(source))
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert [item for shard in shards for item in copy.read(pickle.loads(pickle.dumps(shard)))] == expected
    assert copy == source and copy.shards() == shards


@every_format
def test_relative_paths_are_meant_from_where_the_source_is_made(
    built: Any, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def relative(value: Any) -> Any:
        return value.replace(f"{tmp_path}/", "") if isinstance(value, str) else value

    expected = everything(parse_source(built.spec))
    monkeypatch.chdir(tmp_path)
    source = parse_source({name: relative(value) for name, value in built.spec.items()})
    shards = source.shards()
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert [item for shard in shards for item in source.read(shard)] == expected


@every_format
def test_describe_is_one_line_and_reads_nothing(built: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    source = parse_source(built.spec)

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("describe reads")

    monkeypatch.setattr("builtins.open", refuse)
    monkeypatch.setattr("os.scandir", refuse)
    text = source.describe()
    assert text.startswith(source.name) and "\n" not in text and "columns caption, label, meta" in text


@every_format
def test_items_are_sorted_and_shards_are_groups_of_them(built: Any) -> None:
    source = parse_source(built.spec)
    shards = source.shards()
    assert len({shard.uri for shard in shards}) == len(shards)
    if not isinstance(source, FileSource):
        assert [shard.uri for shard in shards] == sorted(shard.uri for shard in shards)
        return
    items = source.items()
    ids = [item.id for item in items]
    assert ids == sorted(set(ids))
    assert [item for shard in shards for item in shard.items] == items
    assert all(item.fingerprint and isinstance(json.loads(item.members), dict) for item in items)
    # Files that are asked for by themselves come out as they do among all.
    whole = everything(source)
    alone = [row for item in items for shard in source.group([item]) for row in source.read(shard)]
    assert alone == whole


@every_format
def test_images_are_found_again(built: Any) -> None:
    """By their byte range where the source says so; else the answer is that the bytes have to be stored."""
    source = parse_source(built.spec)
    found = [item for item in everything(source) if isinstance(item, Sample)]
    places = {name: [getattr(sample, name) for sample in found] for name in ("uri", "offset", "length")}
    images = list(fetch_images(pa.table(places)))
    if source.ranged:
        for sample, image in zip(found, images, strict=True):
            assert image == sample.image
            with open(sample.uri, "rb") as file:
                file.seek(sample.offset)
                assert file.read(sample.length) == sample.image
    else:
        for sample, image in zip(found, images, strict=True):
            assert image == sample.image or (isinstance(image, SampleError) and "store: bytes" in image.message)
    stored = pa.table({**places, "image": pa.array([sample.image for sample in found], pa.large_binary())})
    assert list(fetch_images(stored)) == [sample.image for sample in found]


@every_format
def test_columns_apply_to_every_format(built: Any) -> None:
    known = (
        (id, key, value)
        for id, expected in built.expected.items()
        for key, value in (expected.record or {}).items()
        if value is not None and key.isidentifier() and key not in ("caption", "label")
    )
    id, key, value = next(known, ("", "", None))
    if not id:
        pytest.skip("no records")
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, separators=(",", ":"))
    for place in ("row", "json"):
        source = parse_source({**built.spec, "columns": {"mine": f"{place}.{key}", "part": "shard", "name": "key"}})
        row = source.columns.extract(samples(source)[id])
        assert row["mine"] == text
        assert (f"{row['part']}/{row['name']}" if row["part"] else row["name"]) == id
        assert key not in json.loads(row["meta"] or "{}")
    source = parse_source({**built.spec, "columns": {key: None}})
    assert key not in source.columns.fields_by_name()
    assert key not in json.loads(source.columns.extract(samples(source)[id])["meta"] or "{}")


@every_format
def test_values_fit_their_fields(built: Any) -> None:
    source = parse_source(built.spec)
    fields = [*source.columns.fields(), *source.own_fields()]
    assert len({field.name for field in fields}) == len(fields)
    rows = [{**source.columns.extract(sample), **sample.extra} for sample in samples(source).values()]
    for sample in samples(source).values():
        assert set(sample.extra) == {field.name for field in source.own_fields()}
    pa.Table.from_pylist(rows, pa.schema(fields))


@every_format
def test_ids_take_a_prefix(built: Any) -> None:
    plain = parse_source({**built.spec, "id_prefix": ""})
    marked = parse_source({**built.spec, "id_prefix": "mine/"})
    assert sorted(samples(marked)) == [f"mine/{id}" for id in sorted(samples(plain))]


@every_format
def test_a_limit_on_bytes_rejects_what_is_bigger(built: Any) -> None:
    source = parse_source({**built.spec, "max_bytes": 10})
    found = everything(source)
    assert found and not any(isinstance(item, Sample) for item in found)
    assert "too_large" in {item.reason for item in found if isinstance(item, Reject)}


@every_format
def test_unknown_keys_are_named_with_the_nearest(built: Any) -> None:
    with pytest.raises(UsageError, match="unknown key 'colums'.*Did you mean 'columns'") as error:
        parse_source({**built.spec, "colums": {}})
    assert "\n" not in str(error.value)


@every_format
def test_storage_options_are_shown_nowhere(built: Any) -> None:
    options = {"key": SECRET, "client_kwargs": {"password": SECRET}}
    source = parse_source({**built.spec, "storage_options": options})
    texts = [repr(source), str(source), source.describe(), repr(source.shards()), repr(everything(source))]
    texts.append(repr(source.model_dump()))  # type: ignore[attr-defined]
    assert SECRET not in "".join(texts)
    assert everything(pickle.loads(pickle.dumps(source))) == everything(parse_source(built.spec))
    for wrong in (SECRET, [SECRET], {"key": [SECRET]}, {"key": {"x": {SECRET}}}):
        with pytest.raises(UsageError, match="storage_options") as error:
            parse_source({**built.spec, "storage_options": wrong})
        assert SECRET not in str(error.value)
    with pytest.raises(UsageError) as error:
        parse_source({**built.spec, "storage_options": options, "max_bytes": "x"})
    assert SECRET not in str(error.value)


@every_format
def test_object_stores_give_what_files_give(built: Any, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    base = f"memory://{tmp_path.name}"
    try:
        memory.put(str(tmp_path), f"/{tmp_path.name}", recursive=True)
        spec = {
            name: value.replace(str(tmp_path), base) if isinstance(value, str) else value
            for name, value in built.spec.items()
        }
        local, remote = parse_source(built.spec), parse_source(spec)
        assert Counter(_outcomes(local)) == Counter(_outcomes(remote))
        found = [item for item in everything(remote) if isinstance(item, Sample)]
        if remote.ranged:
            places = {name: [getattr(sample, name) for sample in found] for name in ("uri", "offset", "length")}
            assert list(fetch_images(pa.table(places))) == [sample.image for sample in found]
    finally:
        memory.rm(f"/{tmp_path.name}", recursive=True)


def _outcomes(source: Source) -> list[Any]:
    return [
        item.reason if isinstance(item, Reject) else (item.id, item.image, json.dumps(item.members, sort_keys=True))
        for item in everything(source)
    ]


def test_images_that_cannot_be_fetched_do_not_hide_their_neighbours(tmp_path: Path) -> None:
    data = np.arange(200, dtype=np.uint8).tobytes()
    (tmp_path / "a.bin").write_bytes(data)
    uris = [str(tmp_path / name) for name in ("a.bin", "gone.bin", "a.bin")]
    first, gone, last = fetch_images(pa.table({"uri": uris, "offset": [0, 0, 190], "length": [10, 10, 10]}))
    assert (first, last) == (data[:10], data[190:])
    assert isinstance(gone, SampleError) and gone.reason == "unreadable_file"


@pytest.mark.parametrize("page", ["sources.md", "sources_tables.md"])
def test_the_recipes_of_the_docs_can_be_meant(page: str) -> None:
    text = (Path(__file__).parents[2] / "docs" / page).read_text()
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]
    assert blocks
    for block in blocks:
        if "source" in block:
            assert parse_source(block["source"]).describe()
        else:
            assert Columns.parse(block["columns"])
