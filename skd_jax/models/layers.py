"""Flax layers that the video models share."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from skd_jax.models.conv3d import Triple, conv3d


def kaiming_normal_fan_out(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32):
    """Normal with variance 2 / (kernel volume * features), as torchvision's video ResNets start.

    He et al., "Delving Deep into Rectifiers", ICCV 2015, over the outputs, for ReLU.
    """
    scale = math.sqrt(2 / (math.prod(shape[:-2]) * shape[-1]))
    # The draw is flat because XLA on CPU takes seconds to compile one of five dimensions.
    return scale * jax.random.normal(key, (math.prod(shape),), dtype).reshape(shape)


class Conv3D(nn.Module):
    """3-D convolution of clips (B, T, H, W, C) with explicit symmetric padding; see `conv3d`.

    The parameter `kernel` has shape (kt, kh, kw, C // groups, features) whatever the lowering.

    Attributes:
      features: number of output channels.
      kernel_size: (kt, kh, kw).
      strides: over (T, H, W).
      padding: zeros on each side of (T, H, W).
      groups: number of channel groups.
      use_bias: whether to add a bias per feature.
      dtype: compute and output dtype; None takes the promoted dtype of input and parameters.
      lowering: forces one of `conv3d.LOWERINGS`; None lets the backend and the shape choose.
    """

    features: int
    kernel_size: Triple
    strides: Triple = (1, 1, 1)
    padding: Triple = (0, 0, 0)
    groups: int = 1
    use_bias: bool = False
    dtype: Any = None
    kernel_init: nn.initializers.Initializer = kaiming_normal_fan_out
    lowering: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (*self.kernel_size, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        bias = None
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = conv3d(x, kernel, self.strides, self.padding, self.groups, self.lowering)
        return y if bias is None else y + bias


class BatchNorm(nn.BatchNorm):
    """Flax's BatchNorm with PyTorch's default constants; statistics in float32 whatever `dtype`.

    The running variance kept here is the biased one, as everywhere in Flax. With `axis_name`,
    training statistics are averaged over the replicas of that mapped axis.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5


def max_pool(x: jax.Array, window: Triple, strides: Triple, padding: Triple) -> jax.Array:
    """Maximum over windows of T, H and W, with padding that never wins, as PyTorch's MaxPool3d.

    Args:
      x: float, shape (B, T, H, W, C).
      window: (kt, kh, kw).
      strides: steps over (T, H, W).
      padding: positions added on each of the two sides of (T, H, W).

    Returns:
      Shape (B, T', H', W', C), T' = (T + 2 * padding - kt) // stride + 1, likewise H', W'.

    Raises:
      ValueError: an axis that is smaller than the window.
    """
    for axis, size, k, p in zip("THW", x.shape[1:4], window, padding, strict=True):
        if size + 2 * p < k:
            raise ValueError(
                f"maps of shape {x.shape} are too small: axis {axis} has {size}, "
                f"the max-pooling needs at least {k - 2 * p}; give longer or larger clips"
            )
    return nn.max_pool(x, window, strides, [(p, p) for p in padding])


def global_average_pool(x: jax.Array) -> jax.Array:
    """Mean over T, H and W: (B, T, H, W, C) of any float dtype -> (B, C) float32."""
    return jnp.mean(x, axis=(1, 2, 3), dtype=jnp.float32)
