"""What annotation files say of a sequence's frames: VIAME CSV, and the COCO or KWCOCO that DIVE writes."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from datas3_ray.errors import UsageError
from datas3_ray.sources.boxes import numbers
from datas3_ray.sources.json_stream import read_list
from datas3_ray.sources.remote import Options
from datas3_ray.sources.storage import open_file, unreadable

MOST_FRAMES = 10**9
"""Frame numbers are below this, so that nine digits sort as the numbers do."""

_FPS = re.compile(rb"\bfps\s*[:=]\s*\"?([0-9]+(?:\.[0-9]*)?)", re.IGNORECASE)
_FRAME = re.compile(r"[0-9]{1,9}")
_TIME = re.compile(r"[0-9]+(:[0-9]+)+(\.[0-9]+)?")
_COLUMNS = 9  # before the pairs of species and confidence
_MOST_LINE = 1 << 20
_ENDS_PAIRS = ("(", "+")


class Mark(NamedTuple):
    """One annotated object: its box in pixels, the species of highest confidence, the object's own, and its track."""

    box: tuple[float, float, float, float]
    species: str | None
    confidence: float | None
    track: int | None


@dataclass
class Notes:
    """What is said of one frame; ``fault`` is what is wrong with it, and ``crowd`` counts the boxes of crowds."""

    marks: list[Mark] = field(default_factory=list)
    fault: str = ""
    rows: int = 0
    crowd: int = 0
    time: str | None = None

    def add(self, other: Notes) -> None:
        """Take what another says of the same frame, too."""
        self.marks += other.marks
        self.fault = self.fault or other.fault
        self.rows += other.rows
        self.crowd += other.crowd
        self.time = self.time or other.time


class Named(NamedTuple):
    """A frame as a row names it: a file, perhaps empty, and a number, None where there is none."""

    file: str
    number: int | None


@dataclass
class Annotations:
    """One file: the frames per second it states, what it says of each frame, and its lines that belong to none."""

    uri: str
    fps: float | None = None
    frames: dict[Named, Notes] = field(default_factory=dict)
    bad: list[tuple[str, str]] = field(default_factory=list)
    """The place of an entry in the file, such as ``line=7``, and what is wrong with it."""
    unknown: int = 0
    """Annotations of images or categories that the file does not list."""

    def at(self, file: str, number: int | None) -> Notes:
        """The notes of one frame, made where there are none yet."""
        return self.frames.setdefault(Named(file, number), Notes())


def read_annotations(uri: str, storage_options: Options = None) -> Annotations:
    """A file of annotations, read as a stream; the extension tells which of the formats it is.

    Raises UsageError for a file that cannot be read, JSON that is none, and COCO of several videos.
    """
    if uri.lower().endswith(".json"):
        return _read_coco(uri, storage_options)
    found = Annotations(uri)
    for number, line in _lines(uri, storage_options):
        _take_line(found, number, line)
    return found


class _BadLine(Exception):
    """A line that says nothing; ``frame`` is the one it belongs to, where that much is known."""

    def __init__(self, message: str, frame: Named | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.frame = frame


def _take_line(found: Annotations, number: int, line: bytes | None) -> None:
    """One line of a VIAME CSV; one longer than is read is None."""
    try:
        if line is None:
            raise _BadLine(f"it has more than {_MOST_LINE:,} characters")
        if line.lstrip().startswith(b"#"):
            stated = _FPS.search(line)
            if stated and found.fps is None and float(stated[1]) > 0:
                found.fps = float(stated[1])
        elif line.strip():
            named, mark, time = _parse_line(line)
            notes = found.at(*named)
            notes.marks.append(mark)
            notes.rows += 1
            notes.time = notes.time or time
    except _BadLine as error:
        message = f"line {number} of {found.uri!r}: {error.message}"
        if error.frame is None:
            found.bad.append((f"line={number}", message))
        else:
            notes = found.at(*error.frame)
            notes.fault = notes.fault or message
            notes.rows += 1


def _parse_line(line: bytes) -> tuple[Named, Mark, str | None]:
    try:
        # Each line by itself: a quote that is never closed does not swallow the lines after it.
        cells = [cell.strip() for cell in next(csv.reader([line.decode("utf-8", "replace")]))]
    except csv.Error as error:
        raise _BadLine(f"it is no CSV: {error}") from None
    if len(cells) < 3 or not _FRAME.fullmatch(cells[2]):
        what = f"its third column {_short(cells[2])} is no frame number" if len(cells) > 2 else "it has no third column"
        raise _BadLine(what)
    named = Named(cells[1], int(cells[2]))
    try:
        if len(cells) < _COLUMNS:
            raise _BadLine(f"it has {len(cells)} columns; there are at least {_COLUMNS}")
        left, top, right, bottom = (_number(cell, f"column {at}") for at, cell in enumerate(cells[3:7], 4))
        sure = _number(cells[7], "column 8") if cells[7] else -1.0
        species = _best(list(_pairs(cells[_COLUMNS:])))
    except _BadLine as error:
        raise _BadLine(error.message, named) from None
    track = int(cells[0]) if _FRAME.fullmatch(cells[0]) else None
    mark = Mark((left, top, right - left, bottom - top), species, sure if sure >= 0 else None, track)
    return named, mark, cells[1] if _TIME.fullmatch(cells[1]) else None


def _pairs(cells: list[str]) -> Iterator[tuple[str, float]]:
    """Species and confidence, up to the first token such as (kp) or +kp; a species without confidence has -1."""
    at = 0
    while at < len(cells) and not cells[at].startswith(_ENDS_PAIRS):
        sure = cells[at + 1] if at + 1 < len(cells) and not cells[at + 1].startswith(_ENDS_PAIRS) else None
        if cells[at]:
            yield cells[at], _number(sure, "the confidence of a species") if sure else -1.0
        at += 1 if sure is None else 2


def _best(pairs: list[tuple[str, float]]) -> str | None:
    """The species of highest confidence, the first of equals; a confidence that is NaN is none."""
    return max(pairs, key=lambda pair: -1.0 if math.isnan(pair[1]) else pair[1])[0] if pairs else None


def _number(text: str, what: str) -> float:
    try:
        if "_" in text:
            raise ValueError
        return float(text)
    except ValueError:
        raise _BadLine(f"{what} {_short(text)} is no number") from None


def _lines(uri: str, storage_options: Options) -> Iterator[tuple[int, bytes | None]]:
    """The lines of a file with their numbers from 1; None for one that is too long to be one."""
    try:
        raw: Any = open_file(uri, storage_options)
        with io.BufferedReader(raw, 1 << 20) as file:
            number = 0
            while line := file.readline(_MOST_LINE):
                number += 1
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                whole = line.endswith(b"\n") or len(line) < _MOST_LINE
                while not whole and (rest := file.readline(_MOST_LINE)) and not rest.endswith(b"\n"):
                    pass
                yield number, line if whole else None
    except UsageError as error:
        raise UsageError(f"fishtrack: {error}") from None
    except Exception as error:  # object stores raise their own kinds
        raise UsageError(f"fishtrack: {unreadable(uri, error, storage_options)}.") from None


def _read_coco(uri: str, storage_options: Options) -> Annotations:
    """DIVE's COCO: frame_index, track_id and score beside the usual keys; the lists are read one after another."""

    def entries(key: str, needed: bool = True) -> Iterator[dict[str, Any]]:
        try:
            for entry in read_list(uri, key, storage_options, "fishtrack"):
                if not isinstance(entry, dict):
                    raise UsageError(f"fishtrack: {uri!r}: the list {key!r} has {_short(entry)}, which is no object.")
                yield entry
        except UsageError as error:
            if needed or f"no list {key!r}" not in str(error):
                raise

    found = Annotations(uri)
    images: dict[Any, Named] = {}
    videos = set()
    for image in entries("images"):
        file, number = image.get("file_name") or image.get("name"), image.get("frame_index")
        known = isinstance(number, int) and not isinstance(number, bool) and 0 <= number < MOST_FRAMES
        key = _id(image.get("id"))
        if key in images:
            raise UsageError(f"fishtrack: {uri!r}: two images have the id {image.get('id')!r}; correct one.")
        images[key] = Named(file if isinstance(file, str) else "", number if known else None)
        videos.add(_id(image.get("video_id")))
    if len(videos) > 1:
        raise UsageError(
            f"fishtrack: {uri!r} is of {len(videos)} videos; export the annotations of each sequence by itself."
        )
    for video in entries("videos", needed=False):
        fps = video.get("fps")
        if _id(video.get("id")) in videos or videos == {None}:
            given = isinstance(fps, (int, float)) and not isinstance(fps, bool) and math.isfinite(fps) and fps > 0
            found.fps = float(fps) if given and fps is not None else found.fps
    names = {_id(entry.get("id")): str(entry.get("name")) for entry in entries("categories")}
    for at, annotation in enumerate(entries("annotations")):
        _take_annotation(found, at, annotation, images, names)
    return found


def _take_annotation(
    found: Annotations, at: int, entry: dict[str, Any], images: dict[Any, Named], names: dict[Any, str]
) -> None:
    named, category = images.get(_id(entry.get("image_id"))), _id(entry.get("category_id"))
    if named is None or (category is not None and category not in names):
        found.unknown += 1
        return
    where = f"annotation {entry.get('id', at)!r} of {found.uri!r}"
    if not named.file and named.number is None:
        found.bad.append((f"annotation={at}", f"{where}: its image has neither a file_name nor a frame_index"))
        return
    notes = found.at(*named)
    notes.rows += 1
    box, score = entry.get("bbox"), entry.get("score")
    values = numbers(box, 4) if box is not None and box != [] else (math.nan,) * 4  # no box: counted as dropped
    if entry.get("iscrowd"):
        notes.crowd += 1
    elif values is None:
        notes.fault = notes.fault or f"{where}: the bbox {_short(box)} is not four numbers"
    else:
        sure = float(score) if isinstance(score, (int, float)) and not isinstance(score, bool) and score >= 0 else None
        track = entry.get("track_id")
        is_track = isinstance(track, int) and not isinstance(track, bool)
        mark = Mark(
            (values[0], values[1], values[2], values[3]), names.get(category), sure, track if is_track else None
        )
        notes.marks.append(mark)


def _id(value: Any) -> tuple[type, Any] | None:
    """An id with its type, so that 1 and "1" are two; None for what is no id."""
    return (type(value), value) if isinstance(value, (str, int)) and not isinstance(value, bool) else None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
