"""The items of one FishTrack23 sequence: which frames are wanted, and what is known of each."""

from __future__ import annotations

import json
import logging
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from datas3_ray.errors import UsageError
from datas3_ray.sources.base import Item, SampleError
from datas3_ray.sources.below import stem
from datas3_ray.sources.files import BAD, is_image, mark, unique_keys
from datas3_ray.sources.fish_annotations import Mark, Named, Notes
from datas3_ray.sources.fishtrack_layout import Footage, Layout
from datas3_ray.sources.storage import File, PassingError
from datas3_ray.sources.video import frames_at, open_video, place_of

if TYPE_CHECKING:
    from datas3_ray.sources.fishtrack import FishTrack

logger = logging.getLogger(__name__)

FISH = "fish"
"""The class of every box where species are not asked for, and of those that state none."""
_NOT_FISH = "non_fish"


@dataclass
class Passed:
    """What is left out or decided on the way, for the warnings."""

    layout: Layout
    nothing_kept: int = 0
    without_rows: int = 0
    unknown: int = 0
    other_frame: int = 0
    counted: list[str] = field(default_factory=list)

    def warn(self, root: str) -> None:
        """One line for each kind."""
        named = (
            (self.layout.unannotated, "sequences have no annotations and are left out"),
            (self.layout.alone, "files of annotations have neither frames nor a video beside them and are left out"),
            (self.layout.second, "files of annotations are left out: their sequences have others"),
            (self.counted, "sequences name images that are not there: the frame numbers count the sorted images"),
        )
        for names, what in named:
            if names:
                logger.warning("%s: %d %s, such as %s", root, len(names), what, names[0])
        counted = (
            (self.nothing_kept, "frames with rows are left out: none of their boxes is kept"),
            (self.without_rows, "files of annotations have no rows"),
            (self.unknown, "annotations are left out: they are of images or categories that their file does not list"),
            (
                self.other_frame,
                "frames have rows whose number is another than that of the image they name: the name is taken",
            ),
        )
        for count, what in counted:
            if count:
                logger.warning("%s: %d %s", root, count, what)


@dataclass
class Maker:
    """Makes the items of one sequence, whose ids begin with ``prefix``."""

    source: FishTrack
    sequence: Footage
    prefix: str
    passed: Passed
    facts: dict[str, Any] = field(default_factory=dict)

    def bad(self, place: str, error: SampleError) -> Item:
        """An item that stands for a line or a frame that is nowhere."""
        members = json.dumps({"json": {}, BAD: [error.reason, error.message]}, separators=(",", ":"))
        uri = f"{self.sequence.annotations.uri}#{place}"
        return Item(f"{self.prefix}#{place}", uri, 0, mark(members), members)

    def frames(self, noted: Mapping[Named, Notes]) -> Iterator[Item]:
        """The frames of a folder that are wanted, and those that its annotations name in vain."""
        files = self.sequence.frames
        found, missing = self._resolve(noted)
        for place, (message, rows) in missing.items():
            yield self.bad(place, SampleError("no_frame", f"{message}; {rows} rows are of it"))
        keys = unique_keys((posixpath.basename(file.uri) for file in files), stem)
        for at, (file, key) in enumerate(zip(files, keys, strict=True)):
            members = self._members(at, found.get(at))
            if members is not None:
                fingerprint = mark(file.fingerprint, members)
                yield Item(f"{self.prefix}/{key}", file.uri, file.size, fingerprint, members)

    def video(self, noted: Mapping[Named, Notes]) -> Iterator[Item]:
        """The frames of a video that are wanted."""
        video = self.sequence.video
        assert video is not None
        if self.facts["fps"] is None:
            raise UsageError(
                f"fishtrack: {self.sequence.annotations.uri!r} does not state the frames per second that it counts in; "
                "give them for the videos that state none with `fps:` (5 and 10 are usual)."
            )
        found: dict[int, Notes] = {}
        for named, notes in noted.items():
            if named.number is None:
                message = f"the image {named.file!r} of {self.sequence.annotations.uri!r} has no frame_index"
                yield self.bad(f"image={named.file}", SampleError("bad_record", message))
            else:
                found.setdefault(named.number, Notes()).add(notes)
        numbers = set(found)
        if self.source.frames == "all":
            try:
                with open_video(video.uri, self.source.storage_options, self.source.name) as opened:
                    numbers |= set(range(frames_at(opened.count(), self.facts["fps"], opened.fps)))
            except PassingError as error:
                raise UsageError(f"fishtrack: {error}; `frames: all` has to count its frames.") from None
            except SampleError as error:
                yield self.bad("video", error)
                return
        wanted = {number: text for number in sorted(numbers) if (text := self._members(number, found.get(number)))}
        for number, members in wanted.items():
            uri = place_of(video.uri, number)
            fingerprint = mark(video.fingerprint, members, self.source.encode)
            yield Item(f"{self.prefix}/{number:09d}", uri, video.size // len(wanted), fingerprint, members)

    def _resolve(self, noted: Mapping[Named, Notes]) -> tuple[dict[int, Notes], dict[str, tuple[str, int]]]:
        """Notes by the place of their image among the frames, and of images that are not there the place and rows.

        An image that a row names wins over its frame number. One that is not there is missing, unless none of those
        that the file names is there: then the images were renamed, and the numbers count them.
        """
        places = _Places(self.sequence.frames)
        by_name = {named: places.find(named.file) for named in noted}
        renamed = all(at is None for at in by_name.values())
        if renamed and any(is_image(named.file) for named in noted):
            self.passed.counted.append(self.sequence.place)
        found: dict[int, Notes] = {}
        missing: dict[str, tuple[str, int]] = {}
        for named, notes in noted.items():
            at = by_name[named]
            self.passed.other_frame += at is not None and named.number is not None and named.number != at
            if at is None and (renamed or not is_image(named.file)):
                at = named.number
            if at is not None and at < len(self.sequence.frames):
                found.setdefault(at, Notes()).add(notes)
                continue
            place = f"image={named.file}" if named.number is None else f"frame={named.number}"
            rows = notes.rows + missing.get(place, ("", 0))[1]
            missing[place] = (self._missing(named, at), rows)
        return found, missing

    def _missing(self, named: Named, at: int | None) -> str:
        uri, count = self.sequence.annotations.uri, len(self.sequence.frames)
        if at is None:
            return f"{uri!r} is of the image {named.file!r}, which is not among the {count} in {self.sequence.place!r}"
        return f"{uri!r} is of frame {at}, and {self.sequence.place!r} has {count}"

    def _members(self, frame: int, notes: Notes | None) -> str | None:
        """What is known of a frame as JSON text; None for one that is not wanted."""
        notes = notes or Notes()
        boxes: list[list[Any]] = []
        kept: list[Mark] = []
        not_fish = unsure = 0
        for one in notes.marks:
            other = (one.species or "").lower().startswith(_NOT_FISH)
            if one.confidence is not None and one.confidence < self.source.min_confidence:
                unsure += 1
            elif other and self.source.non_fish == "drop":
                not_fish += 1
            else:
                fish = (self.source.classes == "fish" and not other) or one.species is None
                boxes.append([FISH if fish else one.species, *one.box])
                kept.append(one)
        if not boxes and not notes.fault and self.source.frames == "annotated":
            self.passed.nothing_kept += notes.rows > 0
            return None
        record: dict[str, Any] = {
            "rows": notes.rows,
            "species": sorted({one.species for one in kept if one.species is not None}),
            "tracks": sorted({one.track for one in kept if one.track is not None}),
            "boxes_non_fish": not_fish,
            "boxes_unsure": unsure,
            "boxes_crowd": notes.crowd,
        }
        if notes.time is not None:
            record["time"] = notes.time
        members: dict[str, Any] = {"json": record, "extra": {"boxes": boxes, "frame": frame, **self.facts}}
        if notes.fault:
            members[BAD] = ["bad_record", notes.fault]
        return json.dumps(members, separators=(",", ":"))


class _Places:
    """Where the images that annotations name are among a sequence's frames: by name, or by name but the extension."""

    def __init__(self, frames: Sequence[File]) -> None:
        self._names: dict[str, int] = {}
        self._stems: dict[str, int | None] = {}
        for at, file in enumerate(frames):
            name = posixpath.basename(file.uri)
            self._names[name] = at
            self._stems[stem(name)] = None if stem(name) in self._stems else at

    def find(self, name: str) -> int | None:
        """The frame that a row names, whose folder is not believed; None where it names none that is there."""
        name = posixpath.basename(name.replace("\\", "/"))
        at = self._names.get(name)
        return at if at is not None or not is_image(name) else self._stems.get(stem(name))
