"""X3D: small networks expanded from a tiny one along time, space, depth and width.

Feichtenhofer, "X3D: Expanding Architectures for Efficient Video Recognition", CVPR 2020; geometry
as `create_x3d` of pytorchvideo 0.1.5 builds it for its `x3d_xs`, `x3d_s`, `x3d_m` and PySlowFast's
X3D_L. XS, S and M are one network at different clips; L is deeper.

Stem: 1x3x3 convolution, stride (1, 2, 2), to 24 channels, then a depthwise 5x1x1, BatchNorm, ReLU.
Four stages of c = 24, 48, 96, 192 channels with 3, 5, 11, 7 blocks (L: 5, 10, 25, 15), each stage
beginning with stride (1, 2, 2). A block: conv_a 1x1x1 to m = int(2.25 c) channels, BatchNorm, ReLU;
conv_b 3x3x3 depthwise, BatchNorm; squeeze-and-excitation on blocks 0, 2, 4, ... of a stage; swish;
conv_c 1x1x1 to c, BatchNorm; plus the shortcut; ReLU. The shortcut of each first block is a strided
1x1x1 projection, with BatchNorm only where the number of channels changes: not in stage 1.
Squeeze-and-excitation narrows to r = m / 16, rounded to a multiple of 8 as the reference does, at
least 8: 8, 8, 16, 32. Head: pre_conv 1x1x1 to m = 432, BatchNorm, ReLU, mean over a window,
post_conv 1x1x1 to 2048 without bias or BatchNorm, ReLU (the embedding), classifier, softmax, mean
over the windows (stride 1). The window is the last map of the clip trained on, the windows are more
at the crops tested on; see `windows.py`:
          window    trained  tested    windows
  x3d_xs   4x5x5    160      182       1x2x2
  x3d_s   13x5x5    160      182       1x2x2
  x3d_m   16x7x7    224      256       1x2x2
  x3d_l   16x10x10  312      356       1x3x3

Parameters at width 1, a block going from i to c channels:
  stem    3 * 9 * 24 + 5 * 24 + 2 * 24 = 816
  block   i m + 2m + 27 m + 2m + m c + 2c, plus 2 m r + r + m with squeeze-and-excitation, plus i c
          for a projection and 2c for its BatchNorm
  stages  15,370 |  73,248 |   569,256 | 1,347,440 of 3, 5, 11, 7 blocks
          24,924 | 145,996 | 1,296,304 | 2,897,200 of 5, 10, 25, 15 blocks
  head    192 * 432 + 2 * 432 + 432 * 2048 = 968,544
  fc      2049 K
At K = 400 classes (fc 819,600) together 3,794,274 (XS, S, M) and 6,153,384 (L), as pytorchvideo.

Names: pytorchvideo swaps those of the stem's two convolutions, and so does this file:
`blocks.0.conv.conv_t` is the spatial one (stem/conv_t), `.conv_xy` the temporal one (stem/conv_xy).
`blocks.S.res_blocks.B.` with `branch1_conv`, `branch1_norm` and `branch2.conv_a`, `.norm_a`,
`.conv_b`, `.conv_c`, `.norm_c` is `layerS_B/` with those names side by side; `branch2.norm_b.0` is
`norm_b`; `branch2.norm_b.1.block.0` and `.2` are `se/fc1` and `se/fc2`. `blocks.5.pool.pre_conv`,
`.pre_norm`, `.post_conv` are `pre_conv`, `pre_norm`, `post_conv`; `blocks.5.proj` is `fc`.
pytorchvideo drops 0.5 of the embedding in training and starts the scale of every norm_c at 0:
options here.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from skd_jax.models.blocks import SqueezeExcitation, scaled
from skd_jax.models.bottleneck import PYTORCHVIDEO_BRANCH
from skd_jax.models.classifier import VideoClassifier
from skd_jax.models.conv3d import Triple
from skd_jax.models.entry import Entry
from skd_jax.models.outputs import Outputs
from skd_jax.models.torch_names import TorchNames
from skd_jax.models.windows import average_windows, mean_over_windows


def squeezed(channels: int) -> int:
    """A sixteenth of `channels` to the nearest multiple of 8, at least 8, not below 0.9 of it."""
    target = channels / 16
    rounded = max(8, int(target + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * target else rounded + 8


class Stem(nn.Module):
    """1x3x3 convolution of stride (1, 2, 2), depthwise 5x1x1 convolution, BatchNorm, ReLU."""

    features: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.conv(self.features, (1, 3, 3), (1, 2, 2), name="conv_t")(x)
        x = self.conv(self.features, (5, 1, 1), groups=self.features, name="conv_xy")(x)
        return nn.relu(self.norm(name="norm")(x))


class Block(nn.Module):
    """Inverted bottleneck over `inner` channels with a depthwise 3x3x3 convolution and a shortcut.

    Attributes:
      inner: channels of the depthwise convolution.
      features: channels of the result.
      strides: of the depthwise convolution and of the shortcut's projection.
      excite: whether squeeze-and-excitation follows the depthwise convolution.
      conv, norm: build a padded convolution and a BatchNorm.
      zero_init_residual: whether the last BatchNorm's scale starts at 0.
    """

    inner: int
    features: int
    strides: Triple
    excite: bool
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    zero_init_residual: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        last_scale = nn.initializers.zeros if self.zero_init_residual else nn.initializers.ones
        y = self.conv(self.inner, (1, 1, 1), name="conv_a")(x)
        y = nn.relu(self.norm(name="norm_a")(y))
        y = self.conv(self.inner, (3, 3, 3), self.strides, groups=self.inner, name="conv_b")(y)
        y = self.norm(name="norm_b")(y)
        if self.excite:
            y = SqueezeExcitation(squeezed(self.inner), self.conv, name="se")(y)
        y = self.conv(self.features, (1, 1, 1), name="conv_c")(nn.swish(y))
        y = self.norm(name="norm_c", scale_init=last_scale)(y)
        resized = x.shape[-1] != self.features
        if resized or self.strides != (1, 1, 1):
            x = self.conv(self.features, (1, 1, 1), self.strides, name="branch1_conv")(x)
        if resized:
            x = self.norm(name="branch1_norm")(x)
        return nn.relu(y + x)


class X3D(VideoClassifier):
    """X3D video classifier; `apply(variables, clips, train=...)` gives `Outputs`.

    The maps are the outputs of the four stages; the embedding comes from the head's convolutions.
    In evaluation the softmax of the logits is the mean of the windows' softmax, in training the
    logits are the mean of the windows'.

    Attributes:
      stage_sizes: blocks in each stage.
      window: positions (T, H, W) of the last map that the head sees at once; None for all.
      zero_init_residual: whether each block's last BatchNorm scale starts at 0 (the block is then
        its shortcut).
    """

    stage_sizes: tuple[int, ...] = (3, 5, 11, 7)
    window: Triple | None = None
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
        x, conv, norm = self.prepare(clips, train)
        x = Stem(scaled(24, self.width), conv, norm, name="stem")(x)
        maps = []
        for stage, size in enumerate(self.stage_sizes):
            features = scaled(24 * 2**stage, self.width)
            blocks = [
                functools.partial(
                    Block,
                    int(2.25 * features),
                    features,
                    strides=(1, 2, 2) if block == 0 else (1, 1, 1),
                    excite=block % 2 == 0,
                    conv=conv,
                    norm=norm,
                    zero_init_residual=self.zero_init_residual,
                    name=f"layer{stage + 1}_{block}",
                )
                for block in range(size)
            ]
            x = self.stage(blocks, x)
            maps.append(x)
        x = conv(int(2.25 * x.shape[-1]), (1, 1, 1), name="pre_conv")(x)
        x = average_windows(nn.relu(norm(name="pre_norm")(x)), self.window)
        x = conv(scaled(2048, self.width), (1, 1, 1), name="post_conv")(x)
        outputs = self.classify(nn.relu(x).astype(jnp.float32), maps, train)
        return mean_over_windows(outputs, probabilities=not train)


_TORCH = TorchNames(
    "pytorchvideo",
    (
        (r"^stem/conv_", "blocks.0.conv.conv_"),
        (r"^stem/", "blocks.0."),
        (r"^layer(\d)_(\d+)/", r"blocks.\1.res_blocks.\2."),
        PYTORCHVIDEO_BRANCH,
        (r"norm_b$", "norm_b.0"),
        (r"se/fc1$", "branch2.norm_b.1.block.0"),
        (r"se/fc2$", "branch2.norm_b.1.block.2"),
        (r"^(pre_conv|pre_norm|post_conv)$", r"blocks.5.pool.\1"),
        (r"^fc$", "blocks.5.proj"),
    ),
)
_SHORT, _LONG = (3, 5, 11, 7), (5, 10, 25, 15)

MODELS: dict[str, Entry] = {
    name: Entry(
        functools.partial(X3D, stage_sizes=sizes, window=window),
        clip=clip,
        source=f"Feichtenhofer 2020; pytorchvideo {reference}",
        torch=_TORCH,
    )
    for name, sizes, clip, window, reference in [
        ("x3d_xs", _SHORT, (4, 160, 160), (4, 5, 5), "x3d_xs"),
        ("x3d_s", _SHORT, (13, 160, 160), (13, 5, 5), "x3d_s"),
        ("x3d_m", _SHORT, (16, 224, 224), (16, 7, 7), "x3d_m"),
        ("x3d_l", _LONG, (16, 312, 312), (16, 10, 10), "x3d_l, PySlowFast X3D_L"),
    ]
}
