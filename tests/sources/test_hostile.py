"""Hostile shards, from the archive's bytes to pixels: one table of what comes in and what has to become of it."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from datas3_ray.sources import REASONS, Reject, SampleError, decode_image, parse_source

Outcome = list[tuple[str, Any]]  # key, and a reason or the expected pixels: one colour, or rows of colours
RED, LIME, WHITE, BLACK, CYAN = (255, 0, 0), (0, 255, 0), (255, 255, 255), (0, 0, 0), (0, 255, 255)


# --------------------------------------------------------------------------------------------------- what comes in


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def plain(mode: str, colour: Any, format: str = "PNG", size: tuple[int, int] = (16, 16), **options: Any) -> bytes:
    return encoded(Image.new(mode, size, colour), format, **options)


def tar(*members: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def header(name: str, size: int) -> bytes:
    """A member's header without the member."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf()


def animation(format: str) -> bytes:
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, LIME)]
    options = {"lossless": True} if format == "WEBP" else {}
    return encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)


def sixteen_bits() -> bytes:
    return encoded(Image.fromarray(np.array([[0, 257 * 7, 65535]], np.uint16)), "PNG")


def palette(transparent: bool) -> bytes:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *LIME])
    image.putdata([0, 1])
    return encoded(image, "PNG", **({"transparency": 1} if transparent else {}))


def half_clear_grey() -> bytes:
    image = Image.new("LA", (2, 1), (100, 255))
    image.putpixel((1, 0), (100, 0))
    return encoded(image, "PNG")


def turned() -> bytes:
    """Red left of lime, stored so that EXIF 6 puts red above lime."""
    image = Image.new("RGB", (2, 1), RED)
    image.putpixel((1, 0), LIME)
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(image, "PNG", exif=exif)


def bomb() -> bytes:
    """40,000 x 40,000 pixels of one colour in a few hundred bytes more than nothing: 4.8 GB of RGB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(bytes(100_000)))


def numbered(*values: Any) -> list[tuple[str, bytes]]:
    """Samples whose JSON has these values under one key."""
    documents = [json.dumps({"n": value}).encode() for value in values]
    return [pair for n, one in enumerate(documents) for pair in ((f"{n}.png", RED_PNG), (f"{n}.json", one))]


RED_PNG = plain("RGB", RED)
NOISE = encoded(
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)), "JPEG", quality=90
)
GOOD = ("good.png", RED_PNG)
THREE = tar(("a.png", RED_PNG), ("b.png", RED_PNG), ("c.jpg", NOISE))
CUT_IN_C = THREE[: THREE.index(NOISE) + len(NOISE) // 2]

CASES: dict[str, tuple[bytes, Outcome]] = {
    # the archive
    "a tar cut in a member keeps the rows before": (CUT_IN_C, [("a", RED), ("b", RED), ("c", "truncated_shard")]),
    "not a tar": (b"this is a text and no archive at all. " * 40, [("", "not_a_tar")]),
    "an image instead of a tar": (NOISE * 2, [("", "not_a_tar")]),
    "no bytes": (b"", [("", "empty_shard")]),
    "a tar without members": (tar(), [("", "empty_shard")]),
    "the same key twice": (
        tar(GOOD, ("other.png", RED_PNG), GOOD),
        [("good", RED), ("other", RED), ("good", "duplicate_key")],
    ),
    "names that lead out of the folder": (
        tar(("../../x.png", RED_PNG), ("/etc/passwd.png", RED_PNG), ("a/../b.png", RED_PNG)),
        [("../../x", RED), ("/etc/passwd", RED), ("a/../b", RED)],
    ),
    "a member bigger than max_bytes": (
        tar(GOOD, ("big.png", bytes(70_000)), ("after.png", RED_PNG)),
        [("good", RED), ("big", "too_large"), ("after", RED)],
    ),
    "a header that promises 200 MB, and nothing behind": (
        tar(GOOD)[:1024] + header("big.png", 200_000_000),
        [("good", RED), ("big", "truncated_shard")],
    ),
    "a header that promises 8 GB": (
        tar(GOOD)[:1024] + header("big.png", 2**33 - 1),
        [("good", RED), ("big", "truncated_shard")],
    ),
    # what is no image
    "no bytes in an image": (tar(("a.jpg", b""), GOOD), [("a", "empty_image"), ("good", RED)]),
    "a web page": (
        tar(("a.jpg", b"\n<!DOCTYPE html><title>404</title>"), GOOD),
        [("a", "not_an_image"), ("good", RED)],
    ),
    "a drawing in SVG": (
        tar(("a.png", b"<?xml version='1.0'?><svg/>"), GOOD),
        [("a", "unsupported_format"), ("good", RED)],
    ),
    "a text": (tar(("a.png", b"BM a text that begins as a bitmap")), [("a", "not_an_image")]),
    # what is damaged
    "a JPEG cut in the middle": (
        tar(("a.jpg", NOISE[: len(NOISE) // 2]), GOOD),
        [("a", "truncated_image"), ("good", RED)],
    ),
    "a JPEG cut after its header": (tar(("a.jpg", NOISE[:100])), [("a", "truncated_image")]),
    "a PNG cut in the middle": (
        tar(("a.png", encoded(Image.open(io.BytesIO(NOISE)), "PNG")[:3000])),
        [("a", "truncated_image")],
    ),
    "a JPEG of zeros behind its header": (tar(("a.jpg", NOISE[:300] + bytes(3000))), [("a", "truncated_image")]),
    "a decompression bomb": (tar(("a.png", bomb()), GOOD), [("a", "too_many_pixels"), ("good", RED)]),
    # odd images
    "an animated GIF": (tar(("a.png", animation("GIF"))), [("a", RED)]),
    "an animated WebP": (tar(("a.webp", animation("WEBP"))), [("a", RED)]),
    "a TIFF of two pages": (tar(("a.png", animation("TIFF"))), [("a", RED)]),
    "CMYK in a JPEG": (tar(("a.jpg", plain("CMYK", (255, 0, 0, 0), "JPEG", quality=100))), [("a", CYAN)]),
    "16 bits of grey": (tar(("a.png", sixteen_bits())), [("a", [[BLACK, (7, 7, 7), WHITE]])]),
    "a palette": (tar(("a.png", palette(False))), [("a", [[RED, LIME]])]),
    "a palette with a clear colour": (tar(("a.png", palette(True))), [("a", [[RED, WHITE]])]),
    "one bit": (tar(("a.png", plain("1", 1)), ("b.png", plain("1", 0))), [("a", WHITE), ("b", BLACK)]),
    "grey with transparency": (tar(("a.png", half_clear_grey())), [("a", [[(100, 100, 100), WHITE]])]),
    "turned by EXIF": (tar(("a.png", turned())), [("a", [[RED], [LIME]])]),
    "a PNG named .jpg": (tar(("a.jpg", RED_PNG)), [("a", RED)]),
    # what comes beside the image
    "a caption that is not UTF-8": (
        tar(("a.png", RED_PNG), ("a.txt", b"caf\xe9"), GOOD),
        [("a", "bad_text"), ("good", RED)],
    ),
    "JSON that is none": (tar(("a.png", RED_PNG), ("a.json", b"{'n': 1}"), GOOD), [("a", "bad_json"), ("good", RED)]),
    "JSON that is no object": (tar(("a.png", RED_PNG), ("a.json", b"[1]")), [("a", "bad_json")]),
    "JSON nested without end": (
        tar(("a.png", RED_PNG), ("a.json", b'{"n":' * 12_000), GOOD),
        [("a", "bad_json"), ("good", RED)],
    ),
    "a value of another type than the rows before": (
        tar(*numbered(1, "2", [3], {"n": 4}, None, 5.0)),
        [("0", RED), ("1", RED), ("2", "bad_value"), ("3", "bad_value"), ("4", RED), ("5", RED)],
    ),
}


# ------------------------------------------------------------------------------------------------- what becomes of it


def outcomes(folder: Path, data: bytes) -> Outcome:
    """Key and pixels, or key and reason, of every sample: read, columns taken out and decoded as an ingest does."""
    path = folder / "shard.tar"
    path.write_bytes(data)
    columns = {"n": {"from": "json.n", "type": "int"}}
    source = parse_source({"webdataset": str(path), "max_bytes": 65_536, "columns": columns})
    (shard,) = source.shards()
    result: Outcome = []
    for item in source.read(shard):
        if isinstance(item, Reject):
            result.append((item.key, item.reason))
            assert item.error and item.uri == str(path)
            continue
        try:
            source.columns.extract(item)
            result.append((item.key, np.asarray(decode_image(item.image).image)))
        except SampleError as error:
            result.append((item.key, error.reason))
            assert str(error)
    return result


def agree(got: Any, expected: Any) -> bool:
    if isinstance(got, str) or isinstance(expected, str):
        return isinstance(got, str) and got == expected
    colours = np.asarray(expected)
    if colours.ndim == 3 and got.shape != colours.shape:
        return False
    return bool(np.abs(got.astype(int) - colours).max() <= 2)


@pytest.mark.parametrize("name", CASES)
def test_what_becomes_of_it(name: str, tmp_path: Path) -> None:
    data, expected = CASES[name]
    got = outcomes(tmp_path, data)
    assert [key for key, _ in got] == [key for key, _ in expected]
    for (key, what), (_, wanted) in zip(got, expected, strict=True):
        assert agree(what, wanted), f"{key}: {what}"
        assert not isinstance(wanted, str) or wanted in REASONS
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shard.tar"]  # nothing was unpacked
    assert not (tmp_path.parent.parent / "x.png").exists()


def test_nothing_of_a_bomb_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[object] = []
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: loads.append(self))
    tracemalloc.start()
    try:
        assert outcomes(tmp_path, tar(("a.png", bomb()))) == [("a", "too_many_pixels")]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert not loads and peak < 20_000_000


def test_a_promise_of_200_mb_is_not_allocated(tmp_path: Path) -> None:
    tracemalloc.start()
    try:
        outcomes(tmp_path, tar(GOOD)[:1024] + header("big.png", 200_000_000))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20_000_000


def test_every_prefix_of_a_shard_keeps_the_samples_before_its_end(tmp_path: Path) -> None:
    ends = [THREE.index(RED_PNG), THREE.rindex(RED_PNG), THREE.index(NOISE)]
    ends = [end + size for end, size in zip(ends, (len(RED_PNG), len(RED_PNG), len(NOISE)), strict=True)]
    for length in range(0, len(THREE), 173):
        got = outcomes(tmp_path, THREE[:length])
        rows = [key for key, what in got if not isinstance(what, str)]
        complete = sum(end <= length for end in ends)
        assert rows == ["a", "b", "c"][: len(rows)]
        assert complete - 1 <= len(rows) <= complete  # the last may go on behind the break: it is left out, and told
        assert all(what in REASONS for _, what in got if isinstance(what, str))
        assert isinstance(got[-1][1], str) or length >= ends[-1]


def test_damaged_images_stay_damaged_when_other_libraries_are_lenient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert outcomes(tmp_path, tar(("a.jpg", NOISE[: len(NOISE) // 2]))) == [("a", "truncated_image")]
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False
