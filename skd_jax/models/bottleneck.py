"""Stem and residual block of the ResNet-50 line of video networks, with pytorchvideo's geometry.

Shared by I3D, Slow, SlowFast and CSN. No convolution has a bias; all are padded by half their
kernel.

Parameters of a block from i to o channels over m inner ones, with a taps in conv_a and b in conv_b:
  a i m + 2m  +  b m^2 + 2m (b m + 2m where conv_b is depthwise)  +  m o + 2o,
  plus i o + 2o for the shortcut's projection where channels or size change.

Names: pytorchvideo's `blocks.S.res_blocks.B.` holds `branch1_conv`, `branch1_norm` (the shortcut)
and `branch2.conv_a`, `.norm_a`, `.conv_b`, ..., `.norm_c`; here `layerS_B` holds all of them side
by side. `blocks.0.conv` and `.norm` are `stem/conv` and `stem/norm`.
"""

import functools
from collections.abc import Callable, Sequence

import jax
from flax import linen as nn

from skd_jax.models.conv3d import Triple
from skd_jax.models.layers import max_pool

# Of a block's path, once `layerS_B/` is `...res_blocks.B.`; see `torch_names`.
PYTORCHVIDEO_BRANCH = (r"\.(conv|norm)_([abc])$", r".branch2.\1_\2")


class Stem(nn.Module):
    """Convolution of stride (1, 2, 2), BatchNorm, ReLU, 1x3x3 max-pooling of stride (1, 2, 2)."""

    features: int
    kernel_size: Triple
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.conv(self.features, self.kernel_size, (1, 2, 2), name="conv")(x)
        return max_pool(nn.relu(self.norm(name="norm")(x)), (1, 3, 3), (1, 2, 2), (0, 1, 1))


class Bottleneck(nn.Module):
    """relu(conv_c(relu(conv_b(relu(conv_a(x))))) + shortcut(x)), a BatchNorm after each convolution.

    Attributes:
      inner: channels of conv_a and conv_b.
      features: channels of conv_c (1x1x1) and of the result.
      kernel_a, kernel_b: kernels of conv_a and conv_b.
      strides: of conv_b and of the shortcut's projection.
      conv, norm: build a padded convolution and a BatchNorm.
      depthwise: whether conv_b keeps the channels apart.
      pointwise: whether a 1x1x1 convolution and a BatchNorm, without ReLU, come before conv_b.
      zero_init_residual: whether the last BatchNorm's scale starts at 0 (the block is then its
        shortcut).
    """

    inner: int
    features: int
    kernel_a: Triple
    kernel_b: Triple
    strides: Triple
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    depthwise: bool = False
    pointwise: bool = False
    zero_init_residual: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        last_scale = nn.initializers.zeros if self.zero_init_residual else nn.initializers.ones
        groups = self.inner if self.depthwise else 1
        y = self.conv(self.inner, self.kernel_a, name="conv_a")(x)
        y = nn.relu(self.norm(name="norm_a")(y))
        if self.pointwise:
            y = self.conv(self.inner, (1, 1, 1), name="conv_b_pointwise")(y)
            y = self.norm(name="norm_b_pointwise")(y)
        y = self.conv(self.inner, self.kernel_b, self.strides, groups=groups, name="conv_b")(y)
        y = nn.relu(self.norm(name="norm_b")(y))
        y = self.conv(self.features, (1, 1, 1), name="conv_c")(y)
        y = self.norm(name="norm_c", scale_init=last_scale)(y)
        if x.shape[-1] != self.features or self.strides != (1, 1, 1):
            x = self.conv(self.features, (1, 1, 1), self.strides, name="branch1_conv")(x)
            x = self.norm(name="branch1_norm")(x)
        return nn.relu(y + x)


def bottlenecks(
    name: str, size: int, inner: int, taps: Sequence[int], strides: Triple, **options
) -> list[Callable[[], Bottleneck]]:
    """The blocks of a stage, unmade, to 4 * `inner` channels.

    Args:
      name: prefix of the blocks' names, `name_0`, `name_1`, ...
      size: number of blocks.
      inner: channels inside a block.
      taps: temporal taps of conv_a, dealt out to the blocks in turn.
      strides: of the first block.
      **options: further attributes of `Bottleneck`.
    """
    return [
        functools.partial(
            Bottleneck,
            inner,
            4 * inner,
            kernel_a=(taps[block % len(taps)], 1, 1),
            strides=strides if block == 0 else (1, 1, 1),
            name=f"{name}_{block}",
            **options,
        )
        for block in range(size)
    ]
