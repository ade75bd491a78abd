"""3D-ResNets of Hara et al., with their 7x7x7 stem, max-pooling and two kinds of shortcut.

Hara, Kataoka, Satoh, "Can Spatiotemporal 3D CNNs Retrace the History of 2D CNNs and ImageNet?",
CVPR 2018; geometry as kenshohara/3D-ResNets-PyTorch, models/resnet.py, at its default options.
They are named resnet3d_*; the r3d_* of resnet3d.py are torchvision's, another network.

Stem: 7x7x7 convolution, stride (1, 2, 2), padding 3, BatchNorm, ReLU, max-pooling 3x3x3 with
stride 2, padding 1. Four stages of c = 64, 128, 256, 512 channels times `width`, the last three
beginning with stride 2 in T, H and W: basic blocks (3x3x3, 3x3x3) for depths 10, 18, 34,
bottlenecks (1x1x1, 3x3x3, 1x1x1 to 4c) beyond. Where a block changes the shape, its shortcut is a
1x1x1 projection with BatchNorm ("B", the default) or takes every second position and adds zero
channels ("A", which has no parameters). The reference cuts the gradient at the shortcuts A; here it
passes, as an identity's does.

Parameters with shortcuts A, for n1..n4 blocks and K classes, e = 1 (basic) or 4 (bottleneck):
  stem        3 * 343 * 64 + 128 = 65,984
  basic       27 a c + 27 c^2 + 4 c        from a channels
              first of each stage   221,440 | 664,064 | 2,655,232 | 10,618,880
              each further one      221,440 | 885,248 | 3,539,968 | 14,157,824
  bottleneck  a c + 27 c^2 + 4 c^2 + 12 c  from a channels
              first of each stage   131,840 | 542,208 | 2,165,760 |  8,656,896
              each further one      144,128 | 574,976 | 2,296,832 |  9,181,184
  fc          512 e K + K
Shortcuts B add a * e c + 2 e c where a block changes the shape: 8,448 + 33,280 + 132,096 = 173,824
for basic blocks, 16,896 + 132,096 + 526,336 + 2,101,248 = 2,776,576 for bottlenecks. At 400 classes:
                                   A             B
  resnet3d_10  (1, 1, 1, 1)   14,430,800    14,604,624
  resnet3d_18  (2, 2, 2, 2)   33,235,280    33,409,104
  resnet3d_34  (3, 4, 6, 3)   63,544,912    63,718,736
  resnet3d_50  (3, 4, 6, 3)   44,242,000    47,018,576
  resnet3d_101 (3, 4, 23, 3)  83,288,144    86,064,720
  resnet3d_152 (3, 8, 36, 3) 115,446,864   118,223,440
  resnet3d_200 (3, 24, 36, 3) 124,646,480  127,423,056

The reference's state dict: conv1, bn1 and fc have their names here; in layerL.B, which is layerL_B,
so do convN and bnN; downsample.0 is downsample_conv, downsample.1 downsample_bn.
"""

import functools
from collections.abc import Callable

import jax
from flax import linen as nn

from skd_jax.models.blocks import scaled
from skd_jax.models.classifier import VideoClassifier
from skd_jax.models.conv3d import Triple
from skd_jax.models.entry import Entry
from skd_jax.models.layers import global_average_pool, max_pool
from skd_jax.models.outputs import Outputs
from skd_jax.models.residual import BasicBlock, Bottleneck, projection, zero_padding
from skd_jax.models.torch_names import TorchNames
from skd_jax.names import look_up

_SHORTCUTS = {"A": lambda conv, norm: zero_padding, "B": projection}
DEPTHS = {
    10: (1, 1, 1, 1),
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
}


def full(conv, norm, features: int, kernel_size: Triple) -> Callable[..., nn.Module]:
    """Makes what builds a convolution, build(strides=..., name=...)."""
    return functools.partial(conv, features, kernel_size)


class HaraResNet3D(VideoClassifier):
    """3D-ResNet with a 7x7x7 stem; `apply(variables, clips, train=...)` gives `Outputs`.

    Attributes:
      stage_sizes: blocks in each of the four stages.
      bottleneck: whether the blocks are bottlenecks.
      unit: what the convolutions over space and time are, as `full`.
      shortcut: "A" or "B", as above.
      zero_init_residual: whether each block's last BatchNorm scale starts at 0 (the block is then
        its shortcut).

    Raises:
      UserError: there is no such shortcut.
    """

    stage_sizes: tuple[int, int, int, int] = (3, 4, 6, 3)
    bottleneck: bool = True
    unit: Callable[..., Callable[..., nn.Module]] = full
    shortcut: str = "B"
    zero_init_residual: bool = False

    def __post_init__(self):
        look_up("shortcut", self.shortcut, _SHORTCUTS)
        super().__post_init__()

    @nn.compact
    def __call__(self, clips: jax.Array, train: bool = False) -> Outputs:
        """Classifies clips.

        Args:
          clips: float, shape (B, T, H, W, 3), any T, H, W.
          train: whether BatchNorm and dropout are in training mode.

        Raises:
          ValueError: clips of another rank or number of channels.
        """
        x, conv, norm = self.prepare(clips, train)
        shortcut = _SHORTCUTS[self.shortcut](conv, norm)
        channels = [scaled(c, self.width) for c in (64, 128, 256, 512)]
        x = self.unit(conv, norm, channels[0], (7, 7, 7))(strides=(1, 2, 2), name="conv1")(x)
        x = max_pool(nn.relu(norm(name="bn1")(x)), (3, 3, 3), (2, 2, 2), (1, 1, 1))
        maps = []
        for stage, size in enumerate(self.stage_sizes):
            features = channels[stage]
            block_type = functools.partial(Bottleneck, conv=conv) if self.bottleneck else BasicBlock
            blocks = [
                functools.partial(
                    block_type,
                    features,
                    strides=(2, 2, 2) if stage > 0 and block == 0 else (1, 1, 1),
                    unit=self.unit(conv, norm, features, (3, 3, 3)),
                    norm=norm,
                    shortcut=shortcut,
                    zero_init_residual=self.zero_init_residual,
                    name=f"layer{stage + 1}_{block}",
                )
                for block in range(size)
            ]
            x = self.stage(blocks, x)
            maps.append(x)
        return self.classify(global_average_pool(x), maps, train)


TORCH_RULES = (
    (r"^layer(\d)_(\d+)/", r"layer\1.\2."),
    (r"downsample_conv$", "downsample.0"),
    (r"downsample_bn$", "downsample.1"),
)
GIVE_A = "have no downsample keys: give shortcut='A', on the command line --config.model.shortcut=A"

_TORCH = TorchNames(
    "3D-ResNets-PyTorch",
    TORCH_RULES,
    hint=f"the ResNet-18 and -34 of 2017 and 2018 {GIVE_A}",
)

MODELS: dict[str, Entry] = {
    f"resnet3d_{depth}": Entry(
        functools.partial(HaraResNet3D, stage_sizes=sizes, bottleneck=depth >= 50, unit=full),
        clip=(16, 112, 112),
        source="Hara et al. 2018, 3D-ResNets-PyTorch",
        torch=_TORCH,
    )
    for depth, sizes in DEPTHS.items()
}
