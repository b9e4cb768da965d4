"""Thumbnails: the encoded bytes of a few rows read by range, decoded, shrunk, and shared between galleries.

A row whose picture cannot be shown keeps its place with the reason; nothing that is wrong with one picture stops the
report.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from datas3_ray.lake import Table
from datas3_ray.lake.storage import public_text
from datas3_ray.report.formats import shorten
from datas3_ray.sources.base import SampleError
from datas3_ray.sources.fetch import fetch_images

EDGE = 112
"""Longest side of a thumbnail, in pixels."""
QUALITY = 80
BATCH_BYTES = 32 << 20
"""Encoded bytes held at a time."""
MAX_IMAGE_BYTES = 64 << 20
IDS_PER_READ = 500
_PLACES = pa.schema(
    [("uri", pa.string()), ("offset", pa.int64()), ("length", pa.int64()), ("image", pa.large_binary())]
)


@dataclass(frozen=True)
class Picture:
    """One row of an image table as galleries show it: a thumbnail's key, or the reason why there is none."""

    id: str
    label: str = ""
    caption: str = ""
    thumb: str | None = None
    reason: str = ""

    @property
    def alt(self) -> str:
        """The text alternative: label and id."""
        return f"{self.label}: {self.id}" if self.label else self.id


@dataclass(frozen=True)
class Thumb:
    """A small encoded picture and its size in pixels."""

    data_uri: str
    width: int
    height: int


@dataclass
class Album:
    """Every thumbnail of a page, each stored once however many galleries show it."""

    budget: int = 5 << 20
    """Characters of data URIs after which further thumbnails are left out, with that as the reason."""
    thumbs: dict[str, Thumb] = field(default_factory=dict)
    used: int = 0
    _keys: dict[str, str] = field(default_factory=dict)
    _pictures: dict[tuple[str, str], Picture] = field(default_factory=dict)

    def load(self, table: Table, ids: Iterable[str]) -> None:
        """Read the rows of ``table`` named by ``ids`` and their thumbnails; those read before are not read again."""
        new = [i for i in dict.fromkeys(ids) if (table.name, i) not in self._pictures]
        rows = {row["id"]: row for row in _rows(table, new)}
        # In the order asked, so that where the budget ends does not depend on how the table is stored.
        found = [rows[i] for i in new if i in rows]
        for row, data, reason in _encoded(table, found):
            self._pictures[table.name, row["id"]] = self._picture(row, data, reason)

    def picture(self, table: str, id: str) -> Picture:
        """The picture of one row, whose ids were loaded before."""
        return self._pictures.get((table, id)) or Picture(id, reason="no longer in the table")

    def shape(self) -> str:
        """What most thumbnails are: ``wide``, ``tall``, or an empty string for about square."""
        ratios = sorted(thumb.width / thumb.height for thumb in self.thumbs.values())
        middle = ratios[len(ratios) // 2] if ratios else 1.0
        return "wide" if middle > 1.15 else "tall" if middle < 0.87 else ""

    def _picture(self, row: dict[str, Any], data: bytes | None, reason: str) -> Picture:
        thumb = None
        if data is not None:
            try:
                thumb, reason = self._store(shrink(data))
            except Exception as error:  # Decoders raise anything; a gallery shows the reason and goes on.
                reason = f"cannot be decoded: {_message(error)}"
        label, caption = (str(row.get(name) or "") for name in ("label", "caption"))
        return Picture(row["id"], label, caption, thumb, reason)

    def _store(self, thumb: Thumb) -> tuple[str | None, str]:
        digest = hashlib.blake2b(thumb.data_uri.encode(), digest_size=16).hexdigest()
        if digest not in self._keys:
            if self.used + len(thumb.data_uri) > self.budget:
                return None, "left out to keep the page small"
            self._keys[digest] = f"t{len(self._keys)}"
            self.thumbs[self._keys[digest]] = thumb
            self.used += len(thumb.data_uri)
        return self._keys[digest], ""


def shrink(data: bytes, edge: int = EDGE) -> Thumb:
    """Encoded image bytes to a WebP thumbnail of at most ``edge`` pixels a side; small images are not enlarged."""
    from PIL import Image

    from datas3_ray.sources.decode import decode_image

    image = decode_image(data).image
    image.thumbnail((edge, edge), Image.Resampling.LANCZOS, reducing_gap=2.0)
    out = io.BytesIO()
    image.convert("RGB").save(out, "WEBP", quality=QUALITY, method=4)
    return Thumb("data:image/webp;base64," + base64.b64encode(out.getvalue()).decode(), *image.size)


def _rows(table: Table, ids: list[str]) -> Iterator[dict[str, Any]]:
    """Rows by id, without vectors and without stored bytes."""
    columns = [n for n in ("id", "uri", "offset", "length", "label", "caption") if n in table.schema.names]
    for start in range(0, len(ids), IDS_PER_READ):
        yield from table.to_arrow(columns, filter=_id_in(ids[start : start + IDS_PER_READ])).to_pylist()


def _id_in(ids: list[str]) -> str:
    quoted = ", ".join("'" + i.replace("'", "''") + "'" for i in ids)
    return f"id IN ({quoted})"


def _encoded(table: Table, rows: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], bytes | None, str]]:
    """(row, encoded bytes or None, reason) for every row, in order, a few megabytes at a time."""
    stored = "image" in table.schema.names and _is_binary(table.schema.field("image").type)
    for batch in _batches(rows):
        kept = _stored_bytes(table, batch) if stored else {}
        places = pa.Table.from_pylist([{**row, "image": kept.get(row["id"])} for row in batch], _PLACES)
        for row, data in zip(batch, fetch_images(places, max_bytes=MAX_IMAGE_BYTES), strict=True):
            yield (row, data, "") if isinstance(data, bytes) else (row, None, _reason(row, data))


def _reason(row: dict[str, Any], error: SampleError) -> str:
    if not row.get("uri"):
        return "added as vectors: no picture"
    if error.reason == "too_large":
        length = row.get("length")
        return f"{length / 2**20:.0f} MiB is too large for a thumbnail" if length else "too large for a thumbnail"
    return shorten(f"cannot be shown: {public_text(error.message)}", 200)


def _batches(rows: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += row.get("length") or (1 << 20)
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _stored_bytes(table: Table, batch: list[dict[str, Any]]) -> dict[str, bytes | None]:
    found = table.to_arrow(["id", "image"], filter=_id_in([row["id"] for row in batch])).to_pylist()
    return {row["id"]: row["image"] for row in found}


def _message(error: BaseException) -> str:
    text = str(error).strip()
    return shorten(text.splitlines()[0] if text else type(error).__name__, 120)
