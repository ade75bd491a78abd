"""I3D and Slow: counts, maps, a training step, short clips."""

import functools

import jax
import jax.numpy as jnp
import pytest

from skd_jax.models.i3d import MODELS, InflatedResNet
from tests.models import families

# By hand from the geometry in the module's docstring; fc is 2049 parameters a class.
COUNTS = {
    ("i3d_r50", 400): 28_043_472,
    ("i3d_r50", 101): 27_223_872 + 2049 * 101,
    ("slow_r50", 400): 32_454_096,
    ("slow_r50", 51): 31_634_496 + 2049 * 51,
}


@pytest.mark.parametrize("name,classes", COUNTS)
def test_parameter_count(name, classes):
    assert families.count(MODELS[name].build, classes) == COUNTS[name, classes]


def test_every_model_has_a_count():
    assert {name for name, _ in COUNTS} == set(MODELS)


@pytest.mark.parametrize("name,steps", [("i3d_r50", (8, 4, 4, 4)), ("slow_r50", (8, 8, 8, 8))])
def test_maps_at_the_usual_clip(name, steps):
    maps, embedding = families.output_shapes(MODELS[name])
    sizes = zip(steps, (56, 28, 14, 7), (256, 512, 1024, 2048), strict=True)
    assert maps == [(t, s, s, c) for t, s, c in sizes]
    assert embedding == (1, 2048)


def test_temporal_kernels_alternate_as_in_the_reference():
    clips = jnp.zeros((1, 2, 8, 8, 3))
    model = MODELS["i3d_r50"].build(num_classes=5, width=0.0625)
    params = jax.eval_shape(model.init, jax.random.key(0), clips)["params"]
    taps = [
        [params[f"layer{s}_{b}"]["conv_a"]["kernel"].shape[0] for b in range(n)]
        for s, n in [(1, 3), (2, 4), (3, 6), (4, 3)]
    ]
    assert taps == [[3, 3, 3], [3, 1, 3, 1], [3, 1, 3, 1, 3, 1], [1, 3, 1]]


tiny_i3d = functools.partial(
    InflatedResNet,
    stage_sizes=(1, 1),
    stem_frames=5,
    temporal_taps=((3,), (1,)),
    pool_time=True,
    width=0.0625,
)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_training_step(dtype):
    families.check_training_step(tiny_i3d, (4, 16, 16), dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_training_step_of_every_variant(name, dtype):
    families.check_training_step(MODELS[name].build, (4, 32, 32), dtype, width=0.125)


def test_clip_too_short_to_pool_is_named():
    model = tiny_i3d(num_classes=5)
    with pytest.raises(ValueError, match=r"too small: axis T has 1, the max-pooling needs .* 2"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1, 16, 16, 3)))
