"""ShuffleNetV2-3D: counts, maps, its units against their formula, a training step."""

import functools

import jax
import numpy as np
import pytest

from skd_jax.models.shufflenetv2 import MODELS, ShuffleNetV2, Unit
from tests.models import families

# okankop/Efficient-3DCNNs.
COUNTS = {
    ("shufflenetv2_x0_25", 600): 829_656,
    ("shufflenetv2_x0_5", 600): 976_664,
    ("shufflenetv2_x1", 600): 1_914_180,
    ("shufflenetv2_x1", 101): 1_402_705,
    ("shufflenetv2_x1", 51): 1_351_455,
    ("shufflenetv2_x1_5", 600): 3_161_880,
    ("shufflenetv2_x2", 600): 6_639_816,
}


@pytest.mark.parametrize("name,classes", COUNTS)
def test_parameter_count(name, classes):
    assert families.count(MODELS[name].build, classes) == COUNTS[name, classes]


def test_every_model_has_a_count():
    assert {name for name, _ in COUNTS} == set(MODELS)


def test_maps_at_the_usual_clip():
    maps, embedding = families.output_shapes(MODELS["shufflenetv2_x1"])
    assert maps == [(8, 28, 28, 24), (4, 14, 14, 116), (2, 7, 7, 232), (1, 4, 4, 464)]
    assert embedding == (1, 1024)


def test_width_keeps_the_stages_even():
    model = MODELS["shufflenetv2_x1"].build(num_classes=5, width=0.3)
    clips = np.zeros((1, 1, 1, 1, 3), np.float32)
    outputs, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), clips)
    assert [m.shape[-1] for m in outputs.maps] == [7, 34, 70, 140]  # of 7.2, 34.8, 69.6, 139.2
    assert outputs.embedding.shape == (1, 307)


tiny = functools.partial(ShuffleNetV2, channels=(8, 12), stage_sizes=(2,))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_training_step(dtype):
    families.check_training_step(tiny, (4, 16, 16), dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_training_step_of_every_variant(name, dtype):
    families.check_training_step(MODELS[name].build, (8, 64, 64), dtype)


@pytest.mark.parametrize("down", [False, True])
def test_unit(down):
    model = Unit(8, down, **families.layers())
    x = np.random.default_rng(1).standard_normal((2, 4, 4, 4, 6 if down else 8), "f4")
    variables = families.draw(model, x)
    first, second = (
        {key: variables[key].get(branch) for key in variables} for branch in ("branch1", "branch2")
    )
    strides = (2, 2, 2) if down else (1, 1, 1)
    if down:
        y = families.conv_norm(first, x, "conv1", "bn1", strides, groups=6)
        left, right = families.relu(families.conv_norm(first, y, "conv2", "bn2")), x
    else:
        left, right = x[..., :4], x[..., 4:]
    right = families.relu(families.conv_norm(second, right, "conv1", "bn1"))
    right = families.conv_norm(second, right, "conv2", "bn2", strides, groups=4)
    right = families.relu(families.conv_norm(second, right, "conv3", "bn3"))
    want = np.empty((*right.shape[:-1], 8), np.float32)
    want[..., 0::2], want[..., 1::2] = left, right
    np.testing.assert_allclose(jax.jit(model.apply)(variables, x), want, rtol=1e-4, atol=1e-4)
