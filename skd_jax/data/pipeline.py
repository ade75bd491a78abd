"""Plans of batches -> batches of uint8 clips, by tf.data on the CPU.

A plan (`plans.py`) goes through

    read the sampled frames' bytes -> decode each through its window (TensorFlow's C++ ops)
      -> pad to the canvas and batch -> prefetch

Two choices make it fast. Only the bytes of sampled frames are read, by their offsets in the shard
and with one read for neighbours: fetching whole records costs half as much as decoding the clips.
And nothing is resized here: the device does it, from the window in the canvas' top left corner.

Memory: with b videos per process and batch, V views of T frames and a canvas of S pixels, a batch
takes b*V*T*S*S*3 bytes, and there are at most PREFETCH + 2 of them (finished, in the making, with
the caller); plus the b*V*T encoded frames of each of 3 plans; plus 2 decoded clips of at most
T*S*S*3 bytes per thread. Of the data set only the places of its frames enter, 12 bytes for each
(`prepared.load_split`); training holds up to three batches more on their way to the device
(`parallel.prefetch`).
"""

import atexit
import collections
import concurrent.futures
import functools
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from skd_jax import quiet
from skd_jax.data.cores import available_cores
from skd_jax.data.files import is_remote
from skd_jax.data.plans import BatchPlan, batch_of
from skd_jax.errors import UserError

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
with quiet.standard_error():
    import tensorflow as tf

    # TensorFlow would otherwise claim the accelerators' memory before JAX does.
    for _kind in ("GPU", "TPU"):
        tf.config.set_visible_devices([], _kind)

PREFETCH = 2  # finished batches waiting for the caller
_READERS = 8  # reads under way at once; they hide the latency of disks and object stores
_MERGE_GAP = 64 * 1024  # frames closer than this many bytes are fetched by one read

Batch = dict[str, np.ndarray]


class Batches(Iterator[Batch]):
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
        clips = clips.reshape(*self._shape, self._canvas, self._canvas, 3)
        return batch_of(self._split, plan, clips, self._masked)

    def close(self) -> None:
        """Ends the reading; further calls of `next` raise StopIteration."""
        self._stop.set()
        with self._lock:
            self._iterator = None


_open_batches: weakref.WeakSet[Batches] = weakref.WeakSet()


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
