"""UCF101: --config=configs/ucf101.py --config.data.root=FOLDER, the one that holds UCF-101/ and ucfTrainTestlist/."""

from configs import common


def get_config(method: str = "skd_srl"):
    """101 classes, 9,537 training and 3,783 test videos in official split 1."""
    config = common.base_config(method)
    config.data.name = "ucf101"
    return config
