"""Losses of feature maps against their closed forms in NumPy float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skd_jax import losses

RNG = np.random.default_rng(3)
STUDENT = RNG.normal(size=(3, 2, 3, 4, 5)).astype(np.float32)
TEACHER = RNG.normal(size=(3, 2, 3, 4, 7)).astype(np.float32)
DEEPER = RNG.normal(size=(3, 1, 2, 2, 9)).astype(np.float32)
HINTS = RNG.normal(size=(2, 3, 6)).astype(np.float32)


def attention(x):
    energy = (np.asarray(x, np.float64) ** 2).mean(-1).reshape(len(x), -1)
    return energy / np.sqrt((energy**2).sum(-1, keepdims=True))


def transfer(s, t):
    return ((attention(s) - attention(t)) ** 2).mean(-1)


def test_attention_map_has_length_one():
    got = losses.attention_map(STUDENT)
    assert got.shape == (3, 24) and got.dtype == jnp.float32
    np.testing.assert_allclose(got, attention(STUDENT), rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(got, axis=-1), 1, rtol=1e-5)


def test_attention_transfer():
    got = losses.attention_transfer(STUDENT, TEACHER)
    assert got.shape == (3,) and got.dtype == jnp.float32
    np.testing.assert_allclose(got, transfer(STUDENT, TEACHER), rtol=1e-4)
    np.testing.assert_array_equal(losses.attention_transfer(STUDENT, STUDENT), np.zeros(3))


def test_attention_transfer_is_frskds():
    """mean over B, T, H, W of (at(f_s) - at(f_t))^2, written out by position."""
    total, (batch, *sides) = 0.0, STUDENT.shape[:4]
    for b in range(batch):
        energies = [
            {p: np.mean(x[b][p].astype(np.float64) ** 2) for p in np.ndindex(*sides)}
            for x in (STUDENT, TEACHER)
        ]
        lengths = [np.sqrt(sum(v**2 for v in e.values())) for e in energies]
        total += sum(
            (energies[0][p] / lengths[0] - energies[1][p] / lengths[1]) ** 2 for p in energies[0]
        )
    want = total / (batch * np.prod(sides))
    got = losses.attention_transfer(STUDENT, TEACHER).mean()
    np.testing.assert_allclose(got, want, rtol=1e-4)


def central_difference(loss, x, step=1e-6):
    x = np.asarray(x, np.float64)
    gradient = np.zeros_like(x)
    for at in np.ndindex(*x.shape):
        moved = [x.copy(), x.copy()]
        moved[0][at] += step
        moved[1][at] -= step
        gradient[at] = (loss(moved[0]).sum() - loss(moved[1]).sum()) / (2 * step)
    return gradient


def test_attention_transfer_passes_gradients_to_both():
    student, teacher = STUDENT[:1], TEACHER[:1]
    got = jax.grad(lambda s, t: losses.attention_transfer(s, t).sum(), (0, 1))(student, teacher)
    want = central_difference(lambda s: transfer(s, teacher), student)
    np.testing.assert_allclose(got[0], want, rtol=1e-3, atol=1e-6)
    want = central_difference(lambda t: transfer(student, t), teacher)
    np.testing.assert_allclose(got[1], want, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-4, 1e15, 1e30])
def test_attention_transfer_does_not_depend_on_the_scale(scale):
    got = losses.attention_transfer(scale * STUDENT, TEACHER / scale * 1e3)
    if scale < 1e10:
        np.testing.assert_allclose(got, transfer(STUDENT, TEACHER), rtol=1e-4)
    else:  # the teacher's activations are as good as zero
        np.testing.assert_allclose(got, 1 / 24, rtol=1e-4)
    gradient = jax.grad(lambda s: losses.attention_transfer(s, TEACHER).sum())(scale * STUDENT)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("size", [0.0, 1e-30])
def test_attention_of_empty_maps_is_zero_with_finite_gradients(size):
    empty = np.full_like(STUDENT, size)
    np.testing.assert_allclose(losses.attention_map(empty), 0, atol=1e-5)
    gradients = jax.grad(lambda s, t: losses.attention_transfer(s, t).sum(), (0, 1))(
        empty, np.zeros_like(TEACHER)
    )
    assert all(np.isfinite(g).all() for g in gradients)


def upsampled(x, size, axis):
    """Linear interpolation at half-pixel centres, edges repeated: PyTorch's align_corners=False."""
    here = x.shape[axis]
    at = np.clip((np.arange(size) + 0.5) * here / size - 0.5, 0, here - 1)
    low = np.floor(at).astype(int)
    share = (at - low).reshape([-1 if a == axis else 1 for a in range(x.ndim)])
    high = np.minimum(low + 1, here - 1)
    return (1 - share) * x.take(low, axis) + share * x.take(high, axis)


def distribution(energy):
    flat = energy.reshape(len(energy), -1)
    e = np.exp(flat - flat.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_layer_attention():
    deeper = (DEEPER.astype(np.float64) ** 2).mean(-1)
    for axis, size in ((1, 2), (2, 3), (3, 4)):
        deeper = upsampled(deeper, size, axis)
    here = (STUDENT.astype(np.float64) ** 2).mean(-1)
    want = ((distribution(here) - distribution(deeper)) ** 2).mean(-1)
    got = losses.layer_attention(STUDENT, DEEPER)
    assert got.shape == (3,) and got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, rtol=1e-4)
    zero = losses.layer_attention(np.zeros_like(STUDENT), np.zeros_like(DEEPER))
    np.testing.assert_array_equal(zero, np.zeros(3))
    gradient = jax.grad(lambda s: losses.layer_attention(1e4 * s, DEEPER).sum())(STUDENT)
    assert np.isfinite(gradient).all()


def test_masked_hint_counts_what_is_active_in_either():
    s, t = HINTS.astype(np.float64)
    active = np.where((s > 0) | (t > 0), 1.0, 0.0)
    assert 0 < active.sum() < active.size
    np.testing.assert_allclose(
        losses.masked_hint(*HINTS), (active * (s - t) ** 2).sum(-1), rtol=1e-5
    )
    to_student, to_teacher = jax.grad(lambda a, b: losses.masked_hint(a, b).sum(), (0, 1))(*HINTS)
    np.testing.assert_allclose(to_student, 2 * active * (s - t), rtol=1e-5)
    np.testing.assert_allclose(to_teacher, -2 * active * (s - t), rtol=1e-5)


@pytest.mark.parametrize(
    "loss,inputs",
    [
        (losses.attention_transfer, (STUDENT, TEACHER)),
        (losses.layer_attention, (STUDENT, DEEPER)),
        (losses.masked_hint, tuple(HINTS)),
    ],
)
def test_bfloat16_maps_are_computed_in_float32(loss, inputs):
    half = [jnp.asarray(x, jnp.bfloat16) for x in inputs]
    got = loss(*half)
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, loss(*(x.astype(jnp.float32) for x in half)))


@pytest.mark.parametrize(
    "call,message",
    [
        (lambda: losses.attention_transfer(STUDENT, TEACHER[:, :1]), r"differ in C alone.*1, 3, 4"),
        (lambda: losses.attention_transfer(STUDENT[0], TEACHER[0]), r"differ in C alone"),
        (lambda: losses.attention_transfer(STUDENT, TEACHER[:2]), r"differ in C alone"),
        (lambda: losses.layer_attention(STUDENT, DEEPER[:2]), r"with one B"),
        (lambda: losses.layer_attention(STUDENT[0], DEEPER), r"\(B, T, H, W, C\)"),
        (lambda: losses.masked_hint(HINTS[0], HINTS[1, :, :2]), r"\(3, 6\) and \(3, 2\)"),
    ],
)
def test_wrong_shapes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
