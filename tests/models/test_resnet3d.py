"""R3D's contract and its errors; test_golden.py compares it with torchvision."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skd_jax import models
from skd_jax.models.resnet3d import MODELS
from tests.models import families, golden

_NARROW = (("width", 0.25),)
COUNTS = {
    # torchvision 0.29's.
    ("r3d_18", 400, ()): 33_371_472,
    ("r3d_18", 101, ()): 33_218_085,
    ("r3d_18", 51, ()): 33_192_435,
    # By hand, from the geometry in the module's docstring.
    ("r3d_10", 400, ()): 14_566_992,
    ("r3d_34", 400, ()): 63_681_104,
    # 16, 32, 64, 128 channels: stem, stages, fc.
    ("r3d_10", 6, _NARROW): 7_088 + 13_888 + 42_176 + 168_320 + 672_512 + 774,
}
CLIPS = np.random.default_rng(1).standard_normal((4, 4, 16, 16, 3), dtype=np.float32)


def tiny(**options):
    """A small model and variables far from the initial ones."""
    model = models.create("r3d_10", 5, width=0.125, **options)
    return model, families.draw(model, CLIPS)


@pytest.mark.parametrize("name,classes,options", COUNTS)
def test_parameter_count(name, classes, options):
    got = families.count(MODELS[name].build, classes, **dict(options))
    assert got == COUNTS[name, classes, options]


def test_parameters_of_each_stage_as_torchvision():
    assert golden.stage_counts(MODELS["r3d_18"].build(num_classes=400)) == (
        [28_352, 442_880, 1_557_760, 6_228_480, 24_908_800, 205_200]
    )


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_training_step_of_every_variant(name, dtype):
    families.check_training_step(MODELS[name].build, (4, 32, 32), dtype, width=0.0625)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_outputs_and_gradients(dtype):
    model, variables = tiny(dtype=dtype)

    @jax.jit
    def gradient(params):
        def loss(params):
            outputs, updates = model.apply(
                {**variables, "params": params}, CLIPS, train=True, mutable=["batch_stats"]
            )
            return jnp.sum(jnp.square(outputs.logits - 1)), (outputs, updates)

        return jax.grad(loss, has_aux=True)(params)

    gradients, (outputs, updates) = gradient(variables["params"])
    assert outputs.logits.shape == (4, 5) and outputs.logits.dtype == jnp.float32
    assert outputs.embedding.shape == (4, 64) and outputs.embedding.dtype == jnp.float32
    assert [m.dtype for m in outputs.maps] == [jnp.dtype(dtype)] * 4
    assert {x.dtype for x in jax.tree.leaves(updates)} == {jnp.dtype("float32")}
    fc = variables["params"]["fc"]
    np.testing.assert_allclose(
        outputs.logits, outputs.embedding @ fc["kernel"] + fc["bias"], rtol=1e-4, atol=1e-4
    )
    pooled = np.asarray(outputs.maps[-1], np.float32).mean((1, 2, 3))
    np.testing.assert_allclose(outputs.embedding, pooled, rtol=1e-4, atol=1e-5)
    for path, g in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(g).all() and np.any(g != 0), jax.tree_util.keystr(path)


def test_variables_are_float32_in_bfloat16_too_and_the_network_is_the_same():
    model, variables = tiny()
    half, _ = tiny(dtype=jnp.bfloat16)
    shapes = jax.eval_shape(half.init, jax.random.key(0), CLIPS)
    assert {x.dtype for x in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    want, got = jax.jit(model.apply)(variables, CLIPS), jax.jit(half.apply)(variables, CLIPS)
    assert not np.array_equal(got.logits, want.logits)
    np.testing.assert_allclose(got.logits, want.logits, atol=0.05 * float(want.logits.std()))


def test_initial_values():
    """As torchvision: He over the outputs, BatchNorm at identity, classifier of deviation 0.01."""
    model = models.create("r3d_10", 50, width=0.125)

    @jax.jit
    def some(key):
        variables = model.init(key, CLIPS)
        params, stats = variables["params"], variables["batch_stats"]
        return params["layer4_0"]["conv2"]["kernel"], params["fc"], params["stem"]["bn"], stats

    kernel, fc, norm, stats = some(jax.random.key(0))
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (27 * 64)), rtol=0.02)
    np.testing.assert_allclose(fc["kernel"].std(), 0.01, rtol=0.05)
    assert not np.any(fc["bias"])
    assert np.all(norm["scale"] == 1) and not np.any(norm["bias"])
    assert np.all(stats["stem"]["bn"]["var"] == 1) and not np.any(stats["stem"]["bn"]["mean"])


@pytest.mark.parametrize("zero", [False, True])
def test_zero_init_residual_is_the_last_scale_of_every_block(zero):
    model = models.create("r3d_18", 5, width=0.0625, zero_init_residual=zero)

    @jax.jit
    def scales(key):
        params = model.init(key, CLIPS)["params"]
        return {
            (block, name): parameters["scale"]
            for block, part in params.items()
            if block.startswith("layer")
            for name, parameters in part.items()
            if "bn" in name
        }

    flat = scales(jax.random.key(0))
    assert len(flat) == 8 * 2 + 3
    for (_, name), scale in flat.items():
        assert np.all(scale == (0 if zero and name == "bn2" else 1))


def test_dropout_acts_on_the_classifier_input_in_training_alone():
    model, variables = tiny(dropout=0.5)

    @functools.partial(jax.jit, static_argnames="train")
    def outputs(train, key):
        return model.apply(
            variables, CLIPS, train=train, rngs={"dropout": key}, mutable=["batch_stats"]
        )[0]

    first, second = jax.random.key(0), jax.random.key(1)
    np.testing.assert_array_equal(outputs(False, first).logits, outputs(False, second).logits)
    assert not np.array_equal(outputs(True, first).logits, outputs(True, second).logits)
    np.testing.assert_array_equal(outputs(True, first).embedding, outputs(True, second).embedding)


def test_synchronised_batch_norm_equals_one_large_batch():
    """Two halves of a batch under a mapped axis see the statistics of the whole."""
    model, variables = tiny()
    synchronised, _ = tiny(axis_name="batch")

    def train(model):
        return lambda clips: model.apply(variables, clips, train=True, mutable=["batch_stats"])

    want, want_updates = jax.jit(train(model))(CLIPS)
    halves = CLIPS.reshape(2, 2, *CLIPS.shape[1:])
    mapped = jax.vmap(train(synchronised), axis_name="batch")
    got, got_updates = jax.jit(mapped)(halves)
    np.testing.assert_allclose(got.logits.reshape(4, 5), want.logits, rtol=1e-3, atol=1e-3)
    for g, w in zip(jax.tree.leaves(got_updates), jax.tree.leaves(want_updates), strict=True):
        np.testing.assert_allclose(g[0], w, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(g[1], w, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("shape", [(4, 16, 16, 3), (2, 4, 16, 16, 1), (2, 2, 4, 16, 16, 3)])
def test_wrong_clips_are_named(shape):
    model, variables = tiny()
    with pytest.raises(ValueError, match=re.escape(f"(B, T, H, W, 3) expected; got shape {shape}")):
        model.apply(variables, jnp.zeros(shape))


def test_any_clip_size_fits():
    """Padding keeps every map at one position or more."""
    model, _ = tiny()
    clips = jnp.zeros((1, 1, 1, 1, 3))
    variables = jax.eval_shape(model.init, jax.random.key(0), clips)
    outputs = jax.eval_shape(model.apply, variables, clips)
    assert [m.shape[1:4] for m in outputs.maps] == [(1, 1, 1)] * 4
