"""S3D: counts, maps, a training step, and its head on clips of any size."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skd_jax.models.layers import BatchNorm
from skd_jax.models.s3d import MODELS
from tests.models import families

build = MODELS["s3d"].build
_HALF = (("width", 0.5),)
COUNTS = {
    # torchvision 0.29's.
    ("s3d", 400, ()): 8_320_048,
    ("s3d", 101, ()): 8_013_573,
    ("s3d", 51, ()): 7_962_323,
    # By the rule in the module's docstring: features_0 to features_15, fc.
    ("s3d", 6, _HALF): sum(
        [
            *(12_000, 1_088, 55_680, 52_368, 120_224, 125_872, 147_624, 174_424, 209_312),
            *(291_008, 334_784, 460_784, 513 * 6),
        ]
    ),
}
_BLOCK = (64, 96, 128, 16, 32, 32)
shallow = functools.partial(build, inception=((_BLOCK,),) * 3, width=0.0625)


def shapes(clip, num_classes=400, **options):
    """Of variables and outputs."""
    model, clips = build(num_classes=num_classes, **options), jnp.zeros((1, *clip, 3))
    outputs, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), clips)
    return variables, outputs


@pytest.mark.parametrize("name,classes,options", COUNTS)
def test_parameter_count(name, classes, options):
    variables, _ = shapes((5, 17, 17), classes, **dict(options))
    total = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert total == COUNTS[name, classes, options]


def test_as_many_arrays_as_torchvisions_state_dict():
    variables, _ = shapes((5, 17, 17))
    norms = len(jax.tree.leaves(variables["batch_stats"])) // 2  # Each counts its batches there.
    assert len(jax.tree.leaves(variables)) + norms == 464


def test_maps_at_the_usual_clip():
    maps, embedding = families.output_shapes(MODELS["s3d"])
    assert maps == [(8, 56, 56, 192), (8, 28, 28, 480), (4, 14, 14, 832), (2, 7, 7, 1024)]
    assert embedding == (1, 1024)


def test_the_smallest_clip_and_one_too_small():
    assert shapes((5, 17, 17))[1].maps[-1].shape == (1, 1, 1, 1, 1024)
    with pytest.raises(ValueError, match="axis T has 1, the max-pooling needs at least 2"):
        shapes((4, 17, 17))
    with pytest.raises(ValueError, match="axis H has 1, .* give longer or larger clips"):
        shapes((5, 16, 17))


def test_windows_of_two_by_seven_by_seven():
    """Three windows over time: the inner frames of the last map count twice; one over space."""
    clips = np.random.default_rng(0).standard_normal((1, 64, 20, 100, 3), dtype=np.float32)
    model = shallow(num_classes=5)
    variables = families.draw(model, clips)
    outputs = jax.jit(model.apply)(variables, clips)
    last = np.asarray(outputs.maps[-1])
    assert last.shape[1:4] == (8, 1, 3)
    weights = np.array([1, 2, 2, 2, 2, 2, 2, 1]) / 14
    want = np.einsum("btc,t->bc", last.mean((2, 3)), weights)
    np.testing.assert_allclose(outputs.embedding, want, rtol=1e-4, atol=1e-5)
    fc = variables["params"]["fc"]
    want = outputs.embedding @ fc["kernel"] + fc["bias"]
    np.testing.assert_allclose(outputs.logits, want, rtol=1e-4, atol=1e-4)


def test_windows_over_space():
    clips = np.random.default_rng(0).standard_normal((1, 5, 17, 256, 3), dtype=np.float32)
    model = shallow(num_classes=5)
    variables = families.draw(model, clips)
    outputs = jax.jit(model.apply)(variables, clips)
    last = np.asarray(outputs.maps[-1])
    assert last.shape[1:4] == (1, 1, 8)
    weights = np.array([1, 2, 2, 2, 2, 2, 2, 1]) / 14
    want = np.einsum("bwc,w->bc", last[:, 0, 0], weights)
    np.testing.assert_allclose(outputs.embedding, want, rtol=1e-4, atol=1e-5)


def test_constants_of_its_own(monkeypatch):
    seen = set()
    call = BatchNorm.__call__

    def record(self, x):
        seen.add((self.momentum, self.epsilon))
        return call(self, x)

    monkeypatch.setattr(BatchNorm, "__call__", record)
    shapes((5, 17, 17))
    assert seen == {(0.999, 1e-3)}
    assert build(num_classes=5).dropout == 0.2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_training_step(dtype):
    families.check_training_step(shallow, (8, 32, 32), dtype, dropout=0.0)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_training_step_of_every_variant(name, dtype):
    families.check_training_step(MODELS[name].build, (8, 32, 32), dtype, width=0.0625, dropout=0.0)
