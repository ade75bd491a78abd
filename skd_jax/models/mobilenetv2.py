"""MobileNetV2-3D: inverted residuals with depthwise 3x3x3 convolutions, in four widths.

Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018, in 3-D as in
Köpüklü et al., "Resource Efficient 3D Convolutional Neural Networks", ICCV Workshops 2019; geometry
as okankop/Efficient-3DCNNs, `models/mobilenetv2.py`.

Stem: 3x3x3 convolution, stride (1, 2, 2), to 32 channels, BatchNorm, ReLU6. Seven groups of n
blocks with expansion t and c channels, the first of stride s in T, H and W:
  t   1   6   6   6   6    6    6
  c  16  24  32  64  96  160  320
  n   1   2   3   4   3    3    1
  s   1   2   2   2   1    2    1
A block from i to c channels over e = t i: 1x1x1 to e, BatchNorm, ReLU6 (not for t = 1); 3x3x3
depthwise, BatchNorm, ReLU6; 1x1x1 to c, BatchNorm; plus the block's input where stride and channels
allow. Then a 1x1x1 convolution to 1280, BatchNorm, ReLU6, and the mean over the clip. The variants
multiply 32 and c by 0.2, 0.45, 0.7, 1, cut to whole numbers, and leave 1280:
                   stem  c
  mobilenetv2_x0_2    6   3,  4,  6, 12, 19,  32,  64
  mobilenetv2_x0_45  14   7, 10, 14, 28, 43,  72, 144
  mobilenetv2_x0_7   22  11, 16, 22, 44, 67, 112, 224
  mobilenetv2_x1     32  16, 24, 32, 64, 96, 160, 320

Parameters, for K classes:
  stem    81 c_0 + 2 c_0
  block   i e + 2e (not for t = 1) + 27 e + 2e + e c + 2c
  last    1280 c_7 + 2560
  fc      1281 K
At K = 600 (fc 768,600): 964,110 | 1,399,834 | 2,049,942 | 3,122,648.

Names: `features.0.0`, `.0.1` are stem/conv and stem/bn; `features.18.0`, `.18.1` are conv_last/conv
and conv_last/bn; between them `features.N` counts the blocks through, here `layerS_B` with 3, 3, 7,
4 blocks in S = 1 to 4 (each S but the first begins where the maps shrink). The i-th convolution of
a block's `conv` is convI, the BatchNorm after it bnI: `conv.0`, `.1`, `.3`, `.4`, and for t = 6
`.6`, `.7`. `classifier.1` is `fc`. The reference drops 0.2 of the embedding in
training: an option here.
"""

import functools
from collections.abc import Callable

import jax
from flax import linen as nn

from skd_jax.models.blocks import ConvNorm, scaled
from skd_jax.models.classifier import VideoClassifier
from skd_jax.models.entry import Entry
from skd_jax.models.layers import global_average_pool
from skd_jax.models.outputs import Outputs
from skd_jax.models.torch_names import TorchNames

# A stage ends where the next group shrinks the maps.
_STAGES = (
    ((1, 16, 1, 1), (6, 24, 2, 2)),
    ((6, 32, 3, 2),),
    ((6, 64, 4, 2), (6, 96, 3, 1)),
    ((6, 160, 3, 2), (6, 320, 1, 1)),
)


class InvertedResidual(nn.Module):
    """1x1x1 to `expansion` times the channels, 3x3x3 depthwise, 1x1x1 without activation."""

    expansion: int
    features: int
    stride: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        hidden, strides = self.expansion * x.shape[-1], (self.stride,) * 3
        layers = [
            ((3, 3, 3), {"features": hidden, "strides": strides, "groups": hidden}),
            ((1, 1, 1), {"features": self.features}),
        ]
        if self.expansion != 1:
            layers.insert(0, ((1, 1, 1), {"features": hidden}))
        y = x
        for i, (kernel_size, options) in enumerate(layers, start=1):
            y = self.conv(kernel_size=kernel_size, name=f"conv{i}", **options)(y)
            y = self.norm(name=f"bn{i}")(y)
            if i < len(layers):
                y = nn.relu6(y)
        return x + y if self.stride == 1 and x.shape[-1] == self.features else y


class MobileNetV2(VideoClassifier):
    """MobileNetV2-3D video classifier; `apply(variables, clips, train=...)` gives `Outputs`.

    The maps are the last ones of each size: of 24, 32, 96 and 320 channels at variant 1. The
    embedding is the mean over conv_last.

    Attributes:
      variant: multiplies the channels of stem and blocks, cut to whole numbers; `width` then
        multiplies these and conv_last's.
      stages: for each stage its groups of blocks: (expansion, channels, blocks, stride of the
        first).
    """

    variant: float = 1.0
    stages: tuple[tuple[tuple[int, int, int, int], ...], ...] = _STAGES

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

        def channels(count):
            return scaled(int(count * self.variant), self.width)

        x = ConvNorm(channels(32), (3, 3, 3), (1, 2, 2), nn.relu6, conv, norm, name="stem")(x)
        maps = []
        for stage, groups in enumerate(self.stages, start=1):
            makers = [
                functools.partial(
                    InvertedResidual,
                    expansion,
                    channels(count),
                    first_stride if i == 0 else 1,
                    conv,
                    norm,
                )
                for expansion, count, size, first_stride in groups
                for i in range(size)
            ]
            blocks = [
                functools.partial(make, name=f"layer{stage}_{i}") for i, make in enumerate(makers)
            ]
            x = self.stage(blocks, x)
            maps.append(x)
        last = scaled(1280, self.width)
        x = ConvNorm(last, (1, 1, 1), (1, 1, 1), nn.relu6, conv, norm, name="conv_last")(x)
        return self.classify(global_average_pool(x), maps, train)


# Number of the first block of each stage among `features`, which begin with the stem.
_FIRST = tuple(
    1 + sum(size for groups in _STAGES[:stage] for _, _, size, _ in groups)
    for stage in range(len(_STAGES) + 1)
)
_TORCH = TorchNames(
    "Efficient-3DCNNs",
    (
        (r"^stem/", "features.0/"),
        (r"^conv_last/", f"features.{_FIRST[-1]}/"),
        (
            r"^layer(\d)_(\d+)/",
            lambda match: f"features.{_FIRST[int(match[1]) - 1] + int(match[2])}.conv/",
        ),
        # Convolution, BatchNorm, ReLU6, over and over.
        (r"/conv(\d)$", lambda match: f".{3 * (int(match[1]) - 1)}"),
        (r"/bn(\d)$", lambda match: f".{3 * (int(match[1]) - 1) + 1}"),
        (r"/conv$", ".0"),
        (r"/bn$", ".1"),
        (r"^fc$", "classifier.1"),
    ),
)

MODELS: dict[str, Entry] = {
    f"mobilenetv2_{name}": Entry(
        functools.partial(MobileNetV2, variant=variant, stages=_STAGES),
        clip=(16, 112, 112),
        source="Sandler et al. 2018; okankop/Efficient-3DCNNs",
        torch=_TORCH,
    )
    for name, variant in {"x0_2": 0.2, "x0_45": 0.45, "x0_7": 0.7, "x1": 1.0}.items()
}
