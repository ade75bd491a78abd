"""What clips go through before the networks whose weights are imported.

preprocessing("r3d_18").resize  # (128, 171)
"""

import dataclasses
from typing import Any

from skd_jax import models
from skd_jax.errors import UserError
from skd_jax.models import (
    hara_resnet2p1d,
    hara_resnet3d,
    mc3,
    mobilenetv2,
    r2plus1d,
    resnet3d,
    shufflenetv2,
)

Colour = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How a video becomes a clip at inference: resize, centre crop, (pixel / 255 - mean) / std.

    Attributes:
      mean, std: of red, green, blue, where pixels lie in [0, 1].
      resize: (height, width) of the whole frame, or the length of its short side; bilinear.
      antialias: whether shrinking smooths first, as Pillow's resize does and PyTorch's does not.
      crop: side of the square in the centre.
      frames: in a clip.
      stride: frames from one to the next, at `frame_rate`.
      frame_rate: to which the video is resampled, per second; None leaves the video's own.
      source: where this is written.
      clips: of a video, uniform over its length, in the evaluation that the source reports; None
        where it names no number.
      crops: of each clip there, 1 in the centre, 3 along the long side; None likewise.
    """

    mean: Colour
    std: Colour
    resize: tuple[int, int] | int
    antialias: bool
    crop: int
    frames: int
    stride: int
    frame_rate: float | None
    source: str
    clips: int | None = None
    crops: int | None = None


# Presets and `_docs` of the weights: 5 clips of 16 frames at 15 per second, for S3D 1 of 128. Where torchvision
# does otherwise: its single clip is the first one, here the middle one; it leaves out videos shorter than a clip,
# which loop here; it repeats frames of videos slower than 15 per second, and of those whose rate is no multiple
# of 15 drops the last frame where it stands for less than a fifteenth of a second.
_TORCHVISION = Preprocessing(
    mean=(0.43216, 0.394666, 0.37645),
    std=(0.22803, 0.22145, 0.216989),
    resize=(128, 171),
    antialias=False,
    crop=112,
    frames=16,
    stride=1,
    frame_rate=15.0,
    clips=5,
    crops=1,
    source="torchvision: transforms/_presets.py VideoClassification, models/video weights",
)
_S3D = dataclasses.replace(_TORCHVISION, resize=(256, 256), crop=224, frames=128, clips=1)

# Test of MMAction2: 10 clips; its three crops of 256 are left aside for the side trained at.
_VMZ = Preprocessing(
    mean=_TORCHVISION.mean,
    std=_TORCHVISION.std,
    resize=256,
    antialias=False,
    crop=224,
    frames=32,
    stride=2,
    frame_rate=30.0,
    source="VMZ: pt/vmz/func (mean, std); MMAction2's csn configurations of its weights",
    clips=10,
)

# Its defaults since 2020, `--mean_dataset kinetics --value_scale 1`. Frames are Pillow's images,
# whose bilinear resize smooths. All windows of 16 frames count in a test, however many there are.
_HARA = Preprocessing(
    mean=(0.4345, 0.4051, 0.3775),
    std=(0.2768, 0.2713, 0.2737),
    resize=112,
    antialias=True,
    crop=112,
    frames=16,
    stride=1,
    frame_rate=None,
    source="3D-ResNets-PyTorch: mean.py, main.py get_inference_utils, opts.py",
)

# Its checkpoints of 2017 and 2018: `--mean_dataset activitynet --norm_value 1` takes the mean from
# pixels of 0 to 255 and divides by nothing.
_HARA_2018 = dataclasses.replace(
    _HARA,
    mean=(114.7748 / 255, 107.7354 / 255, 99.4750 / 255),
    std=(1 / 255, 1 / 255, 1 / 255),
    source="3D-ResNets-PyTorch of 2017 and 2018: mean.py, opts.py, main.py",
)

# Made from that code, with its defaults.
_EFFICIENT = dataclasses.replace(
    _HARA_2018,
    source="Efficient-3DCNNs: mean.py, opts.py, main.py, spatial_transforms.py",
)


def _pytorchvideo(frames: int, stride: int, side: int = 256) -> Preprocessing:
    return Preprocessing(
        mean=(0.45, 0.45, 0.45),
        std=(0.225, 0.225, 0.225),
        resize=side,
        antialias=False,
        crop=side,
        frames=frames,
        stride=stride,
        frame_rate=30.0,
        source="pytorchvideo: model zoo (frames x stride, crops x clips), transforms/functional.py, "
        "PyTorch Hub pages of x3d, slowfast, resnet",
        clips=10,
        crops=3,
    )


_TABLE = {
    **{name: _TORCHVISION for family in (resnet3d, mc3, r2plus1d) for name in family.MODELS},
    "s3d": _S3D,
    **{name: _HARA for family in (hara_resnet3d, hara_resnet2p1d) for name in family.MODELS},
    **{name: _EFFICIENT for family in (mobilenetv2, shufflenetv2) for name in family.MODELS},
    # Trained at 160, 160, 224 and 312, tested at these sides.
    "x3d_xs": _pytorchvideo(4, 12, side=182),
    "x3d_s": _pytorchvideo(13, 6, side=182),
    "x3d_m": _pytorchvideo(16, 5),
    "x3d_l": _pytorchvideo(16, 5, side=356),
    **{f"ircsn_{depth}": _pytorchvideo(32, 2) for depth in (50, 101, 152)},
    **{f"ipcsn_{depth}": _VMZ for depth in (50, 101, 152)},
    "i3d_r50": _pytorchvideo(8, 8),
    "slow_r50": _pytorchvideo(8, 8),
    # The fast pathway's frames: 4x16 and 8x8 are the slow one's.
    "slowfast_r50": _pytorchvideo(32, 2),
    "slowfast_r50_8x8": _pytorchvideo(32, 2),
}


def preprocessing(name: str, **model_options: Any) -> Preprocessing:
    """How videos become clips for the weights that are imported under this name.

    Args:
      name: of the model.
      **model_options: as for `models.create`. The 3D-ResNets with shortcuts A are those of 2017
        and 2018. The deeper ones of these years, with shortcuts B, have nothing that tells them
        from those of 2020, whose preprocessing is given; theirs is that of the former.

    Raises:
      UserError: no model has this name, or no weights are known for it.
    """
    models.describe(name)
    if name not in _TABLE:
        raise UserError(
            f"no preprocessing is known for {name}, as no weights of it are; "
            f"known for: {', '.join(sorted(_TABLE))}"
        )
    old = name in hara_resnet3d.MODELS and model_options.get("shortcut") == "A"
    return _HARA_2018 if old else _TABLE[name]
