"""Preparation: what is written, that it survives kills, and what the user is told."""

import csv
import dataclasses
import io
import json
import multiprocessing
import os
import pathlib
import pickle
import shutil
import socket
import subprocess
import sys
import textwrap
import time

import av
import numpy as np
import pytest
from PIL import Image

from skd_jax.data import files, prepared, shards
from skd_jax.data import prepare as prepare_lib
from skd_jax.data.decode import decode
from skd_jax.data.index import Video, VideoIndex
from skd_jax.data.prepare import PrepareSettings, estimate, fingerprint, prepare
from skd_jax.errors import UserError

CLASSES = ("jump", "run", "swim")
SMALL = PrepareSettings(frame_size=32, workers=1)


def write_video(path: pathlib.Path, seed: int, frames: int = 6, fps: int = 10) -> None:
    """A moving textured square, 64x48, different for each seed."""
    rng = np.random.default_rng(seed)
    picture = rng.integers(0, 255, (6, 8, 3)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for t in range(frames):
            frame = av.VideoFrame.from_ndarray(np.roll(picture, 3 * t, 1), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def make_index(root: pathlib.Path, splits: dict[str, int], frames: int = 6) -> VideoIndex:
    """Writes videos and indexes them; lengths differ from video to video."""
    videos = {}
    for number, (split, count) in enumerate(splits.items()):
        rows = []
        for i in range(count):
            label = i % len(CLASSES)
            video_id = f"{split}/{CLASSES[label]}/v{i:03d}"
            path = root / f"{video_id}.mp4"
            write_video(path, seed=1000 * number + i, frames=frames + i % 5)
            rows.append(Video(path=str(path), label=label, id=video_id, group=f"g{i}"))
        videos[split] = tuple(rows)
    return VideoIndex(
        name="Tiny-set",
        class_names=CLASSES,
        splits=videos,
        split_sources={split: f"the {split} folder" for split in splits},
        missing=("lost/video",),
        duplicates=(("a", "b"),),
        notes=("a note",),
        selection={"seed": 0, "split": 2},
    )


def quiet(_: str) -> None:
    pass


def content(root: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(root.iterdir())}


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> VideoIndex:
    return make_index(tmp_path_factory.mktemp("videos"), {"train": 40, "test": 9})


@pytest.fixture(scope="module")
def reference(index, tmp_path_factory) -> pathlib.Path:
    """Prepared in one go in one process, videos_per_shard 3."""
    root = tmp_path_factory.mktemp("reference") / "data"
    assert prepare(index, root, settings_of_three(1), log=quiet)
    return root


def settings_of_three(workers: int) -> PrepareSettings:
    return PrepareSettings(frame_size=32, videos_per_shard=3, workers=workers)


# --- The bytes of a record ---


def test_example_equals_protobuf():
    import tensorflow as tf

    jpegs = [b"x" * 127, b"", b"y" * 70000]
    data, begins = shards.encode_example("Straße/Äpfel", -1, 29.97, jpegs)
    expected = tf.train.Example()
    feature = expected.features.feature
    feature["video"].bytes_list.value.extend(jpegs)
    feature["video_id"].bytes_list.value.append("Straße/Äpfel".encode())
    feature["label"].int64_list.value.append(-1)
    feature["fps"].float_list.value.append(29.97)
    assert tf.train.Example.FromString(data) == expected
    for begin, jpeg in zip(begins, jpegs, strict=True):
        assert data[begin : begin + len(jpeg)] == jpeg


def test_tfrecord_equals_tensorflow(tmp_path):
    import tensorflow as tf

    records = [b"", b"one", bytes(range(256)) * 300]
    path = str(tmp_path / "file")
    with tf.io.TFRecordWriter(path) as writer:
        for record in records:
            writer.write(record)
    written = pathlib.Path(path).read_bytes()
    assert b"".join(shards.tfrecord(record) for record in records) == written


# --- What is written ---


def test_tensorflow_reads_the_records(index, reference):
    import tensorflow as tf

    spec = {
        "video": tf.io.VarLenFeature(tf.string),
        "label": tf.io.FixedLenFeature([], tf.int64),
        "video_id": tf.io.FixedLenFeature([], tf.string),
        "fps": tf.io.FixedLenFeature([], tf.float32),
    }
    expected = {video.id: video for video in index.splits["test"]}
    files = sorted(str(path) for path in reference.glob("*-test.tfrecord-?????-of-?????"))
    for record in tf.data.TFRecordDataset(files):
        example = tf.io.parse_single_example(record, spec)
        video = expected.pop(example["video_id"].numpy().decode())
        assert example["label"].numpy() == video.label
        assert example["fps"].numpy() == 10
        frames = decode(video.path, short_side=32, max_fps=None).frames
        jpegs = example["video"].values.numpy()
        assert len(jpegs) == len(frames)
        for jpeg, frame in zip(jpegs, frames, strict=True):
            # The JPEG's own loss, mostly of colour at sharp edges (stored at half resolution).
            difference = tf.io.decode_jpeg(jpeg).numpy().astype(int) - frame
            assert np.abs(difference).mean() < 12
            grey = difference @ [0.299, 0.587, 0.114]
            assert np.abs(grey).mean() < 3
    assert not expected


def test_tfds_gives_the_same(index, reference):
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(reference)
    assert builder.info.features["label"].names == list(CLASSES)
    assert {name: split.num_examples for name, split in builder.info.splits.items()} == {
        "train": 40,
        "test": 9,
    }
    split = prepared.load_split(reference, "test")
    decoders = {"video": tfds.decode.SkipDecoding()}
    rows = {e["video_id"]: e for e in tfds.as_numpy(builder.as_dataset("test", decoders=decoders))}
    assert len(rows) == len(split)
    for i, video_id in enumerate(split.ids):
        row = rows.pop(video_id.encode())
        assert row["label"] == split.labels[i]
        assert row["fps"] == split.fps[i]
        begin, end = split.first_frame[i : i + 2]
        shard = pathlib.Path(split.shard_paths[split.shard[i]]).read_bytes()
        jpegs = [
            shard[b : b + n]
            for b, n in zip(
                split.frame_begin[begin:end], split.frame_length[begin:end], strict=True
            )
        ]
        assert list(row["video"]) == jpegs
    decoded = next(iter(tfds.as_numpy(builder.as_dataset("test"))))["video"]
    assert decoded.shape[1:] == (32, 43, 3)


def test_classes_mix_and_plan_ignores_file_order(index):
    settings = PrepareSettings(videos_per_shard=10)
    tasks = prepare_lib.plan(index, settings, "root", "print")
    backwards = VideoIndex(
        **{**vars(index), "splits": {s: v[::-1] for s, v in index.splits.items()}}
    )
    assert prepare_lib.plan(backwards, settings, "root", "print") == tasks
    train = [task for task in tasks if task.split == "train"]
    assert len(train) == 8  # small splits are cut finer than videos_per_shard says
    assert {len(task.videos) for task in train} == {5}
    written = sorted(video.id for task in tasks for video in task.videos)
    assert written == sorted(video.id for videos in index.splits.values() for video in videos)
    assert all(len({video.label for video in task.videos}) > 1 for task in train)
    large = prepare_lib.plan(index, PrepareSettings(videos_per_shard=3), "root", "print")
    assert sum(task.split == "train" for task in large) == 14  # ceil(40 / 3)


def test_info(index, reference):
    info = prepared.load_info(reference)
    assert info["splits"]["train"]["source"] == "the train folder"
    assert info["splits"]["train"]["videos"] == 40
    assert info["splits"]["train"]["rejected"] == 0
    assert info["splits"]["test"]["frames"] == sum(6 + i % 5 for i in range(9))
    assert info["missing"] == ["lost/video"]
    assert info["duplicates"] == [["a", "b"]]
    assert info["notes"] == ["a note"]
    assert info["selection"] == {"seed": 0, "split": 2}
    assert (
        info["fingerprint"]
        == json.loads((reference / "fingerprint.json").read_text())["fingerprint"]
    )
    assert (reference / "class_names.txt").read_text().split() == list(CLASSES)


# --- Restarts and many processes ---

_SCRIPT = """
    import pickle, sys
    from skd_jax.data.prepare import PrepareSettings, prepare

    if __name__ == "__main__":
        index, out_dir, settings, shards = pickle.load(open(sys.argv[1], "rb"))
        sys.exit(0 if prepare(index, out_dir, settings, shards=shards) else 3)
"""


def start(tmp_path: pathlib.Path, name: str, *arguments) -> subprocess.Popen:
    """Starts `prepare(index, out_dir, settings, shards)` in a process of its own."""
    (tmp_path / f"{name}.pickle").write_bytes(pickle.dumps(arguments))
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(_SCRIPT))
    paths = [str(pathlib.Path(prepare_lib.__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        [sys.executable, str(tmp_path / f"{name}.py"), str(tmp_path / f"{name}.pickle")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def children(pid: int) -> list[int]:
    text = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def alive(pid: int) -> bool:
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.skipif(not pathlib.Path("/proc/self/task").exists(), reason="needs /proc")
def test_killed_and_run_again_gives_the_same_bytes(tmp_path):
    index = make_index(tmp_path / "videos", {"train": 40}, frames=60)
    settings = PrepareSettings(frame_size=128, videos_per_shard=2, workers=2)
    out = tmp_path / "killed"
    process = start(tmp_path, "first", index, out, settings, None)
    deadline = time.monotonic() + 60
    while len(list(out.glob("tiny_set-*.json"))) < 3:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    workers = children(process.pid)
    process.kill()
    process.wait()
    process.stderr.close()
    assert len(workers) >= 2
    while any(alive(pid) for pid in workers):  # they end with their parent
        assert time.monotonic() < deadline
        time.sleep(0.05)

    assert not prepared.is_complete(out)
    manifests = {path: path.stat().st_mtime_ns for path in out.glob("tiny_set-*.json")}
    assert 3 <= len(manifests) < 20
    # Another host's unfinished file must be left alone.
    foreign = out / ".incomplete-elsewhere-1-x"
    foreign.touch()
    assert prepare(index, out, PrepareSettings(**{**vars(settings), "workers": 1}), log=quiet)
    assert {path: path.stat().st_mtime_ns for path in manifests} == manifests  # never redone
    assert [path for path in out.iterdir() if path.name.startswith(".incomplete")] == [foreign]
    foreign.unlink()

    once = tmp_path / "once"
    assert prepare(index, once, PrepareSettings(**{**vars(settings), "workers": 1}), log=quiet)
    assert content(out) == content(once)


def test_two_processes_give_the_same_as_one(index, reference, tmp_path):
    out = tmp_path / "data"
    processes = [
        start(tmp_path, f"p{i}", index, out, settings_of_three(2), f"{i}/2") for i in range(2)
    ]
    errors = [process.communicate()[1] for process in processes]
    codes = [process.returncode for process in processes]
    assert set(codes) <= {0, 3} and 0 in codes, errors
    assert content(out) == content(reference)


def test_slices_one_after_the_other(index, reference, tmp_path):
    lines = []
    assert not prepare(index, tmp_path, settings_of_three(1), shards="1/2", log=lines.append)
    assert not prepared.is_complete(tmp_path)
    assert "11 of 22 shards" in lines[-1] and "left to other processes" in lines[-1]
    assert prepare(index, tmp_path, settings_of_three(1), shards="0/2", log=quiet)
    assert content(tmp_path) == content(reference)


def test_complete_data_is_left_alone(index, reference):
    before = {path: path.stat().st_mtime_ns for path in reference.iterdir()}
    assert prepare(index, reference, settings_of_three(0), log=pytest.fail)
    assert {path: path.stat().st_mtime_ns for path in reference.iterdir()} == before


@pytest.mark.parametrize("fault", ["truncated", "deleted", "manifest"])
def test_damaged_shard_is_written_again(fault, index, reference, tmp_path):
    out = tmp_path / "data"
    shutil.copytree(reference, out)
    shard = out / "tiny_set-test.tfrecord-00002-of-00008"
    lines = []
    if fault == "truncated":
        os.truncate(shard, 1000)
    elif fault == "deleted":
        shard.unlink()
    else:  # the message of load_split asks the user for this
        shard.unlink()
        shards.manifest_path(out, shard.name).unlink()
    assert prepare(index, out, settings_of_three(1), log=lines.append)
    if fault != "manifest":
        assert shard.name in lines[0]
    assert content(out) == content(reference)


def test_object_store(index, reference, tmp_path, monkeypatch):
    """Where no rename is atomic, nothing but finished files is ever put there."""
    for module in (files, prepare_lib):
        monkeypatch.setattr(module, "is_remote", lambda path: True)
    monkeypatch.setattr(os, "replace", lambda *_: pytest.fail("renamed"))
    small = VideoIndex(**{**vars(index), "splits": {"test": index.splits["test"]}})
    assert prepare(small, tmp_path, settings_of_three(1), log=quiet)
    for path in reference.glob("*-test.tfrecord-?????-of-?????"):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()
    assert len(prepared.load_split(tmp_path, "test")) == 9


# --- What the user is told ---


def test_rejected_and_noted(tmp_path):
    index = make_index(tmp_path / "videos", {"train": 6, "test": 2}, frames=30)
    videos = index.splits["train"]
    pathlib.Path(videos[0].path).write_bytes(b"")
    pathlib.Path(videos[1].path).write_text("no video, at all\n" * 50)
    os.unlink(videos[2].path)
    # An AVI is readable from its beginning; an mp4 cut short is not.
    whole = pathlib.Path(videos[3].path)
    write_video(whole.with_suffix(".avi"), seed=3, frames=60)
    data = whole.with_suffix(".avi").read_bytes()
    whole.write_bytes(data[: len(data) // 2])
    lines = []
    out = tmp_path / "data"
    any_length = dataclasses.replace(SMALL, min_frames=1)
    assert prepare(index, out, any_length, log=lines.append)
    with (out / "rejected.csv").open(newline="") as file:
        rejected = {row["id"]: row for row in csv.DictReader(file)}
    assert set(rejected) == {video.id for video in videos[:3]}
    for video in videos[:3]:
        row = rejected[video.id]
        assert (row["path"], row["split"]) == (video.path, "train") and row["reason"]
    with (out / "notes.csv").open(newline="") as file:
        assert {row["id"] for row in csv.DictReader(file)} == {videos[3].id}
    text = "\n".join(lines)
    assert "3 videos were rejected" in text and "1 videos were kept with a remark" in text
    info = prepared.load_info(out)["splits"]["train"]
    assert (info["videos"], info["rejected"], info["noted"]) == (3, 3, 1)
    split = prepared.load_split(out, "train")
    assert set(split.ids) == {video.id for video in videos[3:]}
    assert prepare(index, out, any_length, log=pytest.fail)

    import tensorflow_datasets as tfds  # shards without a single record must not trouble it

    assert len(list(tfds.builder_from_directory(out).as_dataset("train"))) == 3


def test_all_rejected_then_mended(tmp_path):
    index = make_index(tmp_path / "videos", {"train": 3, "test": 2})
    good = {video: pathlib.Path(video.path).read_bytes() for video in index.splits["test"]}
    for video in good:
        pathlib.Path(video.path).write_bytes(b"")
    out = tmp_path / "data"
    with pytest.raises(UserError, match=r"all 2 videos of split 'test'.*rejected\.csv"):
        prepare(index, out, SMALL, log=quiet)
    assert not prepared.is_complete(out)
    for video, data in good.items():
        pathlib.Path(video.path).write_bytes(data)
    assert prepare(index, out, SMALL, log=quiet)


def test_other_fingerprint_is_refused(index, reference):
    other = PrepareSettings(frame_size=48, videos_per_shard=3, jpeg_quality=90)
    there = json.loads((reference / "fingerprint.json").read_text())["fingerprint"]
    with pytest.raises(UserError) as caught:
        prepare(index, reference, other, log=quiet)
    message = str(caught.value)
    assert there in message and str(reference) in message
    assert "settings.frame_size: 32 there, 48 now" in message
    assert "settings.jpeg_quality: 95 there, 90 now" in message
    assert "videos_per_shard" not in message
    relabelled = tuple(Video(v.path, 0, v.id, v.group) for v in index.splits["test"])
    changed = VideoIndex(**{**vars(index), "splits": {**index.splits, "test": relabelled}})
    with pytest.raises(UserError, match=r"index\.splits\.test\.hash"):
        prepare(changed, reference, settings_of_three(1), log=quiet)


def test_moved_videos_keep_the_fingerprint(index, reference):
    moved = {
        split: tuple(Video("/elsewhere" + v.path, v.label, v.id, v.group) for v in videos)
        for split, videos in index.splits.items()
    }
    assert prepare(
        VideoIndex(**{**vars(index), "splits": moved}), reference, settings_of_three(1), log=quiet
    )


def test_estimate(index, reference):
    written = sum(path.stat().st_size for path in reference.glob("*.tfrecord-?????-of-?????"))
    assert estimate(index, settings_of_three(1)) == pytest.approx(written, rel=0.35)
    assert estimate(index, settings_of_three(1)) == estimate(index, settings_of_three(1))


def test_too_small_a_disk_is_refused_first(index, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=5000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"5000 bytes.*free.*needs about .* bytes") as caught:
        prepare(index, tmp_path, SMALL, log=quiet)
    assert str(tmp_path) in str(caught.value)
    assert not list(tmp_path.glob("*tfrecord*"))


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("suffix", ["", ".json"])
def test_disk_full_while_writing(suffix, tmp_path, monkeypatch):
    """The kernel's own ENOSPC, for a shard and for a manifest; then room is made."""
    monkeypatch.setattr(prepare_lib, "remove_abandoned", lambda root: None)  # would remove the trap
    index = make_index(tmp_path / "videos", {"train": 9})
    out = tmp_path / "data"
    out.mkdir()
    shard = "tiny_set-train.tfrecord-00003-of-00008"
    name = f".incomplete-{socket.gethostname()}-{os.getpid()}-{shard}{suffix}"
    (out / name).symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"is full: \d+ bytes are free.*run the same command") as e:
        prepare(index, out, SMALL, log=quiet)
    assert str(out) in str(e.value)
    assert len(list(out.glob("*.tfrecord*.json"))) == 3  # those before it are kept
    assert not (out / name).is_symlink()
    assert not prepared.is_complete(out)
    assert prepare(index, out, SMALL, log=quiet)
    once = tmp_path / "once"
    assert prepare(index, once, SMALL, log=quiet)
    assert content(out) == content(once)


def test_error_in_a_worker_process_arrives(tmp_path):
    index = make_index(tmp_path / "videos", {"train": 4})
    out = tmp_path / "data"
    tasks = prepare_lib.plan(index, SMALL, out, "print")  # the directory is missing
    with pytest.raises(FileNotFoundError) as caught:
        shards.write_shards(tasks, 2, lambda done, rejected: None)
    assert str(out) in str(caught.value)


def test_killed_worker_is_told(tmp_path):
    index = make_index(tmp_path / "videos", {"train": 4})
    tasks = prepare_lib.plan(index, SMALL, tmp_path, "print")
    with pytest.raises(
        UserError, match="worker process ended unexpectedly.*finished shards are kept"
    ):
        shards.write_shards(
            tasks * 1000,
            2,
            lambda *_: [worker.kill() for worker in multiprocessing.active_children()],
        )


@pytest.mark.parametrize("text", ["2", "2/2", "-1/2", "a/b", "1/0", ""])
def test_bad_slice(index, tmp_path, text):
    with pytest.raises(UserError, match="shards is .* 0/2 and 1/2"):
        prepare(index, tmp_path, SMALL, shards=text, log=quiet)


@pytest.mark.parametrize(
    "change",
    [{"frame_size": 0}, {"jpeg_quality": 101}, {"max_fps": 0.0}, {"max_frames": 0}, {"workers": -1}]
    + [{"videos_per_shard": 1.5}, {"frame_size": "128"}],
)
def test_bad_settings(index, tmp_path, change):
    with pytest.raises(UserError, match=f"{next(iter(change))} is "):
        prepare(index, tmp_path, PrepareSettings(**change), log=quiet)


def test_directory_that_cannot_be_made(index, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file.*another directory"):
        prepare(index, tmp_path / "file", SMALL, log=quiet)


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="needs /dev/full")
def test_directory_that_cannot_be_written(index, tmp_path):
    name = f".incomplete-{socket.gethostname()}-{os.getpid()}-fingerprint.json"
    (tmp_path / name).symlink_to("/dev/full")
    with pytest.raises(UserError, match="cannot be written .No space left.*another directory"):
        prepare(index, tmp_path, SMALL, log=quiet)


def test_how_frames_are_resized_counts_only_where_it_is_not_as_ever(index):
    same = dataclasses.replace(SMALL, frame_width=None, antialias=True)
    assert fingerprint(index, same) == fingerprint(index, SMALL)
    others = {
        fingerprint(index, dataclasses.replace(SMALL, frame_width=40)),
        fingerprint(index, SMALL),
    }
    assert len(others | {fingerprint(index, dataclasses.replace(SMALL, antialias=False))}) == 3
    named = prepare_lib._identity(index, SMALL)["settings"]
    assert not {"frame_width", "antialias", "workers"} & named.keys()


def test_fingerprint_names_the_directory_content(index, reference):
    assert fingerprint(index, settings_of_three(7)) == prepared.load_info(reference)["fingerprint"]


def test_workers_import_no_tensorflow():
    code = "import sys, skd_jax.data.prepare; print({'tensorflow', 'jax'} & set(sys.modules))"
    root = pathlib.Path(prepare_lib.__file__).parents[2]
    out = subprocess.check_output([sys.executable, "-c", code], cwd=root, text=True)
    assert out.strip() == "set()"


def test_real_videos(shared, tmp_path):
    """The records of all three data sets show what Pillow makes of the first frame."""
    paths = {p.stem: p for p in (shared / "fixtures").rglob("*") if p.suffix in (".avi", ".mp4")}
    videos = tuple(Video(str(path), 0, stem, stem) for stem, path in paths.items())
    index = VideoIndex("real", ("any",), {"train": videos}, {"train": "fixtures"}, (), (), ())
    settings = PrepareSettings(workers=1, max_frames=50)
    assert prepare(index, tmp_path, settings, log=quiet)
    split = prepared.load_split(tmp_path, "train")
    assert set(split.ids) == set(paths)  # of the broken one, what can be decoded
    assert "damaged" in (tmp_path / "notes.csv").read_text()
    for i, stem in enumerate(split.ids):
        with open(split.shard_paths[split.shard[i]], "rb") as file:
            file.seek(split.frame_begin[split.first_frame[i]])
            jpeg = file.read(split.frame_length[split.first_frame[i]])
        picture = np.asarray(Image.open(io.BytesIO(jpeg)))
        frame = Image.fromarray(
            decode(paths[stem], short_side=None, max_fps=None, max_frames=1).frames[0]
        )
        scale = 128 / min(frame.size)
        size = round(frame.width * scale), round(frame.height * scale)
        expected = np.asarray(frame.resize(size, Image.BILINEAR))
        assert picture.shape == expected.shape == (split.height[i], split.width[i], 3)
        # Brightness alone: a test picture's saturated colours bleed at half resolution.
        difference = (picture.astype(int) - expected) @ [0.299, 0.587, 0.114]
        assert np.abs(difference).mean() < 2
