"""Tests of `skd_jax.predict` without a command line."""

import numpy as np
import pytest

from skd_jax import datasets, predict
from skd_jax.data import prepared
from skd_jax.errors import UserError
from tests import tiny


@pytest.mark.parametrize("max_frames", [0, 6])
def test_predict_and_evaluate_see_the_same_clips(tmp_path, max_frames):
    """Two ways to a video's clips: from the file itself, and from the stored JPEG frames."""
    config = tiny.config(tmp_path, data__max_frames=max_frames)
    split = prepared.load_split(datasets.ensure_prepared(config, print), "test")
    compared = 0
    for batch in datasets.eval_batches(config, split, clips=2, crops=1):
        for row, clips, size in zip(batch["index"], batch["clips"], batch["size"], strict=True):
            path = tmp_path / "videos" / f"{split.ids[row]}.mp4"
            found, _ = predict._clips(path, config)
            np.testing.assert_array_equal(found["size"][0], size)
            stored, read = clips.astype(int), found["clips"][0].astype(int)
            # JPEG alone lies between; a frame earlier or later is further away.
            assert np.abs(read - stored).mean() < 3
            for shift in (-1, 1):
                off = np.roll(read, shift, axis=1)
                assert np.abs(read - stored).mean() < 0.8 * np.abs(off - stored).mean()
            compared += 1
    assert compared == 16


def test_a_long_video_is_read_twice_instead_of_held(tmp_path, monkeypatch):
    config = tiny.config(tmp_path)
    datasets.ensure_prepared(config, print)
    video = next((tmp_path / "videos").rglob("*.mp4"))
    held, _ = predict._clips(video, config)
    monkeypatch.setattr(predict, "_FRAMES_HELD", 3)  # of ten
    twice, _ = predict._clips(video, config)
    np.testing.assert_array_equal(twice["clips"], held["clips"])
    np.testing.assert_array_equal(twice["size"], held["size"])
    assert held["clips"].any()


def test_what_is_named(tmp_path):
    for name in ("b.mp4", "a.avi", ".hidden.mp4", "notes.txt"):
        (tmp_path / name).touch()
    empty = tmp_path / "empty"
    empty.mkdir()
    single, gone = tmp_path / "notes.txt", tmp_path / "gone.mp4"
    found = list(predict.find_videos(map(str, (tmp_path, single, empty, gone))))
    assert found[:3] == [(tmp_path / "a.avi", None), (tmp_path / "b.mp4", None), (single, None)]
    (folder, no_video), (path, absent) = found[3:]
    assert folder == empty and "no video in this folder (" in no_video
    assert path == gone and absent == "no such file or folder"


def test_nothing_named():
    with pytest.raises(UserError, match="name what to classify: .*VIDEO_OR_FOLDER"):
        list(predict.find_videos([]))
