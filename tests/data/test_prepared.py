"""Reading a prepared data set: faults of its files, and no TensorFlow."""

import os
import pathlib
import re
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from skd_jax.data import prepared
from skd_jax.errors import UserError


def make_arrays(root: pathlib.Path) -> dict[str, np.ndarray]:
    """Two shards of made-up bytes with three videos of 2, 1 and 3 frames."""
    (root / "a.tfrecord-00000-of-00002").write_bytes(b"x" * 100)
    (root / "a.tfrecord-00001-of-00002").write_bytes(b"y" * 50)
    ids = ["b/2", "a/1", "c/é"]
    return {
        "ids": np.array(ids),
        "labels": np.array([1, 0, -1]),
        "shard": np.array([0, 0, 1]),
        "shard_names": np.array(["a.tfrecord-00000-of-00002", "a.tfrecord-00001-of-00002"]),
        "shard_bytes": np.array([100, 50]),
        "offset": np.array([0, 60, 0]),
        "frame_begin": np.array([20, 40, 80, 12, 20, 30]),
        "frame_length": np.array([10, 10, 10, 5, 5, 5]),
        "first_frame": np.array([0, 2, 3, 6]),
        "height": np.array([8, 8, 16]),
        "width": np.array([10, 12, 16]),
        "fps": np.array([25, 29.97, 30]),
        "key": np.array([prepared.video_key(i) for i in ids], np.uint64),
    }


@pytest.fixture
def root(tmp_path) -> pathlib.Path:
    with prepared.arrays_path(tmp_path, "train").open("wb") as file:
        prepared.save_arrays(file, make_arrays(tmp_path))
    (tmp_path / "info.json").write_text('{"class_names": ["p", "q"], "splits": {"train": {}}}')
    return tmp_path


def test_load_split(root):
    split = prepared.load_split(root, "train")
    expected = make_arrays(root)
    assert len(split) == 3
    assert (split.name, split.class_names) == ("train", ("p", "q"))
    np.testing.assert_array_equal(split.num_frames, [2, 1, 3])
    assert split.shard_paths == tuple(str(root / name) for name in expected["shard_names"])
    for name in ("ids", "labels", "shard", "offset", "frame_begin", "frame_length", "first_frame"):
        np.testing.assert_array_equal(getattr(split, name), expected[name])
    for name in ("height", "width", "key"):
        np.testing.assert_array_equal(getattr(split, name), expected[name])
    dtypes = {"labels": "int32", "offset": "int64", "frame_begin": "int64", "key": "uint64"}
    dtypes |= {"frame_length": "int32", "fps": "float32", "height": "int32", "shard": "int32"}
    assert {name: str(getattr(split, name).dtype) for name in dtypes} == dtypes


def test_video_key_never_changes():
    # printf 'v_Basketball_g01_c01' | b2sum -l 64, read as a little-endian number
    assert (
        prepared.video_key("v_Basketball_g01_c01").to_bytes(8, "little").hex() == "6f0816a39c58a6dc"
    )


def test_arrays_are_the_same_bytes_at_any_time(root, monkeypatch):
    first = prepared.arrays_path(root, "train").read_bytes()
    monkeypatch.setattr(time, "time", lambda: 2e9)
    monkeypatch.setattr(time, "localtime", lambda *_: time.gmtime(2e9))
    with (root / "again.npz").open("wb") as file:
        prepared.save_arrays(file, make_arrays(root))
    assert (root / "again.npz").read_bytes() == first


@pytest.mark.parametrize(("size", "what"), [(99, "truncated"), (0, "truncated"), (101, "damaged")])
def test_shard_of_another_size(root, size, what):
    shard = root / "a.tfrecord-00000-of-00002"
    os.truncate(shard, size)
    message = (
        f"shard {shard} is {size} bytes, its manifest says 100: {what}; "
        "delete it and its manifest and run --mode=prepare again"
    )
    with pytest.raises(UserError, match=re.escape(message)):
        prepared.load_split(root, "train")


def test_missing_shard(root):
    (root / "a.tfrecord-00001-of-00002").unlink()
    with pytest.raises(UserError, match=r"shard .*00001-of-00002 is missing.*--mode=prepare"):
        prepared.load_split(root, "train")


def test_damaged_arrays(root):
    path = root / "videos-train.npz"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UserError, match=r"videos-train\.npz is missing or damaged"):
        prepared.load_split(root, "train")


def test_unknown_split(root):
    with pytest.raises(UserError, match="no split 'test', only train"):
        prepared.load_split(root, "test")


def test_splits_and_completeness(root):
    assert prepared.is_complete(root)
    (root / "info.json").write_text('{"splits": {"test": {}, "train": {}, "validation": {}}}')
    assert prepared.splits(root) == ("train", "validation", "test")
    (root / "info.json").write_text("{")
    with pytest.raises(UserError, match="info.json is unreadable"):
        prepared.load_info(root)
    (root / "info.json").unlink()
    assert not prepared.is_complete(root)
    for directory in (root, root / "nowhere"):
        with pytest.raises(UserError, match=rf"{directory.name}: no completely prepared data set"):
            prepared.load_info(directory)


def test_reads_without_tensorflow_and_jax(root):
    code = f"""
        import sys
        sys.modules.update(dict.fromkeys(["tensorflow", "jax", "av", "PIL", "google_crc32c"]))
        from skd_jax.data import prepared
        print(len(prepared.load_split({str(root)!r}, "train")))
    """
    out = subprocess.check_output(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=pathlib.Path(prepared.__file__).parents[2],
        text=True,
    )
    assert out.strip() == "3"
