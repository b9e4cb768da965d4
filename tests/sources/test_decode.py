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
from PIL import Image, ImageFile, ImageOps, TiffImagePlugin, WebPImagePlugin

from datas3_ray.errors import UsageError
from datas3_ray.sources import REASONS, Sample, decode, parse_source
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


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("JPEG", {}),
        ("PNG", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("GIF", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"big_tiff": True}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_adobe_deflate"}),
        ("TIFF", {"compression": "jpeg"}),
    ],
)
def test_pixels_are_what_pillow_decodes(format: str, options: dict[str, object]) -> None:
    data = encoded(picture(), format, **options)
    with Image.open(BytesIO(data)) as image:
        assert np.array_equal(pixels(data), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "LZW"])
def test_exif_orientation_turns_the_image_and_its_size(format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, object] = {"lossless": True} if format == "WEBP" else {}
    if format == "LZW":
        format, options = "TIFF", {"compression": "tiff_lzw"}
    data = encoded(picture(), format, exif=exif if format == "TIFF" else exif.tobytes(), **options)
    with Image.open(BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert np.array_equal(pixels(data), expected)
    decoded = decode_image(data)
    assert (decoded.width, decoded.height) == (SIZE if orientation < 5 else SIZE[::-1])


def test_turned_by_a_quarter_the_pixels_are_where_they_belong() -> None:
    wide = Image.new("RGB", (2, 1), (255, 0, 0))
    wide.putpixel((1, 0), (0, 0, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # the top of the picture is at the right
    for format in ("PNG", "TIFF"):
        got = pixels(encoded(wide, format, exif=exif))
        assert got.tolist() == [[[255, 0, 0]], [[0, 0, 255]]]


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


@pytest.mark.parametrize(
    ("ink", "colour"),
    [
        ((255, 0, 0, 0), (0, 255, 255)),
        ((0, 255, 255, 0), (255, 0, 0)),
        ((0, 0, 0, 255), (0, 0, 0)),
        ((0,) * 4, (255,) * 3),
    ],
)
def test_cmyk_inks(ink: tuple[int, ...], colour: tuple[int, ...]) -> None:
    image = Image.new("CMYK", SIZE, ink)
    jpeg = encoded(image, "JPEG", quality=100)  # Adobe's way: the inks are stored inverted
    assert b"Adobe" in jpeg
    assert np.abs(pixels(jpeg).astype(int) - colour).max() <= 2
    assert (pixels(encoded(image, "TIFF")) == colour).all()


def test_adobe_ycck_is_cmyk_too() -> None:
    y, cb, cr = 76, 85, 255  # the luma and chroma of full cyan ink and no other
    data = bytearray(encoded(Image.new("CMYK", SIZE, (255 - y, 255 - cb, 255 - cr, 0)), "JPEG", quality=100))
    marker = data.index(b"Adobe")
    assert data[marker + 11] == 0
    data[marker + 11] = 2
    assert np.abs(pixels(bytes(data)).astype(int) - (0, 255, 255)).max() <= 3


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", SIZE, colour) for colour in ("red", "lime")]
    for format in ("WEBP", "PNG", "GIF", "TIFF"):
        options = {"lossless": True} if format == "WEBP" else {}
        data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
        assert (pixels(data) == [255, 0, 0]).all(), format


def _gif(canvas: tuple[int, int], frame: tuple[int, int, int, int], indices: bytes, clear: int | None = None) -> bytes:
    """A GIF of one frame; palette black, red, lime, blue."""
    inner = encoded(_indexed(frame[2:], indices), "GIF", optimize=False)
    image = inner[inner.index(b",") + 10 :]
    palette = bytes([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255]).ljust(768, b"\0")
    control = b"" if clear is None else b"!\xf9\x04\x01\0\0" + bytes([clear]) + b"\0"
    descriptor = b"," + struct.pack("<HHHHB", *frame, 0)
    return b"GIF89a" + struct.pack("<HHBBB", *canvas, 0xF7, 0, 0) + palette + control + descriptor + image


def _indexed(size: tuple[int, ...], indices: bytes) -> Image.Image:
    image = Image.frombytes("P", (size[0], size[1]), indices)
    image.putpalette([0, 0, 0, 255, 255, 255] * 128)  # no comma, by which its data are found
    return image


def test_a_gif_frame_smaller_than_its_canvas() -> None:
    red, black, white = [255, 0, 0], [0, 0, 0], [255, 255, 255]
    assert pixels(_gif((3, 1), (1, 0, 1, 1), b"\1"))[0].tolist() == [black, red, black]
    assert pixels(_gif((3, 1), (1, 0, 1, 1), b"\1", clear=2))[0].tolist() == [white, red, white]
    assert pixels(_gif((1, 1), (0, 0, 2, 1), b"\1\2"))[0].tolist() == [red, [0, 255, 0]]  # beyond the canvas


def test_sixteen_bit_tiffs_in_both_byte_orders_and_twelve_bits() -> None:
    values = np.array([[0, 256, 32768, 65535, 128, 129]], np.uint16)
    for image in (Image.fromarray(values), Image.fromarray(values.astype(">u2"))):
        data = encoded(image, "TIFF")
        assert pixels(data)[0, :, 0].tolist() == [0, 1, 128, 255, 0, 1]
    inverted = encoded(Image.fromarray(values), "TIFF", tiffinfo={262: 0})
    assert pixels(inverted)[0, :, 0].tolist() == [255, 254, 127, 0, 255, 254]
    twelve = _tiff({256: 2, 257: 1, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: 3}, b"\xff\xf8\0")
    assert pixels(twelve)[0, :, 0].tolist() == [255, 128]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_numbers_that_are_no_colours_are_refused(mode: str) -> None:
    with pytest.raises(ImageError, match="float") as error:
        decode_image(encoded(Image.new(mode, SIZE), "TIFF"))
    assert error.value.reason == "unsupported_format"


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_bitmaps_of_every_depth(mode: str) -> None:
    image = picture().convert(mode)
    for format in ("BMP", "TIFF") if mode == "RGB" else ("BMP", "TIFF", "GIF"):
        assert np.array_equal(pixels(encoded(image, format)), np.asarray(image.convert("RGB"))), format


def _tiff(tags: dict[int, int], data: bytes = b"") -> bytes:
    """A little-endian TIFF: the header, the pixels at byte 8, one directory of 32-bit values."""
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    data += b"\0" * (len(data) % 2)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


def test_raw_files_of_cameras_are_not_read_as_their_previews() -> None:
    tags = {256: 1, 257: 1, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: 1}
    assert pixels(_tiff(tags, b"\x7f")).tolist() == [[[127, 127, 127]]]
    canon = _tiff(tags, b"CR\2\0")
    for data in (_tiff({**tags, 254: 1}, b"\x7f"), _tiff({**tags, 50706: 1}, b"\x7f"), canon):
        with pytest.raises(ImageError) as error:
            decode_image(data)
        assert error.value.reason == "unsupported_format" and "raw" in str(error.value)


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
    gif = _gif((65535, 65535), (0, 0, 1, 1), b"\1")
    gif_frame = _gif((1, 1), (40_000, 40_000, 1, 1), b"\1")
    bmp = bytearray(encoded(picture(), "BMP"))
    bmp[18:26] = struct.pack("<II", 100_000, 100_000)
    tags = {256: 100_000, 257: 100_000, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 100_000, 279: 1}
    tile = {256: 1, 257: 1, 258: 8, 259: 5, 262: 1, 277: 1, 322: 65536, 323: 16384, 324: 8, 325: 1}
    for data in (bomb, bytes(webp), bytes(jpeg), gif, gif_frame, bytes(bmp), _tiff(tags, b"\0"), _tiff(tile, b"\0")):
        with pytest.raises(ImageError) as error:
            decode_image(data)
        assert error.value.reason == "too_many_pixels" and "pixels" in str(error.value)
    assert decode_image(encoded(picture(), "PNG"), max_pixels=40 * 24).width == 40
    formats = [(format, {}) for format in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")]
    for format, options in (*formats, ("WEBP", {"lossless": True})):
        with pytest.raises(ImageError, match="40 x 24 pixels, more than 959"):
            decode_image(encoded(picture(), format, **options), max_pixels=40 * 24 - 1)


def test_nothing_is_decoded_of_an_image_with_too_many_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    loads = []
    for plugin in (ImageFile.ImageFile, TiffImagePlugin.TiffImageFile, WebPImagePlugin.WebPImageFile):
        monkeypatch.setattr(plugin, "load", lambda self: loads.append(self))
    for format in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"):
        with pytest.raises(ImageError, match="pixels, more than"):
            decode_image(encoded(picture(), format), max_pixels=100)
    assert not loads


def test_a_tiff_with_fewer_pixels_than_it_says() -> None:
    tags = {256: 1000, 257: 1000, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1000, 279: 4}
    with pytest.raises(ImageError) as error:
        decode_image(_tiff(tags, b"\1\2\3\4"))
    assert error.value.reason == "truncated_image"
    with pytest.raises(ImageError) as error:
        decode_image(_tiff({**tags, 259: 5}, b"\1\2\3\4"))
    assert error.value.reason == "decode_error"


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_bombs_in_the_texts_of_a_png_are_left_unread(kind: bytes) -> None:
    plain = encoded(picture(), "PNG")
    packed = zlib.compress(bytes(3 << 20))
    body = b"k\0" + (b"\1\0\0\0" if kind == b"iTXt" else b"\0") + packed
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    for at in (33, plain.index(b"IEND") - 4) if kind != b"iCCP" else (33,):
        assert np.array_equal(pixels(plain[:at] + chunk + plain[at:]), np.asarray(picture()))
    with pytest.raises(ImageError, match="truncated|decoded|early"):
        decode_image(plain[:33] + chunk + plain[33:-100])


@pytest.mark.parametrize("orientation", [1, 6])
def test_fit_decodes_jpegs_smaller_and_keeps_the_size_they_had(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture((320, 200)), "JPEG", quality=95, exif=exif)
    whole = decode_image(data)
    for fit, size in (
        (101, (320, 200)),
        (100, (160, 100)),
        (51, (160, 100)),
        (50, (80, 50)),
        (25, (40, 25)),
        (1, (40, 25)),
    ):
        small = decode_image(data, fit=fit)
        assert (small.width, small.height) == (whole.width, whole.height)
        assert small.image.size == (size if orientation == 1 else size[::-1]) and min(small.image.size) >= min(fit, 200)
        close = np.asarray(whole.image.resize(small.image.size, Image.Resampling.BOX)).astype(int)
        assert np.abs(close - np.asarray(small.image)).mean() < 2
    assert np.array_equal(np.asarray(decode_image(data, fit=101).image), np.asarray(whole.image))
    png = encoded(picture((320, 200)), "PNG")
    assert decode_image(png, fit=10).image.size == (320, 200)
    with pytest.raises(UsageError, match="fit = 0"):
        decode_image(png, fit=0)


@pytest.mark.parametrize(
    ("data", "reason", "words"),
    [
        (b"", "not_an_image", "0 bytes"),
        (b"\n  <!DOCTYPE html><html>404</html>", "not_an_image", "web page"),
        (b"\x00" * 500, "not_an_image", "begin with"),
        (b"just text", "not_an_image", "just text"),
        (encoded(picture(), "ICO"), "unsupported_format", "ICO"),
        (b"BM is how this text begins, and no bitmap", "not_an_image", "BM is how"),
        (b"GIF89 is a text as well", "not_an_image", "GIF89"),
        (b'<?xml version="1.0"?><svg xmlns="x"/>', "unsupported_format", "SVG"),
        (b"\x00\x00\x00\x20ftypavif\x00", "unsupported_format", "AVIF"),
        (b"\x00\x00\x00\x20ftypheic\x00", "unsupported_format", "HEIC"),
        (b"RIFF\x0f\x00\x00\x00WEBPVP9 rubbish", "decode_error", "WebP"),
        (b"\x89PNG\r\n\x1a\n" + b"rubbish!" * 20 + b"IEND", "decode_error", "PNG"),
        (b"\xff\xd8\xff\xe0" + b"rubbish!" * 20 + b"\xff\xd9", "decode_error", "JPEG"),
        (b"GIF89a" + b"\1\0" * 2 + b"rubbish!" * 20 + b";", "decode_error", "GIF"),
        (b"BM" + struct.pack("<IIII", 60, 0, 54, 40) + b"\1\0\0\0" * 20, "decode_error", "BMP"),
        (_tiff({256: 1, 257: 1, 258: 7, 262: 1, 273: 8}), "decode_error", "TIFF"),
    ],
)
def test_what_is_no_image(data: bytes, reason: str, words: str) -> None:
    with pytest.raises(ImageError) as error:
        decode_image(data)
    assert error.value.reason == reason and words in str(error.value)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "tiff_lzw", "jpeg"])
def test_cut_images_are_called_truncated(format: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = encoded(noise, format) if format.isupper() else encoded(noise, "TIFF", compression=format)
    ImageFile.LOAD_TRUNCATED_IMAGES = True  # as some libraries leave it
    try:
        for share in (0.05, 0.3, 0.6, 0.9, 0.98):
            with pytest.raises(ImageError) as error:
                decode_image(data[: int(len(data) * share)])
            assert error.value.reason == "truncated_image", share
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = False


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "tiff_lzw"])
def test_damage_is_an_image_error_or_an_image(format: str) -> None:
    whole = encoded(picture(), format) if format.isupper() else encoded(picture(), "TIFF", compression=format)

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


def test_a_thread_that_hangs_while_it_reads_a_header_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    lock = threading.Lock()
    monkeypatch.setattr(decode, "_HUSH", lock)
    monkeypatch.setattr(decode, "_HUSH_SECONDS", 0.01)
    lock.acquire()
    for _ in range(2):
        assert decode_image(encoded(picture(), "JPEG")).width == SIZE[0]
    assert decode._HUSH is not lock and not decode._HUSH.locked()


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
