"""HMDB51: --config=configs/hmdb51.py --config.data.root=FOLDER --config.data.annotations=FOLDER."""

from configs import common


def get_config(method: str = "skd_srl"):
    """51 classes, 3,570 training and 1,530 test videos in each of the three official splits."""
    config = common.base_config(method)
    config.data.name = "hmdb51"
    return config
