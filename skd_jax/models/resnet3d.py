"""R3D: 3-D residual networks with torchvision's geometry.

Tran et al., "A Closer Look at Spatiotemporal Convolutions for Action Recognition", CVPR 2018;
geometry as in torchvision.models.video. Stem: 3x7x7 convolution, stride (1, 2, 2), BatchNorm, ReLU,
no pooling. Four stages of basic blocks (two 3x3x3 convolutions, each with BatchNorm) of c1, c2, c3,
c4 = 64, 128, 256, 512 channels times `width`; stages 2 to 4 begin with stride 2 in T, H and W and
a 1x1x1 projection with BatchNorm on the shortcut. No convolution has a bias.

Parameters, for n1..n4 blocks and K classes, with c0 = c1 (a BatchNorm has 2c):
  stem      3 * 3*7*7 * c1 + 2 c1
  stage i   27 c_{i-1} c_i + (2 n_i - 1) * 27 c_i^2 + 2 n_i * 2 c_i,
            plus c_{i-1} c_i + 2 c_i for i > 1
  fc        c4 K + K
At width 1: stem 28,352; first block of each stage 221,440 | 672,512 | 2,688,512 | 10,750,976, each
further one 221,440 | 885,248 | 3,539,968 | 14,157,824; fc 513 K. Hence at 400 classes (fc 205,200):
  r3d_10 (1, 1, 1, 1)  14,566,992 = stem + 221,440 +   672,512 +  2,688,512 + 10,750,976 + fc
  r3d_18 (2, 2, 2, 2)  33,371,472 = stem + 442,880 + 1,557,760 +  6,228,480 + 24,908,800 + fc
  r3d_34 (3, 4, 6, 3)  63,681,104 = stem + 664,320 + 3,328,256 + 20,388,352 + 39,066,624 + fc
r3d_18 agrees with torchvision; r3d_10 and r3d_34 are not there and follow from the same rule.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from skd_jax.models.conv3d import Triple
from skd_jax.models.layers import BatchNorm, Conv3D, global_average_pool
from skd_jax.models.outputs import Outputs


class BasicBlock(nn.Module):
    """relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x)), to (B, T', H', W', features)."""

    features: int
    strides: Triple
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    zero_init_residual: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        last_scale = nn.initializers.zeros if self.zero_init_residual else nn.initializers.ones
        y = self.conv(self.features, (3, 3, 3), self.strides, (1, 1, 1), name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y))
        y = self.conv(self.features, (3, 3, 3), (1, 1, 1), (1, 1, 1), name="conv2")(y)
        y = self.norm(name="bn2", scale_init=last_scale)(y)
        if x.shape[-1] != self.features or self.strides != (1, 1, 1):
            x = self.conv(self.features, (1, 1, 1), self.strides, name="downsample_conv")(x)
            x = self.norm(name="downsample_bn")(x)
        return nn.relu(y + x)


class Stem(nn.Module):
    """3x7x7 convolution, stride (1, 2, 2), BatchNorm, ReLU."""

    features: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.conv(self.features, (3, 7, 7), (1, 2, 2), (1, 3, 3), name="conv")(x)
        return nn.relu(self.norm(name="bn")(x))


class ResNet3D(nn.Module):
    """R3D video classifier; `apply(variables, clips, train=...)` gives `Outputs`.

    Collections: "params" (float32) and "batch_stats" (float32). `train=True` normalises with the
    statistics of the batch and needs `mutable=["batch_stats"]`, and the rng "dropout" where
    `dropout` > 0.

    Attributes:
      num_classes: length of the logits.
      stage_sizes: blocks in each of the four stages.
      width: multiplies the channels 64, 128, 256, 512 of the stages.
      dtype: compute dtype, e.g. "bfloat16"; parameters, statistics, embedding and logits stay
        float32.
      axis_name: mapped axis over which BatchNorm averages its training statistics; None for none.
      dropout: share of the embedding dropped before the classifier in training.
      zero_init_residual: whether each block's last BatchNorm scale starts at 0 (the block is then
        its shortcut).
    """

    num_classes: int
    stage_sizes: tuple[int, int, int, int]
    width: float = 1.0
    dtype: Any = jnp.float32
    axis_name: str | None = None
    dropout: float = 0.0
    zero_init_residual: bool = False

    @nn.compact
    def __call__(self, clips: jax.Array, train: bool = False) -> Outputs:
        """Classifies clips.

        Args:
          clips: float, shape (B, T, H, W, 3), any T, H, W.
          train: whether BatchNorm and dropout are in training mode.

        Raises:
          ValueError: clips of another rank or number of channels.
        """
        if clips.ndim != 5 or clips.shape[-1] != 3:
            raise ValueError(f"clips of shape (B, T, H, W, 3) expected; got shape {clips.shape}")
        dtype = jnp.dtype(self.dtype)

        def conv(*args, **kwargs):
            return Conv3D(*args, dtype=dtype, **kwargs)

        def norm(**kwargs):
            return BatchNorm(
                use_running_average=not train, dtype=dtype, axis_name=self.axis_name, **kwargs
            )

        channels = [max(1, round(c * self.width)) for c in (64, 128, 256, 512)]
        x = Stem(channels[0], conv, norm, name="stem")(clips.astype(dtype))
        maps = []
        for stage, (features, blocks) in enumerate(zip(channels, self.stage_sizes, strict=True)):
            for block in range(blocks):
                strides = (2, 2, 2) if stage > 0 and block == 0 else (1, 1, 1)
                x = BasicBlock(
                    features,
                    strides,
                    conv,
                    norm,
                    self.zero_init_residual,
                    name=f"layer{stage + 1}_{block}",
                )(x)
            maps.append(x)
        embedding = global_average_pool(x)
        x = nn.Dropout(self.dropout, deterministic=not train)(embedding)
        logits = nn.Dense(
            self.num_classes, kernel_init=nn.initializers.normal(0.01), dtype=jnp.float32, name="fc"
        )(x)
        return Outputs(logits, embedding, tuple(maps))
