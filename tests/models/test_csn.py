"""CSN: counts, maps, BatchNorm's epsilon, a training step. The block: test_bottleneck.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skd_jax.models.csn import CSN, MODELS
from tests.models import families

# By hand from the geometry in the module's docstring; fc is 2049 parameters a class.
COUNTS = {
    ("ircsn_50", 400): 13_131_152,
    ("ircsn_50", 101): 12_518_501,
    ("ircsn_101", 400): 22_213_776,
    ("ircsn_152", 400): 29_703_568,
    ("ipcsn_50", 400): 14_396_176,
    ("ipcsn_50", 51): 13_576_576 + 2049 * 51,
    ("ipcsn_101", 400): 24_601_616,
    ("ipcsn_152", 400): 33_016_592,
}


@pytest.mark.parametrize("name,classes", COUNTS)
def test_parameter_count(name, classes):
    assert families.count(MODELS[name].build, classes) == COUNTS[name, classes]


def test_every_model_has_a_count():
    assert {name for name, _ in COUNTS} == set(MODELS)


@pytest.mark.parametrize("name", ["ircsn_50", "ipcsn_50"])
def test_maps_at_the_usual_clip(name):
    maps, embedding = families.output_shapes(MODELS[name])
    sizes = zip((32, 16, 8, 4), (56, 28, 14, 7), (256, 512, 1024, 2048), strict=True)
    assert maps == [(t, s, s, c) for t, s, c in sizes]
    assert embedding == (1, 2048)


tiny = functools.partial(CSN, stage_sizes=(1, 1), preserve=True, width=0.0625)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_training_step(dtype):
    families.check_training_step(tiny, (4, 16, 16), dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_training_step_of_every_variant(name, dtype):
    families.check_training_step(MODELS[name].build, (4, 32, 32), dtype, width=0.125)


@pytest.mark.parametrize("name,epsilon", [("ircsn_50", 1e-5), ("ipcsn_50", 1e-3)])
def test_epsilon_is_the_references(name, epsilon):
    """It shows where the running variance is as small."""
    model = MODELS[name].build(num_classes=2, width=0.0625, stage_sizes=(1,))
    clips = jnp.ones((1, 1, 8, 8, 3))
    variables = families.draw(model, clips)
    stem = {key: variables[key]["stem"] for key in variables}
    stem["batch_stats"]["norm"]["var"] = np.full(4, 1e-3, np.float32)
    want = families.conv_norm(stem, clips, "conv", "norm", (1, 2, 2), epsilon=epsilon)
    _, state = jax.jit(functools.partial(model.apply, capture_intermediates=True))(variables, clips)
    got = state["intermediates"]["stem"]["norm"]["__call__"][0]
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3)
