"""Finished shards to one data set: arrays, TFDS metadata, lists of faults, and a report."""

import csv
import dataclasses
import io
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from etils import epath

from skd_jax.data import prepared
from skd_jax.data.files import staged, write_bytes, write_json
from skd_jax.data.index import VideoIndex
from skd_jax.data.shards import (
    PrepareSettings,
    ShardTask,
    dataset_name,
    finished_manifest,
    manifest_path,
)
from skd_jax.errors import UserError


def assemble(
    index: VideoIndex,
    root: epath.Path,
    settings: PrepareSettings,
    tasks: Sequence[ShardTask],
    fingerprint: str,
    log: Callable[[str], None],
) -> bool:
    """Writes what makes one data set of all shards, `info.json` last, once all are finished.

    Args:
      index: the videos.
      root: the directory of the shards.
      settings: how frames are stored.
      tasks: all shards.
      fingerprint: of index and settings; shards with another do not count.
      log: prints a line.

    Returns:
      Whether all shards were finished.

    Raises:
      UserError: a split of which no video could be read.
    """
    splits = {split: _SplitSummary() for split in index.splits}
    waiting = 0
    for task in tasks:
        manifest, _ = finished_manifest(root, task.shard, fingerprint)
        if manifest is None:
            waiting += 1
        else:
            splits[task.split].add(task.shard, manifest)
    if waiting:
        log(f"{waiting} of {len(tasks)} shards in {os.fspath(root)} are left to other processes")
        return False

    rejected = [(r["id"], r["path"], s, r["reason"]) for s in splits for r in splits[s].rejected]
    notes = [(video_id, s, note) for s in splits for video_id, note in splits[s].notes]
    _write_csv(root / "rejected.csv", ("id", "path", "split", "reason"), rejected)
    _write_csv(root / "notes.csv", ("id", "split", "note"), notes)
    for split, summary in splits.items():
        if not summary.ids:
            _refuse_empty(root, split, summary, tasks)
    write_bytes(root / "class_names.txt", _lines(index.class_names))
    for split, summary in splits.items():
        with staged(prepared.arrays_path(root, split)) as file:
            prepared.save_arrays(file, summary.arrays())
    _write_tfds_metadata(index, root, splits)
    info = {
        "name": index.name,
        "fingerprint": fingerprint,
        "settings": {k: v for k, v in dataclasses.asdict(settings).items() if k != "workers"},
        "selection": dict(index.selection),
        "class_names": list(index.class_names),
        "splits": {
            split: {"source": index.split_sources.get(split, ""), **summary.counts()}
            for split, summary in splits.items()
        },
        "missing": list(index.missing),
        "duplicates": [list(ids) for ids in index.duplicates],
        "notes": list(index.notes),
    }
    write_json(root / prepared.INFO_FILE, info)
    _report(root, splits, rejected, notes, log)
    return True


class _SplitSummary:
    """Gathers the manifests of one split, in the order of its shards."""

    def __init__(self):
        self.shards, self.shard_bytes, self.shard_lengths = [], [], []
        self.ids, self.rejected, self.notes = [], [], []
        self._columns = {
            k: [] for k in ("label", "shard", "offset", "num_frames", "height", "width", "fps")
        }
        # An array for each video: lists would take ten times the memory.
        self._begins, self._lengths = [], []

    def add(self, shard: str, manifest: dict) -> None:
        for record in manifest["records"]:
            self.ids.append(record["id"])
            for name, column in self._columns.items():
                column.append(len(self.shards) if name == "shard" else record[name])
            self._begins.append(np.asarray(record["frame_begin"], np.int64))
            self._lengths.append(np.asarray(record["frame_length"], np.int32))
            self.notes += [(record["id"], note) for note in record["notes"]]
        self.shards.append(shard)
        self.shard_bytes.append(manifest["shard_bytes"])
        self.shard_lengths.append(len(manifest["records"]))
        self.rejected += manifest["rejected"]

    def arrays(self) -> dict[str, np.ndarray]:
        columns = {name: np.asarray(column) for name, column in self._columns.items()}
        first_frame = np.concatenate([[0], np.cumsum(columns.pop("num_frames"))])
        return {
            **columns,
            "ids": np.asarray(self.ids),
            "labels": columns["label"],
            "shard_names": np.asarray(self.shards),
            "shard_bytes": np.asarray(self.shard_bytes),
            "frame_begin": np.concatenate(self._begins),
            "frame_length": np.concatenate(self._lengths),
            "first_frame": first_frame,
            "key": np.asarray([prepared.video_key(video_id) for video_id in self.ids], np.uint64),
        }

    def counts(self) -> dict[str, int]:
        return {
            "videos": len(self.ids),
            "rejected": len(self.rejected),
            "noted": len({video_id for video_id, _ in self.notes}),
            "frames": sum(self._columns["num_frames"]),
            "bytes": sum(self.shard_bytes),
            "shards": len(self.shards),
        }


def _refuse_empty(root: epath.Path, split: str, summary: _SplitSummary, tasks) -> None:
    for task in tasks:  # without their manifests they are tried again
        if task.split == split:
            manifest_path(root, task.shard).unlink(missing_ok=True)
    first = summary.rejected[0]
    raise UserError(
        f"all {len(summary.rejected)} videos of split {split!r} were rejected, for example "
        f"{first['id']}: {first['reason']}. {os.fspath(root / 'rejected.csv')} lists them; once "
        "they are mended the same command tries them again"
    )


def _lines(lines: Iterable[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode(errors="surrogateescape")


def _write_csv(path: epath.Path, header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode(errors="surrogateescape"))


def _write_tfds_metadata(index, root: epath.Path, splits: dict[str, _SplitSummary]) -> None:
    import tensorflow_datasets as tfds  # slow, and needed nowhere else in preparation

    features = tfds.features.FeaturesDict(
        {
            "video": tfds.features.Sequence(
                tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg")
            ),
            "label": tfds.features.ClassLabel(names=list(index.class_names)),
            "video_id": tfds.features.Text(),
            "fps": tfds.features.Scalar(np.float32),
        }
    )
    name = dataset_name(index.name)
    with tempfile.TemporaryDirectory() as folder:
        identity = tfds.core.dataset_info.DatasetIdentity(
            name=name, version=tfds.core.Version("1.0.0"), data_dir=folder, module_name=""
        )
        info = tfds.core.DatasetInfo(
            builder=identity,
            features=features,
            supervised_keys=("video", "label"),
            description=f"{index.name}, prepared as JPEG frames",
        )
        info.set_file_format(tfds.core.FileFormat.TFRECORD)
        template = tfds.core.ShardedFileTemplate(
            data_dir=folder, dataset_name=name, filetype_suffix="tfrecord"
        )
        info.set_splits(
            tfds.core.SplitDict(
                [
                    tfds.core.SplitInfo(
                        name=split,
                        shard_lengths=summary.shard_lengths,
                        num_bytes=sum(summary.shard_bytes),
                        filename_template=template,
                    )
                    for split, summary in splits.items()
                ]
            )
        )
        info.write_to_directory(folder)
        for path in sorted(pathlib.Path(folder).iterdir()):
            write_bytes(root / path.name, path.read_bytes())


def _report(root, splits, rejected, notes, log) -> None:
    for split, summary in splits.items():
        counts = summary.counts()
        log(
            f"{split}: {counts['videos']} videos, {counts['frames']} frames, "
            f"{in_words(counts['bytes'])} in {counts['shards']} shards"
        )
    if rejected:
        log(
            f"warning: {len(rejected)} videos were rejected, listed in "
            f"{os.fspath(root / 'rejected.csv')}; the first: {rejected[0][0]}: {rejected[0][3]}"
        )
    if notes:
        log(
            f"warning: {len({video_id for video_id, *_ in notes})} videos were kept with a remark, "
            f"listed in {os.fspath(root / 'notes.csv')}; the first: {notes[0][0]}: {notes[0][2]}"
        )


def in_words(count: float) -> str:
    """A number of bytes for a person: "1.23 GB"."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 1e3:.3g} kB"
