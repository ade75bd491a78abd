"""I3D and Slow: ResNet-50 inflated in time, one pathway, with pytorchvideo's geometry.

Carreira and Zisserman, "Quo Vadis, Action Recognition? A New Model and the Kinetics Dataset", CVPR
2017, on a ResNet-50 as in Wang et al., "Non-local Neural Networks", CVPR 2018; the Slow pathway
alone is of Feichtenhofer et al., "SlowFast Networks for Video Recognition", ICCV 2019. Geometry as
`create_resnet` of pytorchvideo 0.1.5 builds it for its `i3d_r50` and `slow_r50`.

Stem: t x 7 x 7 convolution, stride (1, 2, 2), to c = 64 channels, 1x3x3 max-pooling, stride
(1, 2, 2). Four stages of 3, 4, 6, 3 bottlenecks (conv_a a x 1 x 1, conv_b 1x3x3, conv_c 1x1x1) with
64, 128, 256, 512 inner channels and four times as many outside; stages 2 to 4 begin with stride
(1, 2, 2) in conv_b. Time is kept, but for I3D's 2x1x1 max-pooling after stage 1.
           t   a of the blocks of stages 1 | 2 | 3 | 4, in turn
  i3d_r50  5   3 | 3, 1 | 3, 1 | 1, 3
  slow_r50 1   1 | 1 | 3 | 3
The head averages over windows of 4x7x7 (i3d_r50) and 8x7x7 (slow_r50) positions, stride 1, and
takes the mean of the classifier's outputs over them, as pytorchvideo's does: one window at 8 frames
of 224 x 224, four at 256 x 256; see `windows.py`. (PySlowFast, testing these networks, takes the
mean of the windows' softmax instead.)

Parameters by the rule in `bottleneck.py` at width 1, K = 400 classes (fc 2049 K = 819,600):
  i3d_r50   28,043,472 = stem 47,168 + 289,536 + 1,416,192 + 8,409,088 + 17,061,888 + fc
  slow_r50  32,454,096 = stem  9,536 + 215,808 + 1,219,584 + 9,981,952 + 20,207,616 + fc
(PySlowFast's table of pytorchvideo models: 28.04 M and 32.45 M.)

Names: see `bottleneck.py`. pytorchvideo's `blocks.0` is `stem`; its next blocks are stages 1 to 4
(I3D's pooling is one of them, `blocks.2`, without parameters); the last block's `proj` is `fc`.
pytorchvideo drops 0.5 of the embedding in training and starts the scale of every last BatchNorm at
0: options here.
"""

import functools

import jax
from flax import linen as nn

from skd_jax.models.blocks import scaled
from skd_jax.models.bottleneck import PYTORCHVIDEO_BRANCH, Stem, bottlenecks
from skd_jax.models.classifier import VideoClassifier
from skd_jax.models.conv3d import Triple
from skd_jax.models.entry import Entry
from skd_jax.models.layers import max_pool
from skd_jax.models.outputs import Outputs
from skd_jax.models.torch_names import TorchNames
from skd_jax.models.windows import average_windows, mean_over_windows


class InflatedResNet(VideoClassifier):
    """Bottleneck ResNet of one pathway; `apply(variables, clips, train=...)` gives `Outputs`.

    The maps are the outputs of the four stages (before the pooling after stage 1).

    Attributes:
      stage_sizes: blocks in each stage.
      stem_frames: temporal taps of the stem.
      temporal_taps: for each stage the taps of conv_a, dealt out to its blocks in turn.
      pool_time: whether time is halved by max-pooling after stage 1.
      window: positions (T, H, W) of the last map that the classifier sees at once; None for all.
      zero_init_residual: whether each block's last BatchNorm scale starts at 0 (the block is then
        its shortcut).
    """

    stage_sizes: tuple[int, ...] = (3, 4, 6, 3)
    stem_frames: int = 1
    temporal_taps: tuple[tuple[int, ...], ...] = ((1,), (1,), (3,), (3,))
    pool_time: bool = False
    window: Triple | None = None
    zero_init_residual: bool = False

    @nn.compact
    def __call__(self, clips: jax.Array, train: bool = False) -> Outputs:
        """Classifies clips.

        Args:
          clips: float, shape (B, T, H, W, 3), any T, H, W; T at least 2 where time is pooled.
          train: whether BatchNorm and dropout are in training mode.

        Raises:
          ValueError: clips of another rank or number of channels, or too short.
        """
        x, conv, norm = self.prepare(clips, train)
        inner = scaled(64, self.width)
        x = Stem(inner, (self.stem_frames, 7, 7), conv, norm, name="stem")(x)
        maps = []
        for stage, size in enumerate(self.stage_sizes):
            if stage == 1 and self.pool_time:
                x = max_pool(x, (2, 1, 1), (2, 1, 1), (0, 0, 0))
            blocks = bottlenecks(
                name=f"layer{stage + 1}",
                size=size,
                inner=inner * 2**stage,
                taps=self.temporal_taps[stage],
                strides=(1, 2, 2) if stage > 0 else (1, 1, 1),
                kernel_b=(1, 3, 3),
                conv=conv,
                norm=norm,
                zero_init_residual=self.zero_init_residual,
            )
            x = self.stage(blocks, x)
            maps.append(x)
        outputs = self.classify(average_windows(x, self.window), maps, train)
        return mean_over_windows(outputs)


def _pytorchvideo(*numbers: int) -> TorchNames:
    """Names where stages 1 to 4 and the head are `blocks` of these numbers."""
    *stages, head = numbers
    return TorchNames(
        "pytorchvideo",
        (
            (r"^stem/", "blocks.0."),
            (
                r"^layer(\d)_(\d+)/",
                lambda match: f"blocks.{stages[int(match[1]) - 1]}.res_blocks.{match[2]}.",
            ),
            PYTORCHVIDEO_BRANCH,
            (r"^fc$", f"blocks.{head}.proj"),
        ),
    )


slow_r50 = Entry(
    functools.partial(
        InflatedResNet,
        stage_sizes=(3, 4, 6, 3),
        stem_frames=1,
        temporal_taps=((1,), (1,), (3,), (3,)),
        pool_time=False,
        window=(8, 7, 7),
    ),
    clip=(8, 224, 224),
    source="Feichtenhofer et al. 2019; pytorchvideo slow_r50 (8x8)",
    torch=_pytorchvideo(1, 2, 3, 4, 5),
)
i3d_r50 = Entry(
    functools.partial(
        InflatedResNet,
        stage_sizes=(3, 4, 6, 3),
        stem_frames=5,
        temporal_taps=((3,), (3, 1), (3, 1), (1, 3)),
        pool_time=True,
        window=(4, 7, 7),
    ),
    clip=(8, 224, 224),
    source="Carreira and Zisserman 2017; pytorchvideo i3d_r50 (8x8)",
    torch=_pytorchvideo(1, 3, 4, 5, 6),
)
MODELS: dict[str, Entry] = {"i3d_r50": i3d_r50, "slow_r50": slow_r50}
