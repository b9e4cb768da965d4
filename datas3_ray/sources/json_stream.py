"""Lists of objects in JSON files, one object at a time: annotation files have millions of them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from datas3_ray.errors import UsageError
from datas3_ray.sources.remote import Options, in_words
from datas3_ray.sources.storage import open_file


def read_list(
    uri: str, key: str | None = None, storage_options: Options = None, what: str = "json", optional: bool = False
) -> Iterator[Any]:
    """The entries of the list under the top-level ``key`` of a file, or of a file that is itself a list, in its order.

    The file is read as a stream: memory holds one entry. Whole numbers are ints, others floats. Raises UsageError for
    a file that is missing, cannot be read, is no JSON, or has no such list; what comes before a fault is yielded. A
    list that is ``optional`` may be missing, but nothing else may be in its place.
    """
    import ijson

    with _opened(uri, storage_options, what) as file:
        some = False
        for entry in ijson.items(file, "item" if key is None else f"{key}.item", use_float=True):
            some = True
            yield entry
        if not some:
            file.seek(0)
            _check_list(file, uri, key, optional)


def read_value(uri: str, key: str, storage_options: Options = None, what: str = "json") -> Any:
    """The value under the top-level ``key`` of a file that is one object, such as a small mapping before or behind
    long lists; None where there is none. Errors are those of :func:`read_list`.
    """
    import ijson

    with _opened(uri, storage_options, what) as file:
        return next(ijson.items(file, key, use_float=True), None)


def read_pairs(uri: str, storage_options: Options = None, what: str = "json") -> Iterator[tuple[str, Any]]:
    """The keys and values of a file that is one object, in its order; errors are those of :func:`read_list`."""
    import ijson

    with _opened(uri, storage_options, what) as file:
        if next(ijson.parse(file))[1] != "start_map":
            raise UsageError(f"{uri!r} is no object of keys and values.")
        file.seek(0)
        yield from ijson.kvitems(file, "", use_float=True)


@contextmanager
def _opened(uri: str, storage_options: Options, what: str) -> Iterator[Any]:
    """A buffered file; whatever goes wrong while it is read is told in one sentence."""
    import ijson

    try:
        raw: Any = open_file(uri, storage_options)
        with io.BufferedReader(raw, 1 << 20) as file:
            yield file
    except UsageError as error:
        raise UsageError(f"{what}: {error}") from None
    except FileNotFoundError:
        raise UsageError(f"{what}: {uri!r} is not there.") from None
    except (ijson.JSONError, UnicodeDecodeError) as error:
        raise UsageError(f"{what}: {uri!r} is not JSON, or breaks off: {str(error).splitlines()[0]}.") from None
    except Exception as error:  # object stores raise their own kinds
        raise UsageError(f"{what}: {uri!r} cannot be read: {in_words(error, storage_options)}.") from None


def _check_list(file: Any, uri: str, key: str | None, optional: bool) -> None:
    """An empty list is fine; a missing one, unless it is optional, or something else in its place, is not."""
    import ijson

    whole = None
    for prefix, event, _ in ijson.parse(file):
        whole = whole or event
        if prefix == (key or "") and event != "map_key":
            if event == "start_array":
                return
            break
    else:
        if optional and whole == "start_map":
            return
    raise UsageError(f"{uri!r} is no list." if key is None else f"{uri!r} has no list {key!r}.")
