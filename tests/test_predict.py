"""Tests of `skd_jax.predict` without a command line."""

import numpy as np

from skd_jax import datasets, predict
from skd_jax.data import prepared
from tests import tiny


def test_predict_and_evaluate_see_the_same_clips(tmp_path):
    """Two ways to a video's clips: from the file itself, and from the stored JPEG frames."""
    config = tiny.config(tmp_path)
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
