"""The demo's videos: eight motions of textured objects over moving noise, as real mp4 files.

No single frame tells the class. Every class draws texture, shape, colours, speed and background
from the same distributions, and at every frame of every class the object's position is uniform over
the frame (which wraps around, as a torus does), its angle uniform over the circle and its size
uniform on a log scale. A class differs from the others only in which of the three changes, and
which way. Played backwards, a class is its opposite. Each frame is coded on its own at one constant
quantiser, so the codec's artefacts tell nothing about the motion either.

A horizontal flip turns `move_left` into `move_right` and the rotations into each other: train
without flips.
"""

import dataclasses
import io
import json
import os
import pathlib
import shutil
import socket

import av
import numpy as np

from skd_jax.errors import UserError
from skd_jax.names import unknown
from skd_jax.progress import Progress

MOTIONS = (
    "grow",
    "move_down",
    "move_left",
    "move_right",
    "move_up",
    "rotate_clockwise",
    "rotate_counterclockwise",
    "shrink",
)

MARKER = "synthetic.json"
# Raised whenever the same settings would give other pixels, so that no old file is taken for new.
_VERSION = 2

# Per frame, as (lowest, highest); lengths as fractions of the frame's side.
_MOVE = (3.0 / 64, 6.0 / 64)
_TURN = (np.deg2rad(10.0), np.deg2rad(22.0))
_ZOOM = (0.045, 0.07)  # in log scale
_DRIFT = (0.2 / 64, 0.8 / 64)  # of the background
_RADIUS = (0.13, 0.49)  # largest radius of the object; below 0.5, or it would meet itself
_DIRECTIONS = {
    "move_left": (-1, 0, 0, 0),
    "move_right": (1, 0, 0, 0),
    "move_up": (0, -1, 0, 0),
    "move_down": (0, 1, 0, 0),
    "rotate_clockwise": (0, 0, 1, 0),
    "rotate_counterclockwise": (0, 0, -1, 0),
    "grow": (0, 0, 0, 1),
    "shrink": (0, 0, 0, -1),
}


@dataclasses.dataclass(frozen=True)
class SyntheticSettings:
    """What to write.

    Attributes:
      train_per_class, validation_per_class, test_per_class: videos of each motion in each split.
      frames: frames of a video.
      size: height and width in pixels; even, as yuv420p needs.
      fps: frames per second; only the files' time stamps depend on it.
      seed: every video is a function of (seed, split, class, number) alone.
    """

    train_per_class: int = 48
    validation_per_class: int = 8
    test_per_class: int = 24
    frames: int = 24
    size: int = 64
    fps: int = 12
    seed: int = 0

    def __post_init__(self):
        counts = ("train_per_class", "validation_per_class", "test_per_class", "seed")
        for name, lowest in (*((name, 0) for name in counts), ("frames", 1), ("fps", 1)):
            if getattr(self, name) < lowest:
                raise UserError(
                    f"synthetic videos: {name} is {getattr(self, name)}; set it to {lowest} or more"
                )
        if self.size < 16 or self.size % 2:
            raise UserError(
                f"synthetic videos: size is {self.size}; set an even number of pixels, 16 or more"
            )

    @property
    def per_class(self) -> dict[str, int]:
        """Videos of each class by folder name of the split; splits without videos are left out."""
        counts = (self.train_per_class, self.validation_per_class, self.test_per_class)
        return {
            name: count
            for name, count in zip(("train", "val", "test"), counts, strict=True)
            if count
        }


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """Where the object is at each frame; float64 (T,) each.

    Attributes:
      x, y: centre in [0, 1) of the frame, y pointing down.
      angle: radians in [0, 2 pi), clockwise as seen on the screen.
      radius: of the furthest point from the centre, as a fraction of the frame's side.
    """

    x: np.ndarray
    y: np.ndarray
    angle: np.ndarray
    radius: np.ndarray


def draw_trajectory(
    motion: str, rng: np.random.Generator, settings: SyntheticSettings
) -> Trajectory:
    """Draws a start and a speed, the same for every motion, and moves on as `motion` says.

    Raises:
      UserError: no such motion.
    """
    if motion not in _DIRECTIONS:
        raise unknown("motion", motion, MOTIONS)
    x, y, angle, phase, speed = rng.uniform(size=5)
    along = np.array([_between(speed, limits) for limits in (_MOVE, _MOVE, _TURN, _ZOOM)])
    low, high = np.log(_RADIUS)
    # In periods, so that all four wrap alike: frame, frame, full turn, range of the log size.
    periods = np.array([1, 1, 2 * np.pi, high - low])
    steps = np.arange(settings.frames)[:, None] * (along / periods * _DIRECTIONS[motion])
    x, y, angle, phase = ((np.array([x, y, angle, phase]) + steps) % 1.0).T
    return Trajectory(x, y, angle * 2 * np.pi, np.exp(low + phase * (high - low)))


def render(motion: str, rng: np.random.Generator, settings: SyntheticSettings) -> np.ndarray:
    """Draws one random video of a motion.

    Args:
      motion: one of `MOTIONS`.
      rng: all that is random comes from here, in the same order for every motion.
      settings: of these, `frames` and `size` matter here.

    Returns:
      uint8 (frames, size, size, 3), RGB.

    Raises:
      UserError: no such motion.
    """
    trajectory = draw_trajectory(motion, rng, settings)
    video = _background(rng, settings)
    outline = _outline(rng)
    texture = _texture(rng)
    # One dark and one bright colour, so that texture and outline show on any background.
    tint = rng.uniform(-0.18, 0.18, size=(2, 3))
    dark, bright = np.float32(np.clip(rng.uniform([[0.12], [0.70]], [[0.30], [0.88]]) + tint, 0, 1))

    where, alpha, u, v = _object_pixels(outline, trajectory, settings.size)
    mix = texture(u, v)[:, None]
    colour = dark + (bright - dark) * mix
    flat = video.reshape(-1, 3)
    flat[where] += alpha[:, None] * (colour - flat[where])
    return np.uint8(np.clip(video * 255 + 0.5, 0, 255))


def write_dataset(
    root: str | os.PathLike, settings: SyntheticSettings | None = None
) -> pathlib.Path:
    """Writes `<root>/{train,val,test}/<motion>/*.mp4` unless the same set is there already.

    The set is written beside `root` and renamed when complete, so `root` never holds half a set.

    Returns:
      `root` as a path.

    Raises:
      UserError: `root` holds something else, or cannot be written.
    """
    root = pathlib.Path(root)
    settings = settings or SyntheticSettings()
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        _check_same(root, settings)
        return root
    root = root.absolute()
    partial = root.with_name(f".{root.name}.partial-{socket.gethostname()}-{os.getpid()}")
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of a killed process that had the same number
        partial.mkdir(parents=True)
        _write_videos(partial, settings)
        (partial / MARKER).write_text(json.dumps(_marker(settings), indent=1) + "\n")
        try:
            partial.rename(root)
        except OSError:
            if not (root / MARKER).is_file():
                raise
            _check_same(root, settings)  # another process was first
    except OSError as error:
        raise UserError(
            f"cannot write the synthetic videos to {root}: {error.strerror or error}; "
            "free space there or choose another folder"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return root


def _between(fraction: float, limits: tuple[float, float]) -> float:
    return limits[0] + fraction * (limits[1] - limits[0])


def _video_name(split: str, motion: str, number: int) -> str:
    return f"{split}/{motion}/{split}_{motion}_{number:04d}.mp4"


def _video_names(settings: SyntheticSettings) -> list[tuple[str, list[int], str]]:
    """(path inside the set, seed, motion) of every video."""
    return [
        (
            _video_name(split, motion, number),
            [settings.seed, ("train", "val", "test").index(split), MOTIONS.index(motion), number],
            motion,
        )
        for split, count in settings.per_class.items()
        for motion in MOTIONS
        for number in range(count)
    ]


def _marker(settings: SyntheticSettings) -> dict:
    return {"version": _VERSION, **dataclasses.asdict(settings)}


def _check_same(root: pathlib.Path, settings: SyntheticSettings) -> None:
    """Raises a UserError unless `root` holds exactly the set that `settings` describe."""
    mend = "delete that folder or choose another"
    try:
        found = json.loads((root / MARKER).read_text())
    except (OSError, ValueError):
        raise UserError(
            f"{root} exists and is no complete set of synthetic videos "
            f"(no readable {MARKER}); {mend}"
        ) from None
    wanted = _marker(settings)
    found = found if isinstance(found, dict) else {}
    keys = [key for key in {**wanted, **found} if found.get(key) != wanted.get(key)]
    if keys:
        changes = ", ".join(f"{key} {found.get(key)} (now {wanted.get(key)})" for key in keys)
        raise UserError(f"{root} holds synthetic videos of other settings: {changes}; {mend}")
    for name, _, _ in _video_names(settings):
        if not (root / name).is_file():
            raise UserError(f"{root / name} is missing from the synthetic videos; {mend}")


def _write_videos(root: pathlib.Path, settings: SyntheticSettings) -> None:
    videos = _video_names(settings)
    with Progress(len(videos), "writing synthetic videos", unit="videos") as progress:
        for name, seed, motion in videos:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            frames = render(motion, np.random.default_rng(seed), settings)
            path.write_bytes(encode(frames, settings.fps))
            progress.update()


def encode(frames: np.ndarray, fps: int) -> bytes:
    """Turns uint8 (T, H, W, 3) RGB into the bytes of an mp4 file (H.264, yuv420p)."""
    buffer = io.BytesIO()
    # g=1: every frame is coded on its own, see the module's docstring.
    options = {"preset": "veryfast", "qp": "20", "g": "1"}
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1  # the same bytes on every machine
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def _background(rng: np.random.Generator, settings: SyntheticSettings) -> np.ndarray:
    """Smooth periodic noise drifting in a random direction; float32 (T, H, W, 3), about 0.5."""
    size = settings.size
    ky = np.fft.fftfreq(size, 1 / size)[:, None]
    kx = np.fft.rfftfreq(size, 1 / size)
    smooth = np.exp(-(kx**2 + ky**2) / (2 * 4.0**2))
    smooth[0, 0] = 0
    # One pattern of light and dark and one of hue, so that the noise is coloured but not gaudy.
    noise = np.fft.fft2(rng.standard_normal((2, size, size)))[..., : size // 2 + 1] * smooth
    heading, speed = rng.uniform(0, 2 * np.pi), rng.uniform(*_DRIFT)
    time = np.arange(settings.frames)[:, None, None] * speed
    shift = np.exp(-2j * np.pi * time * (np.cos(heading) * kx + np.sin(heading) * ky))
    patterns = np.fft.irfft2(noise[:, None] * shift, s=(size, size))
    patterns /= patterns.std(axis=(1, 2, 3), keepdims=True)
    mean = rng.uniform(0.35, 0.65) + rng.uniform(-0.06, 0.06, size=3)
    tint = rng.uniform(-0.06, 0.06, size=3)
    weights = np.stack([np.full(3, rng.uniform(0.06, 0.10)), tint])
    return np.float32(mean + np.moveaxis(patterns, 0, -1) @ weights)


def _outline(rng: np.random.Generator) -> np.ndarray:
    """Radius of a random star-shaped outline over 1024 angles of a full turn, 1 at its furthest."""
    angles = np.arange(1024) * (2 * np.pi / 1024)
    if rng.uniform() < 0.5:  # a blob: a circle with a few harmonics
        waves = np.arange(2, 5)
        height, phase = rng.uniform(0.05, 0.25, 3), rng.uniform(0, 2 * np.pi, 3)
        radius = 1 + height @ np.cos(waves[:, None] * angles + phase[:, None])
    else:  # a convex polygon: the points within a distance along each of a few normals
        sides = rng.integers(3, 7)
        normals = (np.arange(sides) + rng.uniform(-0.12, 0.12, sides)) * (2 * np.pi / sides)
        reach = np.cos(angles - normals[:, None]) / rng.uniform(0.6, 1.0, (sides, 1))
        radius = 1 / reach.max(axis=0)
    return np.float32(radius / radius.max())


def _texture(rng: np.random.Generator):
    """Draws stripes, a checkerboard or noise: a function of points (u, v) to float32 in [0, 1]."""
    kind = rng.integers(3)
    heading = rng.uniform(0, 2 * np.pi) + np.array([0, np.pi / 2])
    waves = 2 * np.pi * rng.uniform(0.6, 1.1, 2)  # radians per radius of the object
    phases = rng.uniform(0, 2 * np.pi, 2)
    spread = rng.standard_normal((5, 2)) * (2 * np.pi * 0.6)
    offsets = rng.uniform(0, 2 * np.pi, 5)
    sharpness = np.float32(rng.uniform(1.5, 4.0))
    if kind < 2:
        directions = waves[:, None] * np.stack([np.cos(heading), np.sin(heading)], axis=-1)
        directions, phases = directions[: kind + 1], phases[: kind + 1]
    else:
        directions, phases = spread, offsets
    directions, phases = np.float32(directions), np.float32(phases)

    def texture(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        carriers = (np.sin(a * u + b * v + c) for (a, b), c in zip(directions, phases, strict=True))
        field = sum(carriers) if kind == 2 else np.prod(list(carriers), axis=0)
        return 0.5 + 0.5 * np.tanh(sharpness * field)

    return texture


def _object_pixels(
    outline: np.ndarray, trajectory: Trajectory, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The pixels that the object covers.

    Returns:
      Their flat index in (T, size, size), the share of each that is covered (float32 in (0, 1]; the
      outline is antialiased), and their coordinates u, v in the object's own frame, in which
      its outline's largest radius is 1.
    """
    centres = (np.arange(size) + 0.5) / size
    dx = np.float32((centres - trajectory.x[:, None] + 0.5) % 1.0 - 0.5)
    dy = np.float32((centres - trajectory.y[:, None] + 0.5) % 1.0 - 0.5)
    reach = np.float32(trajectory.radius + 1 / size)[:, None, None]
    t, i, j = np.nonzero(dx[:, None, :] ** 2 + dy[:, :, None] ** 2 < reach**2)
    x, y = dx[t, j], dy[t, i]
    radius = np.float32(trajectory.radius)[t]
    cos, sin = np.float32(np.cos(trajectory.angle))[t], np.float32(np.sin(trajectory.angle))[t]
    u, v = (cos * x + sin * y) / radius, (cos * y - sin * x) / radius
    turn = np.arctan2(v, u) * np.float32(len(outline) / (2 * np.pi))
    edge = outline[np.int32(np.rint(turn)) % len(outline)]
    alpha = np.clip((edge - np.hypot(u, v)) * radius * size + 0.5, 0, 1)
    inside = alpha > 0
    where = (t * size + i) * size + j
    return where[inside], alpha[inside], u[inside], v[inside]
