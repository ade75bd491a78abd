"""Prepared data set -> batches of uint8 clips, by tf.data on the CPU.

What is in a batch is decided before anything is read: `train_plan` and `eval_plan` are pure
functions of the step, so the order never depends on timing, threads or the number of processes, and
a run resumes at any step without reading what came before. A plan then goes through

    read the sampled frames' bytes -> decode each through its window (TensorFlow's C++ ops)
      -> pad to the canvas and batch -> prefetch

Two choices make it fast. Only the bytes of sampled frames are read, by their offsets in the shard
and with one read for neighbours: fetching whole records costs half as much as decoding the clips.
And nothing is resized here: the device does it, from the window in the canvas' top left corner.

Memory: with b videos per process and batch, V views of T frames and a canvas of S pixels, a batch
takes b*V*T*S*S*3 bytes, and there are at most PREFETCH + 2 of them (finished, in the making, with
the caller); plus the b*V*T encoded frames of each of 3 plans; plus 2 decoded clips of at most
T*S*S*3 bytes per thread. Neither the size of the data set nor that of a video enters.
"""

import atexit
import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import itertools
import os
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from skd_jax.data import clips as clips_lib
from skd_jax.data.cores import available_cores
from skd_jax.data.files import is_remote
from skd_jax.errors import UserError


@contextlib.contextmanager
def _quiet():
    """Holds back what C++ writes to standard error, and shows it only if the block fails."""
    with tempfile.TemporaryFile() as held:
        saved = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(saved, held.read())
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)


os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
with _quiet():
    import tensorflow as tf

    # TensorFlow would otherwise claim the accelerators' memory before JAX does.
    for _kind in ("GPU", "TPU"):
        tf.config.set_visible_devices([], _kind)

PREFETCH = 2  # finished batches waiting for the caller
_READERS = 8  # reads under way at once; they hide the latency of disks and object stores
_MERGE_GAP = 64 * 1024  # frames closer than this many bytes are fetched by one read

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class BatchPlan:
    """One process's part of a batch: b videos of V views, and what to read of each.

    Attributes:
      row: int64 (b,), row in the split.
      mask: bool (b,), False for padding (which repeats row 0).
      frames: int32 (b, V, T), frame numbers in the video.
      window: int32 (b, V, 4), (y, x, height, width) in the stored frame.
      flip: bool (b, V).
      key: uint32 (b, 2), for what the device draws at random.
      source: int64 (b, V), row of the video that each view shows: `row`, or a partner's.
    """

    row: np.ndarray
    mask: np.ndarray
    frames: np.ndarray
    window: np.ndarray
    flip: np.ndarray
    key: np.ndarray
    source: np.ndarray


@functools.lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, num_videos: int) -> np.ndarray:
    return np.random.default_rng([0, seed, epoch]).permutation(num_videos)


def train_rows(
    step: int, batch_size: int, num_videos: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Which videos the global batch of `step` holds: the only place that composes batches.

    Epochs follow each other without a gap: a batch may hold the end of one and the start of the
    next.

    Returns:
      epoch int64 (batch_size,) and row int64 (batch_size,).
    """
    epoch, place = np.divmod(step * batch_size + np.arange(batch_size), num_videos)
    row = np.empty(batch_size, np.int64)
    for each in np.unique(epoch):
        here = epoch == each
        row[here] = _epoch_order(seed, int(each), num_videos)[place[here]]
    return epoch, row


def train_plan(
    split,
    settings: clips_lib.ClipSettings,
    step: int,
    *,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> BatchPlan:
    """What this process reads for training step `step`: a pure function of its arguments.

    Process p holds positions p, p + process_count, ... of the global batch; what is drawn for a
    video, its partners too, depends on (seed, epoch, the video's key) alone.
    """
    epoch, row = train_rows(step, batch_size, len(split.labels), seed)
    mine = slice(process_index, None, process_count)
    key, samples, source = [], [], []
    for e, r in zip(epoch[mine].tolist(), row[mine].tolist(), strict=True):
        rng = np.random.default_rng([1, seed, e, int(split.key[r])])
        key.append(rng.integers(2**32, size=2, dtype=np.uint32))
        shown = np.full(settings.views, r)
        if settings.partners:
            shown[-settings.partners :] = train_partners(split, r, settings.partners, seed, e)
        source.append(shown)
        samples.append(clips_lib.sample_train(rng, *_shape(split, shown), settings))
    return BatchPlan(
        row=row[mine],
        mask=np.ones(len(samples), bool),
        frames=np.stack([s.frames for s in samples]),
        window=np.stack([s.window for s in samples]),
        flip=np.stack([s.flip for s in samples]),
        key=np.stack(key),
        source=np.stack(source),
    )


def train_partners(split, row: int, count: int, seed: int, epoch: int) -> np.ndarray:
    """Other training videos of a video's class, drawn anew in every epoch.

    All are different where the class has as many others, else some repeat; a video that is alone in
    its class is its own partner.

    Returns:
      int64 (count,), rows of the split.
    """
    others = np.flatnonzero(split.labels == split.labels[row])
    others = others[others != row]
    if not len(others):
        return np.full(count, row)
    rng = np.random.default_rng([2, seed, epoch, int(split.key[row])])
    return rng.choice(others, size=count, replace=len(others) < count)


def train_batches(
    split,
    clips: clips_lib.ClipSettings,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    threads: int | None = None,
) -> Iterator[Batch]:
    """Training batches without end, from `start_step` on.

    Args:
      split: `PreparedSplit` to read.
      clips: how views are drawn.
      batch_size: videos per step over all processes.
      seed: fixes order and sampling.
      start_step: the first batch is the one that a run from step 0 sees at this step.
      process_index: p.
      process_count: P; each process gets b = batch_size // P videos.
      threads: CPU threads to decode with; all of this process's cores by default.

    Returns:
      Iterator over dicts of arrays (clips are read-only):
        "clips": uint8 (b, V, T, S, S, 3), each window in the top left corner of its canvas, zeros
          beside it;
        "size": int32 (b, V, 2), height and width of the windows;
        "flip": bool (b, V); "label": int32 (b,), of all views; "index": int32 (b,), row in the
          split of the video that the views show which are no partners';
        "key": uint32 (b, 2), a hash of (seed, epoch, video).

    Raises:
      UserError: for a batch that does not divide, frames larger than the canvas, or (from the
        iterator) a shard that cannot be read or decoded, naming shard and video.
    """
    _check(split, clips.canvas, batch_size, process_index, process_count)
    if seed < 0:
        raise UserError(f"seed={seed} must not be negative")
    plan = functools.partial(
        train_plan,
        split,
        clips,
        batch_size=batch_size,
        seed=seed,
        process_index=process_index,
        process_count=process_count,
    )

    plans = map(plan, itertools.count(start_step))
    shape = batch_size // process_count, clips.views, clips.frames
    return _Batches(split, plans, shape, clips.canvas, threads, masked=False)


def eval_plan(
    split,
    sample: Callable[[int, int, int], tuple[np.ndarray, np.ndarray]],
    step: int,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
) -> BatchPlan:
    """What this process reads for evaluation step `step`; videos come in the split's own order.

    Args:
      split: `PreparedSplit` to read.
      sample: (num_frames, height, width) -> frames (V, T), window (V, 4).
      step: from 0 to ceil(N / batch_size) - 1.
      batch_size: videos per step over all processes.
      process_index: p.
      process_count: P.
    """
    position = step * batch_size + np.arange(process_index, batch_size, process_count)
    mask = position < len(split.labels)
    row = np.where(mask, position, 0)
    samples = [sample(*map(int, _shape(split, r))) for r in row]
    frames = np.stack([s[0] for s in samples])
    return BatchPlan(
        row=row,
        mask=mask,
        frames=frames,
        window=np.stack([s[1] for s in samples]),
        flip=np.zeros(frames.shape[:2], bool),
        key=np.zeros((len(row), 2), np.uint32),
        source=np.repeat(row[:, None], frames.shape[1], axis=1),
    )


def eval_batches(
    split,
    *,
    frames: int,
    stride: int,
    clips: int = 1,
    crops: int = 1,
    fraction: float = 1.0,
    canvas: int = 128,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    threads: int | None = None,
) -> Iterator[Batch]:
    """Every video of the split once over all processes, as `clips` x `crops` fixed views.

    The last batch is padded, so that all processes get the same number, ceil(N / batch_size).

    Args:
      split: `PreparedSplit` to read.
      frames: frames per clip, T.
      stride: distance between sampled frames, in stored frames.
      clips: K clips, evenly spaced in time.
      crops: C crops, evenly spaced along the long side.
      fraction: side of the square crop as a share of the short side.
      canvas: side S of the canvas in pixels, at least the stored short side.
      batch_size: videos per step over all processes.
      process_index: p.
      process_count: P; each process gets b = batch_size // P videos.
      threads: CPU threads to decode with; all of this process's cores by default.

    Returns:
      Iterator over dicts as from `train_batches` with V = K*C (all crops of a clip together), flip
      False and key 0, and with "mask" bool (b,), False for padding.

    Raises:
      UserError: as `train_batches`.
    """
    _check(split, canvas, batch_size, process_index, process_count)
    for name, value in (("frames", frames), ("stride", stride), ("clips", clips), ("crops", crops)):
        if value < 1:
            raise UserError(f"evaluation: {name}={value} must be 1 or more")
    if not 0 < fraction <= 1:
        raise UserError(
            f"evaluation: the crop must be within the stored frame, not {fraction:g} of it"
        )
    sample = functools.partial(
        clips_lib.sample_test,
        frames=frames,
        stride=stride,
        clips=clips,
        crops=crops,
        fraction=fraction,
    )

    plan = functools.partial(
        eval_plan,
        split,
        sample,
        batch_size=batch_size,
        process_index=process_index,
        process_count=process_count,
    )
    plans = map(plan, range(-(-len(split.labels) // batch_size)))
    shape = batch_size // process_count, clips * crops, frames
    return _Batches(split, plans, shape, canvas, threads, masked=True)


def _shape(split, row: int | np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Number of frames, height and width of a video, or of several."""
    num_frames = split.first_frame[row + 1] - split.first_frame[row]
    # Unsigned or small integers would wrap around in the arithmetic of clips.
    return tuple(np.asarray(x, np.int64) for x in (num_frames, split.height[row], split.width[row]))


def _check(split, canvas: int, batch_size: int, process_index: int, process_count: int) -> None:
    if batch_size < 1 or batch_size % process_count:
        raise UserError(
            f"batch_size={batch_size} must be a positive multiple of the {process_count} processes"
        )
    if not 0 <= process_index < process_count:
        raise UserError(f"process {process_index} of {process_count} does not exist")
    if len(split.labels) == 0:
        raise UserError(f"{split.root}: split {split.name!r} holds no videos")
    short = int(np.max(np.minimum(split.height, split.width)))
    if short > canvas:
        raise UserError(
            f"{split.root}: split {split.name!r} holds frames with a short side of {short} pixels, "
            f"more than the canvas of {canvas}: set the frame size to {short} or prepare again"
        )


class _Batches(Iterator[Batch]):
    """Reads and decodes plans, in their order."""

    def __init__(
        self,
        split,
        plans: Iterable[BatchPlan],
        shape: tuple[int, int, int],
        canvas: int,
        threads: int | None,
        masked: bool,
    ):
        """Plans are of `shape` (b, V, T); without `masked`, batches come without "mask"."""
        self._split, self._shape, self._canvas, self._masked = split, shape, canvas, masked
        # Clips come out in the order in which their plans went in, so the rest of a batch need not
        # travel through TensorFlow, and on an error the first plan pending is the one that failed.
        self._pending: collections.deque[BatchPlan] = collections.deque()
        self._failures: list[Exception] = []
        self._stop = threading.Event()
        self._lock = threading.Lock()
        source = functools.partial(
            _encoded, split, plans, self._pending, self._failures, self._stop
        )
        dataset = _decoded(source, shape, canvas, threads or available_cores())
        self._iterator = dataset.as_numpy_iterator()
        _open_batches.add(self)

    def __next__(self) -> Batch:
        with self._lock:
            if self._iterator is None:
                raise StopIteration
            try:
                clips = next(self._iterator)
            except StopIteration:
                self._iterator = None
                if self._failures:
                    raise self._failures[0] from None
                raise
            except tf.errors.OpError as error:
                self._iterator = None
                raise _decoding_error(self._split, self._pending[0], error) from None
            plan = self._pending.popleft()
        batch = {
            "clips": clips.reshape(*self._shape, self._canvas, self._canvas, 3),
            "size": plan.window[..., 2:],
            "flip": plan.flip,
            "label": self._split.labels[plan.row].astype(np.int32),
            "index": plan.row.astype(np.int32),
            "key": plan.key,
        }
        if self._masked:
            batch["mask"] = plan.mask
        return batch

    def close(self) -> None:
        """Ends the reading; further calls of `next` raise StopIteration."""
        self._stop.set()
        with self._lock:
            self._iterator = None


_open_batches: weakref.WeakSet[_Batches] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    # TensorFlow calls into Python when an iterator goes, which must not be after Python itself has.
    for batches in list(_open_batches):
        batches.close()


def _encoded(split, plans, pending, failures, stop) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each plan the encoded frames, bytes (b*V, T), and the windows (b*V, 4)."""
    try:
        with concurrent.futures.ThreadPoolExecutor(_READERS, "read") as pool:
            for plan in plans:
                if stop.is_set():
                    return
                pending.append(plan)
                data = np.empty(plan.frames.shape, object)
                # Views of one video are read together: they share frames.
                parts = [
                    (i, shown == row)
                    for i, shown in enumerate(plan.source)
                    for row in np.unique(shown)
                ]
                rows = [plan.source[part][0] for part in parts]
                frames = [plan.frames[part] for part in parts]
                for part, video in zip(parts, pool.map(_reader(split), rows, frames), strict=True):
                    data[part] = video
                yield data.reshape(-1, data.shape[-1]), plan.window.reshape(-1, 4)
    except Exception as error:  # noqa: BLE001, raised again where the batches are consumed
        failures.append(error)


def _decoded(source, shape: tuple[int, int, int], canvas: int, threads: int) -> tf.data.Dataset:
    """Data set of uint8 (b*V, T, S, S, 3) from a generator function like `_encoded`."""
    videos, views, frames = shape

    def decode(data, window):
        return tf.stack([_decode_frame(data[t], window) for t in range(frames)])

    signature = (
        tf.TensorSpec((videos * views, frames), tf.string),
        tf.TensorSpec((videos * views, 4), tf.int32),
    )
    dataset = tf.data.Dataset.from_generator(source, output_signature=signature).prefetch(1)
    dataset = dataset.unbatch().map(decode, num_parallel_calls=threads, deterministic=True)
    dataset = dataset.padded_batch(videos * views, (frames, canvas, canvas, 3), drop_remainder=True)
    options = tf.data.Options()
    options.deterministic = True
    options.autotune.enabled = False
    options.threading.private_threadpool_size = threads
    options.threading.max_intra_op_parallelism = 1
    return dataset.prefetch(PREFETCH).with_options(options)


def _decode_frame(data, window):
    # TensorFlow's default is libjpeg's least accurate transform, which is no faster.
    return tf.io.decode_and_crop_jpeg(data, window, channels=3, dct_method="INTEGER_ACCURATE")


def _reader(split) -> Callable[[int, np.ndarray], list[list[bytes]]]:
    """A function (row, frames (V, T)) -> V lists of T encoded frames; a frame is read only once."""

    def read(row: int, frames: np.ndarray) -> list[list[bytes]]:
        path = split.shard_paths[split.shard[row]]
        wanted = np.unique(frames)
        at = split.first_frame[row] + wanted
        ranges = split.frame_begin[at].tolist(), split.frame_length[at].tolist()
        try:
            data = _read_ranges(path, *ranges)
        except (OSError, EOFError, tf.errors.OpError) as error:
            raise UserError(
                f"{path}: cannot read video '{split.ids[row]}' ({error}); if the shard is damaged, "
                "delete it and its manifest and prepare again"
            ) from error
        found = dict(zip(wanted.tolist(), data, strict=True))
        return [[found[frame] for frame in view] for view in frames.tolist()]

    return read


def _read_ranges(path: str, begin: list[int], length: list[int]) -> list[bytes]:
    """The bytes of ascending ranges of a file; `path` may be anything TensorFlow opens."""
    data = []
    first = 0
    # A plain unbuffered file reads just what is asked for; TensorFlow's, half a megabyte ahead.
    with (
        tf.io.gfile.GFile(path, "rb") if is_remote(path) else open(path, "rb", buffering=0) as file
    ):
        while first < len(begin):
            last = first
            end = begin[first] + length[first]
            while last + 1 < len(begin) and begin[last + 1] - end <= _MERGE_GAP:
                last += 1
                end = begin[last] + length[last]
            origin = begin[first]
            file.seek(origin)
            block = file.read(end - origin)
            if len(block) != end - origin:
                raise EOFError(f"the file ends before byte {end}")
            for i in range(first, last + 1):
                data.append(block[begin[i] - origin : begin[i] - origin + length[i]])
            first = last + 1
    return data


def _decoding_error(split, plan: BatchPlan, error: Exception) -> UserError:
    """Finds the frame of the batch that cannot be decoded."""
    read = _reader(split)
    for rows, frames, windows in zip(plan.source, plan.frames, plan.window, strict=True):
        for row, view, window in zip(rows, frames, windows, strict=True):
            shard = split.shard_paths[split.shard[row]]
            (data,) = read(row, view[None])
            for frame, image in zip(view, data, strict=True):
                try:
                    _decode_frame(image, window)
                except tf.errors.OpError as fault:
                    reason = fault.message.split("}} ")[-1].split(" [Op:")[0]
                    return UserError(
                        f"{shard}: frame {frame} of video '{split.ids[row]}' cannot be decoded "
                        f"({reason}); delete the shard and its manifest and prepare again"
                    )
    return UserError(f"{split.root}: a batch of split {split.name!r} failed: {error.message}")
