"""VideoIndex to a directory of TFRecord shards that any number of processes may write together.

Which videos go into which shard, and in which order, is a pure function of the index, and so is
every byte written. A shard is finished when its manifest exists and gives the shard's size; the
data set is complete when `info.json` exists. Whoever finds all shards finished writes what remains;
to do so twice does no harm.

The directory holds
  <name>-<split>.tfrecord-00000-of-00008        records of JPEG frames, label, video_id and fps
  <name>-<split>.tfrecord-00000-of-00008.json   manifest: where in the shard everything lies
  fingerprint.json                              settings and content hash of the index
  rejected.csv, notes.csv                       videos left out, and videos kept with a fault
  class_names.txt                               in the order of the labels
  videos-<split>.npz                            all manifests in one, see prepared.py
  dataset_info.json, features.json, ...         so that tfds.builder_from_directory opens it
  info.json                                     what is known of the data set; written last
"""

import dataclasses
import errno
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable

from etils import epath

from skd_jax.data import prepared
from skd_jax.data.assemble import assemble, in_words
from skd_jax.data.decode import DecodeError
from skd_jax.data.files import is_remote, remove_abandoned, write_json
from skd_jax.data.index import Video, VideoIndex
from skd_jax.data.shards import (
    PrepareSettings,
    ShardTask,
    dataset_name,
    encode_video,
    finished_manifest,
    write_shards,
)
from skd_jax.errors import UserError
from skd_jax.progress import Progress
from skd_jax.workdir import flat

__all__ = ["PrepareSettings", "estimate", "fingerprint", "prepare"]

_DEFAULTS = PrepareSettings()
_FORMAT = 1  # raise when the files change, so that older directories are told apart
_MIN_SHARDS = 8
_SAMPLE_VIDEOS = 8
_SAMPLE_TRIES = 24
_FINGERPRINT_FILE = "fingerprint.json"


def prepare(
    index: VideoIndex,
    out_dir: epath.PathLike,
    settings: PrepareSettings = _DEFAULTS,
    *,
    shards: str | None = None,
    log: Callable[[str], None] = print,
) -> bool:
    """Writes what is missing of a prepared data set, and returns at once where nothing is.

    Args:
      index: the videos.
      out_dir: local directory or object store (gs://, through etils.epath); made if absent.
      settings: how frames are stored.
      shards: "i/n" writes only every n-th shard from the i-th (0-based), for n processes or
        machines on one disk; None writes all.
      log: prints a line.

    Returns:
      Whether the data set is complete; False when shards of other processes are still to come.

    Raises:
      UserError: settings out of range, a directory of other data, too little disk, or a split of
        which no video can be read.
    """
    _check_settings(settings)
    first, step = _parse_slice(shards)
    root = _make_directory(out_dir)
    identity = _identity(index, settings)
    digest = identity["fingerprint"]
    _claim_directory(root, identity)
    was_complete = prepared.is_complete(root)
    if was_complete and _is_intact(root, digest):
        return True
    remove_abandoned(root)
    tasks = plan(index, settings, root, digest)
    missing = [task for task in tasks if not _is_finished(task, log)]
    names = {task.shard for task in missing}
    slice_tasks = tasks[first::step]
    mine = [task for task in slice_tasks if task.shard in names]
    if missing and was_complete:  # a shard was lost since
        (root / prepared.INFO_FILE).unlink(missing_ok=True)
    needed = _check_disk(index, settings, root, missing, log) if mine else 0
    try:
        if mine:
            _write(mine, settings, log, resumed=len(mine) < len(slice_tasks))
        return assemble(index, root, settings, tasks, digest, log)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _disk_full(root, needed) from error


def _check_settings(settings: PrepareSettings) -> None:
    limits = {
        "frame_size": (1, 65535),
        "frame_width": (1, 65535),
        "jpeg_quality": (1, 100),
        "max_fps": (1e-3, math.inf),
        "max_frames": (1, math.inf),
        "min_frames": (1, math.inf),
        "videos_per_shard": (1, math.inf),
        "workers": (0, math.inf),
    }
    for name, (low, high) in limits.items():
        value = getattr(settings, name)
        if value is None and name in ("frame_width", "max_fps", "max_frames"):
            continue
        if not isinstance(value, int | float) or not low <= value <= high:
            between = f"between {low} and {high}" if high < math.inf else f"at least {low}"
            raise UserError(f"{name} is {value!r}, it must be a number {between}")
        if name != "max_fps" and not isinstance(value, int):
            raise UserError(f"{name} is {value!r}, it must be a whole number")


def _parse_slice(text: str | None) -> tuple[int, int]:
    if text is None:
        return 0, 1
    match = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise UserError(
            f"shards is {text!r}, it must be i/n with i from 0 to n - 1: "
            "for two machines 0/2 and 1/2"
        )
    return int(match[1]), int(match[2])


def _make_directory(out_dir: epath.PathLike) -> epath.Path:
    root = epath.Path(out_dir).expanduser()
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{os.fspath(root)} cannot be made ({error.strerror}): "
            "give another directory for the prepared data"
        ) from error
    return root


# --- What goes where ---


def plan(
    index: VideoIndex, settings: PrepareSettings, root: epath.PathLike, fingerprint: str
) -> list[ShardTask]:
    """Deals the videos out to shards in the order of the hash of their ids, so that classes mix."""
    tasks = []
    for split, videos in index.splits.items():
        ordered = sorted(videos, key=lambda video: (prepared.video_key(video.id), video.id))
        count = max(
            math.ceil(len(ordered) / settings.videos_per_shard), min(_MIN_SHARDS, len(ordered))
        )
        for i in range(count):
            shard = f"{dataset_name(index.name)}-{split}.tfrecord-{i:05d}-of-{count:05d}"
            videos_of_shard = tuple(ordered[i::count])
            tasks.append(
                ShardTask(os.fspath(root), split, shard, videos_of_shard, settings, fingerprint)
            )
    return tasks


# --- Fingerprint ---


def _digest(value) -> str:
    data = json.dumps(value, sort_keys=True).encode()
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _identity(index: VideoIndex, settings: PrepareSettings) -> dict:
    """What tells one prepared data set from another: settings, class names, ids and labels.

    Not what the video files hold, which would have to be read whole: a file that was replaced under
    its old name goes unnoticed.
    """
    stored = dataclasses.asdict(settings)
    del stored["workers"]
    for name in ("frame_width", "antialias"):  # directories of before they were there stay valid
        if stored[name] == getattr(_DEFAULTS, name):
            del stored[name]
    identity = {
        "format": _FORMAT,
        "settings": stored,
        "index": {
            "name": index.name,
            "class_names": list(index.class_names),
            "splits": {
                split: {
                    "videos": len(videos),
                    "hash": _digest(sorted((video.id, video.label) for video in videos)),
                }
                for split, videos in index.splits.items()
            },
        },
    }
    return {"fingerprint": _digest(identity), **identity}


def fingerprint(index: VideoIndex, settings: PrepareSettings) -> str:
    """32 hexadecimal digits that change with the settings, class names, ids and labels."""
    return _identity(index, settings)["fingerprint"]


def _claim_directory(root: epath.Path, identity: dict) -> None:
    """Leaves the fingerprint in a new directory, refuses one with another."""
    path = root / _FINGERPRINT_FILE
    if not path.exists():
        try:
            write_json(path, identity)
        except OSError as error:
            raise UserError(
                f"{os.fspath(root)} cannot be written ({error.strerror}): give another directory"
            ) from error
    # Read back even so: another process may have come first.
    try:
        there = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(
            f"{os.fspath(path)} is unreadable ({error}): "
            f"delete {os.fspath(root)}, or give another directory"
        ) from error
    if there == identity:
        return
    old, new = flat(there), flat(identity)
    keys = [k for k in sorted({*old, *new} - {"fingerprint"}) if old.get(k) != new.get(k)]
    differences = "; ".join(
        f"{k}: {_short(old.get(k))} there, {_short(new.get(k))} now" for k in keys
    )
    raise UserError(
        f"{os.fspath(root)} holds data prepared with fingerprint {there.get('fingerprint')}, the "
        f"present settings and index have {identity['fingerprint']}. They differ in {differences}. "
        "Give another directory, or delete this one to prepare it anew"
    )


def _short(value) -> str:
    if isinstance(value, list):
        value = f"{len(value)} ({', '.join(map(str, value))})"
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# --- Disk ---


def estimate(index: VideoIndex, settings: PrepareSettings) -> int:
    """Bytes the whole data set will take, judged by a few videos, always the same.

    Returns:
      The estimate, 0 if none of the sample could be decoded.
    """
    return _estimate([video for videos in index.splits.values() for video in videos], settings)[0]


def _estimate(videos: list[Video], settings: PrepareSettings) -> tuple[int, int]:
    sample = sorted(videos, key=lambda video: (prepared.video_key(video.id), video.id))
    sizes = []
    for video in sample[:_SAMPLE_TRIES]:
        try:
            sizes.append(len(encode_video(video, settings).record))
        except DecodeError:
            continue
        if len(sizes) == _SAMPLE_VIDEOS:
            break
    return (round(sum(sizes) / len(sizes) * len(videos)) if sizes else 0), len(sizes)


def _check_disk(index, settings, root, missing: list[ShardTask], log) -> int:
    videos = [video for task in missing for video in task.videos]
    needed, sampled = _estimate(videos, settings)
    if not sampled:
        log(f"warning: none of {min(len(videos), _SAMPLE_TRIES)} sample videos can be decoded")
        return 0
    line = (
        f"{len(videos)} videos of {index.name} to prepare in {os.fspath(root)}: "
        f"about {in_words(needed)}"
    )
    if is_remote(root):
        log(line)
        return needed
    free = shutil.disk_usage(root).free
    log(f"{line}, {in_words(free)} free")
    if needed > free:
        raise UserError(
            f"{os.fspath(root)} has {in_words(free)} ({free} bytes) free, preparing needs about "
            f"{in_words(needed)} ({needed} bytes): make room, give another directory, or store "
            "less with a smaller frame_size, jpeg_quality, max_fps or max_frames"
        )
    return needed


def _disk_full(root: epath.Path, needed: int) -> UserError:
    folder = tempfile.gettempdir() if is_remote(root) else os.fspath(root)
    return UserError(
        f"the disk of {folder} is full: {shutil.disk_usage(folder).free} bytes are free, this run "
        f"began with about {needed} to write. Make room and run the same command again: it goes on "
        "with the unfinished shards"
    )


# --- Writing ---


def _is_intact(root: epath.Path, fingerprint: str) -> bool:
    try:
        for split in prepared.splits(root):
            prepared.load_split(root, split)  # raises where a shard has not its size
        return prepared.load_info(root)["fingerprint"] == fingerprint
    except UserError:
        return False


def _is_finished(task: ShardTask, log) -> bool:
    manifest, fault = finished_manifest(task.root, task.shard, task.fingerprint)
    if fault:
        log(f"{fault}: this shard is written again")
    return manifest is not None


def _write(tasks: list[ShardTask], settings: PrepareSettings, log, resumed: bool) -> None:
    total = sum(len(task.videos) for task in tasks)
    if resumed:
        log(f"going on: {len(tasks)} shards with {total} videos are left")
    rejected = 0
    with Progress(total, "preparing", unit="videos") as progress:

        def on_progress(done: int, refused: int) -> None:
            nonlocal rejected
            rejected += refused
            progress.update(done, note=f"{rejected} rejected" if rejected else "")

        write_shards(tasks, settings.workers, on_progress)
