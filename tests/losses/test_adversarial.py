"""MixSKD's discriminator loss against NumPy float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skd_jax import losses

INTERPOLATED, MIXED = 3 * np.random.default_rng(0).normal(size=(2, 5, 2)).astype(
    np.float32
)  # logits


def sigmoid(x):
    return 1 / (1 + np.exp(-x.astype(np.float64)))


def test_value_and_gradient_on_both_sides():
    p, q = sigmoid(INTERPOLATED), sigmoid(MIXED)
    want = -np.log([p[:, 0], 1 - p[:, 1], 1 - q[:, 0], q[:, 1]]).mean(0)
    got = losses.told_apart(INTERPOLATED, MIXED)
    assert got.shape == (5,) and got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, rtol=1e-5)
    gradients = jax.grad(lambda a, b: losses.told_apart(a, b).sum(), (0, 1))(INTERPOLATED, MIXED)
    np.testing.assert_allclose(gradients[0], (p - [1, 0]) / 4, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(gradients[1], (q - [0, 1]) / 4, rtol=1e-4, atol=1e-7)


def test_extremes_dtypes_and_shapes():
    sure = np.array([[1e4, -1e4]], np.float32)
    np.testing.assert_array_equal(losses.told_apart(sure, -sure), [0.0])
    np.testing.assert_allclose(losses.told_apart(-sure, sure), [1e4])
    assert losses.told_apart(jnp.asarray(MIXED, jnp.bfloat16), MIXED).dtype == jnp.float32
    with pytest.raises(ValueError, match=r"of each kind expected, got \(5, 2\) and \(4, 2\)"):
        losses.told_apart(INTERPOLATED, MIXED[:4])
