"""Encoded bytes to upright RGB pixels, or to the reason why not."""

from __future__ import annotations

import struct
import threading
import warnings
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImageFile, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from datas3_ray.sources.base import SampleError

MAX_PIXELS = 178_956_970 // 2
"""A quarter of a gigabyte of RGB; the same limit from which Pillow warns."""

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
_OTHER_FORMATS = (
    (0, b"GIF8", "GIF"),
    (0, b"BM", "BMP"),
    (0, b"II*\x00", "TIFF"),
    (0, b"MM\x00*", "TIFF"),
    (0, b"II+\x00", "BigTIFF"),
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
    (4, b"ftypmif1", "HEIF"),
)
# Pillow warns while it reads headers and EXIF, and Python's warning filters belong to the whole process, so that only
# one thread at a time may hush them. Decoding itself, where the time goes, is outside and runs in parallel.
_HUSH = threading.Lock()


class ImageError(SampleError):
    """The bytes cannot become pixels; ``reason`` is a key of REASONS."""


@dataclass(frozen=True)
class DecodedImage:
    """An upright RGB image, with its width and height in pixels."""

    image: Image.Image
    width: int
    height: int


def decode_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> DecodedImage:
    """Decode JPEG, PNG or WebP bytes to 8-bit RGB, turned upright as EXIF says.

    Transparency is laid on white, 16-bit grey is scaled to 8 bits, CMYK and palettes are converted; of an animation
    the first frame is taken. Safe to call from several threads.

    Raises ImageError with the reason not_an_image, unsupported_format, too_many_pixels (known from the header, before
    anything is decoded), truncated_image or decode_error.

    >>> buffer = BytesIO()
    >>> Image.new("LA", (3, 2), (0, 0)).save(buffer, "PNG")
    >>> decoded = decode_image(buffer.getvalue())
    >>> decoded.width, decoded.height, decoded.image.getpixel((0, 0))
    (3, 2, (255, 255, 255))
    """
    kind = _format(data)
    try:
        image = _open(data, kind, max_pixels)
        _load(image)
        orientation = _orientation(image)
        rgb = _to_rgb(image)
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise every kind there is on damaged data
        raise _failure(data, kind, error) from None
    if orientation in _UPRIGHT:
        rgb = rgb.transpose(_UPRIGHT[orientation])
    return DecodedImage(rgb, rgb.width, rgb.height)


def _format(data: bytes) -> str:
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WebP"
    for at, magic, name in _OTHER_FORMATS:
        if data.startswith(magic, at):
            raise ImageError("unsupported_format", f"the image is {name}; JPEG, PNG and WebP are read")
    start = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"<svg" in start:
        raise ImageError("unsupported_format", "the image is SVG; JPEG, PNG and WebP are read")
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        raise ImageError("not_an_image", "the bytes are a web page")
    raise ImageError("not_an_image", f"the {len(data)} bytes begin with {data[:16]!r}, which is no image")


def _open(data: bytes, kind: str, max_pixels: int) -> ImageFile.ImageFile:
    """The image with its header read. The plugins are called directly, past ``Image.open``'s warnings about size."""
    if kind == "WebP":
        _check_pixels(_webp_size(data), max_pixels)  # its plugin allocates the whole canvas when it opens
    with _HUSH, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image: Any
        if kind == "JPEG":
            image = JpegImagePlugin.jpeg_factory(BytesIO(data))
        elif kind == "PNG":
            image = PngImagePlugin.PngImageFile(BytesIO(data))
        else:
            image = WebPImagePlugin.WebPImageFile(BytesIO(data))
    _check_pixels(image.size, max_pixels)
    opened: ImageFile.ImageFile = image
    return opened


def _check_pixels(size: tuple[int, int], most: int) -> None:
    width, height = size
    if width * height > most:
        raise ImageError("too_many_pixels", f"the image has {width} x {height} pixels, more than {most}")


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
    with _HUSH, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return int(image.getexif().get(_ORIENTATION, 1))
        except Exception:  # damaged EXIF says nothing, and the pixels are good
            return 1


def _failure(data: bytes, kind: str, error: Exception) -> ImageError:
    if _is_cut(data, kind) or "file is truncated" in str(error):
        return ImageError("truncated_image", f"the {kind} ends too early: {error}")
    return ImageError("decode_error", f"the {kind} cannot be decoded: {type(error).__name__}: {error}")


def _is_cut(data: bytes, kind: str) -> bool:
    if kind == "JPEG":
        return b"\xff\xd9" not in data[-64:]
    if kind == "PNG":
        return b"IEND" not in data[-64:]
    return len(data) < 8 + int.from_bytes(data[4:8], "little")


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
    """Grey of 16 bits scaled to 8; Pillow's own conversion cuts every value above 255 off."""
    grey = np.asarray(image).astype(np.uint32)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[grey == transparent] = 65535
    return Image.fromarray(((grey * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
