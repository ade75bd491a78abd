"""Kinetics-400, -600 or -700: --config=configs/kinetics.py --config.data.root=FOLDER."""

from configs import common


def get_config(method: str = "skd_srl"):
    """Made for a machine with accelerators: bfloat16, a large batch, 45 epochs."""
    config = common.base_config(method)
    config.data.name = "kinetics"
    config.data.validation_fraction = 0.02
    config.data.max_fps = 15.0  # torchvision's recipe reads Kinetics at 15 frames a second
    config.clips.stride = 1
    config.model.dtype = "bfloat16"
    config.train.batch_size = 128
    config.train.duration = "45 epochs"
    config.optim.learning_rate = 0.1
    config.optim.warmup = "5 epochs"
    config.eval.batch_size = 32
    return config
