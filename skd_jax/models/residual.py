"""Residual blocks and shortcuts of torchvision's video ResNets and of 3D-ResNets.

Parameter names follow PyTorch's: layer1.0.conv1 is layer1_0/conv1 here, its shortcut's
downsample.0 and downsample.1 are downsample_conv and downsample_bn.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from skd_jax.models.conv3d import Triple

# shortcut(x, features, strides): x brought to the shape of its block's output.
Shortcut = Callable[[jax.Array, int, Triple], jax.Array]


class BasicBlock(nn.Module):
    """relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x)), to (B, T', H', W', features).

    Attributes:
      features: channels of the output.
      strides: of conv1 and the shortcut.
      unit: `unit(strides=..., name=...)` makes conv1 and conv2, each to `features` channels.
      norm: makes a BatchNorm.
      shortcut: used where the block changes the shape; else the shortcut is `x` itself.
      zero_init_residual: whether bn2's scale starts at 0.
    """

    features: int
    strides: Triple
    unit: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    shortcut: Shortcut
    zero_init_residual: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.unit(strides=self.strides, name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y))
        y = self.unit(strides=(1, 1, 1), name="conv2")(y)
        y = self.norm(name="bn2", scale_init=_last_scale(self.zero_init_residual))(y)
        if x.shape[-1] != self.features or self.strides != (1, 1, 1):
            x = self.shortcut(x, self.features, self.strides)
        return nn.relu(y + x)


class Bottleneck(nn.Module):
    """1x1x1, 3x3x3 and 1x1x1 convolution beside a shortcut, to (B, T', H', W', 4 * features).

    Each convolution has its BatchNorm, all but the last their ReLU; the 3x3x3 one strides.

    Attributes:
      features: channels between the convolutions, a quarter of the output's.
      strides: of conv2 and the shortcut.
      conv: makes a convolution, padded by half its kernel: conv1 and conv3.
      unit: `unit(strides=..., name=...)` makes conv2, to `features` channels.
      norm: makes a BatchNorm.
      shortcut: used where the block changes the shape; else the shortcut is `x` itself.
      zero_init_residual: whether bn3's scale starts at 0.
    """

    features: int
    strides: Triple
    conv: Callable[..., nn.Module]
    unit: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    shortcut: Shortcut
    zero_init_residual: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.conv(self.features, (1, 1, 1), name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y))
        y = self.unit(strides=self.strides, name="conv2")(y)
        y = nn.relu(self.norm(name="bn2")(y))
        y = self.conv(4 * self.features, (1, 1, 1), name="conv3")(y)
        y = self.norm(name="bn3", scale_init=_last_scale(self.zero_init_residual))(y)
        if x.shape[-1] != 4 * self.features or self.strides != (1, 1, 1):
            x = self.shortcut(x, 4 * self.features, self.strides)
        return nn.relu(y + x)


def projection(conv: Callable[..., nn.Module], norm: Callable[..., nn.Module]) -> Shortcut:
    """Shortcut B: a strided 1x1x1 convolution with BatchNorm."""

    def shortcut(x, features, strides):
        x = conv(features, (1, 1, 1), strides, name="downsample_conv")(x)
        return norm(name="downsample_bn")(x)

    return shortcut


def zero_padding(x: jax.Array, features: int, strides: Triple) -> jax.Array:
    """Shortcut A: every `strides`-th position, zeros in the channels that are new."""
    x = x[:, :: strides[0], :: strides[1], :: strides[2]]
    return jnp.pad(x, [(0, 0)] * 4 + [(0, features - x.shape[-1])])


def _last_scale(zero: bool) -> nn.initializers.Initializer:
    return nn.initializers.zeros if zero else nn.initializers.ones
