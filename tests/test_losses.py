"""Every loss against its closed form in NumPy float64: values, gradients, extremes, shapes."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from skd_jax import losses
from tests.fakes import cosine, kl, log_softmax, softmax

RNG = np.random.default_rng(0)
STUDENT, TEACHER = (3 * RNG.normal(size=(2, 5, 7))).astype(np.float32)
FIRST, SECOND = RNG.normal(size=(2, 5, 9)).astype(np.float32)
LABELS = np.array([0, 6, 3, 3, 1], np.int32)
ONE_HOT = np.eye(7)[LABELS]
MIXED = softmax(RNG.normal(size=(5, 7))).astype(np.float32)

variants = chex.variants(with_jit=True, without_jit=True)


class ClosedFormTest(chex.TestCase):
    """Values, jitted and not; test_parallel.py has the pmapped form."""

    @variants
    @parameterized.product(labels=["integer", "soft"], smoothing=[0.0, 0.1, 0.7])
    def test_cross_entropy(self, labels, smoothing):
        given, target = {"integer": (LABELS, ONE_HOT), "soft": (MIXED, MIXED)}[labels]
        loss = self.variant(functools.partial(losses.cross_entropy, label_smoothing=smoothing))
        target = (1 - smoothing) * target + smoothing / 7
        got = loss(STUDENT, given)
        assert got.shape == (5,) and got.dtype == jnp.float32
        np.testing.assert_allclose(got, -(target * log_softmax(STUDENT)).sum(-1), rtol=1e-5)

    @variants
    @parameterized.product(temperature=[0.5, 1.0, 4.0, 10.0], scale_by_t2=[False, True])
    def test_soft_label_distillation(self, temperature, scale_by_t2):
        loss = self.variant(
            functools.partial(
                losses.soft_label_distillation, temperature=temperature, scale_by_t2=scale_by_t2
            )
        )
        want = kl(STUDENT, TEACHER, temperature) * (temperature**2 if scale_by_t2 else 1)
        got = loss(STUDENT, TEACHER)
        assert got.shape == (5,) and got.dtype == jnp.float32
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)

    @variants
    def test_siamese_similarity(self):
        got = self.variant(losses.siamese_similarity)(FIRST, SECOND)
        assert got.shape == (5,) and got.dtype == jnp.float32
        np.testing.assert_allclose(got, -cosine(FIRST, SECOND), rtol=1e-5, atol=1e-6)


def test_temperature_may_be_traced():
    got = jax.jit(losses.soft_label_distillation)(STUDENT, TEACHER, 3.0)
    np.testing.assert_allclose(got, kl(STUDENT, TEACHER, 3.0), rtol=1e-4)


def test_cosine_of_any_leading_axes():
    got = losses.cosine(np.stack([FIRST, SECOND]), np.stack([SECOND, FIRST]))
    np.testing.assert_allclose(got, np.stack([cosine(FIRST, SECOND)] * 2), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_gradient_of_cross_entropy(smoothing):
    got = jax.grad(lambda x: losses.cross_entropy(x, LABELS, smoothing).sum())(STUDENT)
    want = softmax(STUDENT) - ((1 - smoothing) * ONE_HOT + smoothing / 7)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 10.0])
@pytest.mark.parametrize("scale_by_t2", [False, True])
def test_distillation_passes_gradients_to_student_and_teacher(temperature, scale_by_t2):
    def loss(student, teacher):
        return losses.soft_label_distillation(student, teacher, temperature, scale_by_t2).sum()

    to_student, to_teacher = jax.grad(loss, (0, 1))(STUDENT, TEACHER)
    s = log_softmax(STUDENT.astype(np.float64) / temperature)
    t = log_softmax(TEACHER.astype(np.float64) / temperature)
    scale = temperature if scale_by_t2 else 1 / temperature  # T^2 / T
    want = scale * (np.exp(s) - np.exp(t))
    np.testing.assert_allclose(to_student, want, rtol=1e-3, atol=1e-6)
    divergence = (np.exp(t) * (t - s)).sum(-1, keepdims=True)
    want = scale * np.exp(t) * (t - s - divergence)
    np.testing.assert_allclose(to_teacher, want, rtol=1e-3, atol=2e-6)


def test_similarity_passes_a_gradient_to_the_prediction_only():
    def loss(prediction, projection):
        return losses.siamese_similarity(prediction, projection).sum()

    to_prediction, to_projection = jax.grad(loss, (0, 1))(FIRST, SECOND)
    p, z = FIRST.astype(np.float64), SECOND.astype(np.float64)
    length = np.linalg.norm(p, axis=-1, keepdims=True)
    z = z / np.linalg.norm(z, axis=-1, keepdims=True)
    want = -(z - p / length * (p / length * z).sum(-1, keepdims=True)) / length
    np.testing.assert_allclose(to_prediction, want, rtol=1e-3, atol=1e-6)
    np.testing.assert_array_equal(to_projection, np.zeros_like(SECOND))


EXTREME = np.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4], [1e4, 1e4, 1e4]], np.float32)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_of_extreme_logits(smoothing):
    labels = np.array([1, 0, 2])

    def loss(x):
        return losses.cross_entropy(x, labels, smoothing)

    target = (1 - smoothing) * np.eye(3)[labels] + smoothing / 3
    np.testing.assert_allclose(loss(EXTREME), -(target * log_softmax(EXTREME)).sum(-1), rtol=1e-5)
    gradient = jax.grad(lambda x: loss(x).sum())(EXTREME)
    np.testing.assert_allclose(gradient, softmax(EXTREME) - target, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 10.0])
def test_distillation_of_extreme_logits(temperature):
    def loss(student, teacher):
        return losses.soft_label_distillation(student, teacher, temperature)

    teacher = EXTREME[::-1].copy()
    np.testing.assert_allclose(loss(EXTREME, teacher), kl(EXTREME, teacher, temperature), rtol=1e-5)
    gradients = jax.grad(lambda s, t: loss(s, t).sum(), (0, 1))(EXTREME, teacher)
    assert np.isfinite(gradients).all()
    want = (softmax(EXTREME / temperature) - softmax(teacher / temperature)) / temperature
    np.testing.assert_allclose(gradients[0], want, atol=1e-6)


@pytest.mark.parametrize("zero", ["prediction", "projection", "both"])
def test_similarity_of_zero_vectors_is_zero_with_finite_gradients(zero):
    p = np.zeros_like(FIRST) if zero in ("prediction", "both") else FIRST
    z = np.zeros_like(SECOND) if zero in ("projection", "both") else SECOND
    np.testing.assert_array_equal(losses.siamese_similarity(p, z), np.zeros(5))
    gradient = jax.grad(lambda p: losses.siamese_similarity(p, z).sum())(p)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("length", [1e-2, 1e4])
def test_similarity_does_not_depend_on_the_length(length):
    got = losses.siamese_similarity(length * FIRST, SECOND / length)
    np.testing.assert_allclose(got, -cosine(FIRST, SECOND), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "loss",
    [
        lambda a, b: losses.cross_entropy(a, LABELS, 0.1),
        lambda a, b: losses.soft_label_distillation(a, b, 2.0),
        losses.siamese_similarity,
        losses.cosine,
    ],
)
def test_bfloat16_inputs_are_computed_in_float32(loss):
    a, b = jnp.asarray(STUDENT, jnp.bfloat16), jnp.asarray(TEACHER, jnp.bfloat16)
    got = loss(a, b)
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, loss(a.astype(jnp.float32), b.astype(jnp.float32)))


@pytest.mark.parametrize(
    "call,message",
    [
        (lambda: losses.cross_entropy(STUDENT[0], LABELS), r"logits must have shape \(B, K\)"),
        (lambda: losses.cross_entropy(STUDENT, LABELS[:4]), r"integers of shape \(5,\).*\(4,\)"),
        (lambda: losses.cross_entropy(STUDENT, LABELS * 1.0), r"got float\d+ of shape \(5,\)"),
        (lambda: losses.cross_entropy(STUDENT, MIXED[:, :6]), r"got float32 of shape \(5, 6\)"),
        (
            lambda: losses.soft_label_distillation(STUDENT, TEACHER[:, :6], 1.0),
            r"\(5, 7\) and \(5, 6\)",
        ),
        (lambda: losses.soft_label_distillation(STUDENT[0], TEACHER[0], 1.0), r"\(B, K\)"),
        (lambda: losses.soft_label_distillation(STUDENT, TEACHER, 0.0), "positive, got 0.0"),
        (lambda: losses.siamese_similarity(FIRST, SECOND[:4]), r"\(5, 9\) and \(4, 9\)"),
        (lambda: losses.siamese_similarity(FIRST[0], SECOND[0]), r"\(B, D\)"),
    ],
)
def test_wrong_shapes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
