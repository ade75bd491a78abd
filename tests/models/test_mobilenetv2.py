"""MobileNetV2-3D: counts, maps, its block against its formula, a training step."""

import functools

import jax
import numpy as np
import pytest

from skd_jax.models.mobilenetv2 import MODELS, InvertedResidual, MobileNetV2
from tests.models import families

# okankop/Efficient-3DCNNs.
COUNTS = {
    ("mobilenetv2_x0_2", 600): 964_110,
    ("mobilenetv2_x0_45", 600): 1_399_834,
    ("mobilenetv2_x0_7", 600): 2_049_942,
    ("mobilenetv2_x1", 600): 3_122_648,
    ("mobilenetv2_x1", 101): 2_483_429,
    ("mobilenetv2_x1", 51): 2_419_379,
}


@pytest.mark.parametrize("name,classes", COUNTS)
def test_parameter_count(name, classes):
    assert families.count(MODELS[name].build, classes) == COUNTS[name, classes]


def test_every_model_has_a_count():
    assert {name for name, _ in COUNTS} == set(MODELS)


def test_maps_at_the_usual_clip():
    maps, embedding = families.output_shapes(MODELS["mobilenetv2_x1"])
    assert maps == [(8, 28, 28, 24), (4, 14, 14, 32), (2, 7, 7, 96), (1, 4, 4, 320)]
    assert embedding == (1, 1280)


def test_width_multiplies_the_variants_channels():
    """And those of the last convolution, which the variants leave."""
    model = MODELS["mobilenetv2_x0_45"].build(num_classes=5, width=0.5)
    clips = np.zeros((1, 1, 1, 1, 3), np.float32)
    outputs, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), clips)
    assert [m.shape[-1] for m in outputs.maps] == [5, 7, 22, 72]  # halves of 10, 14, 43, 144
    assert outputs.embedding.shape == (1, 640)


tiny = functools.partial(
    MobileNetV2, stages=(((1, 4, 1, 1), (6, 6, 2, 2)),), width=0.5, variant=0.75
)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_training_step(dtype):
    families.check_training_step(tiny, (4, 16, 16), dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_training_step_of_every_variant(name, dtype):
    families.check_training_step(MODELS[name].build, (8, 64, 64), dtype)


@pytest.mark.parametrize("expansion,features,stride", [(1, 4, 1), (6, 4, 1), (6, 5, 1), (6, 4, 2)])
def test_block(expansion, features, stride):
    """Capped ReLU after all convolutions but the last; the shortcut where shapes allow."""
    model = InvertedResidual(expansion, features, stride, **families.layers())
    x = 3 * np.random.default_rng(1).standard_normal((2, 3, 4, 4, 4), "f4")
    variables = families.draw(model, x)

    def layer(x, i, **options):
        return families.conv_norm(variables, x, f"conv{i}", f"bn{i}", **options)

    def relu6(x):
        return np.clip(x, 0, 6)

    y, i = x, 1
    if expansion > 1:
        y, i = relu6(layer(y, 1)), 2
    y = layer(y, i, strides=(stride,) * 3, groups=4 * expansion)
    assert y.max() > 6
    y = layer(relu6(y), i + 1)
    want = x + y if stride == 1 and features == 4 else y
    np.testing.assert_allclose(jax.jit(model.apply)(variables, x), want, rtol=1e-4, atol=1e-4)
