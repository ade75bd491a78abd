"""oneDNN's convolution and its gradients against NumPy's in float64, and where it is not used.

It computes in float32 alone, and is compared to that precision.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skd_jax.models import onednn
from skd_jax.models.conv3d import conv3d
from tests.fakes import quick_compilation  # noqa: F401  a fixture
from tests.models.numpy_conv3d import convolution

needs_onednn = pytest.mark.skipif(
    not onednn.available(), reason="this machine's jaxlib is not known to carry oneDNN"
)
# clips, kernel, strides, padding
CASES = {
    "stem": ((2, 4, 13, 12, 3), (3, 7, 7, 3, 5), (1, 2, 2), (1, 3, 3)),
    "same": ((2, 3, 5, 4, 16), (3, 3, 3, 16, 20), (1, 1, 1), (1, 1, 1)),
    "strided": ((1, 5, 7, 6, 3), (3, 3, 3, 3, 4), (2, 2, 2), (1, 1, 1)),
    "more strides than taps": ((2, 5, 7, 6, 3), (1, 2, 1, 3, 4), (2, 3, 2), (0, 0, 0)),
    "one frame": ((2, 1, 4, 4, 3), (3, 3, 3, 3, 4), (2, 1, 1), (1, 1, 1)),
    "over time": ((2, 6, 3, 4, 8), (3, 1, 1, 8, 4), (2, 1, 1), (1, 0, 0)),
    "wide padding": ((1, 2, 3, 3, 2), (5, 3, 3, 2, 2), (3, 2, 1), (4, 2, 2)),
    "padding beyond the window": ((1, 3, 4, 4, 2), (2, 2, 2, 2, 3), (1, 1, 2), (2, 3, 2)),
}


@st.composite
def convolutions(draw):
    window = [draw(st.integers(1, 4)) for _ in range(3)]
    strides = tuple(draw(st.integers(1, 3)) for _ in range(3))
    padding = tuple(draw(st.integers(0, k - 1)) for k in window)
    size = [draw(st.integers(max(1, k - 2 * p), 6)) for k, p in zip(window, padding, strict=True)]
    channels, features = draw(st.sampled_from([1, 3, 17])), draw(st.sampled_from([1, 5, 20]))
    return (2, *size, channels), (*window, channels, features), strides, padding


def assert_agrees(shape, kernel_shape, strides, padding):
    rng = np.random.default_rng(0)
    x, kernel = (rng.standard_normal(s).astype(np.float32) for s in (shape, kernel_shape))

    want, towards = convolution(x, kernel, strides, padding)
    cotangent = rng.standard_normal(want.shape).astype(np.float32)

    @jax.jit
    def run(x, kernel, cotangent):
        y, vjp = jax.vjp(
            lambda x, kernel: conv3d(x, kernel, strides, padding, lowering="direct"), x, kernel
        )
        return y, *vjp(cotangent)

    want, got = (want, *towards(cotangent)), run(x, kernel, cotangent)
    for name, w, g in zip(("value", "clip gradient", "kernel gradient"), want, got, strict=True):
        assert g.dtype == np.float32 and g.shape == w.shape
        np.testing.assert_allclose(g, w, rtol=1e-4, atol=2e-5 * np.abs(w).max(), err_msg=name)


@needs_onednn
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients(case):
    assert_agrees(*CASES[case])


@needs_onednn
@settings(max_examples=10, deadline=None, derandomize=True)
@given(convolutions())
def test_random_convolutions(case):
    assert_agrees(*case)


@needs_onednn
def test_over_a_batch_of_kernels():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 1, 2, 4, 4, 2)).astype(np.float32)
    kernel = rng.standard_normal((3, 1, 3, 3, 2, 4)).astype(np.float32)

    def run(lowering):
        return jax.vmap(lambda x, k: conv3d(x, k, padding=(0, 1, 1), lowering=lowering))(x, kernel)

    np.testing.assert_allclose(run("direct"), run("folded"), rtol=1e-4, atol=1e-5)


@needs_onednn
@pytest.mark.parametrize("dtype,groups", [(jnp.bfloat16, 1), (jnp.float32, 2)])
def test_what_it_cannot_compute(dtype, groups):
    x, kernel = jnp.ones((1, 3, 4, 4, 4), dtype), jnp.ones((3, 3, 3, 4 // groups, 2), dtype)
    with pytest.raises(ValueError, match="'direct' lowering needs one group, float32"):
        conv3d(x, kernel, groups=groups, lowering="direct")


@pytest.mark.parametrize(
    "platform,machine,version",
    [
        ("linux", "aarch64", "0.10.2"),
        ("darwin", "x86_64", "0.10.2"),
        ("linux", "x86_64", "0.1.2"),
        ("linux", "x86_64", "99.0.0"),
    ],
)
def test_only_where_it_was_tested(monkeypatch, platform, machine, version):
    monkeypatch.setattr(onednn.sys, "platform", platform)
    monkeypatch.setattr(onednn.platform, "machine", lambda: machine)
    monkeypatch.setattr(onednn.jaxlib, "__version__", version)
    assert not onednn.available.__wrapped__()
    monkeypatch.setattr(onednn, "available", lambda: False)
    with pytest.raises(ValueError, match="a jaxlib known to have oneDNN"):
        conv3d(jnp.ones((1, 3, 4, 4, 2)), jnp.ones((3, 3, 3, 2, 2)), lowering="direct")
