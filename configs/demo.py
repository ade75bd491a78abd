"""The demo: python main.py --config=configs/demo.py --workdir=runs/demo, nothing to download.

Eight motions of textured objects, written as real video files; no single frame tells the class.
"""

import dataclasses

import ml_collections

from configs import common
from skd_jax.data.synthetic import SyntheticSettings


def get_config(method: str = "skd_srl"):
    """A small network on small clips: a few minutes on two CPU cores."""
    config = common.base_config(method)
    config.model.name = "r3d_10"
    config.model.width = 0.25
    config.data.root = "data/demo"
    videos = SyntheticSettings(train_per_class=96, validation_per_class=12, test_per_class=24)
    config.data.synthetic = ml_collections.ConfigDict(dataclasses.asdict(videos))
    config.data.frame_size = 40
    config.augment.crop = 32
    config.clips.frames = 8
    config.clips.stride = 1
    config.clips.area = (0.7, 1.0)
    config.clips.flip = False  # a mirrored movement to the left is one to the right
    config.augment.jitter_probability = config.augment.grey_probability = 0.0
    config.optim.name = "adamw"
    config.optim.learning_rate = 0.0015
    config.optim.weight_decay = 0.02
    config.optim.warmup = "1 epochs"
    config.train.batch_size = 16
    config.train.duration = "22 epochs"
    config.train.eval_every = "4 epochs"
    config.train.checkpoint_every = "2 epochs"
    config.eval.clips = 4
    config.eval.batch_size = 16
    return config
