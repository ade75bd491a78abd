"""Mistakes that users make end in one clear line that names the thing and what to do."""

import importlib
import json
import shutil

import jax
import pytest

from skd_jax import classifier, datasets, methods, modes, settings, workdir
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
    workdir.claim(tmp_path, tiny.config(folder, train__threads=1))
    (tmp_path / "checkpoints" / "20").mkdir(parents=True)
    second = tiny.config(folder, method__temperature=3.0)
    message = fails(second, tmp_path, "another config", "method.temperature: 10.0 there, 3.0 now")
    assert "train.threads" not in message, "where and how a run is run may change"


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("clips__area", (0.3, 1.2), "area"),
        ("train__accumulate", 0, "accumulate"),
        ("train__log_every", 0, "log_every"),
        ("train__eval_every", "0 steps", "train.eval_every"),
        ("train__ema_decay", 1.5, "ema_decay"),
        ("train__keep", 0, "keep"),
        ("train__seed", -1, "train.seed"),
        ("eval__clips", 0, "config.eval.clips"),
        ("optim__name", "sgdd", "did you mean 'sgd'"),
        ("optim__warmup", "1000 epochs", "warmup"),
        ("optim__momentum", 1.0, "momentum"),
        ("augment__grey_probability", 2.0, "grey_probability"),
        ("method__temperature", 0.0, "temperature"),
        ("method__projector_out", 0, "projector_out"),
        ("method__label_smoothing", 1.0, "label_smoothing"),
        ("model__dtype", "float16", "bfloat16"),
    ],
)
def test_values_out_of_range_are_found_before_the_data_is_prepared(tmp_path, key, value, words):
    config = tiny.config(tmp_path, **{key: value})
    fails(config, tmp_path / "run", words)
    assert not (tmp_path / "videos").exists()


def test_a_range_must_have_two_ends():
    with pytest.raises(UserError, match=r"config.clips.area=0.3: write 2 numbers"):
        settings.clips({"clips": {"area": 0.3}, "data": {"frame_size": 20}}, views=2)


def test_prepared_data_alone_is_enough_if_it_fits_the_config(folder, tmp_path):
    config = tiny.config(folder)
    config["data"]["root"] = ""
    assert datasets.ensure_prepared(config, print) == str(folder / "prepared")
    config["data"]["frame_size"] = 24
    with pytest.raises(UserError, match="frame_size is 20 there, 24 in the config"):
        datasets.ensure_prepared(config, print)
    config["data"]["frame_size"] = 20
    # What made the splits counts too, unless it had no part in them.
    part = tiny.config(folder)
    part["data"] |= {"root": "", "validation_fraction": 0.5, "split": 2}
    assert datasets.ensure_prepared(part, print) == str(folder / "prepared")
    copy = tmp_path / "drawn"
    shutil.copytree(folder / "prepared", copy)
    info = json.loads((copy / "info.json").read_text())
    (copy / "info.json").write_text(
        json.dumps(info | {"selection": {"split": 1, "validation_fraction": 0.5}})
    )
    part["data"]["prepared"] = str(copy)
    with pytest.raises(
        UserError, match="prepared otherwise: split is 1 there, 2 in the config. Set"
    ):
        datasets.ensure_prepared(part, print)
    del info["selection"]  # as it was before
    (copy / "info.json").write_text(json.dumps(info))
    assert datasets.ensure_prepared(part, print) == str(copy)
    config["data"]["prepared"] = str(tmp_path)
    with pytest.raises(UserError, match="config.data.root"):
        datasets.ensure_prepared(config, print)


def test_every_config_passes_the_check():
    for name in ("demo", "ucf101", "ucf101_small", "ucf101_tiny", "hmdb51", "kinetics", "folder"):
        for method in methods.names():
            config = importlib.import_module(f"configs.{name}").get_config(method)
            settings.check(config.to_dict())


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
    fails(config, tmp_path / "run", "rejected.csv")


def test_other_data_before_the_first_checkpoint_and_after_it(folder, tmp_path):
    """What failed before it had trained may be corrected; what was trained may not change."""
    config = tiny.config(folder, train__duration="1 steps")
    data = datasets.describe(config["data"]["prepared"])
    run = tmp_path / "run"
    run.mkdir()
    (run / "data.json").write_text(json.dumps(data | {"fingerprint": "0" * 32}))
    modes.run_train(config, run, print)
    assert json.loads((run / "data.json").read_text())["fingerprint"] == data["fingerprint"]
    (run / "data.json").write_text(json.dumps(data | {"fingerprint": "0" * 32}))
    fails(config, run, "fingerprint 000000000000", "another --workdir")


def test_too_few_frames_are_rejected_with_the_number(tmp_path):
    with pytest.raises(UserError, match="rejected.csv"):
        datasets.ensure_prepared(tiny.config(tmp_path, data__min_frames=11), print)
    reasons = (tmp_path / "prepared" / "rejected.csv").read_text()
    assert "only 10 frames, at least 11 are needed" in reasons


def test_checkpoint_with_another_number_of_classes(folder, tmp_path):
    config = tiny.config(folder, train__duration="1 steps", train__eval_every="1 steps")
    modes.run_train(config, tmp_path, print)
    data = json.loads((tmp_path / "data.json").read_text())
    data["class_names"].append("one_more")
    (tmp_path / "data.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match="number of classes") as error:
        classifier.load(tmp_path)
    assert "(9,)" in str(error.value) and "(8,)" in str(error.value)
    assert "another --workdir" in str(error.value)
