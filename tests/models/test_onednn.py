"""oneDNN's calls are in no program for another backend than the CPU."""

import jax
import jax.numpy as jnp
import pytest

from skd_jax.models import choices, onednn
from skd_jax.models.conv3d import conv3d


@pytest.fixture
def on(monkeypatch):
    """Makes JAX's default backend one of this name, on a machine whose jaxlib has oneDNN."""

    def pretend(backend):
        monkeypatch.setattr(onednn.sys, "platform", "linux")
        monkeypatch.setattr(onednn.platform, "machine", lambda: "x86_64")
        monkeypatch.setattr(onednn.jaxlib, "__version__", "0.10.2")
        monkeypatch.setattr(jax, "default_backend", lambda: backend)
        onednn.available.cache_clear()

    yield pretend
    monkeypatch.undo()
    onednn.available.cache_clear()


def program(lowering, kernel_shape, strides=(1, 1, 1), padding=(0, 0, 0)):
    """The jaxpr of a convolution and both gradients, as text."""
    x, kernel = jnp.ones((1, 4, 6, 6, kernel_shape[3])), jnp.ones(kernel_shape)

    def step(x, kernel):
        y, pull_back = jax.vjp(
            lambda x, kernel: conv3d(x, kernel, strides, padding, lowering=lowering), x, kernel
        )
        return pull_back(y)

    return str(jax.make_jaxpr(step)(x, kernel))


@pytest.mark.parametrize(
    "lowering,convolution",
    [
        (None, ((3, 3, 3, 4, 64), (1, 1, 1), (1, 1, 1))),
        ("folded", ((3, 3, 3, 4, 64), (2, 2, 2), (1, 1, 1))),
        ("temporal", ((3, 1, 1, 4, 8), (1, 1, 1), (1, 0, 0))),
    ],
)
def test_calls_are_in_programs_for_the_cpu_alone(on, lowering, convolution):
    on("cpu")
    assert onednn.available()
    assert "__onednn$" in program(lowering, *convolution)
    for backend in ("gpu", "tpu"):
        on(backend)
        assert not onednn.available()
        text = program(lowering, *convolution)
        assert "onednn" not in text and "ffi_call" not in text
        assert "conv_general_dilated" in text


def test_direct_is_refused_where_the_calls_cannot_run(on):
    on("gpu")
    with pytest.raises(ValueError, match="'direct' lowering needs one group, float32, the CPU"):
        program("direct", (3, 3, 3, 4, 8))
    # A computation put on the CPU of such a process does without them.
    asked = ((3, 3, 3, 4, 8), (1, 1, 1), (1, 1, 1), 1, jnp.float32)
    assert choices.choose_lowering("cpu", *asked) == "folded"


def test_written_gradients_are_for_the_cpu_alone(on):
    """Elsewhere XLA's own, whole: no loop over pieces that fit a cache."""
    convolution = ((3, 3, 3, 64, 64), (1, 1, 1), (1, 1, 1))
    on("cpu")
    assert "custom_vjp" in str(_value("folded", *convolution))
    on("gpu")
    for lowering, kernel in (("folded", convolution[0]), ("temporal", (3, 1, 1, 64, 64))):
        padding = tuple(k // 2 for k in kernel[:3])
        assert "custom_vjp" not in str(_value(lowering, kernel, (1, 1, 1), padding))


def _value(lowering, kernel_shape, strides, padding):
    x, kernel = jnp.ones((1, 4, 6, 6, kernel_shape[3])), jnp.ones(kernel_shape)
    return jax.make_jaxpr(lambda x, k: conv3d(x, k, strides, padding, lowering=lowering))(x, kernel)
