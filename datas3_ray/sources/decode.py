"""Encoded bytes to upright RGB pixels, or to the reason why not."""

from __future__ import annotations

import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    TiffTags,
    WebPImagePlugin,
)

from datas3_ray.errors import UsageError
from datas3_ray.sources.base import SampleError

MAX_PIXELS = 178_956_970 // 2
"""A quarter of a gigabyte of RGB; the same limit from which Pillow warns. GIF and TIFF are never read beyond it."""

FORMATS = ("JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF")
"""The formats that are read."""

_READ = "JPEG, PNG, WebP, GIF, BMP and TIFF are read"
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TIFF = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")  # classic and BigTIFF, in either byte order
_TIFF_PREVIEW, _TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_TILE, _TIFF_DNG = 254, 258, 262, (322, 323), 50706
_TIFF_DATA = ((273, 279), (324, 325))  # offsets and lengths of strips, and of tiles
_TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)  # lengths of the headers there are; "BM" alone may begin any text
_PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
_OTHER_FORMATS = (
    (0, b"II*\x00", "Canon's raw format"),  # looked for after TIFF, which says the same in its first bytes
    (0, b"8BPS", "Photoshop"),
    (0, b"\x00\x00\x01\x00", "ICO"),
    (0, b"%PDF", "PDF"),
    (0, b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (4, b"ftypavif", "AVIF"),
    (4, b"ftypavis", "AVIF"),
    (4, b"ftypheic", "HEIC"),
    (4, b"ftypheix", "HEIC"),
    (4, b"ftyphevc", "HEIC"),
    (4, b"ftypmif1", "HEIF"),
)
# Pillow warns while it reads headers and EXIF, and Python's warning filters belong to the whole process, so that only
# one thread at a time may hush them. Decoding itself, where the time goes, is outside and runs in parallel.
_HUSH = threading.Lock()
_HUSH_SECONDS = 1.0  # reading a header takes a thousandth of it


class ImageError(SampleError):
    """The bytes cannot become pixels; ``reason`` is a key of REASONS."""


@dataclass(frozen=True)
class DecodedImage:
    """An upright RGB image, with the width and height in pixels that it has, or had before it was scaled down."""

    image: Image.Image
    width: int
    height: int


def decode_image(data: bytes, *, max_pixels: int = MAX_PIXELS, fit: int | None = None) -> DecodedImage:
    """Decode JPEG, PNG, WebP, GIF, BMP or TIFF bytes to 8-bit RGB, turned upright as EXIF says.

    Transparency is laid on white, grey of 16 bits is scaled to 8, CMYK and palettes are converted; of an animation the
    first frame is taken, of a TIFF the first page. Safe to call from several threads.

    Args:
        data: the encoded image.
        max_pixels: what the header may promise at most, width x height.
        fit: None decodes every pixel exactly. With a side in pixels, a JPEG that has at least twice as many in both
            directions is decoded at 1/2, 1/4 or 1/8 of its size, both sides at least ``fit`` still, which is faster;
            ``width`` and ``height`` stay those of the whole image.

    Raises:
        ImageError: with the reason not_an_image, unsupported_format, too_many_pixels (known from the header, before
            anything is decoded), truncated_image or decode_error.
        UsageError: ``fit`` is less than 1.

    >>> buffer = BytesIO()
    >>> Image.new("LA", (3, 2), (0, 0)).save(buffer, "PNG")
    >>> decoded = decode_image(buffer.getvalue())
    >>> decoded.width, decoded.height, decoded.image.getpixel((0, 0))
    (3, 2, (255, 255, 255))
    """
    if fit is not None and fit < 1:
        raise UsageError(f"fit = {fit!r} is not allowed: it is a side in pixels, at least 1, or None.")
    kind = _format(data)
    image: ImageFile.ImageFile | None = None
    try:
        image = _open(data, kind, max_pixels)
        return _decode(image, kind, fit)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:  # the frame of a GIF that is bigger than its canvas
        raise ImageError("too_many_pixels", f"the {kind} has too many pixels: {error}") from None
    except Exception as error:  # Pillow's decoders raise every kind there is on damaged data
        if kind == "PNG" and "MAX_TEXT" in str(error):
            bare = _png_without_texts(data)
            if len(bare) < len(data):
                return decode_image(bare, max_pixels=max_pixels, fit=fit)
        raise _failure(data, kind, image, error) from None


def _decode(image: ImageFile.ImageFile, kind: str, fit: int | None) -> DecodedImage:
    """Pixels of an opened image."""
    width, height = image.size
    if fit is not None and kind == "JPEG":
        image.draft(None, (fit, fit))
    _load(image)
    orientation = 1 if kind == "TIFF" else _orientation(image)  # Pillow turns TIFFs upright itself
    rgb = _to_rgb(image)
    if orientation in _UPRIGHT:
        rgb = rgb.transpose(_UPRIGHT[orientation])
        if orientation >= 5:
            width, height = height, width
    return DecodedImage(rgb, width, height)


def _format(data: bytes) -> str:
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WebP"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data.startswith(b"BM") and int.from_bytes(data[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    if data.startswith(_TIFF) and data[8:10] != b"CR":
        return "TIFF"
    for at, magic, name in _OTHER_FORMATS:
        if data.startswith(magic, at):
            raise ImageError("unsupported_format", f"the image is {name}; {_READ}")
    start = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"<svg" in start:
        raise ImageError("unsupported_format", f"the image is SVG; {_READ}")
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        raise ImageError("not_an_image", "the bytes are a web page")
    raise ImageError("not_an_image", f"the {len(data)} bytes begin with {data[:16]!r}, which is no image")


def _open(data: bytes, kind: str, max_pixels: int) -> ImageFile.ImageFile:
    """The image with its header read. The plugins are called directly, past ``Image.open``'s warnings about size."""
    if kind in ("GIF", "TIFF"):
        max_pixels = min(max_pixels, MAX_PIXELS)  # beyond it these two plugins warn while they decode
    if kind == "WebP":
        _check_pixels(_webp_size(data), max_pixels)  # its plugin allocates the whole canvas when it opens
    if kind == "GIF" and len(data) >= 10:
        _check_pixels(struct.unpack("<HH", data[6:10]), max_pixels)  # likewise, for some animations
    with _hushed():
        image = _plugin(kind)(BytesIO(data))
    _check_pixels(image.size, max_pixels)
    if kind == "TIFF":
        _check_tiff(image, max_pixels)
    return image


def _plugin(kind: str) -> Any:
    return {
        "JPEG": JpegImagePlugin.jpeg_factory,
        "PNG": PngImagePlugin.PngImageFile,
        "WebP": WebPImagePlugin.WebPImageFile,
        "GIF": GifImagePlugin.GifImageFile,
        "BMP": BmpImagePlugin.BmpImageFile,
        "TIFF": TiffImagePlugin.TiffImageFile,
    }[kind]


def _check_pixels(size: tuple[int, ...], most: int, what: str = "the image has") -> None:
    width, height = size
    if width * height > most:
        raise ImageError("too_many_pixels", f"{what} {width} x {height} pixels, more than {most}")


def _check_tiff(image: Any, max_pixels: int) -> None:
    """Refuse what would decode to something else than the picture, and tiles that are bigger than any picture."""
    tags = image.tag_v2
    if tags.get(_TIFF_PREVIEW, 0) & 1 or _TIFF_DNG in tags:
        raise ImageError("unsupported_format", f"the TIFF is a camera's raw file or begins with a preview; {_READ}")
    if image.mode in ("I", "F"):
        raise ImageError("unsupported_format", "the TIFF holds signed, 32-bit or float numbers, not colours")
    if all(tag in tags for tag in _TIFF_TILE):
        _check_pixels((tags[_TIFF_TILE[0]], tags[_TIFF_TILE[1]]), max_pixels, "a tile of the image has")
    with _hushed():  # Pillow reads the EXIF groups when the pixels are there; now they are read, and it is silent
        exif = image.getexif()
        for group in TiffTags.TAGS_V2_GROUPS:
            if group in exif:
                exif.get_ifd(group)


@contextmanager
def _hushed() -> Iterator[None]:
    """No warnings in this block. A thread that hangs in its own block keeps its lock, and the others take a new one."""
    global _HUSH
    while not (lock := _HUSH).acquire(timeout=_HUSH_SECONDS):
        if _HUSH is lock:
            _HUSH = threading.Lock()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        lock.release()


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height from the header of the first chunk: VP8X (extended), VP8L (lossless) or VP8 (lossy)."""
    chunk = data[12:16]
    if chunk == b"VP8X" and len(data) >= 30:
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if chunk == b"VP8L" and len(data) >= 25:
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if chunk == b"VP8 " and len(data) >= 30:
        width, height = struct.unpack("<HH", data[26:30])
        return width & 0x3FFF, height & 0x3FFF
    raise OSError("the first chunk of the WebP is cut off or unknown")


def _load(image: ImageFile.ImageFile) -> None:
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # other libraries turn it on for the whole process
    image.load()


def _orientation(image: Image.Image) -> int:
    with _hushed():
        try:
            return int(image.getexif().get(_ORIENTATION, 1))
        except Exception:  # damaged EXIF says nothing, and the pixels are good
            return 1


def _png_without_texts(data: bytes) -> bytes:
    """The PNG without its texts and colour profile: compressed ones may be bombs, and the pixels do not need them."""
    kept, at = [data[:8]], 8
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] not in _PNG_TEXTS:
            kept.append(data[at:end])
        at = end
    return b"".join([*kept, data[at:]])


def _failure(data: bytes, kind: str, image: Any, error: Exception) -> ImageError:
    if _is_cut(data, kind, image) or "file is truncated" in str(error):
        return ImageError("truncated_image", f"the {kind} ends too early: {error}")
    return ImageError("decode_error", f"the {kind} cannot be decoded: {type(error).__name__}: {error}")


def _is_cut(data: bytes, kind: str, image: Any) -> bool:
    if kind == "JPEG":
        return b"\xff\xd9" not in data[-64:]
    if kind == "PNG":
        return b"IEND" not in data[-64:]
    if kind == "GIF":
        return not data.rstrip(b"\0").endswith(b";")
    if kind == "BMP":
        return len(data) < int.from_bytes(data[2:6], "little")
    if kind == "TIFF":
        return _tiff_is_cut(data, image)
    return len(data) < 8 + int.from_bytes(data[4:8], "little")


def _tiff_is_cut(data: bytes, image: Any) -> bool:
    """Whether the first directory, a value of it, or a strip or tile that it names lies beyond the end."""
    order = "<" if data.startswith(b"II") else ">"
    at, where, count = (8, "Q", "Q") if data[2:4] in (b"+\0", b"\0+") else (4, "I", "H")
    entry = struct.Struct(f"{order}HH{where}{where}")
    try:
        (directory,) = struct.unpack_from(order + where, data, at)
        (entries,) = struct.unpack_from(order + count, data, directory)
        for n in range(entries):
            _, kind, values, value = entry.unpack_from(data, directory + struct.calcsize(count) + n * entry.size)
            size = values * _TIFF_SIZES.get(kind, 0)
            if size > struct.calcsize(where) and value + size > len(data):
                return True
    except (struct.error, OverflowError):
        return True
    try:
        starts, sizes = next(names for names in _TIFF_DATA if names[0] in image.tag_v2)
        pieces = zip(image.tag_v2[starts], image.tag_v2[sizes], strict=False)
        return any(start + size > len(data) for start, size in pieces)
    except Exception:  # it could not even be opened, or its tags say nothing
        return False


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return _from_16_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        opaque = Image.new("RGB", image.size, (255, 255, 255))
        opaque.paste(image, mask=image.getchannel("A"))
        return opaque
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_16_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits (12 in some TIFFs) scaled to 8; Pillow's own conversion cuts every value above 255 off."""
    grey = np.asarray(image).astype(np.uint32)
    white = 65535
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        white = (1 << image.tag_v2.get(_TIFF_BITS, (16,))[0]) - 1
        if image.tag_v2.get(_TIFF_PHOTOMETRIC) == 0:  # zero is white, which Pillow minds in 8 bits only
            grey = white - grey
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[grey == transparent] = white
    return Image.fromarray(((grey * 255 + white // 2) // white).astype(np.uint8)).convert("RGB")
