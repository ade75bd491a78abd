"""Six classes of UCF101 that motion tells apart, hardly the scene, with a network for two CPU cores.

--config=configs/ucf101_small.py:METHOD --config.data.root=FOLDER
"""

from configs import common

CLASSES = "BodyWeightSquats,BoxingPunchingBag,JugglingBalls,JumpingJack,Lunges,PushUps"


def get_config(method: str = "skd_srl"):
    """R3D-10 at a quarter of the width on 8 frames of 64 x 64, from random weights."""
    config = common.base_config(method)
    config.data.name = "ucf101"
    config.data.classes = CLASSES
    config.data.frame_size = 72
    config.data.validation_fraction = 0.15
    config.model.name = "r3d_10"
    config.model.width = 0.25
    config.clips.frames = 8
    config.clips.stride = 4
    config.clips.area = (0.4, 1.0)
    config.augment.crop = 64
    config.optim.name = "adamw"
    config.optim.learning_rate = 0.001
    config.optim.weight_decay = 0.05
    config.train.batch_size = 8
    config.train.duration = "50 epochs"
    config.eval.clips = 5
    config.eval.batch_size = 16
    return config
