"""The residual block of I3D, SlowFast and CSN against its formula."""

import functools

import jax
import numpy as np
import pytest

from skd_jax.models.bottleneck import Bottleneck, Stem
from tests.models import families

BLOCKS = {
    "identity": {"kernel_a": (3, 1, 1), "kernel_b": (1, 3, 3), "strides": (1, 1, 1)},
    "strided": {"kernel_a": (1, 1, 1), "kernel_b": (1, 3, 3), "strides": (1, 2, 2)},
    "ir": {"kernel_b": (3, 3, 3), "strides": (2, 2, 2), "depthwise": True},
    "ip": {"kernel_b": (3, 3, 3), "strides": (1, 1, 1), "depthwise": True, "pointwise": True},
}


@pytest.mark.parametrize("case", BLOCKS)
def test_block(case):
    options = {"kernel_a": (1, 1, 1), **BLOCKS[case]}
    model = Bottleneck(inner=4, features=8, **options, **families.layers())
    x = np.random.default_rng(1).standard_normal((2, 3, 4, 4, 8), "f4")
    variables = families.draw(model, x)
    run = functools.partial(families.conv_norm, variables)
    y = families.relu(run(x, "conv_a", "norm_a"))
    if case == "ip":
        y = run(y, "conv_b_pointwise", "norm_b_pointwise")
    groups = 4 if "depthwise" in options else 1
    y = families.relu(run(y, "conv_b", "norm_b", options["strides"], groups))
    y = run(y, "conv_c", "norm_c")
    shortcut = x
    if options["strides"] != (1, 1, 1):
        shortcut = run(x, "branch1_conv", "branch1_norm", options["strides"])
    got = jax.jit(model.apply)(variables, x)
    np.testing.assert_allclose(got, families.relu(y + shortcut), rtol=1e-4, atol=1e-4)


def test_stem_pools_after_the_activation():
    model = Stem(4, (3, 7, 7), **families.layers())
    x = np.random.default_rng(1).standard_normal((1, 3, 13, 12, 3), "f4")
    variables = families.draw(model, x)
    y = np.asarray(families.relu(families.conv_norm(variables, x, "conv", "norm", (1, 2, 2))))
    y = np.pad(y, [(0, 0), (0, 0), (1, 1), (1, 1), (0, 0)])  # after ReLU, zero never wins
    want = np.max([y[:, :, i : i + 7 : 2, j : j + 5 : 2] for i in range(3) for j in range(3)], 0)
    got = jax.jit(model.apply)(variables, x)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("zero", [False, True])
def test_zero_init_residual_is_the_last_scale(zero):
    model = Bottleneck(
        4, 8, (1, 1, 1), (1, 3, 3), (1, 1, 1), zero_init_residual=zero, **families.layers()
    )
    params = jax.jit(model.init)(jax.random.key(0), np.ones((1, 1, 2, 2, 8), "f4"))["params"]
    scales = {name: set(np.asarray(params[name]["scale"])) for name in params if "norm" in name}
    assert scales == {"norm_a": {1}, "norm_b": {1}, "norm_c": {0 if zero else 1}}
