"""S3D: an Inception network whose 3-D convolutions are one over space, then one over time.

Xie et al., "Rethinking Spatiotemporal Feature Learning: Speed-Accuracy Trade-offs in Video
Classification", ECCV 2018; geometry as torchvision.models.video.s3d. Every convolution is followed
by BatchNorm (epsilon 1e-3, momentum 0.999) and ReLU. A separable convolution of size k is 1xkxk,
then kx1x1, both with their own BatchNorm and ReLU. An Inception block joins four branches: 1x1x1 to
b0; 1x1x1 to m1, separable 3 to b1; 1x1x1 to m2, separable 3 to b2; 3x3x3 max-pooling, 1x1x1 to b3.
Nothing has a bias but the classifier.

Parameters of a convolution of k taps from a to b channels, with BatchNorm: k a b + 2 b.
  features_0    separable 7 to 64, stride 2                                        38,336
  features_1    max-pooling 1x3x3, stride (1, 2, 2), padding (0, 1, 1)
  features_2    1x1x1 to 64                                                         4,224
  features_3    separable 3 to 192                                                221,952
  features_4    max-pooling as features_1
                    a    b0   m1   b1   m2   b2   b3   (b0 + b1 + b2 + b3)
  features_5      192    64   96  128   16   32   32    256                       208,416
  features_6      256   128  128  192   32   96   64    480                       479,040
  features_7    max-pooling 3x3x3, stride 2, padding 1
  features_8      480   192   96  208   16   48   64    512                       501,728
  features_9      512   160  112  224   24   64   64    512                       588,624
  features_10     512   128  128  256   24   64   64    512                       695,728
  features_11     512   112  144  288   32   64   64    528                       835,136
  features_12     528   256  160  320   32  128  128    832                     1,161,088
  features_13   max-pooling 2x2x2, stride 2, no padding
  features_14     832   256  160  320   32  128  128    832                     1,336,192
  features_15     832   384  192  384   48  128  128  1,024                     1,839,584
  fc            1,024 K + K, at 400 classes                                       410,000
In all 8,320,048 at 400 classes, which is torchvision's.

Then averages over windows of 2x7x7 positions, stride 1, dropout, the classifier on each, and the
mean of what it says: at 16 frames of 224 x 224 there is one window, the whole map; with more frames
the first and the last positions weigh less than the others. On a map smaller than the window, which
torchvision refuses, the window is the map.

torchvision's state dict: features.N is features_N here. In a separable convolution, part 0 is
spatial and part 1 temporal; in an Inception block branch0, branch1.0, branch1.1 (separable),
branch2.0, branch2.1 and branch3.1 are branch0, branch1_0 and so on; in each convolution with
BatchNorm, 0 is conv and 1 is bn. classifier.1, a 1x1x1 convolution, is the linear layer fc.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from skd_jax.models.blocks import ConvNorm, scaled
from skd_jax.models.classifier import VideoClassifier
from skd_jax.models.conv3d import Triple
from skd_jax.models.entry import Entry
from skd_jax.models.layers import max_pool, uniform_fan_in
from skd_jax.models.outputs import Outputs
from skd_jax.models.torch_names import TorchNames
from skd_jax.models.windows import average_windows, mean_over_windows

Block = tuple[int, int, int, int, int, int]  # (b0, m1, b1, m2, b2, b3)

_INCEPTION = (
    ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
    (
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ),
    ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
)

# Window, strides and padding of the max-pooling that begins each stage.
_POOLS = (
    ((1, 3, 3), (1, 2, 2), (0, 1, 1)),
    ((1, 3, 3), (1, 2, 2), (0, 1, 1)),
    ((3, 3, 3), (2, 2, 2), (1, 1, 1)),
    ((2, 2, 2), (2, 2, 2), (0, 0, 0)),
)


class Separable(nn.Module):
    """Convolution of `size` positions over space, then over time, each with BatchNorm and ReLU.

    Attributes:
      features: channels of both.
      size, stride: of both.
      conv_norm: makes a convolution with BatchNorm and ReLU.
    """

    features: int
    size: int
    stride: int
    conv_norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        k, s = self.size, self.stride
        x = self.conv_norm(self.features, (1, k, k), (1, s, s), name="spatial")(x)
        return self.conv_norm(self.features, (k, 1, 1), (s, 1, 1), name="temporal")(x)


class Inception(nn.Module):
    """Four branches side by side, to (B, T, H, W, b0 + b1 + b2 + b3).

    Attributes:
      channels: (b0, m1, b1, m2, b2, b3).
      conv_norm: makes a convolution with BatchNorm and ReLU.
    """

    channels: Block
    conv_norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def point(features, name):
            return self.conv_norm(features, (1, 1, 1), (1, 1, 1), name=name)

        def separable(features, name):
            return Separable(features, 3, 1, self.conv_norm, name=name)

        b0, m1, b1, m2, b2, b3 = self.channels
        pooled = max_pool(x, (3, 3, 3), (1, 1, 1), (1, 1, 1))
        branches = (
            point(b0, "branch0")(x),
            separable(b1, "branch1_1")(point(m1, "branch1_0")(x)),
            separable(b2, "branch2_1")(point(m2, "branch2_0")(x)),
            point(b3, "branch3_1")(pooled),
        )
        return jnp.concatenate(branches, axis=-1)


class S3D(VideoClassifier):
    """S3D video classifier; `apply(variables, clips, train=...)` gives `Outputs`.

    A stage begins with a max-pooling and ends before the next; the maps have 192, 480, 832 and
    1,024 channels. The embedding is the mean over the windows' averages; in training each window
    loses channels of its own to dropout.

    Attributes:
      inception: channels of the Inception blocks of stages 2, 3 and 4.
      window: positions (T, H, W) of the last map that the classifier sees at once.
    """

    inception: tuple[tuple[Block, ...], tuple[Block, ...], tuple[Block, ...]] = _INCEPTION
    window: Triple = (2, 7, 7)
    dropout: float = 0.2

    @nn.compact
    def __call__(self, clips: jax.Array, train: bool = False) -> Outputs:
        """Classifies clips.

        Args:
          clips: float, shape (B, T, H, W, 3), T at least 5, H and W at least 17.
          train: whether BatchNorm and dropout are in training mode.

        Raises:
          ValueError: clips of another rank or number of channels, or too small.
        """
        x, conv, norm = self.prepare(clips, train)
        conv_norm = functools.partial(
            ConvNorm,
            activation=nn.relu,
            conv=functools.partial(conv, kernel_init=uniform_fan_in),
            norm=functools.partial(norm, momentum=0.999, epsilon=1e-3),
        )
        c64, c192 = scaled(64, self.width), scaled(192, self.width)
        x = Separable(c64, 7, 2, conv_norm, name="features_0")(x)
        stages = [
            [
                functools.partial(conv_norm, c64, (1, 1, 1), (1, 1, 1), name="features_2"),
                functools.partial(Separable, c192, 3, 1, conv_norm, name="features_3"),
            ]
        ]
        first = 5
        for blocks in self.inception:
            stages.append(
                [
                    functools.partial(
                        Inception,
                        tuple(scaled(c, self.width) for c in block),
                        conv_norm,
                        name=f"features_{number}",
                    )
                    for number, block in enumerate(blocks, start=first)
                ]
            )
            first += len(blocks) + 1  # The max-pooling between two stages has a number too.
        maps = []
        for pool, blocks in zip(_POOLS, stages, strict=True):
            x = self.stage(blocks, max_pool(x, *pool))
            maps.append(x)
        outputs = self.classify(average_windows(x, self.window), maps, train)
        return mean_over_windows(outputs)


_TORCH = TorchNames(
    "torchvision",
    (
        (r"^fc$", "classifier.1"),
        (r"^features_", "features."),
        (r"(branch\d)_", r"\1."),
        (r"/(spatial|conv)\b", ".0"),
        (r"/(temporal|bn)\b", ".1"),
    ),
    conv_classifier=True,
)

MODELS: dict[str, Entry] = {
    "s3d": Entry(
        functools.partial(
            S3D,
            inception=_INCEPTION,
            window=(2, 7, 7),
        ),
        clip=(16, 224, 224),
        source="Xie et al. 2018, torchvision",
        torch=_TORCH,
    )
}
