"""R(2+1)D: R3D whose convolutions are factorised into one over space and one over time.

Tran et al., "A Closer Look at Spatiotemporal Convolutions for Action Recognition", CVPR 2018;
geometry as torchvision.models.video.r2plus1d_18. A 3x3x3 convolution of resnet3d.py becomes a 1x3x3
one to m channels with stride (1, s, s), BatchNorm, ReLU, and a 3x1x1 one with stride (s, 1, 1). In a
block from a to c channels, both convolutions have

  m = floor(27 a c / (9 a + 3 c)),

about as many parameters as 3x3x3 from a to c. The stem's 3x7x7 is a 1x7x7 to 45 channels times
`width`, stride (1, 2, 2), and a 3x1x1.

Parameters (a BatchNorm of c channels has 2 c):
  stem     3 * 49 * 45 + 2 * 45 + 3 * 45 * 64 + 2 * 64 = 15,473
  block    9 a m + 2 m + 3 m c + 2 c,  and  9 c m + 2 m + 3 m c + 2 c,
           plus a c + 2 c where the shortcut is a projection
  fc       512 K + K
      a -> c      m     first block         m    each further block
     64 ->  64    144      222,016        144      222,016
     64 -> 128    230      583,960        288      886,400
    128 -> 256    460    2,332,464        576    3,542,272
    256 -> 512    921    9,333,092      1,152   14,162,432
Hence at 400 classes (fc 205,200):
  r2plus1d_18 (2, 2, 2, 2)  31,505,325 = stem + 444,032 + 1,470,360 +  5,874,736 + 23,495,524 + fc
  r2plus1d_34 (3, 4, 6, 3)  61,831,661 = stem + 666,048 + 3,243,160 + 20,043,824 + 37,657,956 + fc
r2plus1d_18 agrees with torchvision; r2plus1d_34 is not there and follows from the same rule.

torchvision's state dict: stem.0 is stem/conv/spatial here, stem.1 stem/conv/bn, stem.3
stem/conv/temporal, stem.4 stem/bn; in layerL.B, which is layerL_B, convN.0.0 is convN/spatial,
convN.0.1 convN/bn, convN.0.3 convN/temporal, convN.1 bnN; the rest as in resnet3d.py.
"""

import functools
from collections.abc import Callable

import jax
from flax import linen as nn

from skd_jax.models.blocks import scaled
from skd_jax.models.conv3d import Triple
from skd_jax.models.entry import Entry
from skd_jax.models.resnet3d import DOWNSAMPLING, TORCHVISION_FACTORISED, ResNet3D


class Conv2Plus1D(nn.Module):
    """Convolution over space to `mid` channels, BatchNorm, ReLU, convolution over time.

    Attributes:
      features: channels of the output.
      mid: channels between the two; None takes `mid_channels` of the channels that come in.
      kernel_size: (kt, kh, kw) of the convolution this stands for.
      strides: over (T, H, W).
      conv: makes a convolution, padded by half its kernel.
      norm: makes a BatchNorm.
    """

    features: int
    mid: int | None
    kernel_size: Triple
    strides: Triple
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        (kt, kh, kw), (st, sh, sw) = self.kernel_size, self.strides
        mid = self.mid or mid_channels(x.shape[-1], self.features, self.kernel_size)
        space = self.conv(mid, (1, kh, kw), (1, sh, sw), name="spatial")
        time = self.conv(self.features, (kt, 1, 1), (st, 1, 1), name="temporal")
        return time(nn.relu(self.norm(name="bn")(space(x))))


def mid_channels(inputs: int, features: int, kernel_size: Triple = (3, 3, 3)) -> int:
    """m of a factorised convolution, which has at most as many parameters as the full one."""
    kt, kh, kw = kernel_size
    return kt * kh * kw * inputs * features // (kh * kw * inputs + kt * features)


def factorised(conv, norm, inputs: int, features: int):
    """(2+1)D in place of 3x3x3 convolutions."""
    mid = mid_channels(inputs, features)
    return functools.partial(Conv2Plus1D, features, mid, (3, 3, 3), conv=conv, norm=norm)


def factorised_stem(conv, norm, features: int, width: float):
    """(2+1)D in place of the 3x7x7 convolution."""
    mid = scaled(45, width)
    return functools.partial(Conv2Plus1D, features, mid, (3, 7, 7), conv=conv, norm=norm)


_R2PLUS1D = functools.partial(
    ResNet3D, stage_strides=DOWNSAMPLING, stem_unit=factorised_stem, units=(factorised,) * 4
)

MODELS: dict[str, Entry] = {
    "r2plus1d_18": Entry(
        functools.partial(_R2PLUS1D, stage_sizes=(2, 2, 2, 2)),
        clip=(16, 112, 112),
        source="Tran et al. 2018, torchvision",
        torch=TORCHVISION_FACTORISED,
    ),
    "r2plus1d_34": Entry(
        functools.partial(_R2PLUS1D, stage_sizes=(3, 4, 6, 3)),
        clip=(16, 112, 112),
        source="Tran et al. 2018; geometry of torchvision's r2plus1d_18",
        torch=TORCHVISION_FACTORISED,
    ),
}
