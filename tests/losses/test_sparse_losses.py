"""SRM's losses against NumPy float64: values, gradients, stops, extremes, shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skd_jax import losses
from tests.fakes import log_softmax, softmax

RNG = np.random.default_rng(0)
FEATURES, RECONSTRUCTED = RNG.normal(size=(2, 3, 2, 4, 5, 6)).astype(np.float32)
PREDICTED, LABEL = RNG.uniform(0.05, 0.95, size=(2, 3, 7)).astype(np.float32)
SIMILARITY = RNG.uniform(size=(3, 2, 4, 5, 7)).astype(np.float32)
PIXELS = RNG.integers(7, size=(3, 2, 4, 5)).astype(np.int32)


def test_reconstruction_error_and_its_gradient():
    got = losses.reconstruction_error(FEATURES, RECONSTRUCTED)
    difference = FEATURES.astype(np.float64) - RECONSTRUCTED
    np.testing.assert_allclose(got, (difference**2).reshape(3, -1).mean(1), rtol=1e-5)
    gradient = jax.grad(lambda x: losses.reconstruction_error(FEATURES, x).sum())(RECONSTRUCTED)
    np.testing.assert_allclose(gradient, -2 * difference / (2 * 4 * 5 * 6), rtol=1e-4, atol=1e-7)


def test_image_labels_are_means_over_pixels():
    want = SIMILARITY.astype(np.float64).mean((1, 2, 3))
    np.testing.assert_allclose(losses.image_labels(SIMILARITY), want, rtol=1e-5)


def test_image_label_loss_and_its_gradients():
    p, y = PREDICTED.astype(np.float64), LABEL.astype(np.float64)
    got = losses.image_label_loss(PREDICTED, LABEL)
    np.testing.assert_allclose(got, -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean(1), rtol=1e-5)
    to_student, to_teacher = jax.grad(
        lambda a, b: losses.image_label_loss(a, b).sum(), argnums=(0, 1)
    )(PREDICTED, LABEL)
    np.testing.assert_allclose(to_student, (p - y) / (p * (1 - p)) / 7, rtol=1e-4)
    np.testing.assert_array_equal(to_teacher, np.zeros_like(LABEL))


def test_image_label_loss_is_finite_at_zero_and_one():
    p = np.array([[0.0, 0.0, 1.0, 1.0]], np.float32)
    y = np.array([[0.0, 1.0, 0.0, 1.0]], np.float32)
    value, gradient = jax.value_and_grad(lambda x: losses.image_label_loss(x, y).sum())(p)
    # Two right answers cost nothing, two wrong ones as much as the epsilon lets them.
    np.testing.assert_allclose(value, -np.log(1e-7) / 2, rtol=0.02)
    assert np.isfinite(gradient).all()


def test_pixel_label_loss_takes_similarities_for_logits():
    got = losses.pixel_label_loss(SIMILARITY, PIXELS)
    one_hot = np.eye(7)[PIXELS]
    per_pixel = -(one_hot * log_softmax(SIMILARITY)).sum(-1)
    np.testing.assert_allclose(got, per_pixel.reshape(3, -1).mean(1), rtol=1e-5)
    gradient = jax.grad(lambda x: losses.pixel_label_loss(x, PIXELS).sum())(SIMILARITY)
    want = (softmax(SIMILARITY) - one_hot) / (2 * 4 * 5)
    np.testing.assert_allclose(gradient, want, rtol=1e-4, atol=1e-7)


def test_pixel_label_loss_of_a_perfect_student():
    perfect = np.eye(7, dtype=np.float32)[PIXELS]
    got = losses.pixel_label_loss(perfect, PIXELS)
    np.testing.assert_allclose(got, np.log(1 + 6 / np.e), rtol=1e-6)


def adaptive_mean(x, size):
    """PyTorch's rule, cell by cell."""
    out = np.zeros((len(x), *size, x.shape[-1]))
    edges = [
        [(i * m // n, -(-((i + 1) * m) // n)) for i in range(n)]
        for m, n in zip(x.shape[1:4], size, strict=True)
    ]
    for t, (t0, t1) in enumerate(edges[0]):
        for h, (h0, h1) in enumerate(edges[1]):
            for w, (w0, w1) in enumerate(edges[2]):
                out[:, t, h, w] = x[:, t0:t1, h0:h1, w0:w1].astype(np.float64).mean((1, 2, 3))
    return out


@pytest.mark.parametrize("size", [(2, 4, 5), (1, 2, 5), (4, 8, 10), (3, 3, 4), (1, 1, 1)])
def test_resize_mean(size):
    got = losses.resize_mean(SIMILARITY, size)
    assert got.shape == (3, *size, 7) and got.dtype == jnp.float32
    np.testing.assert_allclose(got, adaptive_mean(SIMILARITY, size), rtol=1e-5)


def test_resize_to_twice_the_size_repeats():
    got = losses.resize_mean(SIMILARITY, (4, 8, 10))
    want = SIMILARITY.repeat(2, 1).repeat(2, 2).repeat(2, 3)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("size", [(2, 4, 5), (1, 2, 5), (4, 4, 3)])
def test_pixel_labels_are_the_largest_of_the_resized_code(size):
    code = np.where(SIMILARITY > 0.7, SIMILARITY, 0).astype(np.float32)
    got = losses.pixel_labels(code, size)
    assert got.dtype == jnp.int32
    np.testing.assert_array_equal(got, adaptive_mean(code, size).argmax(-1))


@pytest.mark.parametrize(
    "loss",
    [
        lambda: losses.reconstruction_error(*_bf16(FEATURES, RECONSTRUCTED)),
        lambda: losses.image_label_loss(*_bf16(PREDICTED, LABEL)),
        lambda: losses.pixel_label_loss(*_bf16(SIMILARITY), PIXELS),
        lambda: losses.image_labels(*_bf16(SIMILARITY)),
        lambda: losses.resize_mean(*_bf16(SIMILARITY), (1, 4, 5)),
    ],
)
def test_bfloat16_comes_out_as_float32(loss):
    got = loss()
    assert got.dtype == jnp.float32 and np.isfinite(got).all()


def _bf16(*arrays):
    return [jnp.asarray(x, jnp.bfloat16) for x in arrays]


@pytest.mark.parametrize(
    "call,message",
    [
        (lambda: losses.reconstruction_error(FEATURES, FEATURES[:, :1]), "one shape"),
        (lambda: losses.image_label_loss(PREDICTED, LABEL[:, :3]), r"\(3, 7\) and \(3, 3\)"),
        (lambda: losses.image_label_loss(SIMILARITY, SIMILARITY), r"\(B, K\)"),
        (lambda: losses.pixel_label_loss(SIMILARITY, PIXELS[:, :1]), r"\(3, 1, 4, 5\)"),
        (lambda: losses.resize_mean(SIMILARITY[0], (1, 1, 1)), r"\(B, T, H, W, K\)"),
    ],
)
def test_wrong_shapes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
