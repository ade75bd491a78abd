"""A prepared data set as the input pipeline sees it: arrays that say where every JPEG lies.

NumPy and JSON only; `prepare.py` writes what is read here.
"""

import dataclasses
import hashlib
import json
import os
import zipfile
from typing import BinaryIO

import numpy as np
from etils import epath

from skd_jax.errors import UserError

SPLIT_NAMES = ("train", "validation", "test")
INFO_FILE = "info.json"
_SAVED = {  # what videos-<split>.npz holds
    "ids": np.str_,
    "labels": np.int32,
    "shard": np.int32,
    "shard_names": np.str_,
    "shard_bytes": np.int64,
    "offset": np.int64,
    "frame_begin": np.int64,
    "frame_length": np.int32,
    "first_frame": np.int64,
    "height": np.int32,
    "width": np.int32,
    "fps": np.float32,
    "key": np.uint64,
}


@dataclasses.dataclass(frozen=True, eq=False)
class PreparedSplit:
    """One split: N videos with F frames in all, in the order of the shards.

    Attributes:
      root: directory of the data set.
      name: "train", "validation" or "test".
      class_names: names in the order of the labels.
      ids: str (N,), stable video ids.
      labels: int32 (N,), -1 where unlabelled.
      shard: int32 (N,), index into `shard_paths`.
      shard_paths: the TFRecord files.
      offset: int64 (N,), byte at which the TFRecord record begins in its shard.
      frame_begin: int64 (F,), byte at which each JPEG begins in its shard.
      frame_length: int32 (F,), bytes of each JPEG.
      first_frame: int64 (N + 1,): frames of video i are first_frame[i] to first_frame[i + 1].
      height, width: int32 (N,), pixels of the stored frames.
      fps: float32 (N,), stored frames per second.
      key: uint64 (N,), `video_key` of the id.
    """

    root: epath.Path
    name: str
    class_names: tuple[str, ...]
    ids: np.ndarray
    labels: np.ndarray
    shard: np.ndarray
    shard_paths: tuple[str, ...]
    offset: np.ndarray
    frame_begin: np.ndarray
    frame_length: np.ndarray
    first_frame: np.ndarray
    height: np.ndarray
    width: np.ndarray
    fps: np.ndarray
    key: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_frames(self) -> np.ndarray:
        """int64 (N,), frames of each video."""
        return np.diff(self.first_frame)


def video_key(video_id: str) -> int:
    """A 64-bit hash of a video id that never changes: it seeds all that is random about it."""
    return int.from_bytes(hashlib.blake2b(video_id.encode(), digest_size=8).digest(), "little")


def arrays_path(root: epath.PathLike, split: str) -> epath.Path:
    """Where the arrays of a split are stored."""
    return epath.Path(root) / f"videos-{split}.npz"


def save_arrays(file: BinaryIO, arrays: dict[str, np.ndarray]) -> None:
    """Writes the arrays of a split as .npz; unlike np.savez the same arrays give the same bytes.

    Args:
      file: open for writing.
      arrays: those of PreparedSplit, but `shard_names` and `shard_bytes` instead of `shard_paths`.
    """
    with zipfile.ZipFile(file, "w") as archive:
        for name, dtype in _SAVED.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(arrays[name], dtype))


def is_complete(root: epath.PathLike) -> bool:
    """Whether preparation has ended; `load_split` checks the files as well."""
    return (epath.Path(root) / INFO_FILE).exists()


def load_info(root: epath.PathLike) -> dict:
    """What is known of the data set.

    Returns:
      name, fingerprint, settings, selection (see `VideoIndex`; older directories have none),
      class_names, splits (for each: source, videos, rejected, noted, frames, bytes, shards), missing,
      duplicates and notes.

    Raises:
      UserError: there is no completely prepared data set at `root`.
    """
    path = epath.Path(root) / INFO_FILE
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            f"{os.fspath(root)}: no completely prepared data set here ({INFO_FILE} is absent): "
            "run --mode=prepare"
        ) from error
    except ValueError as error:
        raise UserError(
            f"{os.fspath(path)} is unreadable ({error}): delete it and run --mode=prepare again"
        ) from error


def splits(root: epath.PathLike) -> tuple[str, ...]:
    """Names of the splits present, in the order train, validation, test."""
    present = load_info(root)["splits"]
    return tuple(name for name in SPLIT_NAMES if name in present)


def load_split(root: epath.PathLike, split: str) -> PreparedSplit:
    """Loads one split, about 12 bytes of memory for each frame.

    Raises:
      UserError: the data set is incomplete, lacks the split, or a shard is missing or truncated.
    """
    root = epath.Path(root)
    info = load_info(root)
    if split not in info["splits"]:
        raise UserError(
            f"{os.fspath(root)} has no split {split!r}, only {', '.join(info['splits'])}"
        )
    path = arrays_path(root, split)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in _SAVED}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{os.fspath(path)} is missing or damaged ({error}): run --mode=prepare again, "
            "which makes it anew from the finished shards"
        ) from error
    names, sizes = arrays.pop("shard_names"), arrays.pop("shard_bytes")
    for name, expected in zip(names, sizes, strict=True):
        _check_size(root, str(name), int(expected))
    return PreparedSplit(
        root=root,
        name=split,
        class_names=tuple(info["class_names"]),
        shard_paths=tuple(os.fspath(root / str(name)) for name in names),
        **arrays,
    )


def _check_size(root: epath.Path, shard: str, expected: int) -> None:
    path = os.fspath(root / shard)
    again = "delete it and its manifest and run --mode=prepare again"
    try:
        size = (root / shard).stat().length
    except FileNotFoundError as error:
        raise UserError(
            f"shard {path} is missing: delete its manifest, if there is one, and "
            "run --mode=prepare again"
        ) from error
    if size != expected:
        what = "truncated" if size < expected else "damaged"
        raise UserError(
            f"shard {path} is {size} bytes, its manifest says {expected}: {what}; {again}"
        )
