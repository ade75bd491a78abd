"""Every lowering of the 3-D convolution against `lax.conv_general_dilated` in float64.

Fixed cases with XLA's own gradients; random ones with its values and the gradients in NumPy, as XLA
does not compile its own for every convolution. "direct" is float32 by nature (oneDNN has no other):
it is compared with the float64 result to float32's precision.
"""

import functools
import os

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
from tests.fakes import quick_compilation  # noqa: F401  a fixture
from tests.models import numpy_conv3d

# More with the environment variable, as in `HYPOTHESIS_EXAMPLES=200 pytest -m slow`.
FEW = settings(max_examples=6, deadline=None, derandomize=True)
MANY = settings(max_examples=int(os.environ.get("HYPOTHESIS_EXAMPLES", "60")), deadline=None)


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
def convolutions(draw, windows=(4, 4, 7), strides=(3, 3, 3), padding=(2, 2, 2), groups=(1,)):
    """Any convolution with up to so many taps, strides and zeros on each side of T, H and W."""
    kernel = [draw(st.integers(1, k)) for k in windows]
    step = tuple(draw(st.integers(1, s)) for s in strides)
    zeros = tuple(draw(st.integers(0, p)) for p in padding)
    least = [max(1, k - 2 * p) for k, p in zip(kernel, zeros, strict=True)]
    sizes = [draw(st.integers(size, max(size, 6))) for size in least]
    count = draw(st.sampled_from(groups))
    # From 64 features on the kernel's gradient is written out; 17 channels are no multiple of any tile.
    channels, features = draw(st.sampled_from([1, 3, 17])), draw(st.sampled_from([1, 5, 64]))
    if count > 1:
        channels, features = min(channels, 3), min(features, 5)
    shape = (draw(st.integers(1, 2)), *sizes, channels * count)
    return shape, (*kernel, channels, features * count), step, zeros, count


@st.composite
def depthwise_convolutions(draw):
    shape, kernel_shape, *rest, _ = draw(convolutions())
    channels = draw(st.integers(2, 4))
    return (*shape[:4], channels), (*kernel_shape[:3], 1, channels), *rest, channels


# What each lowering can compute.
STRATEGIES = {
    "plain": convolutions(groups=(1, 1, 2, 3)),
    "direct": convolutions(),
    "folded": convolutions(groups=(1, 1, 2, 3)),
    "temporal": convolutions((5, 1, 1), (3, 1, 1), (3, 0, 0)),
    "matmul": convolutions((1, 1, 1), (3, 3, 3), (0, 0, 0)),
    "depthwise": depthwise_convolutions(),
}


def test_every_lowering_is_drawn_for():
    assert set(STRATEGIES) == set(conv3d_module.LOWERINGS)


def assert_agrees_at_random(lowering, data):
    if lowering == "direct" and not onednn.available():
        pytest.skip("this machine's jaxlib is not known to carry oneDNN")
    convolution = data.draw(STRATEGIES[lowering])
    shape, kernel_shape, strides, padding, groups = convolution
    dtype = np.float32 if lowering == "direct" else np.float64
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x, kernel = (rng.standard_normal(s).astype(dtype) for s in (shape, kernel_shape))
        in_numpy, towards = numpy_conv3d.grouped(x, kernel, strides, padding, groups)
        cotangent = rng.standard_normal(in_numpy.shape).astype(dtype)

        @jax.jit
        def run(x, kernel, cotangent):
            wide = x.astype(np.float64), kernel.astype(np.float64)
            y, vjp = jax.vjp(
                lambda x, k: conv3d(x, k, strides, padding, groups, lowering), x, kernel
            )
            return reference(*wide, strides, padding, groups), y, *vjp(cotangent)

        by_xla, *got = run(x, kernel, cotangent)
    np.testing.assert_allclose(in_numpy, by_xla, rtol=1e-10, atol=1e-10)
    names, want = ("value", "clip gradient", "kernel gradient"), (by_xla, *towards(cotangent))
    near = {"rtol": 1e-4, "atol": 1e-4} if lowering == "direct" else {"rtol": 1e-10, "atol": 1e-10}
    for name, w, g in zip(names, want, got, strict=True):
        assert g.dtype == dtype
        np.testing.assert_allclose(g, w, err_msg=name, **near)


@pytest.mark.parametrize("lowering", STRATEGIES)
@FEW
@given(data=st.data())
def test_random_convolutions(lowering, data):
    assert_agrees_at_random(lowering, data)


@pytest.mark.slow
@pytest.mark.parametrize("lowering", STRATEGIES)
@MANY
@given(data=st.data())
def test_many_random_convolutions(lowering, data):
    assert_agrees_at_random(lowering, data)


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(STRATEGIES.values()),
    st.sampled_from(["float32", "float64", "bfloat16"]),
    st.booleans(),
)
def test_the_choice_can_compute_what_it_is_chosen_for(convolution, dtype, with_onednn):
    """By shapes alone, on a machine with oneDNN and one without."""
    shape, kernel_shape, strides, padding, groups = convolution
    with pytest.MonkeyPatch.context() as patch, jax.enable_x64(True):
        patch.setattr(onednn, "available", lambda: with_onednn)
        lowering = choose_lowering("cpu", kernel_shape, strides, padding, groups, jnp.dtype(dtype))
        found = jax.eval_shape(
            lambda x, k: conv3d(x, k, strides, padding, groups, lowering),
            jax.ShapeDtypeStruct(shape, dtype),
            jax.ShapeDtypeStruct(kernel_shape, dtype),
        )
    sizes = zip(shape[1:4], kernel_shape, strides, padding, strict=False)
    steps = [(n + 2 * p - k) // s + 1 for n, k, s, p in sizes]
    assert found.shape == (shape[0], *steps, kernel_shape[4]) and found.dtype == dtype


CHOICES = [
    (((3, 3, 3, 4, 8), (1, 1, 1), (1, 1, 1), 1), "folded", "direct"),
    (((3, 1, 1, 4, 8), (2, 1, 1), (1, 0, 0), 1), "temporal", "direct"),
    (((3, 1, 1, 4, 8), (2, 2, 2), (1, 0, 0), 1), "folded", "direct"),
    (((3, 1, 1, 2, 8), (2, 1, 1), (1, 0, 0), 2), "folded", "folded"),
    (((1, 1, 1, 4, 8), (2, 2, 2), (0, 0, 0), 1), "matmul", "direct"),
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
