"""The worker of an embed, without Ray and with encoders small enough to be checked by hand."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from datas3_ray import Lake, embed_worker
from datas3_ray.embed_worker import EmbedWorker, Settings, Task
from datas3_ray.lake.schemas import matrix
from datas3_ray.lake.staged import Finished, commit_columns, schema_of, schema_text


class Fake:
    """Red of the first pixel, or length of the caption, in each of two dimensions; 13 becomes NaN."""

    dim = 2

    def __init__(self, takes: str) -> None:
        self.input = takes
        self.identity = {"family": "fake", "input": takes, "dim": 2}
        self.batches: list[int] = []

    def prepare(self, item) -> np.ndarray:
        value = len(item) if self.input == "caption" else item.getpixel((0, 0))[0]
        return np.full(2, np.nan if value == 13 else value, np.float32)

    def encode(self, batch) -> np.ndarray:
        self.batches.append(len(batch))
        return np.stack(batch)


@dataclass
class FakeConfig:
    takes: str
    batch_size: int = 4

    def build(self) -> Fake:
        return Fake(self.takes)


def png(red: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (2, 2), (red, 0, 0)).save(out, "PNG")
    return out.getvalue()


def make(lake: Lake, count: int = 30, captions: bool = True) -> None:
    """Images in the table itself: row i is red by i; every seventh has no caption, the others 'x' * i."""
    rows = {"id": [f"r{i:03}" for i in range(count)], "image": pa.array([png(i) for i in range(count)])}
    rows |= {"uri": [f"u{i}" for i in range(count)], "offset": [0] * count, "length": [1] * count}
    if captions:
        rows["caption"] = pa.array([None if i % 7 == 0 else "x" * i for i in range(count)])
    rows["n"] = list(range(count))
    lake.add("pool", pa.table(rows))


def worker(lake: Lake, **takes: str) -> EmbedWorker:
    table = lake.table("pool")
    settings = Settings("pool", table.uri, lake.options, None, 10_000, 10.0, 2)
    return EmbedWorker({alias: FakeConfig(what) for alias, what in takes.items()}, settings)  # type: ignore[misc]


def work(lake: Lake, one: EmbedWorker, *columns: str, add: bool = True) -> list[Finished]:
    table = lake.table("pool")
    done = [one.work(Task(table.version, number, columns, add)) for number in table.fragment_ids()]
    commit_columns(table, done, "id", {})
    return done


def red(lake: Lake, column: str) -> list[float | None]:
    rows = lake.table("pool").to_arrow([column]).column(column)
    return [None if value is None else value[0] for value in rows.to_pylist()]


@pytest.fixture(autouse=True)
def small_reads(monkeypatch) -> None:
    monkeypatch.setattr(embed_worker, "READ_ROWS", 7)
    monkeypatch.setattr(embed_worker, "SPARSE", 2)


def test_images_and_captions_together(tmp_path) -> None:
    lake = Lake(tmp_path / "lake")
    make(lake)
    lake.table("pool").dataset.delete("id in ('r000', 'r008', 'r029')")
    one = worker(lake, look="image", words="caption")
    (done,) = work(lake, one, "look", "words")
    kept = [i for i in range(30) if i not in (0, 8, 29)]
    assert red(lake, "look") == [None if i == 13 else i for i in kept]
    assert red(lake, "words") == [None if i == 13 or i % 7 == 0 else i for i in kept]
    assert done.account == {
        "rows": 27,
        "vectors": {"look": 26, "words": 22},
        "nulls": {"look": 1, "words": 5},
        "reasons": {"nan_vector": 1, "no_caption": 4},
    }
    assert one.bank.encoders["look"].batches == [4, 4, 4, 4, 4, 4, 3], "batches are filled across reads"
    assert lake.table("pool").encoder("words") == {"dim": 2, "family": "fake", "input": "caption"}
    assert lake.table("pool").to_arrow(["n"]).column("n").to_pylist() == kept


def test_only_missing_vectors_are_made_and_the_others_stay_bit_for_bit(tmp_path) -> None:
    lake = Lake(tmp_path / "lake")
    make(lake, 60)
    there = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)
    missing = np.array([i in (2, 3, 40, 59) for i in range(60)])
    column = pa.FixedSizeListArray.from_arrays(pa.array(there.reshape(-1)), 2, mask=pa.array(missing))
    table = lake.table("pool").to_arrow().append_column("look", column)
    lake.write("pool", table, kind="image")
    lake.table("pool").dataset.delete("id in ('r000', 'r003', 'r031')")
    before = lake.table("pool").to_arrow(["id", "n", "caption", "image"])
    one = worker(lake, look="image")
    (done,) = work(lake, one, "look", add=False)
    assert sum(one.bank.encoders["look"].batches) == 3
    assert done.account["vectors"] == {"look": 3}
    after = lake.table("pool").to_arrow()
    numbers = after.column("n").to_numpy()
    vectors = matrix(after.column("look"))
    made = np.isin(numbers, [2, 40, 59])
    assert np.array_equal(vectors[~made], there[numbers[~made]])
    assert vectors[made][:, 0].tolist() == [2, 40, 59]
    assert after.select(before.schema.names).equals(before)
    lake.table("pool").dataset.validate()
    (again,) = work(lake, one, "look", add=False)
    assert again.metadata is None


def test_no_file_is_left_where_no_vector_could_be_made(tmp_path) -> None:
    lake = Lake(tmp_path / "lake")
    make(lake, 10)
    work(lake, worker(lake, look="image"), "look")
    lake.table("pool").dataset.update({"image": "NULL", "uri": "'/nowhere/x.tar'"}, where="n = 4")
    empty = lake.table("pool").to_arrow()
    column = pa.array([None if n == 4 else [n, n] for n in empty.column("n").to_pylist()], pa.list_(pa.float32(), 2))
    field = lake.table("pool").schema.field("look")
    position = empty.schema.get_field_index("look")
    lake.write("pool", empty.set_column(position, field, column), kind="image")
    files = sorted(path.name for path in (tmp_path / "lake" / "pool.lance" / "data").iterdir())
    version = lake.table("pool").version
    (done,) = work(lake, worker(lake, look="image"), "look", add=False)
    assert (done.metadata, done.account["reasons"]) == (None, {"unreadable_file": 1})
    assert done.account["nulls"] == {"look": 1}
    assert lake.table("pool").version == version
    assert sorted(path.name for path in (tmp_path / "lake" / "pool.lance" / "data").iterdir()) == files


def test_rows_without_a_caption_are_not_looked_at_again(tmp_path) -> None:
    lake = Lake(tmp_path / "lake")
    make(lake, 20)
    one = worker(lake, words="caption")
    work(lake, one, "words")
    (done,) = [one.work(Task(lake.table("pool").version, 0, ("words",), False))]
    # Row 13 is tried again, since its vector might be one now; rows without a caption are not.
    assert done.account["reasons"] == {"nan_vector": 1}
    assert done.metadata is None


def test_on_an_object_store(s3) -> None:
    lake = Lake("s3://bucket/embedded", s3.lake_options)
    make(lake, 10)
    work(lake, worker(lake, look="image"), "look")
    more = lake.table("pool").to_arrow().slice(0, 3)
    field = lake.table("pool").schema.field("look")
    ids = pa.array(["a", "b", "c"])
    more = more.set_column(0, more.schema.field(0), ids)
    position = more.schema.get_field_index("look")
    lake.add("pool", more.set_column(position, field, pa.nulls(3, field.type)))
    one = worker(lake, look="image")
    assert [done.metadata is None for done in work(lake, one, "look", add=False)] == [True, False]
    assert red(lake, "look") == [*range(10), 0, 1, 2]


def test_a_workers_own_error_comes_through_lance(tmp_path, monkeypatch) -> None:
    lake = Lake(tmp_path / "lake")
    make(lake, 5)
    one = worker(lake, look="image")

    def broken(batch):
        raise MemoryError("no room")

    monkeypatch.setattr(one.bank.encoders["look"], "encode", broken)
    with pytest.raises(MemoryError, match="no room"):
        work(lake, one, "look")


def test_a_schema_survives_as_text(tmp_path) -> None:
    lake = Lake(tmp_path / "lake")
    make(lake, 3)
    schema = lake.table("pool").dataset.lance_schema
    text = schema_text(schema)
    json.loads(text)
    assert schema_of(text) == schema
