"""Every lowering of the 3-D convolution against XLA's own, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from skd_jax.errors import UserError
from skd_jax.models import conv3d as conv3d_module
from skd_jax.models import onednn
from skd_jax.models.conv3d import choose_lowering, conv3d
from skd_jax.models.layers import Conv3D


def reference(x, kernel, strides, padding, groups):
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=strides,
        padding=[(p, p) for p in padding],
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
        feature_group_count=groups,
    )


def assert_agrees(shape, kernel_shape, strides, padding, groups, lowering):
    """Values and both gradients, under a random cotangent."""
    rng = np.random.default_rng(0)
    out = [
        (n + 2 * p - k) // s + 1
        for n, k, s, p in zip(shape[1:4], kernel_shape[:3], strides, padding, strict=True)
    ]
    with jax.enable_x64(True):
        x = rng.standard_normal(shape)
        kernel = rng.standard_normal(kernel_shape)
        cotangent = rng.standard_normal((shape[0], *out, kernel_shape[-1]))

        @jax.jit
        def both(x, kernel, cotangent):
            results = []
            for function in (reference, functools.partial(conv3d, lowering=lowering)):
                y, vjp = jax.vjp(
                    lambda x, k, f=function: f(x, k, strides, padding, groups), x, kernel
                )
                results.append((y, *vjp(cotangent)))
            return results

        want, got = both(x, kernel, cotangent)
    for name, w, g in zip(("value", "clip gradient", "kernel gradient"), want, got, strict=True):
        assert g.dtype == np.float64
        np.testing.assert_allclose(g, w, rtol=1e-10, atol=1e-10, err_msg=name)


CASES = {
    "stem": ((2, 4, 13, 12, 3), (3, 7, 7, 3, 5), (1, 2, 2), (1, 3, 3), 1),
    "same": ((2, 3, 5, 4, 6), (3, 3, 3, 6, 4), (1, 1, 1), (1, 1, 1), 1),
    "strided": ((1, 5, 7, 6, 3), (3, 3, 3, 3, 4), (2, 2, 2), (1, 1, 1), 1),
    "one_frame": ((2, 1, 4, 4, 3), (3, 3, 3, 3, 4), (2, 1, 1), (1, 1, 1), 1),
    "one_position": ((2, 1, 1, 1, 3), (3, 3, 3, 3, 4), (2, 2, 2), (1, 1, 1), 1),
    "unpadded": ((2, 5, 6, 5, 2), (3, 2, 3, 2, 4), (1, 1, 1), (0, 0, 0), 1),
    "grouped": ((2, 4, 5, 5, 6), (3, 3, 3, 2, 9), (1, 1, 1), (1, 1, 1), 3),
    "depthwise": ((2, 4, 5, 5, 6), (3, 3, 3, 1, 6), (2, 1, 1), (1, 1, 1), 6),
    "wide_padding": ((1, 2, 3, 3, 2), (5, 3, 3, 2, 2), (3, 2, 1), (4, 2, 2), 1),
}


@pytest.mark.parametrize("lowering", ["plain", "folded"])
@pytest.mark.parametrize("case", CASES)
def test_any_kernel(case, lowering):
    assert_agrees(*CASES[case], lowering)


@pytest.mark.parametrize("strides,padding", [(1, 1), (2, 0), (3, 2)])
def test_temporal(strides, padding):
    kernel = (3, 1, 1, 4, 6)
    assert_agrees((2, 7, 3, 5, 4), kernel, (strides, 1, 1), (padding, 0, 0), 1, "temporal")


DEPTHWISE_CASES = {
    "same": ((2, 4, 5, 6, 3), (3, 3, 3), (1, 1, 1), (1, 1, 1)),
    "strided": ((2, 5, 7, 6, 3), (3, 3, 3), (2, 2, 2), (1, 1, 1)),
    "strided_even": ((1, 4, 8, 6, 2), (3, 3, 3), (1, 2, 2), (1, 1, 1)),
    "temporal": ((2, 7, 3, 2, 4), (5, 1, 1), (1, 1, 1), (2, 0, 0)),
    "one_position": ((2, 1, 1, 1, 3), (3, 3, 3), (2, 2, 2), (1, 1, 1)),
    "unpadded": ((1, 5, 6, 5, 2), (3, 2, 3), (1, 1, 2), (0, 0, 0)),
    "stride_above_kernel": ((1, 8, 6, 7, 2), (2, 1, 2), (3, 2, 3), (1, 0, 1)),
    "wide_padding": ((1, 2, 3, 3, 2), (5, 3, 3), (3, 2, 1), (4, 2, 3)),
}


@pytest.mark.parametrize("case", DEPTHWISE_CASES)
def test_depthwise(case):
    shape, window, strides, padding = DEPTHWISE_CASES[case]
    channels = shape[-1]
    assert_agrees(shape, (*window, 1, channels), strides, padding, channels, "depthwise")


@pytest.mark.parametrize("strides", [(1, 1, 1), (2, 2, 2), (1, 3, 2)])
def test_matmul(strides):
    assert_agrees((2, 5, 6, 7, 4), (1, 1, 1, 4, 3), strides, (0, 0, 0), 1, "matmul")


@st.composite
def convolutions(draw):
    kernel = [draw(st.integers(1, 3)) for _ in range(3)]
    padding = tuple(draw(st.integers(0, 2)) for _ in range(3))
    sizes = [draw(st.integers(max(1, k - 2 * p), 5)) for k, p in zip(kernel, padding, strict=True)]
    strides = tuple(draw(st.integers(1, 3)) for _ in range(3))
    groups = draw(st.sampled_from([1, 1, 2]))
    channels, features = draw(st.integers(1, 3)) * groups, draw(st.integers(1, 3)) * groups
    return (
        (draw(st.integers(1, 2)), *sizes, channels),
        (*kernel, channels // groups, features),
        strides,
        padding,
        groups,
    )


@settings(max_examples=8, deadline=None, derandomize=True)
@given(convolutions())
def test_random_convolutions_as_chosen_for_cpu(convolution):
    _, kernel_shape, strides, padding, groups = convolution
    lowering = choose_lowering("cpu", kernel_shape, strides, padding, groups, np.float64)
    assert_agrees(*convolution, lowering)


@st.composite
def depthwise_convolutions(draw):
    shape, kernel_shape, strides, padding, _ = draw(convolutions())
    channels = draw(st.integers(2, 4))
    return (*shape[:4], channels), (*kernel_shape[:3], 1, channels), strides, padding, channels


@settings(max_examples=5, deadline=None, derandomize=True)
@given(depthwise_convolutions())
def test_random_depthwise_convolutions(convolution):
    assert choose_lowering("cpu", *convolution[1:], np.float32) == "depthwise"
    assert_agrees(*convolution, "depthwise")


CHOICES = [
    (((3, 3, 3, 4, 8), (1, 1, 1), (1, 1, 1), 1), "folded", "direct"),
    (((3, 1, 1, 4, 8), (2, 1, 1), (1, 0, 0), 1), "temporal", "direct"),
    (((3, 1, 1, 4, 8), (2, 2, 2), (1, 0, 0), 1), "folded", "direct"),
    (((3, 1, 1, 2, 8), (2, 1, 1), (1, 0, 0), 2), "folded", "folded"),
    (((1, 1, 1, 4, 8), (2, 2, 2), (0, 0, 0), 1), "matmul", "matmul"),
    (((1, 1, 1, 4, 8), (1, 1, 1), (0, 0, 0), 2), "folded", "folded"),
    (((3, 3, 3, 1, 8), (1, 1, 1), (1, 1, 1), 8), "depthwise", "depthwise"),
    (((3, 1, 1, 1, 8), (1, 1, 1), (1, 0, 0), 8), "depthwise", "depthwise"),
    (((3, 3, 3, 1, 8), (1, 1, 1), (1, 1, 1), 4), "folded", "folded"),
    (((3, 3, 3, 1, 1), (1, 1, 1), (1, 1, 1), 1), "folded", "direct"),
]


@pytest.mark.parametrize("convolution,without,with_onednn", CHOICES)
def test_choice(monkeypatch, convolution, without, with_onednn):
    for available, choice in ((False, without), (True, with_onednn)):
        monkeypatch.setattr(onednn, "available", lambda found=available: found)
        assert choose_lowering("cpu", *convolution, jnp.float32) == choice
        for dtype in (jnp.float64, jnp.bfloat16):
            assert choose_lowering("cpu", *convolution, dtype) == without
        for backend in ("gpu", "tpu"):
            assert choose_lowering(backend, *convolution, jnp.float32) == "plain"


def test_taps_over_padding_alone_are_not_computed():
    """A 3x3x3 convolution of one frame asks XLA for no more than the 1x3x3 one that it is."""
    x, kernel = jnp.ones((1, 1, 4, 4, 2)), jnp.ones((3, 3, 3, 2, 2))
    jaxpr = jax.make_jaxpr(lambda x, k: conv3d(x, k, padding=(1, 1, 1), lowering="plain"))(
        x, kernel
    )
    (conv,) = [e for e in jaxpr.eqns if e.primitive.name == "conv_general_dilated"]
    assert conv.invars[1].aval.shape == (1, 3, 3, 2, 2)


def test_bfloat16_stays_bfloat16_and_close():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, 3, 5, 5, 4)), jnp.bfloat16)
    kernel = jnp.asarray(rng.standard_normal((3, 3, 3, 4, 4)), jnp.bfloat16)
    want = reference(x.astype(jnp.float32), kernel.astype(jnp.float32), (1, 1, 1), (1, 1, 1), 1)
    got, vjp = jax.vjp(lambda x, k: conv3d(x, k, padding=(1, 1, 1), lowering="folded"), x, kernel)
    assert got.dtype == jnp.bfloat16
    assert [g.dtype for g in vjp(got)] == [jnp.bfloat16, jnp.bfloat16]
    np.testing.assert_allclose(got.astype(jnp.float32), want, rtol=0.02, atol=0.2)


def test_depthwise_sums_bfloat16_in_float32():
    """27 terms of one sign lose the last ones where the running sum itself is bfloat16."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.uniform(0.5, 1, (2, 4, 5, 5, 3)), jnp.bfloat16)
    kernel = jnp.asarray(rng.uniform(0.5, 1, (3, 3, 3, 1, 3)), jnp.bfloat16)
    run = functools.partial(conv3d, padding=(1, 1, 1), groups=3)
    exact, exact_vjp = jax.vjp(run, x.astype(jnp.float32), kernel.astype(jnp.float32))
    got, vjp = jax.vjp(functools.partial(run, lowering="depthwise"), x, kernel)
    cotangent = jnp.ones_like(got)
    wanted = [exact, *exact_vjp(cotangent.astype(jnp.float32))]
    for want, value in zip(wanted, [got, *vjp(cotangent)], strict=True):
        assert value.dtype == jnp.bfloat16
        np.testing.assert_allclose(value.astype(jnp.float32), want, rtol=2**-8)


def test_depthwise_keeps_its_inputs_alone_for_the_gradient():
    """Not one shifted copy per tap."""
    x, kernel = jnp.ones((1, 4, 5, 5, 3)), jnp.ones((3, 3, 3, 1, 3))
    _, vjp = jax.vjp(
        lambda x, k: conv3d(x, k, padding=(1, 1, 1), groups=3, lowering="depthwise"), x, kernel
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(vjp)) <= x.size + kernel.size


def test_module_has_one_kernel_layout_whatever_the_lowering():
    x = jax.random.normal(jax.random.key(1), (2, 4, 6, 6, 4))
    conv = {
        "features": 6,
        "kernel_size": (3, 3, 3),
        "strides": (2, 1, 1),
        "padding": (1, 1, 1),
        "groups": 2,
    }
    variables = Conv3D(**conv, use_bias=True).init(jax.random.key(0), x)
    assert variables["params"]["kernel"].shape == (3, 3, 3, 2, 6)
    variables["params"]["bias"] = jnp.arange(6.0)
    kernel, bias = variables["params"]["kernel"], variables["params"]["bias"]
    want = reference(x, kernel, (2, 1, 1), (1, 1, 1), 2) + bias
    for lowering in ("plain", "folded", None):
        got = Conv3D(**conv, use_bias=True, lowering=lowering).apply(variables, x)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_initial_kernel_is_kaiming_normal_over_the_outputs():
    conv = Conv3D(64, (3, 3, 3), padding=(1, 1, 1))
    kernel = conv.init(jax.random.key(0), jnp.zeros((1, 3, 3, 3, 16)))["params"]["kernel"]
    want = np.sqrt(2 / (64 * 27))
    assert abs(float(kernel.std()) / want - 1) < 0.02
    assert float(jnp.abs(kernel).max()) > 3 * want  # not truncated


@pytest.mark.parametrize(
    "shape,kernel,message",
    [
        ((2, 5, 5, 3), (3, 3, 3, 3, 4), r"\(2, 5, 5, 3\)"),
        ((2, 5, 5, 5, 3), (3, 3, 3, 4), r"\(3, 3, 3, 4\)"),
        ((2, 5, 5, 5, 4), (3, 3, 3, 3, 4), r"\(2, 5, 5, 5, 4\).*3 input channels are expected"),
        ((2, 5, 2, 5, 3), (3, 3, 3, 3, 4), r"too small: axis H has 2, the kernel needs at least 3"),
    ],
)
def test_wrong_shapes_are_named(shape, kernel, message):
    with pytest.raises(ValueError, match=message):
        conv3d(jnp.zeros(shape), jnp.zeros(kernel))


def test_lowering_that_cannot_compute_a_kernel_says_so():
    x, kernel = jnp.zeros((1, 3, 3, 3, 2)), jnp.zeros((3, 3, 3, 2, 2))
    for lowering in ("temporal", "matmul"):
        with pytest.raises(ValueError, match=rf"'{lowering}' lowering needs"):
            conv3d(x, kernel, lowering=lowering)
    with pytest.raises(ValueError, match="'depthwise' lowering needs"):
        conv3d(x, kernel, lowering="depthwise")
    with pytest.raises(UserError, match="unknown lowering 'fold'; did you mean 'folded'"):
        conv3d(x, kernel, lowering="fold")
    tested = {"plain", "folded", "temporal", "matmul", "depthwise", "direct"}
    assert set(conv3d_module.LOWERINGS) == tested
