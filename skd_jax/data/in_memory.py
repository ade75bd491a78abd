"""A small data set's frames, decoded once and held in memory: epochs without decoding, and without TensorFlow.

Pillow decodes them as `pipeline` has TensorFlow do it. The clips are the same to the last bit but at the rim of
a window: where only the window is decoded, the colours beyond it are not there to interpolate with.
"""

import collections
import concurrent.futures
import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from skd_jax.data.cores import available_cores
from skd_jax.data.plans import BatchPlan, batch_of
from skd_jax.errors import UserError

AHEAD = 2  # batches put together while the device computes


# For each row of a split its video, uint8 (frames, height, width, 3).
Pixels = tuple[np.ndarray, ...]


def size_in_bytes(split) -> int:
    """What `load` takes of memory for a `PreparedSplit`."""
    height, width = (np.asarray(x, np.int64) for x in (split.height, split.width))
    return int((split.num_frames * height * width).sum() * 3)


def load(split, threads: int | None = None) -> Pixels:
    """Decodes every frame of a split.

    Args:
      split: `PreparedSplit`, its shards on a disk.
      threads: all of this process's cores by default.

    Raises:
      UserError: the frames need more than the free memory, or a frame cannot be decoded.
    """
    needed, free = size_in_bytes(split), _free_memory()
    if needed > free:
        raise UserError(
            f"{split.root}: the frames of split {split.name!r} take {needed / 1e9:.1f} GB decoded, and "
            f"{free / 1e9:.1f} GB of memory are free; leave config.data.in_memory at False, or prepare "
            "smaller or fewer frames (config.data.frame_size, config.data.max_frames)"
        )
    with concurrent.futures.ThreadPoolExecutor(threads or available_cores(), "decode") as pool:
        return tuple(pool.map(lambda row: _video(split, row), range(len(split))))


def _video(split, row: int) -> np.ndarray:
    first, last = split.first_frame[row], split.first_frame[row + 1]
    path = split.shard_paths[split.shard[row]]
    video = np.empty((last - first, split.height[row], split.width[row], 3), np.uint8)
    place = 0
    try:
        with open(path, "rb") as file:
            for place, frame in enumerate(range(first, last)):
                file.seek(int(split.frame_begin[frame]))
                data = file.read(int(split.frame_length[frame]))
                video[place] = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    except (OSError, ValueError) as error:  # Pillow raises these two
        raise UserError(
            f"{path}: frame {place} of video '{split.ids[row]}' cannot be read ({error}); if the shard is "
            "damaged, delete it and its manifest and prepare again"
        ) from error
    return video


def _free_memory() -> float:
    """Bytes that can be had without swapping: the system's cache of files counts, it gives way."""
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        found = None
    return int(found[1]) * 1024 if found else float("inf")  # not every system says


def read(
    split, planned: Iterable[BatchPlan], canvas: int, pixels: Pixels, masked: bool
) -> Iterator[dict[str, np.ndarray]]:
    """Batches as those of `pipeline.Batches`, cut from memory by a thread of its own."""
    planned = iter(planned)
    with concurrent.futures.ThreadPoolExecutor(1, "cut") as pool:
        ahead: collections.deque[concurrent.futures.Future] = collections.deque()
        while True:
            while len(ahead) <= AHEAD and (plan := next(planned, None)) is not None:
                ahead.append(pool.submit(_batch, split, plan, canvas, pixels, masked))
            if not ahead:
                return
            yield ahead.popleft().result()


def _batch(split, plan: BatchPlan, canvas: int, pixels: Pixels, masked: bool):
    videos, views, frames = plan.frames.shape
    clips = np.zeros((videos, views, frames, canvas, canvas, 3), np.uint8)
    for place in np.ndindex(videos, views):
        y, x, height, width = plan.window[place]
        window = pixels[plan.source[place]][:, y : y + height, x : x + width]
        for t, frame in enumerate(plan.frames[place]):
            clips[place][t, :height, :width] = window[frame]  # copied once, row by row
    return batch_of(split, plan, clips, masked)
