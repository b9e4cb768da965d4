"""Batches against brute force: the same rows and pixels however many workers, wherever the pixels come from."""

from __future__ import annotations

import io
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from training.pictures import picture, png

from datas3_ray.training import pixels
from datas3_ray.training.image_rows import ImageRows
from datas3_ray.training.loader import CROP_AREA, Loader, LoaderSettings

SETTINGS = LoaderSettings(size=16, batch_size=10, seed=3)
COUNT = 47


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Decoded pixels in this test's folder, and nothing left in memory from another test."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    pixels.forget()
    yield
    pixels.forget()


@pytest.fixture
def images(tmp_path: Path) -> ImageRows:
    """47 pictures in files, number 5 of them damaged."""
    rng = np.random.default_rng(0)
    uris = []
    for number in range(COUNT):
        path = tmp_path / f"{number}.png"
        path.write_bytes(b"damaged" if number == 5 else png(picture(number % 3, rng, side=24)))
        uris.append(str(path))
    ids = pa.array([f"r{(number * 7) % COUNT:03d}" for number in range(COUNT)])  # not in the rows' order
    return ImageRows(ids, rows_of(uris))


def rows_of(uris: list[str]) -> pa.Table:
    nothing = pa.nulls(len(uris), pa.int64())
    return pa.table({"uri": uris, "offset": nothing, "length": nothing})


def joined(batches: list) -> tuple[list[int], torch.Tensor]:
    return [int(row) for batch in batches for row in batch.rows], torch.cat([batch.images for batch in batches])


def test_every_row_once_an_epoch_and_another_order_each_time(images: ImageRows) -> None:
    loader = Loader(images, SETTINGS)
    assert loader.unreadable == 1 and len(loader) == 46 and loader.cached
    orders = []
    for number in (1, 2):
        batches = list(loader.epoch(number))
        assert [len(batch) for batch in batches] == [10, 10, 10, 10, 6]
        assert all(batch.images.shape[1:] == (3, 16, 16) and batch.images.dtype == torch.uint8 for batch in batches)
        rows, _ = joined(batches)
        assert sorted(rows) == [row for row in range(COUNT) if row != 5]
        orders.append(rows)
    assert orders[0] != orders[1] != sorted(orders[1])
    assert joined(list(Loader(images, SETTINGS).epoch(1)))[0] == orders[0]
    assert joined(list(Loader(images, replace(SETTINGS, seed=4)).epoch(1)))[0] != orders[0]


def test_the_order_belongs_to_ids_and_not_to_places(images: ImageRows) -> None:
    turned = images.take(np.arange(COUNT)[::-1])
    ids = [images.ids[row].as_py() for row in joined(list(Loader(images, SETTINGS).epoch(3)))[0]]
    assert ids == [turned.ids[row].as_py() for row in joined(list(Loader(turned, SETTINGS).epoch(3)))[0]]


@pytest.mark.parametrize("augment", ["none", "flip", "crop"])
@pytest.mark.parametrize("world", [2, 3])
def test_workers_share_the_same_global_batches(images: ImageRows, augment: str, world: int) -> None:
    settings = replace(SETTINGS, augment=augment, batch_size=15)
    alone = list(Loader(images, settings).epoch(2))
    parts = [list(Loader(images, settings, rank=rank, world=world).epoch(2)) for rank in range(world)]
    assert len(alone) == 4 and all(len(part) == 4 for part in parts)
    for whole, *shared in zip(alone, *parts, strict=True):
        at = {int(row): image for part in shared for row, image in zip(part.rows, part.images, strict=True)}
        assert sum(len(part) for part in shared) == len(at) == len(whole)
        assert all(torch.equal(at[int(row)], image) for row, image in zip(whole.rows, whole.images, strict=True))
        assert all(part.everyone.tolist() == whole.rows.tolist() for part in shared)
    # One row is left for the last batch: some workers have none of it, but a part all the same.
    assert [len(part[-1]) for part in parts] == [1] + [0] * (world - 1)
    plain = sorted(
        row
        for rank in range(world)
        for row in joined(list(Loader(images, settings, rank=rank, world=world).plain()))[0]
    )
    assert plain == sorted(joined(alone)[0])


@pytest.mark.parametrize("augment", ["none", "flip", "crop"])
def test_from_memory_decoded_anew_and_in_tasks_are_the_same(images: ImageRows, augment: str, ray_session: None) -> None:
    settings = replace(SETTINGS, augment=augment, batch_size=40)
    cached = Loader(images, settings)
    streamed = Loader(images, replace(settings, cache_bytes=0))
    in_tasks = Loader(images, replace(settings, cache_bytes=0, tasks=2))
    assert cached.cached and not streamed.cached and streamed.unreadable == cached.unreadable == 1
    rows, pictures = joined(list(cached.epoch(1)))
    for other in (streamed, in_tasks):
        found = joined(list(other.epoch(1)))
        assert found[0] == rows and torch.equal(found[1], pictures)
    assert torch.equal(joined(list(cached.plain()))[1], joined(list(streamed.plain()))[1])


def test_plain_images_are_scaled_and_cut_as_pillow_does(images: ImageRows) -> None:
    rows, pictures = joined(list(Loader(images, SETTINGS).plain()))
    assert rows == [row for row in range(COUNT) if row != 5]
    for row, found in zip(rows, pictures, strict=True):
        image = Image.open(images.places.column("uri")[row].as_py()).convert("RGB")
        scale = pixels.margin(16) / min(image.size)
        large = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
        left, top = (large.width - 16) / 2, (large.height - 16) / 2
        cut = large.crop((int(left), int(top), int(left) + 16, int(top) + 16))
        # Not the same grid to a fraction of a pixel, on noise of 80 levels; another part would differ by 20 or more.
        assert np.abs(np.asarray(cut, dtype=int) - found.permute(1, 2, 0).numpy()).mean() < 8
    smooth = np.add.outer(np.arange(32) * 4, np.arange(32) * 2)[:, :, None].repeat(3, axis=2)
    exact = pixels.square(png(smooth), 28, 28)  # nothing is scaled, the centre is cut out
    assert exact is not None and np.array_equal(exact, smooth[2:30, 2:30])


def test_half_are_mirrored_and_nothing_else(images: ImageRows) -> None:
    plain = dict(zip(*joined(list(Loader(images, SETTINGS).plain())), strict=True))
    loader = Loader(images, replace(SETTINGS, augment="flip"))
    mirrored: list[dict[int, bool]] = []
    for number in range(1, 5):
        mirrored.append({})
        for row, image in zip(*joined(list(loader.epoch(number))), strict=True):
            turned = torch.equal(image, plain[row].flip(-1))
            assert turned or torch.equal(image, plain[row])
            mirrored[-1][row] = turned
    assert 60 < sum(sum(one.values()) for one in mirrored) < 124  # of 184, half
    assert mirrored[0] != mirrored[1]


def test_crops_are_parts_of_the_image(tmp_path: Path) -> None:
    side = 35
    steps = np.tile(np.arange(side) * 7, (side, 1))
    ramp = np.stack([steps, steps.T, 0 * steps], axis=-1)
    path = tmp_path / "ramp.png"
    path.write_bytes(png(ramp))
    rows = ImageRows(pa.array([f"{i}" for i in range(200)]), rows_of([str(path)] * 200))
    size = next(size for size in range(8, side) if pixels.margin(size) == side)
    loader = Loader(rows, LoaderSettings(size=size, batch_size=200, augment="crop"))
    batch = next(loader.epoch(1))
    spans = batch.images.float().amax((2, 3)) - batch.images.float().amin((2, 3))
    width, height = (spans[:, channel].numpy() / 7 + 1 for channel in (0, 1))
    area = width * height / side**2
    assert area.min() > CROP_AREA[0] * 0.85 and area.max() < 1.02 and area.min() < 0.35 < 0.9 < area.max()
    assert np.abs(np.log(width / height)).max() < np.log(4 / 3) * 1.15
    rising = batch.images[:, 0, 0, -1].int() > batch.images[:, 0, 0, 0].int()
    assert 60 < int(rising.sum()) < 140
    assert len({one.numpy().tobytes() for one in batch.images}) == 200


def test_a_limit_cuts_the_epoch_short(images: ImageRows) -> None:
    loader = Loader(images, SETTINGS)
    whole, _ = joined(list(loader.epoch(1)))
    batches = list(loader.epoch(1, limit=23))
    assert [len(batch) for batch in batches] == [10, 10, 3] and joined(batches)[0] == whole[:23]


def test_balanced_draws_every_class_as_often(images: ImageRows) -> None:
    classes = np.array([0 if row < 4 else 1 if row < 14 else 2 for row in range(COUNT)])  # row 5, a 1, is damaged
    loader = Loader(images, replace(SETTINGS, sampling="balanced", augment="flip"), classes=classes)
    shares = []
    for number in (1, 2, 3):
        rows, _ = joined(list(loader.epoch(number)))
        assert len(rows) == 46
        by_class = Counter(classes[rows].tolist())
        assert sorted(by_class.values()) == [15, 15, 16]
        shares.append(by_class[0])
        drawn = Counter(rows)
        for one in range(3):
            counts = [drawn[row] for row in range(COUNT) if classes[row] == one and row != 5]
            assert max(counts) - min(counts) <= 1 and sum(counts) == by_class[one]
    assert len(set(shares)) == 2  # the odd row is another class's each time
    few = [image for row, image in zip(*joined(list(loader.epoch(1))), strict=True) if row == 0]
    assert len(few) > 1 and any(not torch.equal(few[0], other) for other in few[1:])  # each draw has its own changes


def test_rs2_draws_fresh_parts_of_the_pool(images: ImageRows) -> None:
    loader = Loader(images, replace(SETTINGS, sampling="rs2", draws=12))
    assert len(loader) == 12
    seen: Counter[int] = Counter()
    for number in range(1, 41):
        rows = loader.order(number)[0].tolist()
        assert len(rows) == len(set(rows)) == 12 and 5 not in rows
        seen.update(rows)
    assert len(seen) == 46 and max(seen.values()) < 24  # 10.4 times each on average
    turned = Loader(images.take(np.arange(COUNT)[::-1]), replace(SETTINGS, sampling="rs2", draws=12))
    ids = {images.ids[int(row)].as_py() for row in loader.order(7)[0]}
    assert ids == {turned.rows.ids[int(row)].as_py() for row in turned.order(7)[0]}
    assert len(Loader(images, replace(SETTINGS, sampling="rs2", draws=99))) == 46


def test_some_rows_share_the_pixels_of_all(images: ImageRows) -> None:
    one = Loader(images, SETTINGS, only=np.arange(5, 15))
    two = Loader(images, SETTINGS, only=np.arange(15, 20))
    assert one.unreadable == 1 and two.unreadable == 0 and len(one) == 9
    assert one._pixels is two._pixels
    assert sorted(joined(list(one.epoch(1)))[0]) == list(range(6, 15))


def test_what_is_decoded_stays_while_it_is_used(images: ImageRows, tmp_path: Path) -> None:
    loader = Loader(images, SETTINGS)
    before = joined(list(loader.epoch(1)))[1]
    folder = tmp_path / f"datas3-pixels-{os.getuid()}"
    assert len(list(folder.iterdir())) == 1
    for uri in images.places.column("uri").to_pylist():
        os.unlink(uri)
    pixels.forget()
    again = Loader(images, SETTINGS)  # as another process would find it: the file, and no images
    assert again.unreadable == 1 and torch.equal(joined(list(again.epoch(1)))[1], before)
    pixels.forget()
    del loader, again
    assert list(folder.iterdir()) == []
    assert Loader(images, SETTINGS).unreadable == COUNT


def test_files_of_killed_processes_are_removed(images: ImageRows, tmp_path: Path) -> None:
    folder = tmp_path / f"datas3-pixels-{os.getuid()}"
    folder.mkdir(mode=0o700)
    (folder / "left").write_bytes(b"half a file")
    key = pixels._key(images, 16, 16)
    (folder / key).write_bytes(b"datas3 pixels 1\nbut cut off")
    assert Loader(images, SETTINGS).unreadable == 1
    assert {path.name for path in folder.iterdir()} == {key}


def test_images_lost_since_are_left_out_and_counted_once(images: ImageRows) -> None:
    loader = Loader(images, replace(SETTINGS, cache_bytes=0))
    for row in (0, 1):
        os.unlink(images.places.column("uri")[row].as_py())
    for number in (1, 2):
        rows, pictures = joined(list(loader.epoch(number)))
        assert sorted(rows) == [row for row in range(COUNT) if row not in (0, 1, 5)] and len(pictures) == 44
    assert loader.unreadable == 3


def test_an_epoch_may_be_left(images: ImageRows) -> None:
    epoch = Loader(images, replace(SETTINGS, cache_bytes=0)).epoch(1)
    assert len(next(epoch)) == 10
    epoch.close()


def test_large_images_are_turned_upright_and_made_small() -> None:
    buffer = io.BytesIO()
    left_red = np.zeros((80, 120, 3), dtype=np.uint8)
    left_red[:, :60, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter to the right
    Image.fromarray(left_red).save(buffer, "JPEG", exif=exif)
    square = pixels.square(buffer.getvalue(), 14, 14)
    assert square is not None and square.shape == (14, 14, 3)
    assert square[2, 7, 0] > 200 and square[11, 7, 0] < 50


@pytest.mark.parametrize(
    "wrong", [{"augment": "spin"}, {"sampling": "rs2"}, {"draws": 4}, {"size": 0}, {"batch_size": 0}]
)
def test_settings_that_mean_nothing(wrong: dict) -> None:
    with pytest.raises(ValueError):
        LoaderSettings(**{"size": 8, "batch_size": 4, **wrong})
