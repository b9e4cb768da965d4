"""Where the sequences of a FishTrack23 folder are: frames or a video, and the annotations beside them."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from datas3_ray.errors import UsageError
from datas3_ray.sources.below import folder_of, stem
from datas3_ray.sources.files import is_image
from datas3_ray.sources.storage import File
from datas3_ray.sources.video import is_video

USUAL = "annotations.viame.csv"
"""The name that exports of single sequences have; it wins over another in the same folder."""

_STEM = re.compile(r"(\.viame)?\.csv$|([._-]?(kw)?coco)?\.json$", re.IGNORECASE)
_COMMON = ("annotations", "_annotations", "data", "")  # names of annotations that are no video's name


@dataclass(frozen=True)
class Footage:
    """One sequence: the uri of its folder, or of its video without the extension, and what it consists of."""

    place: str
    annotations: File
    frames: tuple[File, ...] = ()
    """The images in the order that the annotations' frame numbers count."""
    video: File | None = None

    @property
    def name(self) -> str:
        """The sequence's name."""
        return posixpath.basename(self.place)


@dataclass
class Layout:
    """The sequences, sorted by place, and the uris of what is none or was passed over."""

    sequences: list[Footage] = field(default_factory=list)
    unannotated: list[str] = field(default_factory=list)
    """Folders of frames, and videos, without annotations."""
    alone: list[str] = field(default_factory=list)
    """Files of annotations without frames or a video."""
    second: list[str] = field(default_factory=list)
    """Files of annotations of a sequence that has another, which is the one that is read."""


@dataclass
class _Folder:
    images: list[File] = field(default_factory=list)
    videos: list[File] = field(default_factory=list)
    notes: list[File] = field(default_factory=list)


def is_annotation(uri: str) -> bool:
    """Whether a file is one of annotations by its name: any .csv, and .json with coco in its name.

    >>> is_annotation("a/annotations.viame.csv"), is_annotation("a/x.kwcoco.json"), is_annotation("a/meta.json")
    (True, True, False)
    """
    name = posixpath.basename(uri).lower()
    return name.endswith(".csv") or (name.endswith(".json") and "coco" in name)


def find_sequences(files: Iterable[File]) -> Layout:
    """The sequences among the files of a folder.

    A folder with images is one, with the only annotations in it or those of its name beside it; so is a video with
    annotations of its name, and a folder with one video and ``annotations.viame.csv``. Of several, the usual name wins,
    then the sequence's own, and a CSV over JSON. Raises UsageError where that does not decide, where a folder has
    images and a video for the same annotations, and for two sequences with one name in a folder.
    """
    folders: dict[str, _Folder] = {}
    for file in sorted(files):
        folder = folders.setdefault(folder_of(file.uri), _Folder())
        if is_image(file.uri):
            folder.images.append(file)
        elif is_video(file.uri):
            folder.videos.append(file)
        elif is_annotation(file.uri):
            folder.notes.append(file)
    finder = _Finder(folders)
    for place in sorted(folders):
        finder.look(place)
    return finder.finish()


class _Finder:
    def __init__(self, folders: dict[str, _Folder]) -> None:
        self._folders = folders
        self._found: dict[str, Footage] = {}
        self._taken: set[str] = set()
        self._layout = Layout()

    def look(self, place: str) -> None:
        """Find the sequences right in one folder, and the one that the folder itself is."""
        folder = self._folders[place]
        loose = []
        for video in folder.videos:
            own = [file for file in folder.notes if _stem(file.uri) == posixpath.basename(stem(video.uri))]
            if own:
                self._add(stem(video.uri), own, video=video)
            else:
                loose.append(video)
        name = posixpath.basename(place)
        rest = [file for file in folder.notes if file.uri not in self._taken]
        if folder.images:
            beside = self._folders.get(folder_of(place), _Folder()).notes
            rest = rest or [file for file in beside if _stem(file.uri) == name and file.uri not in self._taken]
            if loose and rest:
                raise UsageError(
                    f"fishtrack: {place!r} has images and the video {loose[0].uri!r}, and {rest[0].uri!r} may be of "
                    "either; move the images or the video elsewhere."
                )
            self._add(place, rest, frames=folder.images)
        elif loose:
            # In a folder of many videos the annotations of another one may be left over: their name has to be common.
            rest = [file for file in rest if _stem(file.uri) in (*_COMMON, name)]
            if rest and len(loose) > 1:
                raise UsageError(
                    f"fishtrack: {place!r} has {len(loose)} videos, and {rest[0].uri!r} may be of any; give the "
                    "annotations the name of their video."
                )
            if rest:
                self._add(place, rest, video=loose.pop())
        self._layout.unannotated += [video.uri for video in loose]

    def finish(self) -> Layout:
        self._layout.sequences = [self._found[place] for place in sorted(self._found)]
        notes = [file.uri for folder in self._folders.values() for file in folder.notes]
        self._layout.alone = sorted(uri for uri in notes if uri not in self._taken)
        self._layout.unannotated.sort()
        return self._layout

    def _add(self, place: str, notes: list[File], frames: Sequence[File] = (), video: File | None = None) -> None:
        if not notes:
            self._layout.unannotated.append(place)
            return
        chosen = _choose(place, notes)
        self._layout.second += [file.uri for file in notes if file is not chosen]
        self._taken.update(file.uri for file in notes)
        made = Footage(place, chosen, tuple(frames), video)
        twin = self._found.setdefault(place, made)
        if twin is not made:
            raise UsageError(
                f"fishtrack: the sequence {place!r} is there twice, with {twin.annotations.uri!r} and "
                f"{chosen.uri!r}; keep its frames or one video."
            )


def _choose(place: str, notes: list[File]) -> File:
    tables = [file for file in notes if file.uri.lower().endswith(".csv")] or notes
    usual = [file for file in tables if posixpath.basename(file.uri).lower() == USUAL]
    own = [file for file in tables if _stem(file.uri) == posixpath.basename(place)]
    for group in (usual, own, tables):
        if len(group) == 1:
            return group[0]
    names = " and ".join(repr(posixpath.basename(file.uri)) for file in tables[:2])
    raise UsageError(
        f"fishtrack: the sequence {place!r} has {len(tables)} files of annotations, {names}; keep one, or name it "
        f"{USUAL}."
    )


def _stem(uri: str) -> str:
    return _STEM.sub("", posixpath.basename(uri))
