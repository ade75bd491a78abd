"""CRD's losses against NumPy float64, on one replica and on two."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skd_jax import losses
from tests.fakes import quick_compilation  # noqa: F401  a fixture

RNG = np.random.default_rng(0)
VIDEOS, TEMPERATURE = 50, 0.3


def unit(x):
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


ANCHORS, POSITIVES = unit(RNG.normal(size=(2, 6, 5)))
NEGATIVES = unit(RNG.normal(size=(8, 5)))
COUNTED = RNG.random((6, 8)) < 0.7


def scores(anchors, positives, negatives):
    u, v, w = (x.astype(np.float64) for x in (anchors, positives, negatives))
    return np.exp(np.concatenate([(u * v).sum(1, keepdims=True), u @ w.T], 1) / TEMPERATURE)


def estimate(x, counted):
    """Mean over the anchors, of scores (B, 1 + M) that are divided by Z."""
    noise = (x.shape[1] - 1) / VIDEOS
    h = x / (x + noise)
    return (-np.log(h[:, 0]) - (np.log(1 - h[:, 1:]) * counted).sum(1)).mean()


def loss(anchors, positives, negatives, scale, counted=None):
    return losses.contrastive_representation(
        anchors, positives, negatives, VIDEOS, TEMPERATURE, scale, counted
    )


def test_scale_is_the_videos_number_times_the_mean_score():
    pairs = (ANCHORS, POSITIVES, NEGATIVES)
    want = scores(*pairs).mean() * VIDEOS
    got, gradient = jax.jit(
        jax.value_and_grad(lambda u: losses.contrastive_scale(u, *pairs[1:], VIDEOS, TEMPERATURE))
    )(ANCHORS)
    assert got.shape == () and got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, rtol=1e-5)
    np.testing.assert_array_equal(gradient, 0 * ANCHORS)  # a constant


@pytest.mark.parametrize("counted", [None, COUNTED], ids=["all", "some"])
def test_value_and_gradient(counted):
    scale = 70.0
    weights = np.ones((6, 8)) if counted is None else counted
    got, gradient = jax.jit(jax.value_and_grad(loss))(ANCHORS, POSITIVES, NEGATIVES, scale, counted)
    x = scores(ANCHORS, POSITIVES, NEGATIVES) / scale
    assert got.shape == () and got.dtype == jnp.float32
    np.testing.assert_allclose(got, estimate(x, weights), rtol=1e-4)
    # d/ds of -log(s / (s + n)) is -n / (s (s + n)), of -log(n / (s + n)) it is 1 / (s + n).
    noise = 8 / VIDEOS
    to_cosine = x / (x + noise) * np.concatenate([np.zeros((6, 1)), weights], 1)
    to_cosine[:, 0] = -noise / (x[:, 0] + noise)
    want = to_cosine[:, :1] * POSITIVES + to_cosine[:, 1:] @ NEGATIVES.astype(np.float64)
    np.testing.assert_allclose(gradient, want / TEMPERATURE / 6, rtol=1e-3, atol=1e-6)


def test_an_anchor_sees_no_other_anchor_and_replicas_share_the_scale():
    """Halves of a batch on two replicas: the mean of their losses is that of the whole."""
    halves = [x.reshape(2, 3, *x.shape[1:]) for x in (ANCHORS, POSITIVES, COUNTED)]

    @jax.jit
    @functools.partial(jax.vmap, axis_name="replicas")
    def on_replica(anchors, positives, counted):
        pairs = (anchors, positives, NEGATIVES)
        scale = losses.contrastive_scale(*pairs, VIDEOS, TEMPERATURE, "replicas")
        return scale, loss(*pairs, scale, counted)

    scale, values = on_replica(*halves)
    want = scores(ANCHORS, POSITIVES, NEGATIVES)
    np.testing.assert_allclose(scale, [want.mean() * VIDEOS] * 2, rtol=1e-5)
    np.testing.assert_allclose(
        values.mean(), estimate(want / want.mean() / VIDEOS, COUNTED), rtol=1e-4
    )
    assert abs(values[0] - values[1]) > 1e-3


def test_bfloat16_is_computed_in_float32_and_wrong_shapes_are_named():
    half = [jnp.asarray(x, jnp.bfloat16) for x in (ANCHORS, POSITIVES, NEGATIVES)]
    run = jax.jit(loss)
    want = run(*(x.astype(jnp.float32) for x in half), 70.0)
    assert want.dtype == jnp.float32
    np.testing.assert_array_equal(run(*half, 70.0), want)
    with pytest.raises(ValueError, match=r"\(6, 5\) and \(4, 5\)"):
        loss(ANCHORS, POSITIVES[:4], NEGATIVES, 1.0)
    with pytest.raises(ValueError, match=r"negatives \(M, 5\) expected, got shape \(8, 4\)"):
        loss(ANCHORS, POSITIVES, NEGATIVES[:, :4], 1.0)
