"""Six classes of UCF101 at 40 x 40: small enough to compare many methods, with many seeds, on two CPU cores.

--config=configs/ucf101_tiny.py:METHOD --config.data.root=FOLDER; what benchmarks/accuracy.py runs.
"""

from configs import ucf101_small


def get_config(method: str = "skd_srl"):
    """`ucf101_small` at fewer pixels and epochs: R3D-10 at a quarter of the width on 8 frames of 40 x 40."""
    config = ucf101_small.get_config(method)
    config.data.frame_size = 45
    config.data.in_memory = True
    config.augment.crop = 40
    # Two-view supervision gained between 20 and 40 epochs and lost between 40 and 80, on validation, with
    # both of two seeds: docs/results/ucf101_tiny_budget.md.
    config.train.duration = "40 epochs"
    # Evaluations of the raw weights differed by up to a tenth from one to the next, of the averaged ones (with
    # BatchNorm's statistics averaged too) by a few hundredths.
    config.train.ema_decay = 0.99
    return config
