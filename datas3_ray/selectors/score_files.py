"""Scores in files: an id and a number a row, in Parquet or CSV, read in pieces."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc

from datas3_ray.errors import UsageError, did_you_mean
from datas3_ray.selectors.scores import is_number
from datas3_ray.sources.storage import File, find_files, open_file

PIECE_ROWS = 1_000_000
_CSV = (".csv", ".csv.gz")
_BLOCK = 1 << 24
_NOBODY = pa.table({"id": pa.array([], pa.string()), "score": pa.array([], pa.float64())})


def score_files(pattern: str) -> list[File]:
    """The files that a pattern names, with what changes when their content does; a UsageError where it is none.

    A pattern is a path or a URI, with braces and globs; files end in .parquet, .csv or .csv.gz.
    """
    files = find_files([pattern], what="import_score")
    for file in files:
        if not file.uri.lower().endswith((".parquet", *_CSV)):
            raise UsageError(f"import_score: file '{file.uri}' must end in .parquet, .csv or .csv.gz.")
    return files


def check_columns(uri: str, id: str, score: str) -> pa.DataType:
    """The type of the scores, null where the file does not tell.

    Raises
    ------
    UsageError
        Unless the file has both columns, and numbers in the second as far as its schema tells.
    """
    schema = _schema(uri)
    for column in (id, score):
        if column not in schema.names:
            raise UsageError(
                f"import_score: '{uri}' has no column '{column}'; it has: {', '.join(schema.names)}."
                + did_you_mean(column, schema.names)
            )
        if schema.names.count(column) > 1:
            raise UsageError(f"import_score: '{uri}' has more than one column '{column}'.")
    kind = schema.field(score).type
    if not (is_number(kind) or pa.types.is_null(kind)):
        raise UsageError(f"import_score: column '{score}' of '{uri}' is {kind}; a column of numbers is needed.")
    return kind


def read_scores(uri: str, id: str, score: str) -> Iterator[pa.Table]:
    """Pieces of a file as tables of ``id`` (string) and ``score`` (float64, null or NaN where there is none)."""
    check_columns(uri, id, score)
    waiting: list[pa.Table] = []
    rows, given = 0, False
    for piece in _pieces(uri, id, score):
        missing = piece.column("id").null_count
        if missing:
            raise UsageError(f"import_score: '{uri}' has {missing} rows or more without an id in column '{id}'.")
        if pc.any(pc.match_substring(piece.column("id"), "\0")).as_py():
            raise UsageError(
                f"import_score: '{uri}' has an id with a NUL byte in column '{id}', which no row can have."
            )
        waiting.append(piece)
        rows += piece.num_rows
        if rows >= PIECE_ROWS:
            yield pa.concat_tables(waiting)
            waiting, rows, given = [], 0, True
    if waiting or not given:
        yield pa.concat_tables([_NOBODY, *waiting])


def _pieces(uri: str, id: str, score: str) -> Iterator[pa.Table]:
    with open_file(uri) as file:
        try:
            batches = _csv_batches(file, uri, id, score) if _is_csv(uri) else _parquet_batches(file, id, score)
            for batch in batches:
                columns = [batch.column(batch.schema.get_field_index(name)) for name in (id, score)]
                texts, values = columns[0].cast(pa.string()), columns[1].cast(pa.float64(), safe=False)
                yield pa.table({"id": texts, "score": values})
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
            raise UsageError(f"import_score: '{uri}' cannot be read: {str(error).splitlines()[0]}.") from None


def _is_csv(uri: str) -> bool:
    return uri.lower().endswith(_CSV)


def _parquet_batches(file: IO[bytes], id: str, score: str) -> Iterator[pa.RecordBatch]:
    import pyarrow.parquet as parquet

    yield from parquet.ParquetFile(file).iter_batches(PIECE_ROWS, columns=[id, score])


def _csv_batches(file: IO[bytes], uri: str, id: str, score: str) -> Iterator[pa.RecordBatch]:
    from pyarrow import csv

    # Ids such as 007 are texts, whatever they look like.
    convert = csv.ConvertOptions(include_columns=[id, score], column_types={id: pa.string(), score: pa.float64()})
    yield from csv.open_csv(_unpacked(file, uri), csv.ReadOptions(block_size=_BLOCK), convert_options=convert)


def _unpacked(file: IO[bytes], uri: str) -> Any:
    return pa.CompressedInputStream(file, "gzip") if uri.lower().endswith(".gz") else file


def _schema(uri: str) -> pa.Schema:
    import pyarrow.parquet as parquet
    from pyarrow import csv

    with open_file(uri) as file:
        try:
            if _is_csv(uri):
                # Only the names: a first block of integers says nothing about the next.
                names = csv.open_csv(_unpacked(file, uri)).schema.names
                return pa.schema([pa.field(name, pa.null()) for name in names])
            return parquet.ParquetFile(file).schema_arrow
        except (pa.ArrowInvalid, OSError) as error:
            raise UsageError(f"import_score: '{uri}' cannot be read: {str(error).splitlines()[0]}.") from None
