"""MC3: R3D whose stages after the first convolve in space alone.

Tran et al., "A Closer Look at Spatiotemporal Convolutions for Action Recognition", CVPR 2018;
geometry as torchvision.models.video.mc3_18. Stem and stage 1 as in resnet3d.py; the blocks of
stages 2 to 4 have 1x3x3 convolutions, and nothing strides in time, shortcuts included: every map
has as many frames as the clip.

Parameters: as R3D-18 with 9 instead of 27 taps in stages 2 to 4. For c_{i-1} -> c_i, two blocks:
  stage i   9 c_{i-1} c_i + 3 * 9 c_i^2 + 4 * 2 c_i + c_{i-1} c_i + 2 c_i
At width 1: stem 28,352, stages 442,880 | 525,568 | 2,099,712 | 8,393,728, fc 513 K, at 400 classes
11,695,440, which is torchvision's.

torchvision's state dict is named as in resnet3d.py.
"""

import functools

from skd_jax.models.entry import Entry
from skd_jax.models.resnet3d import TORCHVISION, ResNet3D, full, full_stem


def spatial(conv, norm, inputs: int, features: int):
    """1x3x3 convolutions."""
    return functools.partial(conv, features, (1, 3, 3))


MODELS: dict[str, Entry] = {
    "mc3_18": Entry(
        functools.partial(
            ResNet3D,
            stage_sizes=(2, 2, 2, 2),
            stage_strides=((1, 1, 1), (1, 2, 2), (1, 2, 2), (1, 2, 2)),
            stem_unit=full_stem,
            units=(full, spatial, spatial, spatial),
        ),
        clip=(16, 112, 112),
        source="Tran et al. 2018, torchvision",
        torch=TORCHVISION,
    )
}
