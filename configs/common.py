"""What all configs share: one recipe, so that methods and data sets can be compared.

Durations (`duration`, `warmup`, `eval_every`, ...) are "25 epochs" or "500 steps".
"""

import dataclasses
from typing import Any

import ml_collections
from ml_collections import config_dict

from skd_jax import methods, models, settings
from skd_jax.augment import AugmentSettings
from skd_jax.optim import OptimSettings


class Options(ml_collections.ConfigDict):
    """A section with placeholders, of which those left unset are no part of the dictionary."""

    def to_dict(self, *args, **kwargs) -> dict[str, Any]:
        values = super().to_dict(*args, **kwargs)
        return {key: value for key, value in values.items() if value is not None}


def _unset_model_options() -> dict[str, ml_collections.FieldReference]:
    """A placeholder for every option that some model has, of the type of its default."""
    defaults: dict[str, Any] = {}
    for name in models.names():
        defaults |= settings.model_defaults(name)
    return {
        option: config_dict.placeholder(type(default))
        for option, default in sorted(defaults.items())
    }


def base_config(method: str = "skd_srl") -> ml_collections.ConfigDict:
    """The recipe at 16 frames of 112 x 112.

    Args:
      method: name of the training method, what stands behind the colon in --config=FILE:METHOD.
    """
    config = ml_collections.ConfigDict()
    config.method = ml_collections.ConfigDict({"name": method, **methods.defaults(method)})
    if methods.takes_teacher(method):
        config.method.teacher = ""  # a trained workdir, or a PyTorch checkpoint
        config.method.teacher_model = ""  # the checkpoint's model
    config.model = Options(
        {
            **_unset_model_options(),  # dropout, remat, shortcut, ...: by default the model's own
            "name": "r3d_18",
            "width": 1.0,  # multiplies the channels of all stages
            "dtype": "float32",  # of the computation: "bfloat16" on GPUs and TPUs
        }
    )
    # Weights to begin with: a PyTorch checkpoint (.pth, .pt, .pyth, .safetensors) or a workdir.
    config.init_from = ""
    config.finetune = ml_collections.ConfigDict(
        {
            "freeze": "",  # "stem,layer1*": what stays as it is; "backbone" is all but the head
            "freeze_batch_norm": False,  # BatchNorm: statistics, scale and bias stay as they are
            "lr_groups": "",  # "backbone=0.1,head=1": factors of the learning rate
        }
    )
    config.data = ml_collections.ConfigDict(
        {
            "name": "folder",  # ucf101, hmdb51, kinetics or folder
            "root": "",  # where the videos are
            "annotations": "",  # where the lists are, if not at their usual place beside the videos
            "split": 1,  # official split of UCF101 and HMDB51
            "classes": "",  # "A,B,C" keeps these classes only
            "groups_csv": "",  # own folder: csv path,group; a group stays on one side of a split
            "validation_fraction": 0.1,  # of the training videos, held out by group for selection
            "test_fraction": 0.2,  # own folder without val/ and test/
            "seed": 0,  # of what is held out
            "prepared": "",  # prepared data set; by default prepared/NAME-FINGERPRINT
            "in_memory": False,  # small data sets: frames decoded once; TensorFlow need not be there
            "frame_size": 128,  # short side of the stored frames, pixels
            "frame_width": 0,  # makes them exactly frame_size x frame_width; 0 keeps the aspect
            "antialias": True,  # smooth before shrinking; False takes the four nearest pixels
            "jpeg_quality": 95,
            "max_fps": 0.0,  # 0 keeps every frame
            "max_frames": 0,  # kept of each video, from its start; 0 keeps all
            "min_frames": 4,  # a video of which fewer decode is rejected
            "shards": "",  # "0/4": this machine prepares every fourth shard, from the first
            "workers": 0,  # processes that prepare; 0 is one for each core
        }
    )
    config.clips = ml_collections.ConfigDict(
        {
            "frames": 16,
            "stride": 2,
            "stride_jitter": 0,  # a view's stride is drawn from stride +- this
            "mode": "two_clips",  # two_clips, same_clip or offset: how a video's views relate in time
            "max_offset": 0,  # frames, for "offset"
            "area": (0.25, 1.0),  # of the crop, as a share of the short-side square
            "ratio": (0.75, 1.3333),  # of its width to its height
            "flip": True,
        }
    )
    config.augment = ml_collections.ConfigDict(
        dataclasses.asdict(
            AugmentSettings(
                brightness=0.4,
                contrast=0.4,
                saturation=0.4,
                hue=0.1,
                grey_probability=0.2,
                blur_probability=0.0,
            )
        )
    )
    optim = dataclasses.asdict(OptimSettings())
    optim["warmup"] = "2 epochs"
    del optim["warmup_steps"]
    optim["boundaries"] = ()  # durations, e.g. ("100 epochs", "150 epochs")
    config.optim = ml_collections.ConfigDict(optim)
    config.train = ml_collections.ConfigDict(
        {
            "batch_size": 32,  # videos, over all devices
            "duration": "100 epochs",
            "eval_every": "2 epochs",
            "checkpoint_every": "2 epochs",
            "log_every": 20,  # steps
            "keep": 2,  # latest checkpoints, beside the best
            "seed": 0,
            "accumulate": 1,  # micro-batches of a step, to save memory
            "ema_decay": 0.0,  # moving average of the weights; 0 keeps none
            "replicas": "pmap",  # or "shard_map"
            "threads": 0,  # of the input pipeline; 0 is one for each core
        }
    )
    config.eval = ml_collections.ConfigDict(
        {
            "clips": 10,  # of a video, uniform over its length
            "crops": 1,  # 1 is the centre, 3 the ends of the long side too
            "batch_size": 8,  # videos, over all devices
            "validation_clips": 2,  # of a video, for the evaluations during training
        }
    )
    return config
