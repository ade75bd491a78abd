"""ShuffleNet (2+1)D: counts, maps, its units against their formula, a training step."""

import functools

import jax
import numpy as np
import pytest

from skd_jax.models.shufflenet2p1d import MODELS, ShuffleNet2Plus1D, Unit
from tests.models import families

# By hand from the geometry in the module's docstring; fc is 513 parameters a class.
COUNTS = {
    ("shufflenet2p1d", 400): 16_050_640,
    ("shufflenet2p1d", 101): 15_845_440 + 513 * 101,
    ("shufflenet2p1d", 51): 15_845_440 + 513 * 51,
}


@pytest.mark.parametrize("name,classes", COUNTS)
def test_parameter_count(name, classes):
    assert families.count(MODELS[name].build, classes) == COUNTS[name, classes]


def test_every_model_has_a_count():
    assert {name for name, _ in COUNTS} == set(MODELS)


def test_maps_at_the_usual_clip():
    maps, embedding = families.output_shapes(MODELS["shufflenet2p1d"])
    assert maps == [(16, 56, 56, 64), (8, 28, 28, 128), (4, 14, 14, 256), (2, 7, 7, 512)]
    assert embedding == (1, 512)


def test_stem_without_pooling():
    model = MODELS["shufflenet2p1d"].build(num_classes=5, stem_pool=False)
    clips = np.zeros((1, 8, 112, 112, 3), np.float32)
    outputs, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), clips)
    assert [m.shape[1:4] for m in outputs.maps] == [
        (8, 56, 56),
        (4, 28, 28),
        (2, 14, 14),
        (1, 7, 7),
    ]


tiny = functools.partial(ShuffleNet2Plus1D, stage_sizes=(2,), width=0.125)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_training_step(dtype):
    families.check_training_step(tiny, (4, 16, 16), dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_training_step_of_every_variant(name, dtype):
    families.check_training_step(MODELS[name].build, (8, 32, 32), dtype, width=0.25)


@pytest.mark.parametrize("down", [False, True])
def test_unit(down):
    model = Unit(4, down, **families.layers())
    x = np.random.default_rng(1).standard_normal((2, 4, 4, 4, 6 if down else 8), "f4")
    variables = families.draw(model, x)

    def layer(x, name, strides=(1, 1, 1)):
        return families.relu(
            families.conv_norm(variables, x, f"conv_{name}", f"bn_{name}", strides)
        )

    if down:
        y, other = layer(x, "0", (1, 2, 2)), layer(x, "plus", (2, 2, 2))
    else:
        y, other = layer(x[..., 4:], "0"), x[..., :4]
    y = layer(y, "1", (2, 1, 1) if down else (1, 1, 1))
    y = layer(layer(y, "2"), "3")
    want = np.empty((*y.shape[:-1], 8), np.float32)
    want[..., 0::2], want[..., 1::2] = y, other
    np.testing.assert_allclose(jax.jit(model.apply)(variables, x), want, rtol=1e-4, atol=1e-4)
