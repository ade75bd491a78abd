"""R(2+1)D: counts and a training step; test_golden.py compares it with torchvision."""

import functools

import pytest

from skd_jax.models.r2plus1d import MODELS, mid_channels
from tests.models import families, golden

_NARROW = (("width", 0.25),)
COUNTS = {
    # torchvision 0.29's.
    ("r2plus1d_18", 400, ()): 31_505_325,
    ("r2plus1d_18", 101, ()): 31_351_938,
    ("r2plus1d_18", 51, ()): 31_326_288,
    # By hand, from the geometry in the module's docstring.
    ("r2plus1d_34", 400, ()): 61_831_661,
    # 16, 32, 64, 128 channels, 11 in the middle of the stem, 36 | 57, 72 | 115, 144 | 230, 288 in
    # the middle of the blocks: stem, stages, fc.
    ("r2plus1d_18", 6, _NARROW): 2_199 + 28_064 + 92_212 + 368_428 + 1_470_360 + 774,
}


@pytest.mark.parametrize("name,classes,options", COUNTS)
def test_parameter_count(name, classes, options):
    got = families.count(MODELS[name].build, classes, **dict(options))
    assert got == COUNTS[name, classes, options]


def test_parameters_of_each_stage_as_torchvision():
    assert golden.stage_counts(MODELS["r2plus1d_18"].build(num_classes=400)) == (
        [15_473, 444_032, 1_470_360, 5_874_736, 23_495_524, 205_200]
    )


def test_channels_in_the_middle_as_torchvision():
    pairs = [(64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 512), (512, 512)]
    assert [mid_channels(*pair) for pair in pairs] == [144, 230, 288, 460, 576, 921, 1152]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_training_step(dtype):
    shallow = functools.partial(MODELS["r2plus1d_18"].build, stage_sizes=(1, 1, 1, 1))
    families.check_training_step(shallow, (3, 24, 24), dtype, width=0.0625)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_training_step_of_every_variant(name, dtype):
    families.check_training_step(MODELS[name].build, (4, 32, 32), dtype, width=0.0625)
