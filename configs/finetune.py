"""Own videos from imported weights, for a few hundred of them.

--config=configs/finetune.py --config.init_from=r3d_18-b3b3357e.pth --config.data.root=FOLDER, the one with
train/CLASS/..., val/CLASS/... or CLASS/.... Other weights: --config.model.name=r2plus1d_18 and so on.
"""

from configs import common


def get_config(method: str = "skd_srl"):
    """torchvision's R3D-18 at a small rate, slower still behind the head; BatchNorm as imported."""
    config = common.base_config(method)
    config.data.validation_fraction = 0.15
    config.finetune.freeze_batch_norm = True
    config.finetune.lr_groups = "backbone=0.1,head=1"
    config.optim.learning_rate = 0.02
    config.optim.warmup = "1 epochs"
    config.clips.area = (0.5, 1.0)
    config.train.batch_size = 8
    config.train.duration = "15 epochs"
    config.train.eval_every = "1 epochs"
    config.train.checkpoint_every = "1 epochs"
    return config
