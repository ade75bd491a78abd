"""Which frames and which window of a video make a clip: index arithmetic, no pixels.

A clip is `frames` frames of one video, `stride` apart, seen through one window that does not move.
A view is one such clip; training draws several views of every video, the last of them from other
videos of its class if a method asks for such partners, evaluation a fixed grid of clips. Everything here is a pure function of its arguments (NumPy only), so that sampling can be
repeated exactly, tested without video files, and decided before anything is read.

Windows are (y, x, height, width) in pixels of the stored frame. Their sides never exceed the
frame's short side, so that every window fits a square canvas of that side.
"""

import dataclasses

import numpy as np

from skd_jax import names
from skd_jax.errors import UserError

MODES = ("two_clips", "same_clip", "offset")


@dataclasses.dataclass(frozen=True)
class ClipSettings:
    """How training views are drawn.

    Attributes:
      frames: frames per clip, T.
      stride: distance between sampled frames, in stored frames.
      stride_jitter: the stride of each view is drawn from stride +- this, never below 1.
      views: views per video, V.
      partners: how many of them, the last, show other videos; these start where they like in any mode.
      mode: "two_clips": every view starts where it likes; "same_clip": all views show the same
        frames (and differ in window and flip); "offset": views after the first start at most
        `max_offset` frames away from the first one's start.
      max_offset: in stored frames, for mode "offset".
      canvas: side S in pixels of the square the windows are padded to; the stored short side.
      area: smallest and largest window area, as a share of the short side squared.
      ratio: smallest and largest width / height of a window, drawn log-uniformly.
      flip: whether half of the views are mirrored left to right.

    Raises:
      UserError: for a value that no clip could be drawn with.
    """

    frames: int = 16
    stride: int = 2
    stride_jitter: int = 0
    views: int = 2
    partners: int = 0
    mode: str = "two_clips"
    max_offset: int = 0
    canvas: int = 128
    area: tuple[float, float] = (0.25, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True

    def __post_init__(self):
        for field, least in (
            ("frames", 1),
            ("stride", 1),
            ("stride_jitter", 0),
            ("views", 1),
            ("partners", 0),
            ("max_offset", 0),
            ("canvas", 1),
        ):
            value = getattr(self, field)
            if value != int(value) or value < least:
                raise UserError(f"clips: {field}={value} must be a whole number, {least} or more")
        if self.partners >= self.views:
            raise UserError(
                f"clips: partners={self.partners} of views={self.views}; the first view shows the video"
            )
        if self.mode not in MODES:
            raise names.unknown("clip mode", self.mode, MODES)
        low, high = self.area
        if not 0 < low <= high <= 1:
            raise UserError(f"clips: area={tuple(self.area)} must rise within (0, 1]")
        low, high = self.ratio
        if not 0 < low <= high:
            raise UserError(f"clips: ratio={tuple(self.ratio)} must rise and be positive")


@dataclasses.dataclass(frozen=True)
class TrainSample:
    """V views of one video: frames int32 (V, T), window int32 (V, 4), flip bool (V,)."""

    frames: np.ndarray
    window: np.ndarray
    flip: np.ndarray


def span(frames, stride):
    """Stored frames from a clip's first to its last, both counted; ints or integer arrays."""
    return (frames - 1) * stride + 1


def short_video_share(split, settings: ClipSettings) -> float:
    """Share of the split's videos that are shorter than a clip, and so loop within it.

    Args:
      split: anything with `num_frames`, int (N,).
      settings: `frames` and `stride` are used.
    """
    return float(np.mean(np.asarray(split.num_frames) < span(settings.frames, settings.stride)))


def sample_train(
    rng: np.random.Generator,
    num_frames: int | np.ndarray,
    height: int | np.ndarray,
    width: int | np.ndarray,
    settings: ClipSettings,
) -> TrainSample:
    """Draws the training views of one video.

    A clip that fits starts anywhere it fits. A video shorter than its clip starts at frame 0 and
    loops, which cuts the motion as rarely as can be. The window is that of the usual random resized
    crop, relative to the short-side square and placed anywhere in the frame; a side that would
    exceed the short side is cut to it, which moves the ratio towards 1.

    Args:
      rng: consumed; the same generator state gives the same views.
      num_frames: frames stored, 1 or more; as the next two, one number or one for each view (V,).
      height: of the stored frames, in pixels.
      width: of the stored frames, in pixels.
      settings: see `ClipSettings`.

    Returns:
      `TrainSample` with V = settings.views and T = settings.frames.
    """
    # One row of uniform numbers for each view: what a view sees does not depend on how many follow
    # it, and switching one thing off leaves the others as they were.
    uniform = rng.random((settings.views, 8))
    own = settings.views - settings.partners
    if settings.mode == "same_clip":
        uniform[:own, :2] = uniform[0, :2]
    u_stride, u_start, u_offset, u_area, u_ratio, u_top, u_left, u_flip = uniform.T

    slowest = max(1, settings.stride - settings.stride_jitter)
    strides = _whole(u_stride, slowest, settings.stride + settings.stride_jitter)
    last_start = np.maximum(num_frames - span(settings.frames, strides), 0)
    starts = _whole(u_start, 0, last_start)
    if settings.mode == "offset":
        offsets = _whole(u_offset, -settings.max_offset, settings.max_offset)
        starts[1:own] = np.clip(starts[0] + offsets[1:own], 0, last_start[1:own])
    frames = starts[:, None] + strides[:, None] * np.arange(settings.frames)
    frames %= np.reshape(num_frames, (-1, 1))

    side = np.minimum(height, width)
    (least, most), (narrowest, widest) = settings.area, np.log(settings.ratio)
    area = least + u_area * (most - least)
    ratio = np.exp(narrowest + u_ratio * (widest - narrowest))
    heights = np.clip(np.rint(side * np.sqrt(area / ratio)), 1, side).astype(np.int64)
    widths = np.clip(np.rint(side * np.sqrt(area * ratio)), 1, side).astype(np.int64)
    tops, lefts = _whole(u_top, 0, height - heights), _whole(u_left, 0, width - widths)
    return TrainSample(
        frames=frames.astype(np.int32),
        window=np.stack([tops, lefts, heights, widths], axis=1).astype(np.int32),
        flip=(u_flip < 0.5) & settings.flip,
    )


def sample_test(
    num_frames: int,
    height: int,
    width: int,
    *,
    frames: int,
    stride: int,
    clips: int = 1,
    crops: int = 1,
    fraction: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """The K uniformly spaced clips times C crops that a video is judged by.

    Clips are spaced evenly from the first possible start to the last, starts rounded down as in
    torchvision's UniformClipSampler; crops from one end of the long side to the other. A single
    clip or crop sits in the middle.

    Args:
      num_frames: frames stored, 1 or more; a video shorter than a clip starts at 0 and loops.
      height: of the stored frames, in pixels.
      width: of the stored frames, in pixels.
      frames: frames per clip, T.
      stride: distance between sampled frames, in stored frames.
      clips: K.
      crops: C.
      fraction: side of the square window as a share of the short side.

    Returns:
      frames int32 (K*C, T), window int32 (K*C, 4); all crops of a clip stand together.
    """
    room = max(num_frames - span(frames, stride), 0)
    starts = room * np.arange(clips) // (clips - 1) if clips > 1 else _spread(room, 1)
    clip = ((starts[:, None] + stride * np.arange(frames)) % num_frames).astype(np.int32)
    short = min(height, width)
    side = min(max(1, round(fraction * short)), short)
    tops = _spread(height - side, crops if height > width else 1)
    lefts = _spread(width - side, crops if width >= height else 1)
    window = np.empty((crops, 4), np.int32)
    window[:, 0], window[:, 1], window[:, 2:] = tops, lefts, side
    return np.repeat(clip, crops, axis=0), np.tile(window, (clips, 1))


def _whole(uniform: np.ndarray, low, high) -> np.ndarray:
    """Numbers uniform in [0, 1) as int64, uniform in low..high, both included."""
    return (low + np.floor(uniform * (high - low + 1))).astype(np.int64)


def _spread(room: int, count: int) -> np.ndarray:
    """`count` whole positions in [0, room], evenly spaced; the middle one if `count` is 1."""
    if count == 1:
        # Halves go to the even neighbour, as in torchvision's center_crop.
        return np.rint([room / 2]).astype(np.int64)
    return np.rint(np.linspace(0, room, count)).astype(np.int64)
