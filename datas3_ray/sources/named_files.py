"""Rows that name files of a folder, as the items of a source: their ids, what is missing, and what is named twice."""

from __future__ import annotations

import json
import logging
import posixpath
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from operator import attrgetter
from typing import Any, NamedTuple

from datas3_ray.errors import UsageError
from datas3_ray.sources.base import Item, SampleError
from datas3_ray.sources.below import below, stem
from datas3_ray.sources.files import BAD, is_image, mark, unique_keys
from datas3_ray.sources.storage import File, Options, iter_folder

logger = logging.getLogger(__name__)

_ENCODE = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


class NamedFile(NamedTuple):
    """A row: the ``table`` it stands in and its ``number`` there, the file it names below ``folder``, and what it says.

    ``record`` and ``extra`` are what a :class:`~datas3_ray.sources.base.Sample` has of them; ``fault`` says what is
    wrong with the row, which is rejected for it. ``part``, with a slash at its end, is put before the file's name in
    the id where several folders make one data set.
    """

    table: str
    number: int | str
    folder: str
    name: Any
    record: dict[str, Any]
    extra: dict[str, Any]
    fault: str = ""
    part: str = ""


def whole_number(value: Any) -> int | None:
    """A whole number that a table or JSON has as number or text, of 64 bits; None for an empty cell.

    ``12.0`` is what pandas makes of 12 beside empty cells. Raises ValueError for anything else.

    >>> whole_number("12"), whole_number("12.0"), whole_number(12.0), whole_number(""), whole_number(None)
    (12, 12, 12, None, None)
    """
    if value is None or value == "":
        return None
    if isinstance(value, str):
        if len(value) < 19 and value.isdecimal():
            return int(value)
        digits = value.removesuffix(".0")
        if digits.lstrip("+-").isdecimal() and len(digits) <= 20:
            value = int(digits)
    elif isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not -(2**63) <= value < 2**63:
        raise ValueError("is no whole number")
    return value


def list_images(folder: str, storage_options: Options, what: str) -> dict[str, File]:
    """Every image below a folder by its uri; errors are those of :func:`iter_folder`."""
    return {file.uri: file for file in iter_folder(folder, storage_options, what) if is_image(file.uri)}


class NamedFiles:
    """Gathers rows, and makes the items of them.

    ``start`` is what every id begins with. ``listing`` has the images that are there, each of which is taken out when a
    row names it; without one the files are not asked for: their sizes are 0, and a change of one is not noticed.
    """

    def __init__(self, what: str, start: str, listing: dict[str, File] | None) -> None:
        self._what, self._start, self._listing = what, start, listing
        self._items: list[Item] = []
        self._there = 0
        self._folders: dict[str, str] = {}  # with the first file that is named in each

    def add(self, row: NamedFile) -> None:
        """Takes a row as one item; one whose file name or content is wrong becomes a Reject when it is read."""
        uri, fault = "", row.fault
        if row.name is not None or not fault:
            try:
                uri = below(row.folder, row.name)
            except SampleError as error:
                fault = fault or f"row {row.number} of {row.table!r}: {error.message}"
        members: dict[str, Any] = {"json": row.record, "extra": row.extra}
        if fault:
            members[BAD] = ["bad_record", fault]
        text = _ENCODE(members)
        if not uri:
            name = f"{stem(posixpath.basename(row.table))}/row-{row.number}"
            self._items.append(Item(self._start + row.part + name, row.table, 0, mark(text), text))
            return
        self._folders.setdefault(row.folder, uri)
        file = self._listing.pop(uri, None) if self._listing is not None else None
        self._there += file is not None
        size, written = (file.size, file.fingerprint) if file else (0, "missing")
        key = row.part + stem(uri[len(row.folder) + 1 :])
        self._items.append(Item(self._start + key, uri, size, mark(written, text), text))

    def leave_out(self, folder: str, name: Any) -> None:
        """Notes that a row that is not wanted names a file."""
        if self._listing is not None and isinstance(name, str):
            self._listing.pop(f"{folder}/{name}", None)

    def items(self) -> list[Item]:
        """An item for every row, sorted by id.

        Raises UsageError where there are no rows, none of the files is there, or two rows name one file.
        """
        items, self._items = self._items, []
        if not items:
            raise UsageError(f"{self._what}: there are no rows.")
        items.sort(key=attrgetter("id"))
        if self._folders and not self._there and self._listing is not None:
            folders = ", ".join(map(repr, self._folders))
            example = next(iter(self._folders.values()))
            raise UsageError(
                f"{self._what}: none of the {len(items)} images is below {folders}, such as {example!r}; correct the "
                "path."
            )
        if self._listing:
            logger.info("%s: %d images in the folders are named by no row", self._what, len(self._listing))
        if any(one.id == other.id for one, other in pairwise(items)):
            items = sorted(self._apart(items), key=attrgetter("id"))
        return items

    def _apart(self, items: list[Item]) -> Iterator[Item]:
        """The items with the extensions of their files in the ids that would be the same without them."""
        paths = [item.id + posixpath.splitext(item.uri)[1] for item in items]
        first: dict[str, Item] = {}
        for path, item in zip(paths, items, strict=True):
            twin = first.setdefault(path, item)
            if twin is not item:
                both = (
                    f"the file {item.uri!r}"
                    if twin.uri == item.uri
                    else f"{twin.uri!r} and {item.uri!r}, which have one id"
                )
                raise UsageError(f"{self._what}: two rows name {both}; an image belongs to one row: remove one.")
        for item, key in zip(items, unique_keys(paths, stem), strict=True):
            yield replace(item, id=key)
