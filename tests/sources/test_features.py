"""Columns computed from the pixels: against definitions written out, and what they are robust to."""

from __future__ import annotations

import hashlib
import math
from io import BytesIO

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from datas3_ray.errors import UsageError
from datas3_ray.sources.features import FEATURES, THUMBNAIL, compute, feature_fields, thumbnail

ALL = list(FEATURES)


def grey(values: list[list[int]]) -> Image.Image:
    return Image.fromarray(np.array(values, np.uint8)).convert("RGB")


def scene(seed: int, size: tuple[int, int] = (240, 180)) -> Image.Image:
    """Shapes on a soft background with a little noise, as a photograph has."""
    rng = np.random.default_rng(seed)
    soft = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    for _ in range(6):
        width, height = rng.integers(20, 90, 2)
        box = Image.new("RGB", (int(width), int(height)), tuple(int(part) for part in rng.integers(0, 256, 3)))
        soft.paste(box, (int(rng.integers(0, size[0] - 20)), int(rng.integers(0, size[1] - 20))))
    noise = rng.normal(0, 3, (size[1], size[0], 3))
    return Image.fromarray(np.clip(np.asarray(soft) + noise, 0, 255).astype(np.uint8))


def value(name: str, image: Image.Image) -> float:
    return float(compute([name], b"", image)[name])


def recompressed(image: Image.Image, quality: int) -> Image.Image:
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def test_every_column_fits_its_field() -> None:
    values = compute(ALL, b"bytes", scene(0))
    assert list(values) == ALL
    table = pa.Table.from_pylist([values], pa.schema(feature_fields(ALL)))
    assert not any(column.null_count for column in table.columns)
    assert table["phash"][0].as_py() == values["phash"] and values["phash"] > 2**32
    assert compute([], b"", scene(0)) == {}
    assert list(compute(["aspect", "sha256"], b"", scene(0))) == ["aspect", "sha256"]


def test_sha256_is_of_the_encoded_bytes() -> None:
    assert compute(["sha256"], b"abc", scene(0))["sha256"] == hashlib.sha256(b"abc").hexdigest()


def test_brightness_contrast_and_entropy_by_hand() -> None:
    image = grey([[0, 0, 255, 255], [51, 51, 51, 51]])
    assert value("brightness", image) == pytest.approx((2 * 255 + 4 * 51) / 8 / 255)
    levels = np.array([0, 0, 255, 255, 51, 51, 51, 51]) / 255
    assert value("contrast", image) == pytest.approx(levels.std())
    assert value("entropy", image) == pytest.approx(1.5)  # shares 1/4, 1/4, 1/2
    flat = Image.new("RGB", (9, 9), "white")
    assert [value(name, flat) for name in ("brightness", "contrast", "entropy", "sharpness")] == [1, 0, 0, 0]
    every = grey([list(range(256))])
    assert value("entropy", every) == pytest.approx(8)
    red = Image.new("RGB", (4, 4), (255, 0, 0))
    assert value("brightness", red) == pytest.approx(76 / 255)


def test_sharpness_is_the_variance_of_the_laplacian() -> None:
    rows = np.random.default_rng(0).integers(0, 256, (9, 12)).tolist()
    laplacian = [
        rows[y - 1][x] + rows[y + 1][x] + rows[y][x - 1] + rows[y][x + 1] - 4 * rows[y][x]
        for y in range(1, 8)
        for x in range(1, 11)
    ]
    mean = sum(laplacian) / len(laplacian)
    expected = sum((one - mean) ** 2 for one in laplacian) / len(laplacian)
    assert value("sharpness", grey(rows)) == pytest.approx(expected, rel=1e-12)
    for size in ((1, 1), (2, 50), (50, 2)):
        assert value("sharpness", Image.new("RGB", size, "red")) == 0
    blurred = scene(1).resize((60, 45), Image.Resampling.BOX).resize((240, 180), Image.Resampling.BICUBIC)
    assert value("sharpness", blurred) < value("sharpness", scene(1)) / 2


def test_aspect() -> None:
    assert value("aspect", Image.new("RGB", (30, 20))) == 1.5
    assert math.isclose(value("aspect", Image.new("RGB", (1, 3))), 1 / 3)


def test_large_images_are_measured_at_256_pixels() -> None:
    small = scene(2, (256, 192))
    large = small.resize((1024, 768), Image.Resampling.NEAREST)
    for name in ("brightness", "contrast", "entropy", "sharpness", "phash"):
        assert value(name, large) == value(name, small), name
    thin = compute(ALL, b"", Image.new("RGB", (5000, 2), "white"))
    assert thin["brightness"] == 1 and thin["sharpness"] == 0


def test_extremes_of_size_and_contrast_give_finite_values() -> None:
    checkers = Image.fromarray((np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)).convert("RGB")
    for image in (Image.new("RGB", (1, 1)), Image.new("RGB", (1, 700)), Image.new("RGB", (700, 1)), checkers):
        values = compute(ALL, b"", image)
        assert all(math.isfinite(values[name]) for name in ALL if name != "sha256")
    assert value("contrast", checkers) == pytest.approx(0.5)
    assert value("sharpness", checkers) == pytest.approx(1020.0**2)


def test_the_hash_survives_resizing_and_recompression() -> None:
    hashes = [compute(["phash"], b"", scene(seed))["phash"] for seed in range(12)]
    worst = 0
    for seed, known in enumerate(hashes):
        image = scene(seed)
        for other in (
            image.resize((120, 90), Image.Resampling.BICUBIC),
            image.resize((700, 500), Image.Resampling.BICUBIC),
            recompressed(image, 40),
        ):
            worst = max(worst, bin(known ^ compute(["phash"], b"", other)["phash"]).count("1"))
    apart = min(bin(a ^ b).count("1") for n, a in enumerate(hashes) for b in hashes[:n])
    assert worst <= 8 < apart


def test_the_same_image_gives_the_same_values() -> None:
    assert compute(ALL, b"x", scene(3)) == compute(ALL, b"x", scene(3))
    assert thumbnail(scene(3), 96) == thumbnail(scene(3), 96)


def test_unknown_and_repeated_names_are_refused() -> None:
    with pytest.raises(UsageError, match="unknown column 'fhash'.*Did you mean 'phash'"):
        feature_fields(["fhash"])
    with pytest.raises(UsageError, match="'phash' is there twice"):
        feature_fields(["phash", "phash"])
    with pytest.raises(UsageError, match="unknown column 'colour'"):
        compute(["colour"], b"", scene(0))
    with pytest.raises(UsageError, match="thumbnail = 0"):
        thumbnail(scene(0), 0)


@pytest.mark.parametrize(
    ("size", "edge", "expected"),
    [
        ((240, 180), 96, (96, 72)),
        ((180, 240), 96, (72, 96)),
        ((50, 40), 96, (50, 40)),
        ((2000, 3), 100, (100, 1)),
        ((10, 10), 1, (1, 1)),
    ],
)
def test_thumbnails_have_the_size_asked_for(size: tuple[int, int], edge: int, expected: tuple[int, int]) -> None:
    source = Image.new("RGB", size, "teal")
    with Image.open(BytesIO(thumbnail(source, edge))) as small:
        assert small.format == "JPEG" and small.size == expected
    assert source.size == size


@pytest.mark.parametrize("edge", [32, 64, 96, 256, 512])
def test_thumbnails_are_bounded_in_bytes_even_of_noise(edge: int) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (600, 600, 3), dtype=np.uint8))
    small = noise.resize((edge, edge), Image.Resampling.NEAREST)
    assert len(thumbnail(small, edge)) <= max(edge * edge // 2, 1024)
    plain = thumbnail(scene(5), edge)
    assert len(plain) <= max(edge * edge // 2, 1024)


def test_thumbnails_look_like_the_image_and_carry_nothing_else() -> None:
    image = scene(6)
    image.info = {"comment": b"private", "icc_profile": b"profile", "exif": b"Exif\0\0private"}
    data = thumbnail(image, 120)
    assert b"private" not in data and b"profile" not in data and image.info["comment"] == b"private"
    small = np.asarray(Image.open(BytesIO(data))).astype(int)
    expected = np.asarray(image.resize((120, 90), Image.Resampling.BOX)).astype(int)
    assert np.abs(small - expected).mean() < 6
    assert pa.array([data], THUMBNAIL.type).type == pa.large_binary()
