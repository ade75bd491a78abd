"""SlowFast networks: a slow pathway of many channels and a fast one of few, joined by laterals.

Feichtenhofer et al., "SlowFast Networks for Video Recognition", ICCV 2019; geometry as
`create_slowfast` of pytorchvideo 0.1.5 builds it from PySlowFast's configurations SLOWFAST_4x16_R50
and SLOWFAST_8x8_R50. The names say frames x stride of the slow pathway.

The network takes the fast pathway's clip; the slow pathway sees one in alpha of its frames, spread
evenly from the first to the last (0, 10, 20, 31 of 32 for alpha = 8), as the checkpoints were
trained and are used: `pack_pathway_output` in PySlowFast's slowfast/datasets/utils.py,
`PackPathway` on pytorchvideo's PyTorch Hub page. (The paper's temporal stride alpha would be 0, 8,
16, 24.) Both pathways are the ResNet-50 of `i3d.py` without pooling of time:
  slow  stem 1x7x7 to 64 channels, conv_a with 1, 1, 3, 3 temporal taps in stages 1 to 4
  fast  stem 5x7x7 to 8 channels, an eighth of the slow ones throughout, conv_a with 3 taps
After the stem and after stages 1 to 3 a lateral k x 1 x 1 convolution of stride (alpha, 1, 1) with
BatchNorm and ReLU takes the fast pathway's f channels to 2 f, which are appended to the slow ones.
The embedding is both pathways' pooled features: 2048 + 256. They are averaged over windows of n x 7
x 7 and 32 x 7 x 7 positions, stride 1, and the classifier's outputs over the windows, as
pytorchvideo's are: one window at 224 x 224, four at 256 x 256; see `windows.py`. (PySlowFast,
testing, takes the mean of the windows' softmax instead.)
                    alpha  k  n  usual clip
  slowfast_r50      8      5  4  32 frames (4x16)
  slowfast_r50_8x8  4      7  8  32 frames (8x8; pytorchvideo's hub calls this one slowfast_r50)

Parameters by the rule in `bottleneck.py` at width 1; stages 1 to 4 of the slow pathway begin from
80, 320, 640, 1280 channels:
  slow      32,827,456 = stem 9,536 + 220,928 + 1,260,544 + 10,211,328 + 21,125,120
  fast         514,152 = stem 5,896 +   4,832 +    27,008 +    158,208 +    318,208
  laterals  sum of 2 k f^2 + 4 f over f = 8, 32, 64, 128: 216,608 for k = 5, 302,880 for k = 7
  fc        2305 K, 922,000 at K = 400 classes
  total     34,480,216 (slowfast_r50) and 34,566,488 (slowfast_r50_8x8) at 400 classes
(PySlowFast's table of pytorchvideo models: 34.48 M and 34.57 M.)

Names: in pytorchvideo `blocks.S.multipathway_blocks.0` is the slow and `.1` the fast pathway, here
`slow_stem`, `fast_stem` (S = 0) and `slow_layerS_B`, `fast_layerS_B` with the contents that
`bottleneck.py` tells; `blocks.S.multipathway_fusion` is `fusionS`, S = 0 to 3; `blocks.6.proj` is
`fc`. pytorchvideo drops 0.5 of the embedding in training and starts the scale of every last
BatchNorm at 0: options here.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from skd_jax.models.blocks import scaled
from skd_jax.models.bottleneck import PYTORCHVIDEO_BRANCH, Stem, bottlenecks
from skd_jax.models.classifier import VideoClassifier
from skd_jax.models.conv3d import Triple
from skd_jax.models.entry import Entry
from skd_jax.models.outputs import Outputs
from skd_jax.models.torch_names import TorchNames
from skd_jax.models.windows import average_windows, mean_over_windows


def slow_frames(frames: int, alpha: int) -> list[int]:
    """Which of a clip's frames the slow pathway sees: floor(i (T - 1) / (n - 1)), i = 0 to n - 1.

    These are the references' `torch.linspace(0, T - 1, T // alpha).long()`, in whole numbers: for
    T a multiple of alpha up to 256 float32 rounds one frame down, of 160 for alpha = 4. Where T is
    no multiple, on which the references fail, n = ceil(T / alpha), as many as the laterals give.

    Args:
      frames: T.
      alpha: fast frames to one slow frame.
    """
    count = -(-frames // alpha)
    return [i * (frames - 1) // max(1, count - 1) for i in range(count)]


class Fusion(nn.Module):
    """Appends the fast pathway's features, brought to the slow one's frames, to the slow ones.

    Attributes:
      taps: temporal taps of the lateral convolution.
      alpha: its temporal stride: fast frames to one slow frame.
      conv, norm: build a padded convolution and a BatchNorm.
    """

    taps: int
    alpha: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, slow: jax.Array, fast: jax.Array) -> jax.Array:
        """(B, T, H, W, C), (B, alpha T, H, W, F) -> (B, T, H, W, C + 2 F)."""
        features, kernel, strides = 2 * fast.shape[-1], (self.taps, 1, 1), (self.alpha, 1, 1)
        y = self.conv(features, kernel, strides, name="conv_fast_to_slow")(fast)
        return jnp.concatenate([slow, nn.relu(self.norm(name="norm")(y))], axis=-1)


class SlowFast(VideoClassifier):
    """SlowFast on bottleneck ResNets; `apply(variables, clips, train=...)` gives `Outputs`.

    The maps are the slow pathway's outputs of the four stages, before the fast features join them.

    Attributes:
      stage_sizes: blocks in each stage, in both pathways.
      alpha: fast frames to one slow frame.
      fusion_taps: temporal taps of the lateral convolutions.
      windows: positions (T, H, W) of the last maps, slow and fast, that the classifier sees at
        once; None for all.
      zero_init_residual: whether each block's last BatchNorm scale starts at 0 (the block is then
        its shortcut).
    """

    stage_sizes: tuple[int, ...] = (3, 4, 6, 3)
    alpha: int = 8
    fusion_taps: int = 5
    windows: tuple[Triple | None, Triple | None] = (None, None)
    zero_init_residual: bool = False

    @nn.compact
    def __call__(self, clips: jax.Array, train: bool = False) -> Outputs:
        """Classifies clips.

        Args:
          clips: float, shape (B, T, H, W, 3), any T, H, W; the slow pathway sees ceil(T / alpha)
            frames.
          train: whether BatchNorm and dropout are in training mode.

        Raises:
          ValueError: clips of another rank or number of channels.
        """
        fast, conv, norm = self.prepare(clips, train)
        slow = fast[:, np.array(slow_frames(fast.shape[1], self.alpha))]
        slow_inner = scaled(64, self.width)
        fast_inner = scaled(slow_inner, 1 / 8)

        slow = Stem(slow_inner, (1, 7, 7), conv, norm, name="slow_stem")(slow)
        fast = Stem(fast_inner, (5, 7, 7), conv, norm, name="fast_stem")(fast)
        maps = []
        for stage, size in enumerate(self.stage_sizes):
            slow = Fusion(self.fusion_taps, self.alpha, conv, norm, name=f"fusion{stage}")(
                slow, fast
            )
            pathway = functools.partial(
                bottlenecks,
                size=size,
                strides=(1, 2, 2) if stage > 0 else (1, 1, 1),
                kernel_b=(1, 3, 3),
                conv=conv,
                norm=norm,
                zero_init_residual=self.zero_init_residual,
            )
            slow_blocks = pathway(
                name=f"slow_layer{stage + 1}",
                inner=slow_inner * 2**stage,
                taps=(1,) if stage < 2 else (3,),
            )
            fast_blocks = pathway(
                name=f"fast_layer{stage + 1}", inner=fast_inner * 2**stage, taps=(3,)
            )
            slow = self.stage(slow_blocks, slow)
            fast = self.stage(fast_blocks, fast)
            maps.append(slow)
        pooled = [
            # The windows of a clip longer than usual differ in number over time, not over space.
            jnp.mean(average_windows(x, window), axis=1, keepdims=True)
            for x, window in zip((slow, fast), self.windows, strict=True)
        ]
        outputs = self.classify(jnp.concatenate(pooled, axis=-1), maps, train)
        return mean_over_windows(outputs)


_PATHWAYS = {"slow": 0, "fast": 1}
_TORCH = TorchNames(
    "pytorchvideo",
    (
        (
            r"^(slow|fast)_stem/",
            lambda match: f"blocks.0.multipathway_blocks.{_PATHWAYS[match[1]]}.",
        ),
        (
            r"^(slow|fast)_layer(\d)_(\d+)/",
            lambda match: (
                f"blocks.{match[2]}.multipathway_blocks.{_PATHWAYS[match[1]]}"
                f".res_blocks.{match[3]}."
            ),
        ),
        PYTORCHVIDEO_BRANCH,
        (r"^fusion(\d)/", r"blocks.\1.multipathway_fusion."),
        (r"^fc$", "blocks.6.proj"),
    ),
    hint="pytorchvideo's slowfast_r50 is slowfast_r50_8x8 here, its SLOWFAST_4x16_R50 slowfast_r50",
)

MODELS: dict[str, Entry] = {
    name: Entry(
        functools.partial(
            SlowFast,
            stage_sizes=(3, 4, 6, 3),
            alpha=alpha,
            fusion_taps=fusion_taps,
            windows=((32 // alpha, 7, 7), (32, 7, 7)),
        ),
        clip=(32, 224, 224),
        source=f"Feichtenhofer et al. 2019; pytorchvideo{reference}",
        torch=_TORCH,
    )
    for name, alpha, fusion_taps, reference in [
        ("slowfast_r50", 8, 5, ", PySlowFast SLOWFAST_4x16_R50"),
        ("slowfast_r50_8x8", 4, 7, " slowfast_r50 (8x8)"),
    ]
}
