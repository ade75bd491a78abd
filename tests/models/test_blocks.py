"""Channel shuffle, squeeze-and-excitation, max-pooling."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skd_jax.models.blocks import SqueezeExcitation, channel_shuffle, scaled
from skd_jax.models.layers import max_pool
from tests.models import families


def test_channel_shuffle_deals_groups_out():
    x = jnp.arange(6)[None]
    assert channel_shuffle(x, 2).tolist() == [[0, 3, 1, 4, 2, 5]]
    assert channel_shuffle(x, 3).tolist() == [[0, 2, 4, 1, 3, 5]]


def test_scaled_is_at_least_one():
    assert [scaled(64, width) for width in (1.0, 0.5, 0.26, 0.001)] == [64, 32, 17, 1]


def test_squeeze_excitation():
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5, 6), "f4")
    model = SqueezeExcitation(2, families.layers()["conv"])
    variables = families.draw(model, x)
    params = variables["params"]
    y = x.mean((1, 2, 3)) @ params["fc1"]["kernel"][0, 0, 0] + params["fc1"]["bias"]
    y = families.relu(y) @ params["fc2"]["kernel"][0, 0, 0] + params["fc2"]["bias"]
    want = x * families.sigmoid(y)[:, None, None, None]
    np.testing.assert_allclose(jax.jit(model.apply)(variables, x), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "window,strides,padding",
    [
        ((1, 3, 3), (1, 2, 2), (0, 1, 1)),
        ((3, 3, 3), (2, 2, 2), (1, 1, 1)),
        ((2, 1, 1), (2, 1, 1), (0, 0, 0)),
    ],
)
def test_max_pool(window, strides, padding):
    """Of negative numbers too, where zeros in the padding would win."""
    x = np.random.default_rng(0).standard_normal((2, 4, 5, 6, 3), "f4") - 5
    padded = np.pad(x, [(0, 0), *((p, p) for p in padding), (0, 0)], constant_values=-np.inf)
    counts = [(n - k) // s + 1 for n, k, s in zip(padded.shape[1:4], window, strides, strict=True)]
    shifted = [
        padded[:, t::, h::, w::][:, :: strides[0], :: strides[1], :: strides[2]][
            :, : counts[0], : counts[1], : counts[2]
        ]
        for t, h, w in itertools.product(*map(range, window))
    ]
    got = max_pool(jnp.asarray(x), window, strides, padding)
    np.testing.assert_array_equal(got, np.max(shifted, axis=0))


def test_max_pool_of_too_little_is_named():
    x = jnp.zeros((2, 1, 4, 4, 3))
    with pytest.raises(ValueError, match=r"\(2, 1, 4, 4, 3\) are too small: axis T has 1, .* 2"):
        max_pool(x, (2, 1, 1), (2, 1, 1), (0, 0, 0))
