"""Targets that are designed, remembered or mixed, against NumPy float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skd_jax import losses
from tests.fakes import kl, log_softmax, softmax

RNG = np.random.default_rng(0)
STUDENT, TEACHER = (3 * RNG.normal(size=(2, 5, 7))).astype(np.float32)
LABELS = np.array([0, 6, 3, 3, 1], np.int32)
ONE_HOT = np.eye(7)[LABELS]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("scale_by_t2", [False, True])
def test_distillation_from_probabilities(temperature, scale_by_t2):
    target = softmax(TEACHER).astype(np.float32)
    student = log_softmax(STUDENT / temperature)
    want = (target * (np.log(target.astype(np.float64)) - student)).sum(-1)
    want *= temperature**2 if scale_by_t2 else 1
    got = jax.jit(losses.probability_distillation, static_argnums=(2, 3))(
        STUDENT, target, temperature, scale_by_t2
    )
    assert got.shape == (5,) and got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)
    gradient = jax.grad(
        lambda q: losses.probability_distillation(q, target, temperature, scale_by_t2).sum()
    )(STUDENT)
    scale = temperature if scale_by_t2 else 1 / temperature
    np.testing.assert_allclose(gradient, scale * (np.exp(student) - target), rtol=1e-3, atol=1e-5)


def test_distillation_from_a_softmax_is_that_from_its_logits():
    got = losses.probability_distillation(STUDENT, softmax(TEACHER / 3), 3.0, True)
    np.testing.assert_allclose(got, 9 * kl(STUDENT, TEACHER, 3), rtol=1e-4)


def test_a_target_that_is_certain_has_finite_values_and_gradients():
    extreme = np.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4], [0.0, 0.0, 0.0]], np.float32)
    labels = np.array([0, 0, 2])
    target = np.eye(3, dtype=np.float32)[labels]

    def loss(q):
        return losses.probability_distillation(q, target)

    np.testing.assert_allclose(loss(extreme), -log_softmax(extreme)[np.arange(3), labels])
    gradient = jax.grad(lambda q: loss(q).sum())(extreme)
    np.testing.assert_allclose(gradient, softmax(extreme) - target, atol=1e-6)


@pytest.mark.parametrize("temperature,correct", [(1.0, 0.99), (20.0, 0.99), (20.0, 0.6)])
def test_virtual_teacher(temperature, correct):
    u = np.where(ONE_HOT, correct, (1 - correct) / 6)
    np.testing.assert_allclose(u.sum(1), 1)
    got = losses.virtual_teacher(LABELS, 7, temperature, correct)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, softmax(u / temperature), rtol=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_progressive_targets(alpha):
    previous = softmax(TEACHER).astype(np.float32)
    previous[[1, 4]] = 0  # not seen yet
    want = (1 - alpha) * ONE_HOT + alpha * previous
    want[[1, 4]] = ONE_HOT[[1, 4]]
    got = jax.jit(losses.progressive_targets)(LABELS, previous, alpha)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(got.sum(1), 1, rtol=1e-6)


def test_bfloat16_inputs_are_computed_in_float32():
    student, teacher = (jnp.asarray(x, jnp.bfloat16) for x in (STUDENT, softmax(TEACHER)))
    for loss in (
        lambda a, b: losses.probability_distillation(a, b, 2.0),
        lambda a, b: losses.progressive_targets(LABELS, b, 0.5),
    ):
        got = loss(student, teacher)
        assert got.dtype == jnp.float32
        as_float = (student.astype(jnp.float32), teacher.astype(jnp.float32))
        np.testing.assert_array_equal(got, loss(*as_float))


@pytest.mark.parametrize(
    "call,message",
    [
        (
            lambda: losses.probability_distillation(STUDENT, TEACHER[:4]),
            r"\(5, 7\) and \(4, 7\)",
        ),
        (lambda: losses.probability_distillation(STUDENT, TEACHER, 0.0), "positive, got 0.0"),
        (lambda: losses.virtual_teacher(LABELS, 1, 2.0), "at least 2, got 1"),
        (lambda: losses.virtual_teacher(LABELS, 7, -1.0), "positive, got -1.0"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
