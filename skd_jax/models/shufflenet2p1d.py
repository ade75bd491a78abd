"""ShuffleNet (2+1)D: split-and-shuffle units of factorised spatial and temporal convolutions.

Vu, Le and Wang, "(2+1)D Distilled ShuffleNet: A Lightweight Unsupervised Distillation Network for
Human Action Recognition", ICPR 2022; geometry as the first author's code,
vdquang1991/action_recognition, `D_ShuffleNet2p1D.py`, with its units [4, 12, 4]. Its convolutions
are full, not depthwise, and it has no 1x1x1 ones.

Stem: 3x7x7 convolution, stride (1, 2, 2), to 64 channels, BatchNorm, ReLU, 1x3x3 max-pooling,
stride (1, 2, 2). Three stages of h = 64, 128, 256 channels to a half, 2 h in all, of 1 + 4, 1 + 12,
1 + 4 units. A unit: 1x3x3, 3x1x1, 1x3x3, 3x1x1 convolutions to h channels, each with BatchNorm and
ReLU, on the second half of the channels; the first half passes by; the halves are joined and
shuffled in two groups. In a stage's first unit all channels go in, conv_0 has stride (1, 2, 2) and
conv_1 stride (2, 1, 1), and beside them stands conv_plus, 3x3x3 of stride 2 to h channels,
BatchNorm, ReLU.

Three readings of this project: padding is symmetric as everywhere here (Keras pads strided
convolutions by one on the far side alone); the classifier takes the mean over the whole clip, so
that it fits every clip length, where the code flattens the T / 8 pooled frames (2 * 512 features at
16 frames); and the stem's pooling is always there (the code has it at 224x224 alone; `stem_pool`
turns it off). BatchNorm keeps this project's constants.

Parameters at width 1:
  stem        441 * 64 + 128 = 28,352
  first unit  9 i h + 3 h^2 + 9 h^2 + 3 h^2 + 27 i h + 10 h, i = 64, 128, 256 channels coming in:
              209,536 | 836,864 | 3,344,896
  other unit  24 h^2 + 8 h: 98,816 | 394,240 | 1,574,912
  fc          513 K
15,845,440 below the classifier, 16,050,640 at K = 400 classes. (The paper prints 17.1 M
and 12.07 GFLOPs, which are not this network's 16.05 M and 15.1 G multiply-adds; with the 1x1x1
convolution to 2048 channels that the code's distillation adds, its bias and BatchNorm, and a
classifier over 101 classes on the mean of that, the parameters would be 17,107,109.)

Names: `stage1/` is `stem/` (conv, bn); `stageS/blockB/` is `layer{S-1}_{B-1}/`, in which
`1x3x3conv_0`, `3x1x1conv_1`, `1x3x3conv_2`, `3x1x1conv_3` are conv_0 to conv_3, `1x3x3conv_plus`
(3x3x3 in truth) is conv_plus, and the BatchNorms after them bn_0 to bn_3, bn_plus.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from skd_jax.models.blocks import ConvNorm, channel_shuffle, scaled
from skd_jax.models.classifier import VideoClassifier
from skd_jax.models.entry import Entry
from skd_jax.models.layers import global_average_pool, max_pool
from skd_jax.models.outputs import Outputs


class Unit(nn.Module):
    """Four factorised convolutions on one half, joined and shuffled with the other.

    Attributes:
      half: channels of each half of the result.
      down: whether this unit halves T, H and W, and takes all channels.
      conv, norm: build a padded convolution and a BatchNorm.
    """

    half: int
    down: bool
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def layer(x, name, kernel_size, strides=(1, 1, 1)):
            x = self.conv(self.half, kernel_size, strides, name=f"conv_{name}")(x)
            return nn.relu(self.norm(name=f"bn_{name}")(x))

        spatial, temporal = (1, 1, 1), (1, 1, 1)
        if self.down:
            other = layer(x, "plus", (3, 3, 3), (2, 2, 2))
            spatial, temporal = (1, 2, 2), (2, 1, 1)
        else:
            other, x = jnp.split(x, 2, axis=-1)
        x = layer(x, "0", (1, 3, 3), spatial)
        x = layer(x, "1", (3, 1, 1), temporal)
        x = layer(x, "2", (1, 3, 3))
        x = layer(x, "3", (3, 1, 1))
        return channel_shuffle(jnp.concatenate([x, other], axis=-1), 2)


class ShuffleNet2Plus1D(VideoClassifier):
    """ShuffleNet (2+1)D video classifier; `apply(variables, clips, train=...)` gives `Outputs`.

    The maps are the outputs of the stem and of the three stages.

    Attributes:
      stage_sizes: units in each stage.
      stem_pool: whether max-pooling halves H and W after the stem; turn it off for small crops.
    """

    stage_sizes: tuple[int, ...] = (5, 13, 5)
    stem_pool: bool = True

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
        stem = scaled(64, self.width)
        x = ConvNorm(stem, (3, 7, 7), (1, 2, 2), nn.relu, conv, norm, name="stem")(x)
        if self.stem_pool:
            x = max_pool(x, (1, 3, 3), (1, 2, 2), (0, 1, 1))
        maps = [x]
        for stage, size in enumerate(self.stage_sizes):
            half = scaled(64 * 2**stage, self.width)
            blocks = [
                functools.partial(
                    Unit, half, block == 0, conv, norm, name=f"layer{stage + 1}_{block}"
                )
                for block in range(size)
            ]
            x = self.stage(blocks, x)
            maps.append(x)
        return self.classify(global_average_pool(x), maps, train)


MODELS: dict[str, Entry] = {
    "shufflenet2p1d": Entry(
        functools.partial(ShuffleNet2Plus1D, stage_sizes=(5, 13, 5)),
        clip=(16, 224, 224),
        source="Vu et al. 2022; vdquang1991/action_recognition",
    )
}
