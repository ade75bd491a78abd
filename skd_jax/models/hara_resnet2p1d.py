"""(2+1)D ResNets of 3D-ResNets-PyTorch: its 3D-ResNets with factorised convolutions.

Hara, Kataoka, Satoh, "Can Spatiotemporal 3D CNNs Retrace the History of 2D CNNs and ImageNet?",
CVPR 2018, with the convolutions of Tran et al., "A Closer Look at Spatiotemporal Convolutions for
Action Recognition", CVPR 2018; geometry as kenshohara/3D-ResNets-PyTorch, models/resnet2p1d.py, at
its default options. They are named resnet2p1d_*; the r2plus1d_* of r2plus1d.py are torchvision's,
another network. The reference builds depths 10 to 200; here are the three of which it gives weights
(r2p1d18_K_200ep.pth and so on).

Stem, max-pooling, blocks and shortcuts are those of hara_resnet3d.py, but every kt x k x k
convolution from a to c channels (the 7x7x7 of the stem, both 3x3x3 of a basic block, that in the
middle of a bottleneck) is a 1 x k x k one to

  m = floor(kt k^2 a c / (k^2 a + kt c))

channels with the stride in H and W, BatchNorm, ReLU, and a kt x 1 x 1 one with the stride in T.
torchvision takes one m for both convolutions of a block; here each has its own, from its own a.

Parameters at width 1; a factorised convolution with both BatchNorms has
u = k^2 a m + 2 m + kt m c + 2 c:
  stem        m = 110:  147 * 110 + 220 + 7 * 110 * 64 + 128 = 65,798
  3x3x3       a -> c      m          u         a -> c        m          u
                                               64 ->  64    144    111,008
             64 -> 128   230    221,516       128 -> 128    288    443,200
            128 -> 256   460    884,632       256 -> 256    576  1,771,136
            256 -> 512   921  3,539,506       512 -> 512  1,152  7,081,216
  basic       u(a, c) + u(c, c), plus a c + 2 c for a projection
              first of each stage   222,016 | 673,164 | 2,689,048 | 10,752,818
              each further one      222,016 | 886,400 | 3,542,272 | 14,162,432
  bottleneck  a c + 4 c^2 + 10 c + u(c, c), plus 4 a c + 8 c for a projection
              first of each stage   149,024 | 674,880 | 2,693,248 | 10,760,448
              each further one      144,416 | 575,552 | 2,297,984 |  9,183,488
  fc          512 e K + K, e = 1 (basic) or 4 (bottleneck)
Hence at 400 classes, with shortcuts B:
  resnet2p1d_18 (2, 2, 2, 2)  33,421,164
  resnet2p1d_34 (3, 4, 6, 3)  63,747,500
  resnet2p1d_50 (3, 4, 6, 3)  47,035,382

The reference's state dict: what is X/spatial, X/bn and X/temporal here, X a convolution convN, is
convN_s, bnN_s and convN_t there, and the bnN that follows it is bnN_t; the 1x1x1 convolutions of
bottlenecks and their BatchNorms are convN and bnN; the rest as in hara_resnet3d.py.
"""

import functools

from skd_jax.models.entry import Entry
from skd_jax.models.hara_resnet3d import DEPTHS, GIVE_A, TORCH_RULES, HaraResNet3D
from skd_jax.models.r2plus1d import Conv2Plus1D
from skd_jax.models.torch_names import TorchNames


def factorised(conv, norm, features: int, kernel_size):
    """(2+1)D in place of a full convolution, its middle channels from what comes in."""
    return functools.partial(Conv2Plus1D, features, None, kernel_size, conv=conv, norm=norm)


def _torch(factorised_norm: str) -> TorchNames:
    """Names, given the BatchNorms that follow a factorised convolution."""
    return TorchNames(
        "3D-ResNets-PyTorch",
        (
            *TORCH_RULES,
            (factorised_norm, r"\1_t"),
            (r"conv(\d)/spatial$", r"conv\1_s"),
            (r"conv(\d)/bn$", r"bn\1_s"),
            (r"conv(\d)/temporal$", r"conv\1_t"),
        ),
        hint=f"weights trained with --resnet_shortcut A {GIVE_A}",
    )


_BASIC, _BOTTLENECK = _torch(r"\b(bn\d)$"), _torch(r"(^bn1|\.bn2)$")

MODELS: dict[str, Entry] = {
    f"resnet2p1d_{depth}": Entry(
        functools.partial(
            HaraResNet3D,
            stage_sizes=DEPTHS[depth],
            bottleneck=depth >= 50,
            unit=factorised,
        ),
        clip=(16, 112, 112),
        source="Hara et al. 2018, Tran et al. 2018; 3D-ResNets-PyTorch",
        torch=_BOTTLENECK if depth >= 50 else _BASIC,
    )
    for depth in (18, 34, 50)
}
