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

torchvision's state dict: stem.0 is stem/conv here, stem.1 stem/bn; in layerL.B, which is layerL_B,
conv1.0 is conv1, conv1.1 bn1, conv2.0 conv2, conv2.1 bn2, downsample.0 downsample_conv,
downsample.1 downsample_bn; fc is fc.
"""

import functools
from collections.abc import Callable

import jax
from flax import linen as nn

from skd_jax.models.blocks import scaled
from skd_jax.models.classifier import VideoClassifier
from skd_jax.models.conv3d import Triple
from skd_jax.models.entry import Entry
from skd_jax.models.layers import global_average_pool
from skd_jax.models.outputs import Outputs
from skd_jax.models.residual import BasicBlock, projection
from skd_jax.models.torch_names import TorchNames

# Makes what builds the convolutions of a block, build(strides=..., name=...); takes (conv, norm,
# inputs, features), the channels that come into the block and those it puts out.
Unit = Callable[..., Callable[..., nn.Module]]

DOWNSAMPLING = ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2))


def full(conv, norm, inputs: int, features: int) -> Callable[..., nn.Module]:
    """3x3x3 convolutions."""
    return functools.partial(conv, features, (3, 3, 3))


def full_stem(conv, norm, features: int, width: float) -> Callable[..., nn.Module]:
    """A 3x7x7 convolution."""
    return functools.partial(conv, features, (3, 7, 7))


class Stem(nn.Module):
    """A convolution with stride (1, 2, 2), BatchNorm, ReLU."""

    unit: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.relu(self.norm(name="bn")(self.unit(strides=(1, 2, 2), name="conv")(x)))


class ResNet3D(VideoClassifier):
    """torchvision's video ResNet; `apply(variables, clips, train=...)` gives `Outputs`.

    Attributes:
      stage_sizes: blocks in each of the four stages.
      stage_strides: of the first block of each stage.
      stem_unit: makes what builds the stem's convolution, from (conv, norm, features, width).
      units: for each stage, what its blocks' convolutions are.
      zero_init_residual: whether each block's last BatchNorm scale starts at 0 (the block is then
        its shortcut).
    """

    stage_sizes: tuple[int, int, int, int] = (2, 2, 2, 2)
    stage_strides: tuple[Triple, Triple, Triple, Triple] = DOWNSAMPLING
    stem_unit: Callable[..., Callable[..., nn.Module]] = full_stem
    units: tuple[Unit, Unit, Unit, Unit] = (full, full, full, full)
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
        channels = [scaled(c, self.width) for c in (64, 128, 256, 512)]
        stem = self.stem_unit(conv, norm, channels[0], self.width)
        x = Stem(stem, norm, name="stem")(x)
        maps = []
        for stage, size in enumerate(self.stage_sizes):
            features = channels[stage]
            blocks = []
            for block in range(size):
                inputs = features if block else x.shape[-1]
                make = functools.partial(
                    BasicBlock,
                    features,
                    (1, 1, 1) if block else self.stage_strides[stage],
                    self.units[stage](conv, norm, inputs, features),
                    norm,
                    projection(conv, norm),
                    self.zero_init_residual,
                    name=f"layer{stage + 1}_{block}",
                )
                blocks.append(make)
            x = self.stage(blocks, x)
            maps.append(x)
        return self.classify(global_average_pool(x), maps, train)


_BLOCKS = (
    (r"^layer(\d)_(\d+)/", r"layer\1.\2."),
    (r"downsample_conv$", "downsample.0"),
    (r"downsample_bn$", "downsample.1"),
    (r"\.bn(\d)$", r".conv\1.1"),
)
TORCHVISION = TorchNames(
    "torchvision",
    (
        *_BLOCKS,
        (r"^stem/conv$", "stem.0"),
        (r"^stem/bn$", "stem.1"),
        (r"\.conv(\d)$", r".conv\1.0"),
    ),
)
TORCHVISION_FACTORISED = TorchNames(
    "torchvision",
    (
        *_BLOCKS,
        (r"^stem/conv/spatial$", "stem.0"),
        (r"^stem/conv/bn$", "stem.1"),
        (r"^stem/conv/temporal$", "stem.3"),
        (r"^stem/bn$", "stem.4"),
        (r"/spatial$", ".0.0"),
        (r"/bn$", ".0.1"),
        (r"/temporal$", ".0.3"),
    ),
    hint="VMZ's and IG-65M's r2plus1d_34 have other channels between their convolutions",
)

_R3D = functools.partial(
    ResNet3D, stage_strides=DOWNSAMPLING, stem_unit=full_stem, units=(full,) * 4
)

MODELS: dict[str, Entry] = {
    f"r3d_{depth}": Entry(
        functools.partial(_R3D, stage_sizes=sizes),
        clip=(16, 112, 112),
        source=source,
        torch=TORCHVISION,
    )
    for depth, sizes, source in (
        (10, (1, 1, 1, 1), "geometry of torchvision's r3d_18"),
        (18, (2, 2, 2, 2), "Tran et al. 2018, torchvision"),
        (34, (3, 4, 6, 3), "Tran et al. 2018; geometry of torchvision's r3d_18"),
    )
}
