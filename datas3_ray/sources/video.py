"""Single frames of videos, at the frame rate that annotations count in; OpenCV reads them."""

from __future__ import annotations

import io
import math
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from datas3_ray.errors import UsageError
from datas3_ray.sources.base import SampleError
from datas3_ray.sources.remote import Options, is_remote, local_path
from datas3_ray.sources.storage import open_file, unreadable

if TYPE_CHECKING:
    import numpy as np

VIDEOS = ("mp4", "m4v", "mov", "avi", "mkv", "webm", "mpg", "mpeg", "wmv", "asf", "ts", "mts", "flv")
"""Extensions of videos, in lower case."""

Encoding = Literal["jpeg", "png"]

# What a file begins with, and where. FFmpeg would also open lists that name other files, whatever they are called.
_MAGIC = (
    (4, b"ftyp"),
    (4, b"moov"),
    (4, b"mdat"),
    (4, b"wide"),
    (4, b"free"),
    (4, b"skip"),
    (8, b"AVI "),
    (0, b"\x1a\x45\xdf\xa3"),
    (0, b"\x00\x00\x01\xba"),
    (0, b"\x00\x00\x01\xb3"),
    (0, b"\x30\x26\xb2\x75"),
    (0, b"FLV\x01"),
)
_PACKETS = ((0, 188), (4, 192))  # where packets of a transport stream begin, each with a G, and their size
_PLACE = re.compile(r"(.+\.(?:" + "|".join(VIDEOS) + r"))#frame=([0-9]+)", re.IGNORECASE | re.DOTALL)
_INDEXED = (".mp4", ".m4v", ".mov", ".avi")  # of others the number of frames is a guess from their duration
_CHUNK = 8 << 20
_MOST_FRAMES = 10_000_000  # a header that promises more is not believed
_MOST_PIXELS = 100_000_000
_SAME = 0.005  # 30 is what people write for 29.97
_QUALITY = 95


def is_video(name: str) -> bool:
    """Whether a file's name has the extension of a video.

    >>> is_video("a/B.MP4"), is_video("mp4")
    (True, False)
    """
    return name.rpartition(".")[2].lower() in VIDEOS and "." in name


def place_of(video: str, frame: int) -> str:
    """The uri of one frame of a video."""
    return f"{video}#frame={frame}"


def frame_place(uri: str) -> tuple[str, int] | None:
    """The video and the frame that a uri made by :func:`place_of` means; None for any other.

    >>> frame_place(place_of("s3://bucket/a.mp4", 12)), frame_place("s3://bucket/a.mp4")
    (('s3://bucket/a.mp4', 12), None)
    """
    found = _PLACE.fullmatch(uri)
    return (found[1], int(found[2])) if found else None


def require_opencv(what: str) -> Any:
    """OpenCV's module; a UsageError with the install line where it is not there."""
    try:
        import cv2
    except ImportError:
        raise UsageError(
            f"{what}: videos are read with OpenCV, which is not installed; pip install 'datas3-ray[detection]'."
        ) from None
    return cv2


def source_frame(number: int, fps: float, video_fps: float) -> int:
    """The frame of a video that shows frame ``number`` of it at ``fps``: the nearest in time, both counted from 0.

    Rates that differ by less than half a percent are the same.

    >>> [source_frame(number, 5, 29.97) for number in range(4)], source_frame(3000, 30, 29.97)
    ([0, 6, 12, 18], 3000)
    """
    return int(number * _ratio(fps, video_fps) + 0.5)


def frames_at(frames: int, fps: float, video_fps: float) -> int:
    """How many frames a video of so many has at ``fps``.

    >>> frames_at(20, 5, 10), frames_at(21, 5, 10), frames_at(300, 10, 29.97)
    (10, 11, 100)
    """
    return math.ceil((frames - 0.5) / _ratio(fps, video_fps)) if frames else 0


def _ratio(fps: float, video_fps: float) -> float:
    return 1.0 if abs(fps - video_fps) < _SAME * video_fps else video_fps / fps


class Video:
    """An opened video: ``fps`` of its own, and its frames, forward only."""

    def __init__(self, capture: Any, cv2: Any, uri: str) -> None:
        self._capture, self._cv2, self._uri = capture, cv2, uri
        self.fps = float(capture.get(cv2.CAP_PROP_FPS))
        count = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.promised = int(count) if math.isfinite(count) and 0 < count <= _MOST_FRAMES else 0
        """How many frames its header promises; 0 where it does not say."""

    def frames(self, numbers: Sequence[int], fps: float) -> Iterator[np.ndarray | SampleError]:
        """The frames with these ascending numbers at ``fps``, each (height, width, 3) uint8 RGB, or what is wrong.

        Frames between are skipped over, one is in memory at a time.
        """
        at = -1  # the frame that was grabbed last
        image: np.ndarray | SampleError | None = None
        ended = False
        for number in numbers:
            goal = source_frame(number, fps, self.fps)
            while at < goal and not ended:
                if self._capture.grab():
                    at, image = at + 1, None
                else:
                    ended = True
            if at < goal:
                yield self._missing(number, goal, at + 1)
                continue
            if image is None:
                image = self._retrieve(number)
            yield image

    def count(self) -> int:
        """How many frames it has: what an index in the file says, else what can be read; then none are left to read."""
        if self.promised and self._uri.lower().endswith(_INDEXED):
            return self.promised
        count = 0
        while count < _MOST_FRAMES and self._capture.grab():
            count += 1
        return count

    def _retrieve(self, number: int) -> np.ndarray | SampleError:
        try:
            good, image = self._capture.retrieve()
            if good and image is not None:
                return self._cv2.cvtColor(image, self._cv2.COLOR_BGR2RGB)
        except self._cv2.error:
            pass
        return SampleError("decode_error", f"frame {number} of {self._uri!r} could not be decoded")

    def _missing(self, number: int, goal: int, read: int) -> SampleError:
        if goal < self.promised:
            message = f"frame {number} of {self._uri!r}: {read} of {self.promised} frames could be decoded"
            return SampleError("decode_error", message)
        message = f"frame {number} is past the end of {self._uri!r}, whose {read} frames have {self.fps:g} a second"
        return SampleError("no_frame", message)


@contextmanager
def open_video(uri: str, storage_options: Options = None, what: str = "video") -> Iterator[Video]:
    """A video opened; one in a store is first copied to a temporary file.

    Raises SampleError with the reason not_a_video or too_many_pixels, unreadable_file for one that cannot be read (of
    which a PassingError is one), and UsageError where OpenCV is not installed.
    """
    cv2 = require_opencv(what)
    with _at_hand(uri, storage_options) as path:
        capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG)
        try:
            if not capture.isOpened():
                raise SampleError("not_a_video", f"the video {uri!r} cannot be opened")
            width, height = (capture.get(name) for name in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
            if width * height > _MOST_PIXELS:
                raise SampleError("too_many_pixels", f"the video {uri!r} has frames of {width:g} x {height:g} pixels")
            video = Video(capture, cv2, uri)
            if not (math.isfinite(video.fps) and video.fps > 0):
                raise SampleError("not_a_video", f"the video {uri!r} does not tell its frame rate")
            yield video
        finally:
            capture.release()


def encode(image: np.ndarray, form: Encoding) -> bytes:
    """A frame as the bytes of a JPEG (quality 95) or PNG file."""
    from PIL import Image

    buffer = io.BytesIO()
    picture = Image.fromarray(image)
    picture.save(buffer, "PNG") if form == "png" else picture.save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


@contextmanager
def _at_hand(uri: str, storage_options: Options) -> Iterator[str]:
    """The path of a local file with the video, whose first bytes are those of one."""
    with tempfile.NamedTemporaryFile(suffix="." + uri.rpartition(".")[2]) as copy:
        try:
            with open_file(uri, storage_options) as file:
                begin = piece = file.read(_CHUNK if is_remote(uri) else 512)
                if is_remote(uri):
                    while piece:
                        copy.write(piece)
                        piece = file.read(_CHUNK)
                    copy.flush()
        except Exception as error:  # every object store raises its own kinds
            raise unreadable(uri, error, storage_options) from None
        if not _begins_as_video(begin):
            raise SampleError("not_a_video", f"the video {uri!r} begins with {begin[:16]!r}, as no video does")
        yield copy.name if is_remote(uri) else local_path(uri)


def _begins_as_video(data: bytes) -> bool:
    packets = any(data[at : at + 1] == data[at + size : at + size + 1] == b"G" for at, size in _PACKETS)
    return packets or any(data[at:].startswith(magic) for at, magic in _MAGIC)
