"""The forms that a folded convolution can take, and its written gradients, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skd_jax.models import folded
from tests.fakes import quick_compilation  # noqa: F401  a fixture
from tests.models.numpy_conv3d import convolution

FORMS = {
    "side_by_side": folded.side_by_side,
    "spread": folded.spread,
    "phased": folded.phased,
    "folded": folded.folded,
}


@st.composite
def convolutions(draw):
    """(shape of clips, shape of kernel, strides, padding), small and of any parity."""
    window = [draw(st.integers(1, 4)) for _ in range(3)]
    strides = tuple(draw(st.integers(1, 3)) for _ in range(3))
    padding = tuple(draw(st.integers(0, k // 2)) for k in window)
    size = [draw(st.integers(max(1, k - 2 * p), 7)) for k, p in zip(window, padding, strict=True)]
    # 16 channels and more take another form than few.
    channels, features = draw(st.sampled_from([1, 3, 16])), draw(st.sampled_from([1, 5, 20]))
    batch = draw(st.integers(1, 3))
    return (batch, *size, channels), (*window, channels, features), strides, padding


def assert_agrees(form, shape, kernel_shape, strides, padding):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x, kernel = rng.standard_normal(shape), rng.standard_normal(kernel_shape)
        want, towards = convolution(x, kernel, strides, padding)
        cotangent = rng.standard_normal(want.shape)

        @jax.jit
        def run(x, kernel, cotangent):
            y, vjp = jax.vjp(lambda x, kernel: form(x, kernel, strides, padding), x, kernel)
            return y, *vjp(cotangent)

        pairs = zip(run(x, kernel, cotangent), (want, *towards(cotangent)), strict=True)
    for name, (a, b) in zip(("value", "clip gradient", "kernel gradient"), pairs, strict=True):
        assert a.dtype == np.float64
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10, err_msg=name)


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=12, deadline=None)
@given(convolution=convolutions())
def test_forms(form, convolution):
    assert_agrees(FORMS[form], *convolution)


@settings(max_examples=8, deadline=None)
@given(convolution=convolutions())
def test_over_time(convolution):
    shape, (taps, *_, channels, features), (stride, *_), (padding, *_) = convolution
    for form in (folded.over_time, folded.temporal):
        assert_agrees(
            form, shape, (taps, 1, 1, channels, features), (stride, 1, 1), (padding, 0, 0)
        )


@pytest.mark.parametrize("form", ["side_by_side", "spread"])
def test_gradient_that_xla_takes_for_another_operation(form):
    """Of a window of 2, stride 2 and padding 1: unguarded, the compiler ends the process."""
    assert_agrees(FORMS[form], (2, 2, 6, 4, 3), (1, 4, 2, 3, 1), (1, 2, 2), (0, 0, 1))


def test_only_that_padding_is_added_ahead():
    x = jnp.ones((1, 4, 5, 6, 2))
    for kernel, strides, padding in (
        ((3, 3, 3, 2, 4), (2, 2, 2), (1, 1, 1)),
        ((2, 2, 2, 2, 4), (2, 2, 2), (0, 0, 0)),
        ((2, 2, 2, 2, 4), (1, 3, 1), (1, 1, 1)),
    ):
        same, rest = folded.pad_first(x, kernel, strides, padding)
        assert same is x and rest == padding
    padded, rest = folded.pad_first(x, (3, 2, 2, 2, 4), (2, 2, 2), (1, 1, 0))
    assert padded.shape == (1, 4, 7, 6, 2) and rest == (1, 0, 0)


def test_each_kind_of_kernel_takes_its_form():
    assert folded.forward_form((3, 3, 3, 64, 64), (1, 1, 1)) is folded.spread
    assert folded.forward_form((3, 3, 3, 256, 256), (1, 1, 1)) is folded.side_by_side
    assert folded.forward_form((3, 7, 7, 3, 64), (1, 2, 2)) is folded.side_by_side
    assert folded.forward_form((1, 3, 3, 64, 64), (1, 1, 1)) is folded.side_by_side
    assert folded.clip_gradient_form((3, 3, 3, 64, 64), (1, 1, 1)) is folded.side_by_side
    assert folded.clip_gradient_form((3, 3, 3, 64, 64), (2, 2, 2)) is folded.phased


def test_kernel_gradient_sums_in_float32():
    """4096 ones of bfloat16: its own sums would stop growing at 256."""
    x = jnp.ones((1, 1, 64, 64, 1), jnp.bfloat16)
    got = folded.kernel_gradient(x, x, (1, 1, 1, 1, 1), (1, 1, 1), (0, 0, 0))
    assert got.dtype == jnp.bfloat16
    assert float(got[0, 0, 0, 0, 0]) == 4096


@pytest.mark.parametrize("positions", [1, 30, 60])
@pytest.mark.parametrize("strides,features", [((1, 1, 1), 2), ((1, 1, 1), 5), ((2, 1, 1), 3)])
def test_kernel_gradient_in_pieces(monkeypatch, positions, strides, features):
    """The same whatever number of frames goes into a product; 5 features have the taps on the clip."""
    monkeypatch.setattr(folded, "_POSITIONS", (positions, positions))
    shape, kernel_shape = (2, 6, 5, 3, 3), (3, 3, 2, 3, features)
    assert_agrees(folded.folded, shape, kernel_shape, strides, (1, 1, 0))
