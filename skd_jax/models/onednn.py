"""oneDNN's 3-D convolution and matrix product, which jaxlib's CPU build for x86 carries.

XLA calls them by the names "__onednn$convolution" and "__onednn$matmul"; none of its passes asks for them by
itself. The convolution is about twice as fast as XLA's own (benchmarks/convolutions.py). Names and
configuration are no public interface: they are used in the versions of jaxlib that this project has
been tested with, and everywhere else the forms of `folded` take their place.

The calls run on CPU alone, and no other backend compiles them. They are used where JAX's default backend is the
CPU: what such a process places on another device all the same (`jax.jit` on arrays of a GPU, under
JAX_PLATFORMS=cpu,cuda) needs the "plain" lowering. Where the default is another backend, computations placed
on its CPU (`jax.default_device`) do without oneDNN: slower, not wrong.

jaxlib 0.10.2 cannot store a program with such a call: with JAX_COMPILATION_CACHE_DIR set, JAX warns of a
MemoryError, stores nothing for it and goes on.
"""

import functools
import json
import platform
import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import jaxlib

from skd_jax.models.depthwise import Triple

# Its configuration changed once already, and a wrong one ends the process: only what was tested.
_TESTED = ("0.10.", "0.12.")


@functools.cache
def available() -> bool:
    """Whether JAX's default backend is a CPU whose jaxlib is known to have it.

    Asked once: a process keeps its default backend.
    """
    return (
        sys.platform == "linux"
        and platform.machine() == "x86_64"
        and jaxlib.__version__.startswith(_TESTED)
        and jax.default_backend() == "cpu"
    )


def convolution(
    x: jax.Array, kernel: jax.Array, strides: Triple, padding: Sequence[tuple[int, int]]
) -> jax.Array:
    """3-D cross-correlation, forward only: it has no derivative of its own.

    Args:
      x: clips, shape (B, T, H, W, C), float32.
      kernel: shape (kt, kh, kw, C, features), float32.
      strides: steps over (T, H, W).
      padding: zeros added before and after, for each of (T, H, W).

    Returns:
      Shape (B, T', H', W', features).
    """
    steps = [
        (n + sum(p) - k) // s + 1
        for n, k, s, p in zip(x.shape[1:4], kernel.shape[:3], strides, padding, strict=True)
    ]
    clips = {"dims": 5, "data": {"batch_dim": 0, "feature_dim": 4, "spatial_dims": [1, 2, 3]}}
    filters = {"input_feature_dim": 3, "output_feature_dim": 4, "spatial_dims": [0, 1, 2]}
    window = {
        "size": list(kernel.shape[:3]),
        "pad_left": [before for before, _ in padding],
        "pad_right": [after for _, after in padding],
        "strides": list(strides),
        "window_dilations": [1, 1, 1],
    }
    config = {
        "dims": 5,
        "input": clips,
        "kernel": {"dims": 5, "filter": filters},
        "output": clips,
        "window": window,
        "feature_groups": 1,
    }
    shape = (x.shape[0], *steps, kernel.shape[4])
    return _call("convolution", shape, {"onednn_conv_config": config}, x, kernel)


def transposed_product(first: jax.Array, second: jax.Array) -> jax.Array:
    """first^T second of (N, A) and (N, B) float32: (A, B)."""
    config = {"onednn_matmul_config": {"transpose_a": True, "transpose_b": False}}
    return _call("matmul", (first.shape[1], second.shape[1]), config, first, second)


def _call(name: str, shape: tuple[int, ...], config: dict, *arguments: jax.Array) -> jax.Array:
    for argument in arguments:
        if argument.dtype != jnp.float32:
            raise ValueError(f"oneDNN's {name} is used with float32 alone, got {argument.dtype}")
    return jax.ffi.ffi_call(
        f"__onednn${name}",
        jax.ShapeDtypeStruct(shape, jnp.float32),
        custom_call_api_version=1,
        legacy_backend_config=json.dumps(config),
        vmap_method="sequential",
    )(*arguments)
