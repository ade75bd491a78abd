"""What looks at a whole batch, against NumPy float64, and on two replicas against one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skd_jax import losses, parallel
from tests.fakes import softmax

RNG = np.random.default_rng(0)
FIRST, SECOND = RNG.normal(size=(2, 6, 9)).astype(np.float32)
LOGITS = (3 * RNG.normal(size=(6, 4))).astype(np.float32)
MIXING = RNG.normal(size=(9, 9)).astype(np.float32)


def ensemble(embedding, logits, temperature, omega):
    """The infinite series of mixing, and no matrix inverse."""
    e = np.asarray(embedding, np.float64)
    e = e / np.maximum(np.linalg.norm(e, axis=1, keepdims=True), 1e-12)
    weights = np.exp(e @ e.T)
    np.fill_diagonal(weights, 0)
    weights /= weights.sum(1, keepdims=True)
    mixed = own = softmax(np.asarray(logits, np.float64) / temperature)
    for _ in range(2000):
        mixed = omega * weights @ mixed + (1 - omega) * own
    return mixed


def test_discrepancy_is_the_squared_distance_of_the_means():
    def loss(a, b):
        return losses.maximum_mean_discrepancy(a, b)

    difference = FIRST.astype(np.float64).mean(0) - SECOND.mean(0, dtype=np.float64)
    value, gradients = jax.value_and_grad(loss, (0, 1))(FIRST, SECOND)
    assert value.shape == () and value.dtype == jnp.float32
    np.testing.assert_allclose(value, (difference**2).sum(), rtol=1e-5)
    want = np.broadcast_to(2 * difference / 6, (6, 9))
    np.testing.assert_allclose(gradients[0], want, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(gradients[1], -want, rtol=1e-4, atol=1e-7)


def test_discrepancy_looks_at_every_feature():
    """Equal over all features at once, and yet different samples."""
    first = np.array([[1.0, -1.0], [3.0, -3.0]], np.float32)
    assert losses.maximum_mean_discrepancy(first, -first) == 32.0
    assert losses.maximum_mean_discrepancy(first, first[::-1]) == 0.0
    gradient = jax.grad(losses.maximum_mean_discrepancy)(0 * first, 0 * first)
    np.testing.assert_array_equal(gradient, 0 * first)


@pytest.mark.parametrize("temperature,omega", [(1.0, 0.5), (4.0, 0.5), (4.0, 0.9), (4.0, 0.0)])
def test_ensemble_is_the_limit_of_mixing(temperature, omega):
    got = jax.jit(losses.batch_ensemble, static_argnums=(2, 3))(FIRST, LOGITS, temperature, omega)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, ensemble(FIRST, LOGITS, temperature, omega), rtol=1e-4)
    np.testing.assert_allclose(got.sum(1), 1, rtol=1e-5)


def test_ensemble_of_one_and_of_zero_vectors():
    np.testing.assert_allclose(
        losses.batch_ensemble(FIRST[:1], LOGITS[:1], 2.0, 0.5), softmax(LOGITS[:1] / 2), rtol=1e-5
    )
    got = losses.batch_ensemble(0 * FIRST, 1e4 * LOGITS, 2.0, 0.5)
    np.testing.assert_allclose(got, ensemble(0 * FIRST, 1e4 * LOGITS, 2.0, 0.5), rtol=1e-4)


def distilled(embedding, logits, axis_name=None):
    return losses.ensemble_distillation(embedding, logits, 4.0, 0.5, axis_name)


def test_distillation_from_the_ensemble_and_its_gradient():
    """The targets, and who resembles whom, are constants."""
    got, (to_embedding, to_logits) = jax.jit(jax.value_and_grad(distilled, (0, 1)))(FIRST, LOGITS)
    targets = ensemble(FIRST, LOGITS, 4.0, 0.5)
    student = softmax(LOGITS.astype(np.float64) / 4)
    want = 16 * (targets * np.log(targets / student)).sum(1).mean()
    assert got.shape == () and got.dtype == jnp.float32 and want > 1e-3
    np.testing.assert_allclose(got, want, rtol=1e-3)
    np.testing.assert_allclose(to_logits, 4 * (student - targets) / 6, rtol=1e-3, atol=1e-6)
    np.testing.assert_array_equal(to_embedding, 0 * FIRST)


def test_replicas_distil_their_examples_from_the_ensemble_of_all():
    got = in_parts(distilled, FIRST, LOGITS)
    np.testing.assert_allclose(got.mean(), distilled(FIRST, LOGITS), rtol=1e-4)
    assert abs(got[0] - distilled(FIRST[:3], LOGITS[:3])) > 1e-4


def in_parts(function, *arrays):
    """A function of (arrays, axis_name) on two replicas, its results one after the other."""
    parts = [a.reshape(2, 3, *a.shape[1:]) for a in arrays]
    got = jax.vmap(lambda *part: function(*part, "batch"), axis_name="batch")(*parts)
    return np.asarray(got)


def test_replicas_mix_the_examples_of_all():
    def mixed(embedding, logits, axis_name):
        return losses.batch_ensemble(embedding, logits, 4.0, 0.5, axis_name)

    got = in_parts(mixed, FIRST, LOGITS).reshape(6, 4)
    np.testing.assert_allclose(got, mixed(FIRST, LOGITS, None), rtol=1e-5)
    apart = mixed(FIRST[:3], LOGITS[:3], None)
    assert abs(got[:3] - apart).max() > 1e-3


def test_replicas_share_one_discrepancy_and_its_gradient():
    """The parameters' gradient as a step takes it: the replicas' own, then their mean."""

    def gradient(first, second, axis_name):
        def loss(weights):
            return losses.maximum_mean_discrepancy(first @ weights, second @ weights, axis_name)

        value, found = jax.value_and_grad(loss)(MIXING)
        if axis_name is not None:
            found = parallel.mean_over_replicas(found, axis_name)
        return jnp.append(found, value)

    want = gradient(FIRST, SECOND, None)
    assert abs(want).max() > 0.1
    for got in in_parts(gradient, FIRST, SECOND):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_bfloat16_inputs_are_computed_in_float32():
    first, second, logits = (jnp.asarray(x, jnp.bfloat16) for x in (FIRST, SECOND, LOGITS))
    for function, inputs in (
        (losses.maximum_mean_discrepancy, (first, second)),
        (lambda e, q: losses.batch_ensemble(e, q, 2.0, 0.5), (first, logits)),
    ):
        got = function(*inputs)
        assert got.dtype == jnp.float32
        np.testing.assert_array_equal(got, function(*(x.astype(jnp.float32) for x in inputs)))


@pytest.mark.parametrize(
    "call,message",
    [
        (
            lambda: losses.maximum_mean_discrepancy(FIRST, SECOND[:4]),
            r"\(6, 9\) and \(4, 9\)",
        ),
        (lambda: losses.batch_ensemble(FIRST, LOGITS[:5], 1.0, 0.5), r"\(6, 9\) and \(5, 4\)"),
        (lambda: losses.batch_ensemble(FIRST, LOGITS, 0.0, 0.5), "positive, got 0.0"),
        (lambda: losses.batch_ensemble(FIRST, LOGITS, 1.0, 1.0), r"\[0, 1\), got 1.0"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
