"""Rows of CSV, TSV, JSON Lines and Parquet files as mappings of plain JSON values."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import IO, Any

from datas3_ray.errors import UsageError
from datas3_ray.sources.arrow_rows import is_binary, records
from datas3_ray.sources.arrow_tables import ParquetTable, TableError
from datas3_ray.sources.base import SampleError
from datas3_ray.sources.gunzip import GunzipFile, GzipError
from datas3_ray.sources.remote import Options, in_words
from datas3_ray.sources.storage import open_file

KINDS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
"""Extensions of the files that are read; those of text may have .gz behind them."""
_ROWS = 4096

Row = dict[str, Any] | SampleError


def read_records(uri: str, storage_options: Options = None, what: str = "manifest") -> Iterator[tuple[int, Row]]:
    """The rows of a file with their numbers: the line a row begins at, or in Parquet its place, counted from 1.

    An empty cell of a CSV is null. A row that cannot be read by itself is a SampleError in its place. Raises UsageError
    for a file that is none of the formats, cannot be read, or breaks off.
    """
    kind = kind_of(uri)
    try:
        if kind == ".parquet":
            yield from _parquet_rows(uri, storage_options)
        elif kind in (".csv", ".tsv"):
            yield from _csv_rows(uri, storage_options, "," if kind == ".csv" else "\t")
        elif kind:
            yield from _json_rows(uri, storage_options)
        else:
            raise UsageError(f"{uri!r} is none of the formats that are read: {', '.join(KINDS)}.")
    except UsageError as error:
        raise UsageError(f"{what}: {error}") from None
    except FileNotFoundError:
        raise UsageError(f"{what}: {uri!r} is not there.") from None
    except (TableError, GzipError) as error:
        raise UsageError(f"{what}: {uri!r} cannot be read: {error}.") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{what}: {uri!r} is not UTF-8: {error}; save it as UTF-8.") from None
    except Exception as error:  # object stores raise their own kinds
        raise UsageError(f"{what}: {uri!r} cannot be read: {in_words(error, storage_options)}.") from None


def kind_of(uri: str) -> str:
    """Which of KINDS a file is by its name, or an empty text.

    >>> kind_of("a.CSV"), kind_of("s3://bucket/a.jsonl.gz"), kind_of("a.txt"), kind_of("https://host/a.csv?key=1")
    ('.csv', '.jsonl', '', '.csv')
    """
    name = uri.partition("?")[0].lower() if uri.startswith(("http://", "https://")) else uri.lower()
    return next((kind for kind in KINDS if name.removesuffix(".gz").endswith(kind)), "")


def _text(uri: str, storage_options: Options) -> IO[str]:
    file: Any = open_file(uri, storage_options)
    if uri.partition("?")[0].lower().endswith(".gz"):
        file = GunzipFile(file)
    return io.TextIOWrapper(io.BufferedReader(file, 1 << 20), encoding="utf-8-sig", newline="")


def _csv_rows(uri: str, storage_options: Options, delimiter: str) -> Iterator[tuple[int, Row]]:
    with _text(uri, storage_options) as file:
        # Strict: a quote that is not closed would take every row after it into one cell.
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        line = 0
        try:
            names = next(reader, [])
            _check_names(names, uri)
            line = reader.line_num
            for cells in reader:
                begun, line = line + 1, reader.line_num
                if not cells:
                    continue
                if len(cells) > len(names):
                    message = f"line {begun} of {uri!r} has {len(cells)} cells, the first line {len(names)}"
                    yield begun, SampleError("bad_record", message)
                else:
                    yield begun, {name: cell or None for name, cell in zip(names, cells, strict=False)}
        except csv.Error as error:
            why = "a quote is not closed" if "end of data" in str(error) else error
            raise UsageError(
                f"{uri!r}: the row that begins at line {line + 1} is no CSV: {why}; write a quote inside a quoted cell "
                "twice."
            ) from None


def _check_names(names: list[str], uri: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if not names:
        raise UsageError(f"{uri!r} is empty; its first line has to name the columns.")
    if twice:
        raise UsageError(f"{uri!r}: two columns are named {twice[0]!r}; rename one.")


def _json_rows(uri: str, storage_options: Options) -> Iterator[tuple[int, Row]]:
    with _text(uri, storage_options) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line, parse_constant=lambda _: None)
            except (ValueError, RecursionError) as error:
                yield number, SampleError("bad_record", f"line {number} of {uri!r} is not JSON: {error}")
                continue
            if not isinstance(row, dict):
                message = f"line {number} of {uri!r} is no object but {type(row).__name__}"
                yield number, SampleError("bad_record", message)
                continue
            yield number, row


def _parquet_rows(uri: str, storage_options: Options) -> Iterator[tuple[int, Row]]:
    number = 0
    with ParquetTable(uri, storage_options) as table:
        names = [field.name for field in table.schema if not is_binary(field.type)]
        for batch in table.batches(names, _ROWS):
            for row in records(batch, names):
                number += 1
                yield number, row
