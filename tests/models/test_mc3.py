"""MC3: counts, a training step, and that nothing after the first stage mixes frames."""

import functools

import jax
import numpy as np
import pytest

from skd_jax.models.mc3 import MODELS
from tests.models import families

_NARROW = (("width", 0.25),)
COUNTS = {
    # torchvision 0.29's.
    ("mc3_18", 400, ()): 11_695_440,
    ("mc3_18", 101, ()): 11_542_053,
    ("mc3_18", 51, ()): 11_516_403,
    # By hand, 16, 32, 64, 128 channels: stem, stages, fc.
    ("mc3_18", 6, _NARROW): 7_088 + 27_776 + 33_088 + 131_712 + 525_568 + 774,
}

shallow = functools.partial(MODELS["mc3_18"].build, stage_sizes=(1, 1, 1, 1), width=0.0625)


@pytest.mark.parametrize("name,classes,options", COUNTS)
def test_parameter_count(name, classes, options):
    got = families.count(MODELS[name].build, classes, **dict(options))
    assert got == COUNTS[name, classes, options]


def test_maps_keep_the_frames():
    maps, embedding = families.output_shapes(MODELS["mc3_18"])
    assert maps == [(16, 56, 56, 64), (16, 28, 28, 128), (16, 14, 14, 256), (16, 7, 7, 512)]
    assert embedding == (1, 512)


def test_a_frame_reaches_its_neighbours_through_the_stem_and_stage_1_alone():
    """Stem, two convolutions of one block: three frames to each side."""
    model = shallow(num_classes=5)
    clips = np.random.default_rng(0).standard_normal((1, 12, 8, 8, 3), dtype=np.float32)
    variables = families.draw(model, clips)
    run = jax.jit(lambda clips: model.apply(variables, clips).maps[-1])
    other = clips.copy()
    other[:, 5] += 1
    changed = np.any(run(clips) != run(other), axis=(0, 2, 3, 4))
    np.testing.assert_array_equal(np.flatnonzero(changed), np.arange(2, 9))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_training_step(dtype):
    families.check_training_step(shallow, (3, 24, 24), dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_training_step_of_every_variant(name, dtype):
    families.check_training_step(MODELS[name].build, (4, 32, 32), dtype, width=0.0625)
