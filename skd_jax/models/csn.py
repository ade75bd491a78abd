"""CSN: channel-separated bottleneck networks, interaction-preserved and interaction-reduced.

Tran et al., "Video Classification with Channel-Separated Convolutional Networks", ICCV 2019. The
3x3x3 convolution of each bottleneck is depthwise (ir-CSN); ip-CSN puts a 1x1x1 convolution and a
BatchNorm, no ReLU, before it, so that channels still meet there. ir-CSN has the geometry of
pytorchvideo 0.1.5 (`create_csn` as its `csn_r101` calls it), ip-CSN that of the authors' VMZ
(`ip_csn_152`), which are one but for that convolution, BatchNorm's epsilon, 1e-5 and 1e-3, and the
head. ir-CSN's averages over windows of 4x7x7 positions, stride 1, and takes the mean of the
classifier's outputs over them: one window at 32 frames of 224 x 224, four at 256 x 256; see
`windows.py`. ip-CSN's averages over the whole map. VMZ also sets BatchNorm's momentum to PyTorch's
0.9 (Caffe2's 0.9 is PyTorch's 0.1), so that its running statistics are hardly more than the last
batch's; here ip-CSN keeps the 0.1 of all others, Flax's 0.9. Evaluation is not touched by it.

Stem: 3x7x7 convolution, stride (1, 2, 2), to 64 channels, 1x3x3 max-pooling, stride (1, 2, 2). Four
stages of bottlenecks (conv_a 1x1x1, conv_b 3x3x3 depthwise, conv_c 1x1x1) with 64, 128, 256, 512
inner channels and four times as many outside; stages 2 to 4 begin with stride 2 in T, H and W, in
conv_b. Blocks: 3, 4, 6, 3 (50); 3, 4, 23, 3 (101); 3, 8, 36, 3 (152).

Parameters by the rule in `bottleneck.py` (b = 27, depthwise), plus m^2 + 2 m in each block of ip;
at width 1 and K = 400 classes (stem 28,352; fc 2049 K = 819,600):
  ircsn_50   13,131,152 = stem + 110,400 +   643,584 +  3,600,896 + 7,928,320 + fc
  ircsn_101  22,213,776 = stem + 110,400 +   643,584 + 12,683,520 + 7,928,320 + fc
  ircsn_152  29,703,568 = stem + 110,400 + 1,187,840 + 19,629,056 + 7,928,320 + fc
  ipcsn_50   14,396,176 = stem + 123,072 +   710,144 +  3,997,184 + 8,717,824 + fc
  ipcsn_101  24,601,616 = stem + 123,072 +   710,144 + 14,202,624 + 8,717,824 + fc
  ipcsn_152  33,016,592 = stem + 123,072 + 1,320,960 + 22,006,784 + 8,717,824 + fc
(PySlowFast's table of pytorchvideo models: 22.21 M for CSN-101.)

Names: see `bottleneck.py`; `blocks.5.proj` is `fc`. ip-CSN's additions are `conv_b_pointwise` and
`norm_b_pointwise`. VMZ's names are torchvision's: `layerS.B.conv1.0`, `.1` are conv_a and norm_a;
`conv2.0` (ir) is conv_b; `conv2.0.0`, `.1`, `.2` (ip) are conv_b_pointwise, norm_b_pointwise and
conv_b; `conv2.1` is norm_b; `conv3.0`, `.1` are conv_c and norm_c; `downsample.0`, `.1` are
branch1_conv and branch1_norm; `stem.0`, `.1` are stem/conv and stem/norm.
"""

import functools

import jax
from flax import linen as nn

from skd_jax.models.blocks import scaled
from skd_jax.models.bottleneck import PYTORCHVIDEO_BRANCH, Stem, bottlenecks
from skd_jax.models.classifier import VideoClassifier
from skd_jax.models.conv3d import Triple
from skd_jax.models.entry import Entry
from skd_jax.models.outputs import Outputs
from skd_jax.models.torch_names import TorchNames
from skd_jax.models.windows import average_windows, mean_over_windows


class CSN(VideoClassifier):
    """Channel-separated network; `apply(variables, clips, train=...)` gives `Outputs`.

    The maps are the outputs of the four stages.

    Attributes:
      stage_sizes: blocks in each stage.
      preserve: whether channels interact before each depthwise convolution (ip) or not (ir).
      epsilon: of every BatchNorm.
      window: positions (T, H, W) of the last map that the classifier sees at once; None for all.
      zero_init_residual: whether each block's last BatchNorm scale starts at 0 (the block is then
        its shortcut).
    """

    stage_sizes: tuple[int, ...] = (3, 4, 6, 3)
    preserve: bool = False
    epsilon: float = 1e-5
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
        norm = functools.partial(norm, epsilon=self.epsilon)
        inner = scaled(64, self.width)
        x = Stem(inner, (3, 7, 7), conv, norm, name="stem")(x)
        maps = []
        for stage, size in enumerate(self.stage_sizes):
            blocks = bottlenecks(
                name=f"layer{stage + 1}",
                size=size,
                inner=inner * 2**stage,
                taps=(1,),
                strides=(2, 2, 2) if stage > 0 else (1, 1, 1),
                kernel_b=(3, 3, 3),
                conv=conv,
                norm=norm,
                depthwise=True,
                pointwise=self.preserve,
                zero_init_residual=self.zero_init_residual,
            )
            x = self.stage(blocks, x)
            maps.append(x)
        outputs = self.classify(average_windows(x, self.window), maps, train)
        return mean_over_windows(outputs)


_PYTORCHVIDEO = TorchNames(
    "pytorchvideo",
    (
        (r"^stem/", "blocks.0."),
        (r"^layer(\d)_(\d+)/", r"blocks.\1.res_blocks.\2."),
        PYTORCHVIDEO_BRANCH,
        (r"^fc$", "blocks.5.proj"),
    ),
)
_VMZ = TorchNames(
    "VMZ",
    (
        (r"^stem/conv$", "stem.0"),
        (r"^stem/norm$", "stem.1"),
        (r"^layer(\d)_(\d+)/", r"layer\1.\2."),
        (r"branch1_conv$", "downsample.0"),
        (r"branch1_norm$", "downsample.1"),
        (r"conv_a$", "conv1.0"),
        (r"norm_a$", "conv1.1"),
        (r"conv_b_pointwise$", "conv2.0.0"),
        (r"norm_b_pointwise$", "conv2.0.1"),
        (r"conv_b$", "conv2.0.2"),
        (r"norm_b$", "conv2.1"),
        (r"conv_c$", "conv3.0"),
        (r"norm_c$", "conv3.1"),
    ),
)

_STAGE_SIZES = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}

MODELS: dict[str, Entry] = {
    f"{kind}_{depth}": Entry(
        functools.partial(
            CSN, stage_sizes=sizes, preserve=preserve, epsilon=epsilon, window=window
        ),
        clip=(32, 224, 224),
        source=f"Tran et al. 2019; {reference}",
        torch=torch,
    )
    for kind, preserve, epsilon, window, reference, torch in [
        ("ircsn", False, 1e-5, (4, 7, 7), "pytorchvideo csn_r101", _PYTORCHVIDEO),
        ("ipcsn", True, 1e-3, None, "VMZ ip_csn_152", _VMZ),
    ]
    for depth, sizes in _STAGE_SIZES.items()
}
