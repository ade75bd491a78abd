"""X3D: counts, maps, its block and head against their formulas, a training step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skd_jax.models.x3d import MODELS, X3D, Block, squeezed
from tests.models import families

# pytorchvideo 0.1.5.
COUNTS = {
    ("x3d_xs", 400): 3_794_274,
    ("x3d_xs", 101): 3_181_623,
    ("x3d_s", 400): 3_794_274,
    ("x3d_s", 101): 3_181_623,
    ("x3d_m", 400): 3_794_274,
    ("x3d_m", 101): 3_181_623,
    ("x3d_l", 400): 6_153_384,
}


@pytest.mark.parametrize("name,classes", COUNTS)
def test_parameter_count(name, classes):
    assert families.count(MODELS[name].build, classes) == COUNTS[name, classes]


def test_every_model_has_a_count():
    assert {name for name, _ in COUNTS} == set(MODELS)


@pytest.mark.parametrize(
    "name,steps,sizes",
    [
        ("x3d_xs", 4, (40, 20, 10, 5)),
        ("x3d_s", 13, (40, 20, 10, 5)),
        ("x3d_l", 16, (78, 39, 20, 10)),
    ],
)
def test_maps_at_the_usual_clip(name, steps, sizes):
    maps, embedding = families.output_shapes(MODELS[name])
    assert maps == [(steps, s, s, c) for s, c in zip(sizes, (24, 48, 96, 192), strict=True)]
    assert embedding == (1, 2048)


tiny = functools.partial(X3D, stage_sizes=(2,), width=0.25)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_training_step(dtype):
    families.check_training_step(tiny, (2, 16, 16), dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_training_step_of_every_variant(name, dtype):
    families.check_training_step(MODELS[name].build, (2, 64, 64), dtype, width=0.5)


@pytest.mark.parametrize("channels", [4, 8])
@pytest.mark.parametrize("strides,excite", [((1, 1, 1), False), ((1, 2, 2), True)])
def test_block(channels, strides, excite):
    """Swish after the excitation; a projection where strided, its BatchNorm where resized."""
    model = Block(6, 8, strides, excite, zero_init_residual=False, **families.layers())
    x = np.random.default_rng(1).standard_normal((2, 2, 4, 4, channels), "f4")
    variables = families.draw(model, x)
    params = variables["params"]
    run = functools.partial(families.conv_norm, variables)
    y = families.relu(run(x, "conv_a", "norm_a"))
    y = run(y, "conv_b", "norm_b", strides, groups=6)
    assert ("se" in params) == excite
    if excite:
        (w1, b1), (w2, b2) = [
            (params["se"][fc]["kernel"][0, 0, 0], params["se"][fc]["bias"]) for fc in ("fc1", "fc2")
        ]
        assert w1.shape == (6, 8)
        gates = families.sigmoid(families.relu(y.mean((1, 2, 3)) @ w1 + b1) @ w2 + b2)
        y = y * gates[:, None, None, None]
    y = run(y * families.sigmoid(y), "conv_c", "norm_c")
    shortcut = x
    if channels == 4:
        shortcut = run(x, "branch1_conv", "branch1_norm", strides)
    elif strides == (1, 2, 2):
        assert "branch1_norm" not in params
        shortcut = x[:, :, ::2, ::2] @ params["branch1_conv"]["kernel"][0, 0, 0]
    got = jax.jit(model.apply)(variables, x)
    np.testing.assert_allclose(got, families.relu(y + shortcut), rtol=1e-4, atol=1e-4)


def test_width_of_the_excitation():
    """27 rounds to 24, which is less than nine tenths of it."""
    assert [squeezed(c) for c in (54, 108, 216, 432)] == [8, 8, 16, 32]


def test_stem_and_head():
    """Spatial then depthwise temporal; ReLU, mean, ReLU between the head's convolutions."""
    model = X3D(num_classes=3, stage_sizes=(), width=0.25)
    clips = np.random.default_rng(1).standard_normal((2, 3, 5, 6, 3), "f4")
    variables = families.draw(model, clips)
    params = variables["params"]
    stem = {key: variables[key]["stem"] for key in variables}
    y = families.conv(params["stem"]["conv_t"]["kernel"], clips, (1, 2, 2))
    y = families.relu(families.conv_norm(stem, y, "conv_xy", "norm", groups=6))
    y = families.relu(families.conv_norm(variables, y, "pre_conv", "pre_norm")).mean((1, 2, 3))
    embedding = families.relu(y @ params["post_conv"]["kernel"][0, 0, 0])
    outputs = jax.jit(model.apply)(variables, clips)
    assert params["pre_conv"]["kernel"].shape[-1] == 13  # int(2.25 * 6)
    np.testing.assert_allclose(outputs.embedding, embedding, rtol=1e-4, atol=1e-4)
    want = embedding @ params["fc"]["kernel"] + params["fc"]["bias"]
    np.testing.assert_allclose(outputs.logits, want, rtol=1e-4, atol=1e-4)
    assert outputs.embedding.dtype == jnp.float32
