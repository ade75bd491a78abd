"""One video file to RGB frames, with PyAV; every fault is a `DecodeError` that says why.

Frames are streamed: at most one frame of the original size is held at a time, so that memory grows
with the resized frames a caller keeps and not with the video. Pixels are taken as stored, i.e. the
sample aspect ratio is ignored, as OpenCV, decord and torchcodec do; rotation and mirroring given by
the display matrix are applied. Audio is not read.
"""

import contextlib
import dataclasses
import itertools
import math
import os
from collections.abc import Iterator

import av
import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import Interpolation, VideoReformatter
from etils import epath

from skd_jax.data.files import is_remote
from skd_jax.data.resize import bilinear

VIDEO_SUFFIXES = frozenset(
    (".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts")
    + (".ogv", ".ts", ".webm", ".wmv")
)

# swscale's bilinear filter widens with the reduction, so it does not alias. With exact rounding and
# full chroma it is within 0.3 grey levels of Pillow's antialiased bilinear; without, 1.7 off.
_SCALER = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT

# Tags in another encoding than UTF-8 are common in HMDB51. PyAV 18 fails on them unless told not
# to; PyAV 19 does not mind them and dropped the option.
_LENIENT_TAGS = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}

_ASSUMED_FPS = 25.0
# A jump of the clock longer than this is a fault of the file, not a frame held for so long.
_LONGEST_HOLD_SECONDS = 2.0


class DecodeError(Exception):
    """A file that gives no usable video.

    Attributes:
      path: the file.
      reason: why, in words for a person.
    """

    def __init__(self, path: str | os.PathLike, reason: str):
        super().__init__(f"{os.fspath(path)}: {reason}")
        self.path = os.fspath(path)
        self.reason = reason

    def __reduce__(self):  # Crosses process borders: the default would pass one argument to two.
        return type(self), (self.path, self.reason)


@dataclasses.dataclass(frozen=True)
class Decoded:
    """A whole video.

    Attributes:
      frames: uint8 (T, H, W, 3), RGB.
      fps: frames per second of `frames`.
      notes: what was wrong with the file but did not prevent its use.
    """

    frames: np.ndarray
    fps: float
    notes: tuple[str, ...]


class FrameStream:
    """Iterates once over a video's frames: uint8 (H, W, 3), RGB, all of one size.

    See `iter_frames`. `fps` and `notes` are final when the iteration has ended.

    Attributes:
      fps: frames per second of what was given out.
      count: frames given out so far.
      notes: what was wrong with the file but did not prevent its use.
    """

    def __init__(self, path, convert, max_fps, max_frames, min_frames, threads):
        self.path = os.fspath(path)
        self.fps = 0.0
        self.count = 0
        self.notes: tuple[str, ...] = ()
        self._frames = self._run(convert, max_fps, max_frames, min_frames, threads)

    def __iter__(self) -> Iterator[np.ndarray]:
        return self._frames

    def _note(self, text: str) -> None:
        self.notes += (text,)

    def _run(self, convert, max_fps, max_frames, min_frames, threads) -> Iterator[np.ndarray]:
        try:
            with _open(self.path) as container:
                stream = _video_stream(container, self.path)
                stream.thread_type = "AUTO" if threads != 1 else "NONE"
                stream.codec_context.thread_count = threads
                timed = _Clock(self, container, stream)
                limit = None if max_frames is None else max_frames + 1  # One more tells: cut short.
                for frame in itertools.islice(timed.frames(convert, max_fps), limit):
                    if self.count == max_frames:
                        self._note(f"cut after the first {max_frames} frames")
                        break
                    self.count += 1
                    yield frame
                self.fps = timed.fps(max_fps)
        except (av.FFmpegError, OSError, ValueError) as error:  # UnicodeError is a ValueError.
            raise DecodeError(self.path, _reason(self.path, error)) from error
        if self.count < max(min_frames, 1):
            why = f" ({'; '.join(self.notes)})" if self.notes else ""
            if self.count == 0:
                raise DecodeError(self.path, f"no frame could be decoded{why}")
            few = f"only {self.count} frames, at least {min_frames} are needed{why}"
            raise DecodeError(self.path, few)


def iter_frames(
    path: str | os.PathLike,
    *,
    short_side: int | None,
    max_fps: float | None,
    max_frames: int | None = None,
    min_frames: int = 1,
    threads: int = 1,
    width: int | None = None,
    antialias: bool = True,
) -> FrameStream:
    """Streams the frames of one video file.

    Args:
      path: a local path, or any that etils.epath opens (gs://).
      short_side: pixels of the shorter side after resizing, up or down, with the aspect kept; None
        keeps the size.
      max_fps: None gives every frame. Otherwise time is cut into even ticks, `min(max_fps, the
        file's average rate)` a second, and each tick gives the frame on screen at it (torchvision's
        choice too), so that frame numbers measure time even where the frame rate varies. A slower
        file keeps its rate (torchvision repeats its frames).
      max_frames: stops after so many frames.
      min_frames: fewer than these is an error, raised at the end of the iteration.
      threads: decoder threads; 0 is one per core. One is best where processes share the cores.
      width: makes every frame `short_side` pixels high and `width` wide, whatever its aspect, as
        torchvision's video presets do; None keeps the aspect.
      antialias: whether shrinking smooths first; without, see `resize.bilinear`.

    Returns:
      An iterable of uint8 (H, W, 3) arrays with `fps`, `count` and `notes`. A damaged or truncated
      file gives what can be decoded, and a note.

    Raises (while iterating):
      DecodeError: the file is missing, empty, no video, or gives fewer than `min_frames` frames.
    """
    convert = _Converter(short_side, width, antialias)
    return FrameStream(path, convert, max_fps, max_frames, min_frames, threads)


def decode(
    path: str | os.PathLike,
    *,
    short_side: int | None,
    max_fps: float | None,
    max_frames: int | None = None,
    min_frames: int = 1,
    threads: int = 1,
    width: int | None = None,
    antialias: bool = True,
) -> Decoded:
    """Decodes one video file whole: `iter_frames` gathered into one array.

    Raises:
      DecodeError: the file is missing, empty, no video, or gives fewer than `min_frames` frames.
    """
    stream = iter_frames(
        path,
        short_side=short_side,
        max_fps=max_fps,
        max_frames=max_frames,
        min_frames=min_frames,
        threads=threads,
        width=width,
        antialias=antialias,
    )
    frames = np.stack(list(stream))
    return Decoded(frames, stream.fps, stream.notes)


@contextlib.contextmanager
def _open(path: str):
    if is_remote(path):
        with (
            epath.Path(path).open("rb") as file,
            av.open(file, **_LENIENT_TAGS) as container,
        ):
            yield container
        return
    if not os.path.isfile(path):
        what = "is a folder, not a file" if os.path.isdir(path) else "there is no such file"
        raise DecodeError(path, what)
    if os.path.getsize(path) == 0:
        raise DecodeError(path, "the file is empty (0 bytes)")
    # Absolute, since FFmpeg would read `a:b.mp4` as a protocol. Only files may be followed, lest a
    # playlist dressed as a video reaches out to the network.
    only_files = {"protocol_whitelist": "file"}
    with av.open(os.path.abspath(path), container_options=only_files, **_LENIENT_TAGS) as container:
        yield container


def _video_stream(container, path: str):
    kind = container.format.name
    if kind.endswith("_pipe") or kind in ("image2", "tty"):
        raise DecodeError(path, f"not a video: a still picture or text (read as {kind!r})")
    # A cover picture in an audio file is a video stream too, of one frame.
    cover = av.stream.Disposition.attached_pic
    streams = [s for s in container.streams.video if not s.disposition & cover]
    if not streams:
        kinds = sorted({s.type for s in container.streams}) or ["nothing"]
        raise DecodeError(path, f"no video stream (it holds {', '.join(kinds)})")
    best = container.streams.best("video")
    return best if best in streams else streams[0]


class _Clock:
    """Puts a stream's frames on a time line, thins them, and converts those that remain."""

    def __init__(self, owner: FrameStream, container, stream):
        self._owner, self._container, self._stream = owner, container, stream
        # AVI stores no presentation times: FFmpeg's are out of order where there are B-frames.
        self._has_times = container.format.name != "avi"
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        if not (rate > 0 and math.isfinite(rate)):
            owner._note(f"the file gives no frame rate: {_ASSUMED_FPS:g} assumed")
            rate = _ASSUMED_FPS
        self._rate = rate
        self._seen = 0
        self._first = self._last = 0.0

    def fps(self, max_fps: float | None) -> float:
        """Rate of the frames given out, once they have been."""
        if max_fps is not None:
            return min(max_fps, self._rate)
        if self._has_times and self._seen > 1:
            return (self._seen - 1) / (self._last - self._first)
        return self._rate

    def frames(self, convert: "_Converter", max_fps: float | None) -> Iterator[np.ndarray]:
        if max_fps is None:
            for _, frame in self._timed():
                yield convert(frame)
            return
        rate = min(max_fps, self._rate)
        tick, skipped, held = 0, 0.0, None
        for time, frame in self._timed():
            until = _ticks_before(self._place(time) - skipped, rate)
            gap = until - tick - 1
            if gap > _LONGEST_HOLD_SECONDS * rate:
                self._owner._note(f"a gap of {gap / rate:.1f} s in the time stamps was closed")
                skipped += gap / rate
                until -= gap
            yield from _repeat(held, until - tick, convert)
            tick, held = until, frame
        if held is not None:
            end = self._place(self._last) + 1 / self._rate
            yield from _repeat(held, _ticks_before(end - skipped, rate) - tick, convert)

    def _place(self, time: float) -> float:
        """Seconds since the first frame.

        A frame up to a quarter of its duration behind its place at the average rate is put there:
        containers round time stamps, and one rounded up would miss its tick.
        """
        place = (time - self._first) * self._rate
        near = round(place)
        return (near if 0 < place - near < 0.25 else place) / self._rate

    def _timed(self) -> Iterator[tuple[float, "av.VideoFrame"]]:
        """Frames with strictly increasing times in seconds."""
        for frame in _decoded_frames(self._container, self._stream, self._owner._note):
            time = frame.time if self._has_times else None
            if time is None or (self._seen and time <= self._last):
                time = self._last + 1 / self._rate if self._seen else 0.0
            if self._seen == 0:
                self._first = time
            self._seen, self._last = self._seen + 1, time
            yield time, frame
        self._note_if_truncated()

    def _note_if_truncated(self) -> None:
        # Cut clips announce a few frames that an edit list hides, so only a clear lack is told.
        announced = self._stream.frames
        if self._seen < 0.9 * announced:
            self._owner._note(
                f"truncated: {self._seen} of {announced} announced frames could be decoded"
            )
        length = (self._container.duration or 0) / av.time_base  # Some formats tell only this.
        shown = self._last - self._first + 1 / self._rate
        if self._seen and not announced and shown < 0.9 * length:
            self._owner._note(f"truncated: {shown:.1f} of {length:.1f} s could be decoded")


def _ticks_before(seconds: float, rate: float) -> int:
    return math.ceil(seconds * rate - 1e-6)  # A tick at this very time comes after it.


def _repeat(frame, times: int, convert: "_Converter") -> Iterator[np.ndarray]:
    if times > 0:
        yield from itertools.repeat(convert(frame), times)


def _decoded_frames(container, stream, note) -> Iterator["av.VideoFrame"]:
    """All frames that can be decoded, in display order; passes over damaged packets."""
    damaged, ended = 0, ""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except (av.FFmpegError, OSError) as error:
            ended, packet = f"the file breaks off ({error.strerror or error})", None
        try:
            # A decoder holds frames back; where demuxing failed nothing has flushed it.
            frames = stream.codec_context.decode(None) if packet is None else packet.decode()
        except EOFError:  # Flushed already by the demuxer's last, empty packet.
            frames = []
        except av.FFmpegError:
            damaged += 1
            frames = []
        yield from frames
        if packet is None:
            break
    if ended:
        note(ended)
    if damaged:
        note(f"damaged packets passed over: {damaged}")


class _Converter:
    """Frame to a resized, upright RGB array; all frames get the size the first one asks for."""

    def __init__(self, short_side: int | None, width: int | None = None, antialias: bool = True):
        self._short_side, self._width, self._antialias = short_side, width, antialias
        self._size: tuple[int, int] | None = None
        self._reformatter = VideoReformatter()  # One for all frames: it caches its tables.

    def __call__(self, frame: "av.VideoFrame") -> np.ndarray:
        matrix = _display_matrix(frame)
        if self._size is None:
            self._size = self._size_of(frame.width, frame.height, _is_turned(matrix))
        size = self._size if self._antialias else (frame.width, frame.height)
        # One thread: swscale's own would fight with the other decoding processes.
        rgb = self._reformatter.reformat(
            frame, *size, format="rgb24", interpolation=_SCALER, threads=1
        )
        image = rgb.to_ndarray()
        if not self._antialias:
            image = bilinear(image, self._size[1], self._size[0])
        return _upright(image, matrix)

    def _size_of(self, width: int, height: int, turned: bool) -> tuple[int, int]:
        """(width, height) before the frame is turned upright."""
        if self._short_side is None:
            return width, height
        if self._width is not None:
            shown = self._width, self._short_side
            return shown[::-1] if turned else shown
        short = min(width, height)
        if not self._antialias:  # PyTorch's libraries cut the long side's fraction off
            return self._short_side * width // short, self._short_side * height // short
        scale = self._short_side / short
        return max(1, round(width * scale)), max(1, round(height * scale))


def _display_matrix(frame: "av.VideoFrame") -> tuple[int, int, int, int] | None:
    """(a, b, c, d) of the file's display matrix: a pixel (x, y) is shown at (ax + cy, bx + dy)."""
    # `frame.rotation` is no substitute: it calls a mirrored picture one turned by 180 degrees.
    if SideDataType.DISPLAYMATRIX not in frame.side_data:
        return None
    matrix = np.frombuffer(bytes(frame.side_data[SideDataType.DISPLAYMATRIX]), np.int32)
    return int(matrix[0]), int(matrix[1]), int(matrix[3]), int(matrix[4])


def _is_turned(matrix: tuple[int, int, int, int] | None) -> bool:
    """Whether the picture is shown with its sides exchanged."""
    return matrix is not None and abs(matrix[1]) > abs(matrix[0])


def _upright(image: np.ndarray, matrix: tuple[int, int, int, int] | None) -> np.ndarray:
    """Applies the nearest of the eight quarter turns and mirrorings to an (H, W, 3) image."""
    if matrix is None:
        return image
    a, b, c, d = matrix
    if _is_turned(matrix):
        image = image.transpose(1, 0, 2)
        mirror_x, mirror_y = c < 0, b < 0
    else:
        mirror_x, mirror_y = a < 0, d < 0
    return np.ascontiguousarray(image[:: -1 if mirror_y else 1, :: -1 if mirror_x else 1])


def _reason(path: str, error: Exception) -> str:
    if isinstance(error, av.error.InvalidDataError):
        return "not a video file, or damaged beyond reading (invalid data)"
    if isinstance(error, OSError | av.FFmpegError) and getattr(error, "strerror", None):
        return f"could not be read: {error.strerror}"
    return f"could not be decoded: {type(error).__name__}: {error}"
