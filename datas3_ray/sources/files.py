"""Reading the files of a FileSource: their bytes, and what the driver wrote down of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from datas3_ray.sources.base import BAD, Item, Reject, Sample, SampleError, Shard
from datas3_ray.sources.fetch import Found, Range, fetch
from datas3_ray.sources.remote import Options
from datas3_ray.sources.storage import IMAGES, PassingError

RANGE = "range"


def is_image(name: str) -> bool:
    """Whether a file's name has the extension of an image.

    >>> is_image("a/B.JPG"), is_image("a.jpg.txt")
    (True, False)
    """
    return name.rpartition(".")[2].lower() in IMAGES and "." in name


def members_text(
    record: dict[str, Any] | None = None,
    *,
    bad: SampleError | None = None,
    span: Range | None = None,
    **texts: str | None,
) -> str:
    """The members of an item: its record, its texts (``txt``, ``cls``), the range it is, or what is wrong with it.

    >>> members_text({"site": "A"}, cls="cat")
    '{"json":{"site":"A"},"cls":"cat"}'
    """
    members: dict[str, Any] = {} if record is None else {"json": record}
    members.update({name: text for name, text in texts.items() if text is not None})
    if span is not None and span.length is not None:
        members[RANGE] = [span.offset, span.length]
    if bad is not None:
        members[BAD] = [bad.reason, bad.message]
    return json.dumps(members, separators=(",", ":"), ensure_ascii=False)


def mark(*parts: object) -> str:
    """A short text that changes when one of the parts does.

    >>> mark("a", 1) == mark("a", 1), mark("a", 1) == mark("a", 2)
    (True, False)
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(f"{part}\0".encode("utf-8", "backslashreplace"))
    return digest.hexdigest()


def unique_keys(paths: Iterable[str], stem: Callable[[str], str]) -> list[str]:
    """The keys of files by their distinct paths: without the extension, unless another has the same key then.

    >>> unique_keys(["a/1.jpg", "a/2.jpg", "a/2.png"], lambda path: path.rpartition(".")[0])
    ['a/1', 'a/2.jpg', 'a/2.png']
    """
    whole = list(paths)
    keys = [stem(path) for path in whole]
    while len(set(keys)) < len(keys):
        counts: dict[str, int] = {}
        for key in keys:
            counts[key] = counts.get(key, 0) + 1
        keys = [path if counts[key] > 1 else key for path, key in zip(whole, keys, strict=True)]
    return keys


def read_items(
    shard: Shard, prefix: str, options_of: Callable[[str], Options], max_bytes: int
) -> Iterator[Sample | Reject]:
    """The samples of a shard's items in their order, and a Reject in the place of each that cannot be one.

    The key of a sample is its id without the ``prefix``. Where a store fails rather than a file, the rest of the shard
    is one Reject with the reason unreadable_shard, so that it is read again another time.
    """
    members = [json.loads(item.members) for item in shard.items]
    places = [_place(item, known) for item, known in zip(shard.items, members, strict=True)]
    images = fetch(places, options_of, max_bytes)
    for item, known, place, data in zip(shard.items, members, places, images, strict=True):
        key = item.id.removeprefix(f"{prefix}/")
        offset = place.offset if isinstance(place, Range) else 0
        if isinstance(data, PassingError):
            yield Reject(shard.uri, 0, "unreadable_shard", data.message, "")
            return
        if isinstance(data, SampleError):
            yield Reject(item.uri, offset, data.reason, data.message, key, item.id)
        elif not data:
            yield Reject(item.uri, offset, "empty_image", f"{item.uri!r} has no bytes", key, item.id)
        else:
            own = {name: known[name] for name in ("json", "txt", "cls") if name in known}
            yield Sample(item.id, key, item.uri, offset, len(data), data, own, known.get("extra", {}))


def _place(item: Item, members: dict[str, Any]) -> Range | Found:
    if BAD in members:
        return SampleError(*members[BAD])
    offset, length = members.get(RANGE, (0, None))
    return Range(item.uri, offset, length)
