"""Mistakes that users make end in one clear line that names the thing and what to do."""

import json
import shutil

import jax
import pytest

from skd_jax import classifier, datasets, modes
from skd_jax.errors import UserError
from tests import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Videos and prepared data, nothing trained."""
    folder = tmp_path_factory.mktemp("bad_input")
    datasets.ensure_prepared(tiny.config(folder), print)
    return folder


def fails(config, workdir, *words):
    with pytest.raises(UserError) as error:
        modes.run_train(config, workdir, print)
    message = str(error.value)
    for word in words:
        assert word in message, message
    return message


def test_missing_data_root(tmp_path):
    config = tiny.config(tmp_path)
    del config["data"]["synthetic"]
    fails(config, tmp_path / "run", str(tmp_path / "videos"))


def test_batch_not_divisible(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 3)
    fails(tiny.config(folder), tmp_path, "train.batch_size=8", "3 device(s)", "such as 9")


def test_batch_not_divisible_into_micro_batches(folder, tmp_path):
    config = tiny.config(folder, train__accumulate=3)
    fails(config, tmp_path, "train.batch_size=8", "3 micro-batches", "such as 9")


def test_crop_larger_than_the_stored_frames(folder, tmp_path):
    fails(tiny.config(folder, augment__crop=32), tmp_path, "augment.crop=32", "frame_size=20")


def test_unknown_hyper_parameter(folder, tmp_path):
    config = tiny.config(folder)
    config["method"]["temprature"] = 3.0
    fails(config, tmp_path, "temprature", "did you mean 'temperature'")


def test_bad_duration(folder, tmp_path):
    fails(tiny.config(folder, train__duration="10 epoches"), tmp_path, "train.duration", "epoches")


def test_another_config_in_the_workdir_is_refused_with_a_diff(folder, tmp_path):
    first = tiny.config(folder, train__duration="bad")
    fails(first, tmp_path, "train.duration")  # claims the workdir before it fails
    second = tiny.config(folder, train__duration="bad", method__temperature=3.0)
    message = fails(second, tmp_path, "another config", "method.temperature: 10.0 there, 3.0 now")
    assert "train.duration" not in message


def test_truncated_shard(folder, tmp_path):
    config = tiny.config(folder)
    copy = tmp_path / "prepared"
    shutil.copytree(folder / "prepared", copy)
    shard = min(copy.glob("*-train.tfrecord-*[0-9]"))
    shard.write_bytes(shard.read_bytes()[:-100])
    from skd_jax.data import prepared

    with pytest.raises(UserError) as error:
        prepared.load_split(copy, "train")
    assert shard.name in str(error.value) and "--mode=prepare" in str(error.value)
    # And preparing again, as training does by itself, mends it.
    config["data"]["prepared"] = str(copy)
    datasets.ensure_prepared(config, print)
    assert len(prepared.load_split(copy, "train").labels) == 48


def test_all_videos_rejected(tmp_path):
    config = tiny.config(tmp_path)
    del config["data"]["synthetic"]
    for split in ("train", "val"):
        for name in ("a", "b"):
            path = tmp_path / "videos" / split / name / "v.mp4"
            path.parent.mkdir(parents=True)
            path.write_bytes(f"not a video {split} {name}".encode())
    fails(config, tmp_path / "run", "train")


def test_checkpoint_with_another_number_of_classes(folder, tmp_path):
    config = tiny.config(folder, train__duration="1 steps", train__eval_every="1 steps")
    modes.run_train(config, tmp_path, print)
    data = json.loads((tmp_path / "data.json").read_text())
    data["class_names"].append("one_more")
    (tmp_path / "data.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match="number of classes") as error:
        classifier.load(tmp_path)
    assert "(9,)" in str(error.value) and "(8,)" in str(error.value)
