"""SimSiam's heads: parameter counts, what they compute, precision, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skd_jax.models.heads import Predictor, Projector


def count(head, width):
    shapes = jax.eval_shape(head.init, jax.random.key(0), jnp.zeros((2, width)))
    return sum(x.size for x in jax.tree.leaves(shapes["params"]))


@pytest.mark.parametrize("width,total", [(512, 1_576_960), (1024, 4_200_448), (2048, 12_593_152)])
def test_projector_has_simsiams_trainable_parameters(width, total):
    """SimSiam's total holds a frozen bias of 2,048 that BatchNorm cancels."""
    assert count(Projector(), width) == total - 2048


def test_predictor_has_simsiams_parameters():
    assert count(Predictor(), 2048) == 2_100_224


def test_widths_are_configurable():
    # 6*7 + 7*7 + 7*5 weights and two BatchNorms of 7.
    assert count(Projector(features=5, hidden=7), 6) == 126 + 28
    # 6*4 + 4*6 weights, a bias of 6 and a BatchNorm of 4.
    assert count(Predictor(hidden=4), 6) == 48 + 6 + 8


def batch_norm(x):
    return (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)


def test_projector_computes_linear_norm_relu():
    x = np.asarray(jax.random.normal(jax.random.key(1), (16, 6)))
    head = Projector(features=5, hidden=7)
    variables = head.init(jax.random.key(0), x)
    got, updates = head.apply(variables, x, train=True, mutable=["batch_stats"])
    kernels = [np.asarray(variables["params"][f"fc{i}"]["kernel"], np.float64) for i in (1, 2, 3)]
    hidden = np.maximum(batch_norm(x @ kernels[0]), 0)
    hidden = np.maximum(batch_norm(hidden @ kernels[1]), 0)
    np.testing.assert_allclose(got, batch_norm(hidden @ kernels[2]), rtol=1e-3, atol=1e-4)
    running = 0.1 * (hidden @ kernels[2]).mean(0)
    np.testing.assert_allclose(updates["batch_stats"]["bn3"]["mean"], running, rtol=1e-3, atol=1e-5)


def test_predictor_computes_bottleneck_and_uses_running_statistics_in_evaluation():
    x = np.asarray(jax.random.normal(jax.random.key(1), (16, 8)))
    head = Predictor()
    variables = head.init(jax.random.key(0), x)
    params = variables["params"]
    assert params["fc1"]["kernel"].shape == (8, 2)
    params["fc2"]["bias"] = jnp.arange(8.0)
    first, second = (np.asarray(params[f"fc{i}"]["kernel"], np.float64) for i in (1, 2))
    got, _ = head.apply(variables, x, train=True, mutable=["batch_stats"])
    want = np.maximum(batch_norm(x @ first), 0) @ second + np.arange(8)
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)
    want = np.maximum(x @ first / np.sqrt(1 + 1e-5), 0) @ second + np.arange(8)
    np.testing.assert_allclose(head.apply(variables, x), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head", [Projector, Predictor])
def test_bfloat16_keeps_float32_parameters_statistics_and_output(head):
    x = jax.random.normal(jax.random.key(1), (8, 16))
    half = head(dtype="bfloat16")
    variables = half.init(jax.random.key(0), x)
    got, updates = half.apply(variables, x, train=True, mutable=["batch_stats"])
    want, _ = head().apply(variables, x, train=True, mutable=["batch_stats"])
    leaves = [got, *jax.tree.leaves(variables), *jax.tree.leaves(updates)]
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}
    np.testing.assert_allclose(got, want, atol=0.15)
    assert not np.array_equal(got, want)  # it did compute in bfloat16


@pytest.mark.parametrize("head", [Projector, Predictor])
def test_statistics_over_a_mapped_axis(head):
    x = jax.random.normal(jax.random.key(1), (8, 16))
    variables = head().init(jax.random.key(0), x)
    want, _ = head().apply(variables, x, train=True, mutable=["batch_stats"])

    def replica(x):
        return head(axis_name="batch").apply(variables, x, train=True, mutable=["batch_stats"])[0]

    got = jax.vmap(replica, axis_name="batch")(x.reshape(2, 4, 16)).reshape(8, -1)
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("head", [Projector, Predictor])
def test_feature_maps_instead_of_embeddings_are_refused(head):
    with pytest.raises(ValueError, match=r"\(B, D\); got shape \(2, 4, 4, 8\)"):
        head().init(jax.random.key(0), jnp.zeros((2, 4, 4, 8)))
