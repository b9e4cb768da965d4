"""Parquet files and Arrow streams, batch by batch; what goes wrong is one error with its reason."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from datas3_ray.errors import UsageError
from datas3_ray.sources.remote import Options, in_words, is_remote, local_path
from datas3_ray.sources.storage import open_file

_END = b"\xff\xff\xff\xff\0\0\0\0"  # of an Arrow stream
_BUFFER = 1 << 22  # bytes of a column that are read at once: without it Parquet reads a whole row group's
# Words by which Arrow's own errors about what is in a file can be told from those of an object store.
_DAMAGE = ("thrift", "corrupt", "end of stream", "message body", "deserializ", "page", "decompress", "metadata")


class TableError(Exception):
    """A table cannot be read, or not further: ``reason`` is a key of REASONS, the message says why."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return self.message


class ParquetTable:
    """An open Parquet file; ``schema`` and ``rows`` are its own. Raises TableError, as its methods do."""

    def __init__(self, uri: str, storage_options: Options = None) -> None:
        self._uri, self._options = uri, storage_options
        with _told(uri, storage_options):
            self._source = open_file(uri, storage_options) if is_remote(uri) else pa.OSFile(local_path(uri))
            try:
                self._file = pq.ParquetFile(self._source, buffer_size=_BUFFER, pre_buffer=False)
                self.schema: pa.Schema = self._file.schema_arrow
            except BaseException:
                self._source.close()
                raise
        self.rows: int = self._file.metadata.num_rows

    def batches(self, columns: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
        """The named columns, at most ``rows`` rows at a time; those of sound row groups before damage come first."""
        done = 0
        try:
            for batch in self._batches(columns, rows):
                done += len(batch)
                yield batch
        except TableError as error:
            if error.reason == "not_a_table":
                yield from self._sound(columns, rows, done)
            raise

    def _batches(self, columns: Sequence[str], rows: int, groups: list[int] | None = None) -> Iterator[pa.RecordBatch]:
        with _told(self._uri, self._options):
            batches = self._file.iter_batches(batch_size=rows, columns=list(columns), row_groups=groups)
        while (batch := _next(batches, self._uri, self._options)) is not None:
            yield batch

    def _sound(self, columns: Sequence[str], rows: int, done: int) -> Iterator[pa.RecordBatch]:
        """What comes after the first ``done`` rows and before the damage: a batch may be of several row groups."""
        for group in range(self._file.metadata.num_row_groups):
            count = self._file.metadata.row_group(group).num_rows
            if done < count:
                try:
                    for batch in self._batches(columns, rows, [group]):
                        if done < len(batch):
                            yield batch.slice(done)
                        done = max(0, done - len(batch))
                except TableError:
                    return
            else:
                done -= count

    def __enter__(self) -> ParquetTable:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._source.close()


class ArrowTable:
    """An open Arrow IPC stream or file; its ``schema`` is known, its rows are not before it is read."""

    def __init__(self, uri: str, storage_options: Options = None) -> None:
        self._uri, self._options = uri, storage_options
        self._reader: Any
        with _told(uri, storage_options):
            self._source = open_file(uri, storage_options) if is_remote(uri) else pa.memory_map(local_path(uri))
            try:
                self._stream = self._source.read(6) != b"ARROW1"
                self._source.seek(0)
                self._reader = pa.ipc.open_stream(self._source) if self._stream else pa.ipc.open_file(self._source)
            except BaseException:
                self._source.close()
                raise
        self.schema: pa.Schema = self._reader.schema

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The named columns, in the batches that were written."""
        if self._stream:
            whole = iter(self._reader)
        else:
            whole = (self._reader.get_batch(index) for index in range(self._reader.num_record_batches))
        while (batch := _next(whole, self._uri, self._options)) is not None:
            yield batch.select(list(columns))
        if self._stream and not self._is_ended():
            raise TableError("not_a_table", f"{self._uri!r} is cut off: the end mark of an Arrow stream is missing")

    def _is_ended(self) -> bool:
        """Arrow takes the end of the file for that of the stream, so that a cut between batches would go unseen."""
        with _told(self._uri, self._options):
            self._source.seek(-len(_END), os.SEEK_END)
            return bool(self._source.read(len(_END)) == _END)

    def __enter__(self) -> ArrowTable:
        return self

    def __exit__(self, *_: object) -> None:
        self._source.close()


def _next(batches: Iterator[pa.RecordBatch], uri: str, storage_options: Options) -> pa.RecordBatch | None:
    with _told(uri, storage_options):
        return next(batches, None)


@contextmanager
def _told(uri: str, storage_options: Options) -> Iterator[None]:
    try:
        yield
    except UsageError:
        raise
    except Exception as error:  # object stores raise their own kinds
        if isinstance(error, FileNotFoundError):
            raise TableError("unreadable_shard", f"{uri!r} is not there") from None
        raise TableError(_reason(error, is_remote(uri)), f"{uri!r}: {in_words(error, storage_options)}") from None


def _reason(error: Exception, remote: bool) -> str:
    """What reading fails for may go away, what Arrow finds in the data does not.

    Arrow raises OSError for both; those of the system have a number.
    """
    if type(error) is OSError and error.errno is None:
        damage = not remote or any(word in str(error).lower() for word in _DAMAGE)
        return "not_a_table" if damage else "unreadable_shard"
    return "not_a_table" if isinstance(error, (pa.ArrowException, UnicodeDecodeError)) else "unreadable_shard"
