"""SlowFast: counts, maps, which frames go where, a training step."""

import functools

import jax
import numpy as np
import pytest

from skd_jax.models.slowfast import MODELS, Fusion, SlowFast
from tests.models import families

# By hand from the geometry in the module's docstring; fc is 2305 parameters a class.
COUNTS = {
    ("slowfast_r50", 400): 34_480_216,
    ("slowfast_r50", 101): 33_558_216 + 2305 * 101,
    ("slowfast_r50_8x8", 400): 34_566_488,
}


@pytest.mark.parametrize("name,classes", COUNTS)
def test_parameter_count(name, classes):
    assert families.count(MODELS[name].build, classes) == COUNTS[name, classes]


def test_every_model_has_a_count():
    assert {name for name, _ in COUNTS} == set(MODELS)


@pytest.mark.parametrize("name,steps", [("slowfast_r50", 4), ("slowfast_r50_8x8", 8)])
def test_maps_at_the_usual_clip(name, steps):
    maps, embedding = families.output_shapes(MODELS[name])
    sizes = zip((56, 28, 14, 7), (256, 512, 1024, 2048), strict=True)
    assert maps == [(steps, s, s, c) for s, c in sizes]
    assert embedding == (1, 2304)


tiny = functools.partial(SlowFast, stage_sizes=(1,), width=0.25)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_training_step(dtype):
    families.check_training_step(tiny, (8, 16, 16), dtype, alpha=4)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_training_step_of_every_variant(name, dtype):
    families.check_training_step(MODELS[name].build, (16, 32, 32), dtype, width=0.25)


def test_slow_pathway_sees_every_alpha_th_frame():
    """What the other frames show reaches the first stage through the laterals alone."""
    model = tiny(num_classes=5, alpha=4)
    clips = np.random.default_rng(0).standard_normal((1, 10, 8, 8, 3), dtype=np.float32)
    kept = np.zeros_like(clips)
    kept[:, ::4] = clips[:, ::4]
    variables = families.draw(model, clips)

    @jax.jit
    def stems(clips):
        _, state = model.apply(variables, clips, capture_intermediates=True)
        return [state["intermediates"][name]["__call__"][0] for name in ("slow_stem", "fast_stem")]

    (slow, fast), (same, other) = stems(clips), stems(kept)
    assert slow.shape[1] == 3 and fast.shape[1] == 10
    np.testing.assert_array_equal(slow, same)
    assert not np.array_equal(fast, other)


def test_lateral_connection():
    """A strided temporal convolution of the fast features, appended to the slow ones."""
    slow = np.random.default_rng(1).standard_normal((2, 3, 2, 2, 4), "f4")
    fast = np.random.default_rng(2).standard_normal((2, 10, 2, 2, 3), "f4")
    model = Fusion(5, 4, **families.layers())
    variables = families.draw(model, slow, fast)
    y = families.conv_norm(variables, fast, "conv_fast_to_slow", "norm", (4, 1, 1))
    assert y.shape == (2, 3, 2, 2, 6)
    got = jax.jit(model.apply)(variables, slow, fast)
    np.testing.assert_allclose(
        got, np.concatenate([slow, families.relu(y)], -1), rtol=1e-4, atol=1e-4
    )
