"""3D-ResNets: counts, maps, a training step, the two shortcuts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skd_jax import models
from skd_jax.errors import UserError
from skd_jax.models.hara_resnet3d import MODELS
from skd_jax.models.residual import zero_padding
from tests.models import families

_A = (("shortcut", "A"),)
_NARROW = (("width", 0.25),)
# 3D-ResNets-PyTorch's.
COUNTS = {
    ("resnet3d_10", 400, ()): 14_604_624,
    ("resnet3d_10", 400, _A): 14_430_800,
    ("resnet3d_18", 400, ()): 33_409_104,
    ("resnet3d_18", 400, _A): 33_235_280,
    ("resnet3d_18", 600, _A): 33_337_880,
    ("resnet3d_18", 1039, ()): 33_736_911,
    ("resnet3d_18", 700, ()): 33_563_004,
    ("resnet3d_18", 101, ()): 33_255_717,
    ("resnet3d_18", 51, ()): 33_230_067,
    ("resnet3d_34", 400, ()): 63_718_736,
    ("resnet3d_34", 400, _A): 63_544_912,
    ("resnet3d_34", 700, ()): 63_872_636,
    ("resnet3d_34", 101, ()): 63_565_349,
    ("resnet3d_50", 400, ()): 47_018_576,
    ("resnet3d_50", 400, _A): 44_242_000,
    ("resnet3d_50", 600, _A): 44_651_800,
    ("resnet3d_50", 1039, ()): 48_327_887,
    ("resnet3d_50", 700, ()): 47_633_276,
    ("resnet3d_50", 101, ()): 46_405_925,
    ("resnet3d_50", 51, ()): 46_303_475,
    ("resnet3d_101", 400, ()): 86_064_720,
    ("resnet3d_101", 400, _A): 83_288_144,
    ("resnet3d_101", 700, ()): 86_679_420,
    ("resnet3d_101", 101, ()): 85_452_069,
    ("resnet3d_152", 400, ()): 118_223_440,
    ("resnet3d_200", 400, ()): 127_423_056,
    # By hand, 16, 32, 64, 128 channels: stem, stages, fc.
    ("resnet3d_50", 6, _NARROW): 16_496 + 27_840 + 151_296 + 889_856 + 1_824_256 + 3_078,
}


@functools.cache
def sizes(name, options, classes):
    """Parameters of all but the classifier, and of the classifier."""
    model = MODELS[name].build(num_classes=classes, **dict(options))
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1, 1, 1, 3)))
    counts = {part: sum(x.size for x in jax.tree.leaves(p)) for part, p in shapes["params"].items()}
    return sum(counts.values()) - counts["fc"], counts["fc"]


@pytest.mark.parametrize("name,classes,options", COUNTS)
def test_parameter_count(name, classes, options):
    # Tracing the deepest takes seconds, and the number of classes changes the classifier alone.
    body, fc = sizes(name, options, 400)
    if classes != 400:
        fc = fc // 400 * classes
    assert body + fc == COUNTS[name, classes, options]


def test_the_number_of_classes_changes_the_classifier_alone():
    body, fc = sizes("resnet3d_10", (), 400)
    assert sizes("resnet3d_10", (), 51) == (body, fc // 400 * 51)


@pytest.mark.parametrize("name,expansion", [("resnet3d_18", 1), ("resnet3d_50", 4)])
def test_maps_at_the_usual_clip(name, expansion):
    maps, embedding = families.output_shapes(MODELS[name])
    places = [(8, 28, 28, 64), (4, 14, 14, 128), (2, 7, 7, 256), (1, 4, 4, 512)]
    assert maps == [(*place, channels * expansion) for *place, channels in places]
    assert embedding == (1, 512 * expansion)


def test_shortcut_a_takes_positions_and_adds_zero_channels():
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5, 6)).astype(np.float32)
    y, vjp = jax.vjp(lambda x: zero_padding(x, 8, (2, 2, 2)), x)
    assert y.shape == (2, 2, 2, 3, 8)
    np.testing.assert_array_equal(y[..., :6], x[:, ::2, ::2, ::2])
    assert not np.any(y[..., 6:])
    want = np.zeros_like(x)
    want[:, ::2, ::2, ::2] = 1
    np.testing.assert_array_equal(vjp(jnp.ones_like(y))[0], want)


def test_unknown_shortcut_is_named_before_anything_is_computed():
    with pytest.raises(UserError, match="unknown shortcut 'C'. Known: A, B"):
        models.create("resnet3d_18", 5, shortcut="C")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_training_step(shortcut, dtype):
    name = {"A": "resnet3d_18", "B": "resnet3d_50"}[shortcut]
    shallow = functools.partial(MODELS[name].build, stage_sizes=(1, 1, 1, 1), shortcut=shortcut)
    families.check_training_step(shallow, (4, 32, 32), dtype, width=0.0625)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shortcut", ["A", "B"])
@pytest.mark.parametrize("name", MODELS)
def test_training_step_of_every_variant(name, shortcut, dtype):
    build = functools.partial(MODELS[name].build, shortcut=shortcut)
    families.check_training_step(build, (4, 32, 32), dtype, width=0.0625)
