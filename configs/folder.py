"""Own videos: --config=configs/folder.py --config.data.root=FOLDER with train/CLASS/..., val/CLASS/... or CLASS/...."""

from configs import common


def get_config(method: str = "skd_srl"):
    """A network of half the width, for a few hundred videos."""
    config = common.base_config(method)
    config.model.width = 0.5
    config.data.validation_fraction = 0.15
    config.train.batch_size = 16
    return config
