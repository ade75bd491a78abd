"""Losses between a teacher and a student against NumPy float64, replica by replica and at extremes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skd_jax import losses, parallel
from tests.fakes import quick_compilation, softmax  # noqa: F401  the first is a fixture

RNG = np.random.default_rng(0)
STUDENT = RNG.normal(size=(6, 5)).astype(np.float32)
TEACHER = RNG.normal(size=(6, 7)).astype(np.float32)
MAPS, OTHER = RNG.normal(size=(2, 3, 2, 3, 4, 5)).astype(np.float32)
SCALE = {"student": STUDENT, "teacher": TEACHER}


def pkt(s, t):
    def p(x):
        x = x / (np.linalg.norm(x, axis=1, keepdims=True) + 1e-7)
        k = (x @ x.T + 1) / 2
        return k / k.sum(1, keepdims=True)

    return (p(t) * np.log((p(t) + 1e-7) / (p(s) + 1e-7))).sum() / len(s) ** 2


def smooth_l1(a, b):
    d = abs(a - b)
    return np.where(d < 1, d * d / 2, d - 0.5).mean()


def distances(s, t):
    def psi(x):
        d = np.array([[np.linalg.norm(a - b) for b in x] for a in x])
        return d / d[d > 0].mean()

    return smooth_l1(psi(s), psi(t))


def angles(s, t):
    def cosine(x):
        n = len(x)
        out = np.zeros((n, n, n))
        for i in range(n):
            for j in range(n):
                for k in range(n):
                    a, b = x[i] - x[j], x[k] - x[j]
                    length = np.linalg.norm(a) * np.linalg.norm(b)
                    out[j, i, k] = a @ b / length if length else 0.0
        return out

    return smooth_l1(cosine(s), cosine(t))


def sp(s, t):
    def gram(x):
        g = x @ x.T
        return g / np.linalg.norm(g, axis=1, keepdims=True)

    return np.square(gram(s) - gram(t)).sum() / len(s) ** 2


RELATIONS = {
    losses.probabilistic_transfer: pkt,
    losses.relational_distances: distances,
    losses.relational_angles: angles,
    losses.similarity_preserving: sp,
}
relations = pytest.mark.parametrize("loss", RELATIONS, ids=lambda f: f.__name__)


@relations
def test_relations_follow_their_definitions(loss):
    got = jax.jit(loss)(STUDENT, TEACHER)
    want = RELATIONS[loss](STUDENT.astype(np.float64), TEACHER.astype(np.float64))
    assert got.shape == () and got.dtype == jnp.float32 and want > 1e-4
    np.testing.assert_allclose(got, want, rtol=1e-4)
    same = jax.jit(loss)(STUDENT, STUDENT)
    np.testing.assert_allclose(same, 0, atol=1e-6)


@relations
def test_relations_are_taught_one_way_and_maps_are_flattened(loss):
    student, teacher = jax.jit(jax.grad(loss, (0, 1)))(STUDENT, TEACHER)
    assert np.abs(student).max() > 1e-5
    np.testing.assert_array_equal(teacher, np.zeros_like(TEACHER))
    maps = RNG.normal(size=(4, 2, 1, 3, 2)).astype(np.float32)
    np.testing.assert_allclose(
        jax.jit(loss)(maps, TEACHER[:4]), jax.jit(loss)(maps.reshape(4, -1), TEACHER[:4]), rtol=1e-6
    )


@relations
def test_relations_of_two_replicas_are_those_of_their_whole_batch(loss):
    """Value on each, and the gradient of shared parameters after the mean over replicas."""
    kernel = RNG.normal(size=(5, 4)).astype(np.float32)

    def of_batch(kernel, student, teacher, axis_name=None):
        return loss(student @ kernel, teacher, axis_name)

    want, to_kernel = jax.jit(jax.value_and_grad(of_batch))(kernel, STUDENT, TEACHER)

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(None, 0, 0), axis_name="replicas")
    def on_replica(kernel, student, teacher):
        value, grad = jax.value_and_grad(of_batch)(kernel, student, teacher, "replicas")
        return value, parallel.mean_over_replicas(grad, "replicas")

    values, grads = on_replica(kernel, STUDENT.reshape(2, 3, 5), TEACHER.reshape(2, 3, 7))
    np.testing.assert_allclose(values, [want, want], rtol=1e-5)
    for grad in grads:
        np.testing.assert_allclose(grad, to_kernel, rtol=1e-3, atol=1e-6)


@relations
@pytest.mark.parametrize(
    "student",
    [np.zeros((6, 5)), np.tile(STUDENT[:1], (6, 1)), 1e4 * STUDENT, 1e-4 * STUDENT],
    ids=["zero", "collapsed", "large", "small"],
)
def test_relations_of_extreme_features_are_finite(loss, student):
    student = student.astype(np.float32)
    value, grad = jax.jit(jax.value_and_grad(loss))(student, TEACHER)
    assert np.isfinite(value) and np.isfinite(grad).all()


@relations
def test_relations_compute_in_float32(loss):
    half = [jnp.asarray(x, jnp.bfloat16) for x in (STUDENT, TEACHER)]
    run = jax.jit(loss)
    got = run(*half)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, run(*(x.astype(jnp.float32) for x in half)), rtol=1e-6)
    with pytest.raises(
        ValueError, match=r"same examples expected, got shapes \(6, 5\) and \(5, 7\)"
    ):
        loss(STUDENT, TEACHER[:5])


def normal(x):
    x = x.astype(np.float64)
    mean, var = x.mean((1, 2, 3), keepdims=True), x.var((1, 2, 3), keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-6)


FEATURES = {
    losses.hint: lambda s, t: np.square(s - t).mean((1, 2, 3, 4)),
    losses.normalised_hint: lambda s, t: np.square(normal(s) - normal(t)).mean((1, 2, 3, 4)),
}


@pytest.mark.parametrize("loss", FEATURES, ids=lambda f: f.__name__)
def test_feature_losses(loss):
    want = FEATURES[loss](MAPS.astype(np.float64), OTHER.astype(np.float64))
    got = jax.jit(loss)(MAPS, OTHER)
    assert got.shape == (3,) and got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, rtol=1e-4)
    student, teacher = jax.jit(jax.grad(lambda s, t: loss(s, t).sum(), (0, 1)))(MAPS, OTHER)
    assert np.abs(student).max() > 1e-4
    np.testing.assert_array_equal(teacher, np.zeros_like(OTHER))
    constant = np.ones_like(MAPS)
    assert np.isfinite(jax.grad(lambda s: loss(s, OTHER).sum())(constant)).all()
    half = jnp.asarray(MAPS, jnp.bfloat16)
    assert loss(half, half).dtype == jnp.float32
    with pytest.raises(ValueError, match="shape"):
        loss(MAPS, OTHER[..., :4])


def test_normalised_hint_ignores_magnitude_and_needs_two_positions():
    changed = 7 * MAPS + RNG.normal(size=(3, 1, 1, 1, 5)).astype(np.float32)
    np.testing.assert_allclose(losses.normalised_hint(MAPS, changed), np.zeros(3), atol=1e-5)
    one = MAPS[:, :1, :1, :1]
    with pytest.raises(ValueError, match="more than one position"):
        losses.normalised_hint(one, one)


def test_class_similarity_is_the_divergence_of_every_pair():
    p = softmax((MAPS / 2).reshape(3, -1, 5).swapaxes(1, 2))
    want = np.zeros((3, 5, 5))
    for i in range(5):
        for j in range(5):
            want[:, i, j] = (p[:, j] * np.log(p[:, j] / p[:, i])).sum(-1)
    got = losses.class_similarity(MAPS, 2.0)
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-6)
    assert np.isfinite(losses.class_similarity(1e4 * MAPS)).all()
    assert losses.class_similarity(jnp.asarray(MAPS, jnp.bfloat16)).dtype == jnp.float32


def test_maps_are_pooled_to_the_smaller_size_along_each_axis():
    first, second = RNG.normal(size=(2, 4, 7, 2, 3)), RNG.normal(size=(2, 2, 3, 4, 5))
    a, b = losses.pool_to_common(first.astype(np.float32), second.astype(np.float32))
    assert a.shape == (2, 2, 3, 2, 3) and b.shape == (2, 2, 3, 2, 5)
    # Of 7 cells to 3, PyTorch's adaptive pooling averages 0-2, 2-4 and 4-6.
    time = first.reshape(2, 2, 2, 7, 2, 3).mean(2)
    rows = np.stack([time[:, :, s : s + 3].mean(2) for s in (0, 2, 4)], axis=2)
    np.testing.assert_allclose(a, rows, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(b, second.reshape(2, 2, 3, 2, 2, 5).mean(4), rtol=1e-5, atol=1e-6)
    same = losses.pool_to_common(MAPS, OTHER)
    np.testing.assert_array_equal(same[0], MAPS)
    np.testing.assert_array_equal(same[1], OTHER)


@pytest.mark.parametrize("masked", [False, True])
def test_noise_contrastive_estimate(masked):
    scores = np.exp(RNG.normal(size=(4, 9))).astype(np.float32)
    counted = RNG.random((4, 8)) < 0.6 if masked else np.ones((4, 8), bool)
    noise = 8 / 50
    x = scores.astype(np.float64)
    want = -np.log(x[:, 0] / (x[:, 0] + noise))
    want -= (np.log(noise / (x[:, 1:] + noise)) * counted).sum(1)
    got = losses.noise_contrastive(scores, 50, counted if masked else None)
    np.testing.assert_allclose(got, want, rtol=1e-4)
    for extreme in (np.full((2, 9), 1e-6), np.full((2, 9), 1e7)):
        value, grad = jax.value_and_grad(lambda s: losses.noise_contrastive(s, 50).sum())(
            extreme.astype(np.float32)
        )
        assert np.isfinite(value) and np.isfinite(grad).all()
