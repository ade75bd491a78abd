"""One shard of a prepared data set: videos in, a TFRecord file and its manifest out.

TensorFlow is not imported here: a worker process starts in a fraction of a second and stays small.
The two formats are a few bytes each, and writing them here gives the byte position of every JPEG:
  TFRecord: https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details
  tf.train.Example: tensorflow/core/example/{example,feature}.proto in protobuf's wire format
"""

import concurrent.futures
import dataclasses
import io
import json
import multiprocessing
import os
import re
import signal
import struct
import threading
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool

import google_crc32c
import numpy as np
from etils import epath
from PIL import Image

from skd_jax.data.cores import available_cores
from skd_jax.data.decode import DecodeError, iter_frames
from skd_jax.data.files import staged, write_bytes
from skd_jax.data.index import Video
from skd_jax.errors import UserError

_MAX_RECORD_BYTES = 2_000_000_000  # protobuf's limit on one message is 2 GiB
_POLL_SECONDS = 0.5


@dataclasses.dataclass(frozen=True)
class PrepareSettings:
    """How videos are stored.

    Attributes:
      frame_size: short side of the stored frames, pixels; their height where there is a `frame_width`.
      frame_width: makes all frames so wide, whatever their aspect; None keeps it.
      antialias: whether shrinking smooths first.
      jpeg_quality: 1 to 100; colour is stored at half resolution (4:2:0).
      max_fps: frames beyond this rate are dropped; None keeps all.
      max_frames: only so many frames from the start are kept; None keeps all.
      min_frames: a video of which fewer frames decode is rejected.
      videos_per_shard: upper limit; 32 ten-second videos of 128 pixels are about 110 MB. Small
        splits are cut into at least 8 shards, so that the cores have work.
      workers: processes; 0 means one for each available core. Has no effect on what is written.
    """

    frame_size: int = 128
    jpeg_quality: int = 95
    max_fps: float | None = None
    max_frames: int | None = None
    min_frames: int = 4
    videos_per_shard: int = 32
    workers: int = 0
    frame_width: int | None = None
    antialias: bool = True


@dataclasses.dataclass(frozen=True)
class ShardTask:
    """All that is needed to write one shard; a pure function of index and settings."""

    root: str
    split: str
    shard: str
    videos: tuple[Video, ...]
    settings: PrepareSettings
    fingerprint: str


# --- The bytes of one record ---


def _varint(value: int) -> bytes:
    value &= 2**64 - 1  # negative int64 is written as its two's complement, ten bytes long
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _delimited(field: int, payload: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(payload)) + payload


def _feature(key: str, kind: int, values: bytes) -> bytes:
    """One entry of Features.feature; `kind` 1 is a BytesList, 2 a FloatList, 3 an Int64List."""
    return _delimited(1, _delimited(1, key.encode()) + _delimited(2, _delimited(kind, values)))


def encode_example(
    video_id: str, label: int, fps: float, jpegs: Sequence[bytes]
) -> tuple[bytes, list[int]]:
    """Serialises a tf.train.Example with the features video, label, fps and video_id.

    Returns:
      The bytes, and for every JPEG the byte at which it begins in them.
    """
    features = (
        _feature("fps", 2, _delimited(1, struct.pack("<f", fps)))
        + _feature("label", 3, _delimited(1, _varint(label)))
        + _feature("video_id", 1, _delimited(1, video_id.encode()))
    )
    begins, pieces, length = [], [], 0
    for jpeg in jpegs:
        header = b"\x0a" + _varint(len(jpeg))
        begins.append(length + len(header))
        pieces += (header, jpeg)
        length += len(header) + len(jpeg)
    # The frames come last, so their positions count from the end.
    example = _delimited(1, features + _feature("video", 1, b"".join(pieces)))
    return example, [len(example) - length + begin for begin in begins]


def _masked_crc(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


RECORD_HEADER_BYTES = 12


def tfrecord(data: bytes) -> bytes:
    """Frames one record: length, masked CRC-32C of the length, data, masked CRC-32C of the data."""
    length = struct.pack("<Q", len(data))
    return b"".join((length, _masked_crc(length), data, _masked_crc(data)))


def _encode_jpeg(frame: np.ndarray, quality: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return buffer.getvalue()


@dataclasses.dataclass(frozen=True)
class EncodedVideo:
    """A framed record; `frame_begin` counts from its first byte."""

    record: bytes
    frame_begin: list[int]
    frame_length: list[int]
    height: int
    width: int
    fps: float
    notes: tuple[str, ...]


def encode_video(video: Video, settings: PrepareSettings) -> EncodedVideo:
    """Decodes one video and encodes its record.

    Raises:
      DecodeError: the video cannot be read, or is too long for one record.
    """
    stream = iter_frames(
        video.path,
        short_side=settings.frame_size,
        width=settings.frame_width,
        antialias=settings.antialias,
        max_fps=settings.max_fps,
        max_frames=settings.max_frames,
        min_frames=settings.min_frames,
    )
    jpegs, size, height, width = [], 0, 0, 0
    for frame in stream:
        height, width, _ = frame.shape
        jpegs.append(_encode_jpeg(frame, settings.jpeg_quality))
        size += len(jpegs[-1]) + 8
        if size > _MAX_RECORD_BYTES:
            raise DecodeError(
                video.path, f"{len(jpegs)} frames exceed the 2 GB of one record: set max_frames"
            )
    fps = float(np.float32(stream.fps))
    example, begins = encode_example(video.id, video.label, fps, jpegs)
    return EncodedVideo(
        record=tfrecord(example),
        frame_begin=[RECORD_HEADER_BYTES + begin for begin in begins],
        frame_length=[len(jpeg) for jpeg in jpegs],
        height=height,
        width=width,
        fps=fps,
        notes=tuple(stream.notes),
    )


# --- One shard ---


def dataset_name(name: str) -> str:
    """The name in the letters that TFDS allows: "Tiny-set" -> "tiny_set"."""
    name = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    return name if name[:1].isalpha() else f"videos_{name}".rstrip("_")


def manifest_path(root: epath.PathLike, shard: str) -> epath.Path:
    """Where the manifest of a shard lies: beside it."""
    return epath.Path(root) / f"{shard}.json"


def finished_manifest(
    root: epath.PathLike, shard: str, fingerprint: str
) -> tuple[dict | None, str]:
    """Returns the manifest of a finished shard, or None and, where something is wrong, what."""
    path = manifest_path(root, shard)
    try:
        manifest = json.loads(path.read_text())
    except FileNotFoundError:
        return None, ""
    except ValueError as error:
        return None, f"{path.name} is unreadable ({error})"
    if manifest.get("fingerprint") != fingerprint:
        return None, f"{path.name} belongs to other settings or another index"
    try:
        size = (epath.Path(root) / shard).stat().length
    except FileNotFoundError:
        return None, f"{shard} is missing though it has a manifest"
    if size != manifest["shard_bytes"]:
        return None, f"{shard} is {size} bytes, its manifest says {manifest['shard_bytes']}"
    return manifest, ""


def write_shard(task: ShardTask, on_video: Callable[[bool], None]) -> None:
    """Writes a shard, then its manifest, which marks it as finished.

    Only the JPEG frames of one video are in memory at a time. A task always gives the same bytes.

    Args:
      task: what to write.
      on_video: called after each video with whether it was accepted; may raise to give up.
    """
    root = epath.Path(task.root)
    manifest, _ = finished_manifest(root, task.shard, task.fingerprint)
    if manifest is not None:  # written by another process since the start
        for _ in task.videos:
            on_video(True)
        return
    records, rejected, position = [], [], 0
    with staged(root / task.shard) as file:
        for video in task.videos:
            try:
                encoded = encode_video(video, task.settings)
            except DecodeError as error:
                rejected.append({"id": video.id, "path": video.path, "reason": error.reason})
                on_video(False)
                continue
            except Exception as error:
                error.add_note(f"while preparing {video.path}")
                raise
            file.write(encoded.record)
            records.append(
                {
                    "id": video.id,
                    "label": video.label,
                    "offset": position,
                    "length": len(encoded.record),
                    "height": encoded.height,
                    "width": encoded.width,
                    "fps": encoded.fps,
                    "num_frames": len(encoded.frame_begin),
                    "notes": list(encoded.notes),
                    "frame_begin": [position + begin for begin in encoded.frame_begin],
                    "frame_length": encoded.frame_length,
                }
            )
            position += len(encoded.record)
            on_video(True)
    manifest = {
        "fingerprint": task.fingerprint,
        "split": task.split,
        "shard_bytes": position,
        "rejected": rejected,
        "records": records,
    }
    data = json.dumps(manifest, separators=(",", ":")).encode()
    write_bytes(manifest_path(root, task.shard), data)


# --- Many shards on all cores ---


class _GivenUp(Exception):
    """Another worker failed: leave the shard."""


_counts = None  # of a worker process: videos done and rejected, shared with the parent
_stop = None  # of a worker process: an event that asks it to leave off


def _start_worker(counts, stop) -> None:
    global _counts, _stop
    _counts, _stop = counts, stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent answers Ctrl-C

    def end_with_parent():
        # A killed parent closes no queue: without this its workers would wait for ever.
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _count(accepted: bool) -> None:
    with _counts.get_lock():
        _counts[0] += 1
        _counts[1] += not accepted
    if _stop.is_set():
        raise _GivenUp


def _work(task: ShardTask) -> None:
    if not _stop.is_set():
        write_shard(task, _count)


def write_shards(
    tasks: Sequence[ShardTask], workers: int, on_progress: Callable[[int, int], None]
) -> None:
    """Writes shards, one task at a time in each of `workers` processes (in this one if 1).

    Args:
      tasks: the shards to write.
      workers: number of processes, 0 for one per available core.
      on_progress: called often with the numbers of videos done and rejected since the last call.

    Raises:
      UserError: a worker process was killed.
      OSError: the disk is full, among others.
    """
    workers = min(workers or available_cores(), len(tasks))
    if workers <= 1:
        for task in tasks:
            write_shard(task, lambda accepted: on_progress(1, int(not accepted)))
        return
    # Spawn: a fork of a process in which JAX or TensorFlow has threads can hang.
    context = multiprocessing.get_context("spawn")
    counts, stop = context.Array("q", 2), context.Event()
    seen = (0, 0)
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, context, initializer=_start_worker, initargs=(counts, stop)
    )
    try:
        pending = {pool.submit(_work, task) for task in tasks}
        while pending:
            done, pending = concurrent.futures.wait(
                pending, _POLL_SECONDS, concurrent.futures.FIRST_EXCEPTION
            )
            now = tuple(counts.get_obj())  # no lock: a killed worker may hold it
            on_progress(now[0] - seen[0], now[1] - seen[1])
            seen = now
            for future in done:
                future.result()
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process ended unexpectedly, perhaps killed for lack of memory: run the same "
            "command again, finished shards are kept; with fewer workers it needs less memory"
        ) from error
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
