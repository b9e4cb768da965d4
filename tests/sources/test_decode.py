"""Encoded bytes to upright RGB pixels, for the formats, modes and kinds of damage that real collections hold."""

from __future__ import annotations

import os
import struct
import threading
import warnings
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps

from datas3_ray.sources import REASONS, Sample, parse_source
from datas3_ray.sources.decode import ImageError, decode_image

SIZE = (40, 24)


def picture(size: tuple[int, int] = SIZE) -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    return Image.fromarray(np.stack([x, y, 255 - x], -1).astype(np.uint8))


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def pixels(data: bytes) -> np.ndarray:
    decoded = decode_image(data)
    assert decoded.image.mode == "RGB" and decoded.image.size == (decoded.width, decoded.height)
    return np.asarray(decoded.image)


def shared_shards() -> list[Path]:
    folder = Path(os.environ.get("DATAS3_SHARED_DATA", Path(__file__).parent / "../../../shared/data"))
    return sorted(folder.glob("*/*.tar"))


@pytest.mark.parametrize(("format", "options"), [("JPEG", {}), ("PNG", {}), ("WEBP", {}), ("WEBP", {"lossless": True})])
def test_pixels_are_what_pillow_decodes(format: str, options: dict[str, object]) -> None:
    data = encoded(picture(), format, **options)
    with Image.open(BytesIO(data)) as image:
        assert np.array_equal(pixels(data), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_turns_the_image_and_its_size(format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(picture(), format, exif=exif.tobytes(), **options)
    with Image.open(BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert np.array_equal(pixels(data), expected)
    decoded = decode_image(data)
    assert (decoded.width, decoded.height) == (SIZE if orientation < 5 else SIZE[::-1])


def test_damaged_exif_is_ignored() -> None:
    data = encoded(picture(), "JPEG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xffrubbish")
    assert decode_image(data).width == SIZE[0]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P"])
def test_transparency_is_laid_on_white(mode: str) -> None:
    image = Image.new("RGBA", SIZE, (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (0, 0, 20, 24))
    if mode == "LA":
        image = image.convert("LA")
    elif mode != "RGBA":
        image = image.quantize(4)
        assert image.has_transparency_data
    data = encoded(image, "PNG")
    got = pixels(data)
    assert (got[:, 30:] == 255).all()
    red = got[0, 0].tolist()
    assert red == ([76, 76, 76] if mode == "LA" else [255, 0, 0])


def test_half_transparency_mixes_with_white() -> None:
    assert pixels(encoded(Image.new("RGBA", SIZE, (0, 0, 0, 128)), "PNG"))[0, 0].tolist() == [127, 127, 127]
    lossless = encoded(Image.new("RGBA", SIZE, (0, 0, 0, 128)), "WEBP", lossless=True, exact=True)
    assert pixels(lossless)[0, 0].tolist() == [127, 127, 127]


def test_palette_with_transparent_bytes_and_rgb_with_a_transparent_colour() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putdata([0, 1])
    assert pixels(encoded(palette, "PNG", transparency=bytes([255, 0])))[0].tolist() == [[255, 0, 0], [255, 255, 255]]
    rgb = Image.new("RGB", (2, 1), (1, 2, 3))
    rgb.putpixel((1, 0), (9, 9, 9))
    assert pixels(encoded(rgb, "PNG", transparency=(1, 2, 3)))[0].tolist() == [[255, 255, 255], [9, 9, 9]]


def test_sixteen_bit_grey_is_scaled_and_not_clipped() -> None:
    values = np.array([[0, 256, 32768, 65535, 128, 129]], np.uint16)
    data = encoded(Image.fromarray(values), "PNG")
    assert pixels(data)[0, :, 0].tolist() == [0, 1, 128, 255, 0, 1]


def test_sixteen_bit_colour() -> None:
    values = np.array([[[0, 32768, 65535]]], ">u2")
    got = pixels(_png(1, 1, 16, 2, b"\0" + values.tobytes()))
    assert np.abs(got[0, 0].astype(int) - [0, 128, 255]).max() <= 1


def test_one_bit_grey_and_cmyk() -> None:
    bits = Image.new("1", SIZE)
    bits.paste(1, (0, 0, 20, 24))
    got = pixels(encoded(bits, "PNG"))
    assert got[0, 0].tolist() == [255, 255, 255] and got[0, 30].tolist() == [0, 0, 0]
    assert pixels(encoded(picture().convert("L"), "JPEG")).shape == (24, 40, 3)
    cmyk = pixels(encoded(picture().convert("CMYK"), "JPEG", quality=95))
    assert np.abs(cmyk.astype(int) - np.asarray(picture())).mean() < 4


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", SIZE, colour) for colour in ("red", "lime")]
    for format in ("WEBP", "PNG"):
        data = encoded(frames[0], format, save_all=True, append_images=frames[1:], lossless=True)
        assert pixels(data)[0, 0].tolist() == [255, 0, 0]


def _png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_too_many_pixels_are_refused_from_the_header() -> None:
    bomb = _png(100_000, 100_000, 8, 2, b"")
    webp = bytearray(encoded(Image.new("RGBA", SIZE, (1, 2, 3, 4)), "WEBP"))
    assert webp[12:16] == b"VP8X"
    webp[24:30] = b"\xff\xff\x00\xff\xff\x00"
    jpeg = bytearray(encoded(picture(), "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = b"\xff\xdc\xff\xdc"
    for data in (bomb, bytes(webp), bytes(jpeg)):
        with pytest.raises(ImageError) as error:
            decode_image(data)
        assert error.value.reason == "too_many_pixels" and " x " in str(error.value)
    assert decode_image(encoded(picture(), "PNG"), max_pixels=40 * 24).width == 40
    for format, options in (("PNG", {}), ("JPEG", {}), ("WEBP", {}), ("WEBP", {"lossless": True})):
        with pytest.raises(ImageError, match="40 x 24 pixels, more than 959"):
            decode_image(encoded(picture(), format, **options), max_pixels=40 * 24 - 1)


@pytest.mark.parametrize(
    ("data", "reason", "words"),
    [
        (b"", "not_an_image", "0 bytes"),
        (b"\n  <!DOCTYPE html><html>404</html>", "not_an_image", "web page"),
        (b"\x00" * 500, "not_an_image", "begin with"),
        (b"just text", "not_an_image", "just text"),
        (encoded(picture(), "GIF"), "unsupported_format", "GIF"),
        (encoded(picture(), "BMP"), "unsupported_format", "BMP"),
        (encoded(picture(), "TIFF"), "unsupported_format", "TIFF"),
        (b'<?xml version="1.0"?><svg xmlns="x"/>', "unsupported_format", "SVG"),
        (b"\x00\x00\x00\x20ftypavif\x00", "unsupported_format", "AVIF"),
        (b"\x00\x00\x00\x20ftypheic\x00", "unsupported_format", "HEIC"),
        (b"RIFF\x0f\x00\x00\x00WEBPVP9 rubbish", "decode_error", "WebP"),
        (b"\x89PNG\r\n\x1a\n" + b"rubbish!" * 20 + b"IEND", "decode_error", "PNG"),
        (b"\xff\xd8\xff\xe0" + b"rubbish!" * 20 + b"\xff\xd9", "decode_error", "JPEG"),
    ],
)
def test_what_is_no_image(data: bytes, reason: str, words: str) -> None:
    with pytest.raises(ImageError) as error:
        decode_image(data)
    assert error.value.reason == reason and words in str(error.value)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_cut_images_are_called_truncated(format: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = encoded(noise, format)
    ImageFile.LOAD_TRUNCATED_IMAGES = True  # as some libraries leave it
    try:
        for share in (0.05, 0.3, 0.6, 0.9, 0.98):
            with pytest.raises(ImageError) as error:
                decode_image(data[: int(len(data) * share)])
            assert error.value.reason == "truncated_image", share
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = False


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_damage_is_an_image_error_or_an_image(format: str) -> None:
    whole = encoded(picture(), format)

    @given(data=st.data())
    @settings(max_examples=60, deadline=None)
    def damage(data: st.DataObject) -> None:
        image = bytearray(whole)
        for _ in range(data.draw(st.integers(1, 6))):
            image[data.draw(st.integers(0, len(image) - 1))] = data.draw(st.integers(0, 255))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                decoded = decode_image(bytes(image), max_pixels=1_000_000)
            except ImageError as error:
                assert error.reason in REASONS and str(error)
            else:
                assert decoded.image.mode == "RGB"

    damage()


def test_no_warning_leaks_and_no_filter_is_left_behind() -> None:
    exif = b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x01\x00\x12\x01\x03\x00\xff\x00\x00\x00\x00\x00"
    data = encoded(picture(), "JPEG", exif=exif)
    before = list(warnings.filters)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        decode_image(data)
        decode_image(_png(9_500, 9_500, 1, 0, bytes(1189 * 9_500)), max_pixels=200_000_000)  # Pillow warns from 89M
    assert not caught and list(warnings.filters) == before


def test_threads_decode_the_same() -> None:
    data = [encoded(picture((50 + n, 40)), format) for n in range(10) for format in ("JPEG", "PNG", "WEBP")]
    expected = [pixels(item) for item in data]
    wrong: list[int] = []

    def work() -> None:
        wrong.extend(n for n, item in enumerate(data) if not np.array_equal(pixels(item), expected[n]))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(not shared_shards(), reason="the shared image data are not here")
def test_real_images_all_decode() -> None:
    source = parse_source({"webdataset": [str(path) for path in shared_shards()[::12]]})
    count = 0
    for shard in source.shards():
        for item in source.read(shard):
            assert isinstance(item, Sample)
            decoded = decode_image(item.image)
            assert 0 < decoded.width <= 128 and 0 < decoded.height <= 128
            count += 1
    assert count > 1000
