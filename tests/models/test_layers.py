"""Pooling as PyTorch's, its gradient, and its errors."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skd_jax.models.layers import max_pool, uniform_fan_in
from tests.fakes import quick_compilation  # noqa: F401  a fixture

pytestmark = pytest.mark.usefixtures("quick_compilation")

# (clip, window, strides, padding)
CASES = {
    "stem": ((2, 5, 7, 6, 3), (3, 3, 3), (2, 2, 2), (1, 1, 1)),
    "space": ((1, 3, 6, 5, 2), (1, 3, 3), (1, 2, 2), (0, 1, 1)),
    "branch": ((2, 3, 4, 2, 2), (3, 3, 3), (1, 1, 1), (1, 1, 1)),
    "halving": ((1, 4, 5, 6, 2), (2, 2, 2), (2, 2, 2), (0, 0, 0)),
    "one_position": ((1, 1, 1, 1, 2), (3, 3, 3), (2, 2, 2), (1, 1, 1)),
}


def by_search(x, cotangent, window, strides, padding):
    """Each window's maximum, and the cotangent at the first position that has it."""
    out = np.empty_like(cotangent)
    gradient = np.zeros_like(x)
    for place in np.ndindex(*cotangent.shape[1:4]):
        axes = []
        for i, k, s, p, n in zip(place, window, strides, padding, x.shape[1:4], strict=True):
            axes.append([j for j in range(i * s - p, i * s - p + k) if 0 <= j < n])
        positions = list(itertools.product(*axes))
        for b, c in itertools.product(range(x.shape[0]), range(x.shape[4])):
            best = max(positions, key=lambda at, b=b, c=c: x[b, *at, c])  # the first, if several
            out[b, *place, c] = x[b, *best, c]
            gradient[b, *best, c] += cotangent[b, *place, c]
    return out, gradient


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def test_maxima_and_their_gradient(case, dtype):
    shape, window, strides, padding = CASES[case]
    rng = np.random.default_rng(0)
    # Few values, most of them below zero: maxima are often equal, and padding must never win.
    x = rng.integers(-4, 1, shape).astype(np.float32)
    sizes = [
        (n + 2 * p - k) // s + 1
        for n, k, s, p in zip(shape[1:4], window, strides, padding, strict=True)
    ]
    cotangent = rng.integers(1, 9, (shape[0], *sizes, shape[4])).astype(np.float32)

    @jax.jit
    def both(x, cotangent):
        y, vjp = jax.vjp(lambda x: max_pool(x, window, strides, padding), x)
        return y, vjp(cotangent)[0]

    got, gradient = both(jnp.asarray(x, dtype), jnp.asarray(cotangent, dtype))
    want, want_gradient = by_search(x, cotangent, window, strides, padding)
    assert got.dtype == gradient.dtype == dtype
    np.testing.assert_array_equal(np.asarray(got, np.float32), want)
    np.testing.assert_array_equal(np.asarray(gradient, np.float32), want_gradient)


def test_a_nan_is_the_maximum_of_every_window_it_is_in():
    x = np.zeros((1, 3, 5, 5, 1), np.float32)
    x[0, 1, 2, 2, 0] = np.nan
    pooled = np.asarray(max_pool(x, (3, 3, 3), (1, 1, 1), (1, 1, 1)))[0, ..., 0]
    assert np.isnan(pooled[:, 1:4, 1:4]).all()
    assert np.isnan(pooled).sum() == 27


def test_maps_too_small_to_pool_are_named():
    with pytest.raises(ValueError, match="axis H has 1, the max-pooling needs at least 2"):
        max_pool(jnp.zeros((1, 2, 1, 2, 3)), (2, 2, 2), (2, 2, 2))
    with pytest.raises(ValueError, match="padding 2 is more than half of the pooling window 3"):
        max_pool(jnp.zeros((1, 4, 4, 4, 3)), (3, 3, 3), (1, 1, 1), (1, 1, 2))


def test_uniform_fan_in_has_pytorchs_bound():
    kernel = np.asarray(uniform_fan_in(jax.random.key(0), (3, 2, 1, 4, 500)))
    bound = 24**-0.5
    assert 0.99 * bound < kernel.max() <= bound and -bound <= kernel.min() < -0.99 * bound
    np.testing.assert_allclose(kernel.std(), bound / np.sqrt(3), rtol=0.02)
