"""ShuffleNetV2-3D: split, transform one half depthwise, shuffle; in five widths.

Ma et al., "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design", ECCV 2018,
in 3-D as in Köpüklü et al., "Resource Efficient 3D Convolutional Neural Networks", ICCV Workshops
2019; geometry as okankop/Efficient-3DCNNs, `models/shufflenetv2.py`.

Stem: 3x3x3 convolution, stride (1, 2, 2), to 24 channels, BatchNorm, ReLU, 3x3x3 max-pooling of
stride 2. Three stages of 4, 8, 4 units of c channels, each stage beginning with stride 2 in T, H
and W; then conv_last, 1x1x1 to l channels, BatchNorm, ReLU, and the mean over the clip.
  branch2 (of h = c / 2 channels): 1x1x1, BatchNorm, ReLU; 3x3x3 depthwise, BatchNorm; 1x1x1,
  BatchNorm, ReLU. It takes the second half of the channels, the first passes by. In the first unit
  of a stage it takes all of them, and branch1 (3x3x3 depthwise, BatchNorm; 1x1x1 to h, BatchNorm,
  ReLU) stands beside it; both have stride 2. The halves are joined and shuffled in two groups.
                       c               l
  shufflenetv2_x0_25    32,  64, 128   1024
  shufflenetv2_x0_5     48,  96, 192   1024
  shufflenetv2_x1      116, 232, 464   1024
  shufflenetv2_x1_5    176, 352, 704   1024
  shufflenetv2_x2      224, 488, 976   2048

Parameters, for K classes:
  stem        81 * 24 + 2 * 24 = 1,992
  first unit  27 i + 2i + i h + 2h  +  i h + 2h + 27 h + 2h + h^2 + 2h, i channels coming in
  other unit  2 h^2 + 33 h
  conv_last   c_3 l + 2 l
  fc          l K + K
At K = 600 (fc 615,600; 1,229,400 for x2): 829,656 | 976,664 | 1,914,180 | 3,161,880 | 6,639,816.

Names: `conv1.0`, `.1` are stem/conv and stem/bn; `conv_last.0`, `.1` are conv_last/conv and
conv_last/bn; `features.N` counts the units through all stages, here `layerS_B`. Within a unit the
i-th convolution of `banch1` (so spelt) is branch1/convI, the BatchNorm after it branch1/bnI:
`banch1.0`, `.1`, `.2`, `.3` are conv1, bn1, conv2, bn2; `banch2.0`, `.1`, `.3`, `.4`, `.5`, `.6`
are conv1, bn1, conv2, bn2, conv3, bn3. `classifier.1` is `fc`. The reference drops 0.2 of the
embedding in training: an option here.
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
from skd_jax.models.torch_names import TorchNames


class DownBranch(nn.Module):
    """Strided 3x3x3 depthwise convolution, then 1x1x1: the second way into a stage."""

    features: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        x = self.conv(channels, (3, 3, 3), (2, 2, 2), groups=channels, name="conv1")(x)
        x = self.norm(name="bn1")(x)
        x = self.conv(self.features, (1, 1, 1), name="conv2")(x)
        return nn.relu(self.norm(name="bn2")(x))


class Branch(nn.Module):
    """1x1x1, 3x3x3 depthwise (strided in the first unit of a stage), 1x1x1."""

    features: int
    stride: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        features, strides = self.features, (self.stride,) * 3
        x = self.conv(features, (1, 1, 1), name="conv1")(x)
        x = nn.relu(self.norm(name="bn1")(x))
        x = self.conv(features, (3, 3, 3), strides, groups=features, name="conv2")(x)
        x = self.norm(name="bn2")(x)
        x = self.conv(features, (1, 1, 1), name="conv3")(x)
        return nn.relu(self.norm(name="bn3")(x))


class Unit(nn.Module):
    """Two halves of `features` channels, joined and shuffled; stride 2 where `down`."""

    features: int
    down: bool
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        half = self.features // 2
        if self.down:
            first = DownBranch(half, self.conv, self.norm, name="branch1")(x)
            second = x
        else:
            first, second = jnp.split(x, 2, axis=-1)
        stride = 2 if self.down else 1
        second = Branch(half, stride, self.conv, self.norm, name="branch2")(second)
        return channel_shuffle(jnp.concatenate([first, second], axis=-1), 2)


class ShuffleNetV2(VideoClassifier):
    """ShuffleNetV2-3D video classifier; `apply(variables, clips, train=...)` gives `Outputs`.

    The maps are the outputs of the stem and of the three stages; the embedding is the mean over
    conv_last.

    Attributes:
      channels: of each stage and of conv_last; `width` multiplies them, keeping those of the stages
        even.
      stage_sizes: units in each stage.
    """

    channels: tuple[int, ...] = (116, 232, 464, 1024)
    stage_sizes: tuple[int, ...] = (4, 8, 4)

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
        *stages, last = self.channels
        x = ConvNorm(
            scaled(24, self.width), (3, 3, 3), (1, 2, 2), nn.relu, conv, norm, name="stem"
        )(x)
        x = max_pool(x, (3, 3, 3), (2, 2, 2), (1, 1, 1))
        maps = [x]
        for stage, (channels, size) in enumerate(zip(stages, self.stage_sizes, strict=True)):
            features = 2 * scaled(channels / 2, self.width)
            blocks = [
                functools.partial(
                    Unit, features, block == 0, conv, norm, name=f"layer{stage + 1}_{block}"
                )
                for block in range(size)
            ]
            x = self.stage(blocks, x)
            maps.append(x)
        last = scaled(last, self.width)
        x = ConvNorm(last, (1, 1, 1), (1, 1, 1), nn.relu, conv, norm, name="conv_last")(x)
        return self.classify(global_average_pool(x), maps, train)


_STAGE_SIZES = (4, 8, 4)
# Places in the branches' sequences: no ReLU follows a depthwise convolution.
_PLACES = {
    "branch1": {"conv1": 0, "bn1": 1, "conv2": 2, "bn2": 3},
    "branch2": {"conv1": 0, "bn1": 1, "conv2": 3, "bn2": 4, "conv3": 5, "bn3": 6},
}
_TORCH = TorchNames(
    "Efficient-3DCNNs",
    (
        (r"^stem/", "conv1/"),
        (
            r"^layer(\d)_(\d+)/",
            lambda match: f"features.{sum(_STAGE_SIZES[: int(match[1]) - 1]) + int(match[2])}.",
        ),
        (
            r"(branch\d)/(\w+)$",
            lambda match: f"banch{match[1][-1]}.{_PLACES[match[1]][match[2]]}",
        ),
        (r"/conv$", ".0"),
        (r"/bn$", ".1"),
        (r"^fc$", "classifier.1"),
    ),
)

MODELS: dict[str, Entry] = {
    f"shufflenetv2_{name}": Entry(
        functools.partial(ShuffleNetV2, channels=channels, stage_sizes=_STAGE_SIZES),
        clip=(16, 112, 112),
        source="Ma et al. 2018; okankop/Efficient-3DCNNs",
        torch=_TORCH,
    )
    for name, channels in {
        "x0_25": (32, 64, 128, 1024),
        "x0_5": (48, 96, 192, 1024),
        "x1": (116, 232, 464, 1024),
        "x1_5": (176, 352, 704, 1024),
        "x2": (224, 488, 976, 2048),
    }.items()
}
