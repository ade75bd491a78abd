"""Heads with a window against NumPy: pooling with a fixed kernel, classifier, mean."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skd_jax import models
from skd_jax.models.csn import CSN
from skd_jax.models.i3d import InflatedResNet
from skd_jax.models.outputs import Outputs
from skd_jax.models.pretrained.preprocessing import preprocessing
from skd_jax.models.slowfast import SlowFast
from skd_jax.models.windows import average_windows, mean_over_windows
from skd_jax.models.x3d import X3D
from tests.models import families


def average(x, kernel):
    """PyTorch's AvgPool3d(kernel, stride=1) in float64; x (B, T, H, W, C)."""
    views = np.lib.stride_tricks.sliding_window_view(np.float64(x), kernel, axis=(1, 2, 3))
    return views.mean((-3, -2, -1))


def linear(x, fc):
    return x @ np.float64(fc["kernel"]) + np.float64(fc["bias"])


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize(
    "window", [(1, 1, 1), (2, 2, 2), (4, 2, 3), (4, 3, 3), (3, 4, 5), (4, 4, 5)]
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_average_windows(window, dtype):
    x = jnp.asarray(normal(0, 2, 4, 4, 5, 3), dtype)
    got = jax.jit(average_windows, static_argnums=1)(x, window)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, average(x.astype("float32"), window), rtol=1e-5, atol=1e-6)


def test_window_is_cut_to_the_map():
    x = normal(0, 2, 4, 4, 5, 3)
    np.testing.assert_allclose(
        average_windows(x, (8, 9, 3)), average(x, (4, 4, 3)), rtol=1e-5, atol=1e-6
    )
    whole = x.mean((1, 2, 3), keepdims=True)
    np.testing.assert_allclose(average_windows(x, (8, 9, 9)), whole, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(average_windows(x, None), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("windows", [(1, 1, 1), (1, 2, 2), (3, 2, 1)])
def test_mean_over_windows(windows):
    logits, embedding = 30 * normal(0, 2, *windows, 5), normal(1, 2, *windows, 4)
    outputs = Outputs(logits, embedding, ("maps",))
    plain = mean_over_windows(outputs)
    np.testing.assert_allclose(plain.logits, logits.mean((1, 2, 3)), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(plain.embedding, embedding.mean((1, 2, 3)), rtol=1e-5, atol=1e-6)
    assert plain.maps == ("maps",)
    got = mean_over_windows(outputs, probabilities=True)
    want = softmax(np.float64(logits)).mean((1, 2, 3))
    np.testing.assert_allclose(jax.nn.softmax(got.logits), want, rtol=1e-4, atol=1e-12)
    np.testing.assert_array_equal(got.embedding, plain.embedding)
    if windows == (1, 1, 1):
        np.testing.assert_allclose(got.logits, plain.logits, rtol=0, atol=1e-5)
    else:
        assert np.abs(softmax(np.float64(plain.logits)) - want).max() > 0.1


i3d = functools.partial(InflatedResNet, stage_sizes=(1,), temporal_taps=((1,),), width=0.0625)
csn = functools.partial(CSN, stage_sizes=(1,), width=0.0625)
slowfast = functools.partial(SlowFast, stage_sizes=(1,), alpha=2, width=0.125)


@pytest.mark.parametrize("window", [(2, 3, 3), (4, 5, 7), (8, 8, 8), None])
@pytest.mark.parametrize("build", [i3d, csn])
def test_head_of_one_pathway(build, window):
    """Maps of 4 x 5 x 7 positions: larger than the first window, the others are cut to them."""
    model, clips = build(num_classes=3, window=window), normal(0, 2, 4, 20, 28, 3)
    variables = families.draw(model, clips)
    outputs = jax.jit(model.apply)(variables, clips)
    last = np.asarray(outputs.maps[-1])
    assert last.shape[1:4] == (4, 5, 7)
    pooled = average(last, window if window == (2, 3, 3) else (4, 5, 7))
    logits = linear(pooled, variables["params"]["fc"]).mean((1, 2, 3))
    np.testing.assert_allclose(outputs.embedding, pooled.mean((1, 2, 3)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(outputs.logits, logits, rtol=1e-4, atol=1e-4)
    if window == (2, 3, 3):
        assert np.abs(outputs.embedding - last.mean((1, 2, 3))).max() > 1e-2


@pytest.mark.parametrize("frames", [4, 8])
def test_head_of_two_pathways(frames):
    """At 4 frames as the reference, which joins windows; at 8, where it cannot, by means."""
    windows = ((2, 3, 3), (4, 3, 3))
    model, clips = slowfast(num_classes=3, windows=windows), normal(0, 2, frames, 20, 20, 3)
    variables = families.draw(model, clips)

    @jax.jit
    def run(clips):
        outputs, state = model.apply(variables, clips, capture_intermediates=True)
        return outputs, state["intermediates"]["fast_layer1_0"]["__call__"][0]

    outputs, fast = run(clips)
    slow = outputs.maps[-1]
    assert slow.shape[1:4] == (frames // 2, 5, 5) and fast.shape[1:4] == (frames, 5, 5)
    pooled = [average(x, window) for x, window in zip((slow, fast), windows, strict=True)]
    fc = variables["params"]["fc"]
    if frames == 4:
        logits = linear(np.concatenate(pooled, -1), fc).mean((1, 2, 3))
        np.testing.assert_allclose(outputs.logits, logits, rtol=1e-4, atol=1e-4)
    embedding = np.concatenate([x.mean((1, 2, 3)) for x in pooled], -1)
    np.testing.assert_allclose(outputs.embedding, embedding, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(outputs.logits, linear(embedding, fc), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("window", [(2, 2, 3), (8, 8, 8)])
def test_head_of_x3d(window, train):
    """ReLU in each window; the mean of their softmax in evaluation, of their logits in training."""
    model = X3D(num_classes=3, stage_sizes=(), width=0.25, window=window)
    clips = normal(1, 2, 3, 7, 8, 3)
    variables = families.draw(model, clips)
    variables["params"]["fc"]["kernel"] *= 4.0
    params = variables["params"]

    @jax.jit
    def run(clips):
        outputs, state = model.apply(
            variables, clips, train, capture_intermediates=True, mutable=["batch_stats"]
        )
        return outputs, state["intermediates"]["pre_norm"]["__call__"][0]

    outputs, normed = run(clips)
    assert normed.shape[1:4] == (3, 4, 4)
    pooled = average(families.relu(np.asarray(normed)), np.minimum(window, (3, 4, 4)))
    features = families.relu(pooled @ params["post_conv"]["kernel"][0, 0, 0])
    logits = linear(features, params["fc"])
    np.testing.assert_allclose(outputs.embedding, features.mean((1, 2, 3)), rtol=1e-4, atol=1e-5)
    if train or window == (8, 8, 8):
        np.testing.assert_allclose(outputs.logits, logits.mean((1, 2, 3)), rtol=1e-4, atol=1e-4)
    else:
        want = softmax(logits).mean((1, 2, 3))
        np.testing.assert_allclose(jax.nn.softmax(outputs.logits), want, rtol=1e-4, atol=1e-6)
        assert np.abs(softmax(logits.mean((1, 2, 3))) - want).max() > 1e-3


# Windows over (T, H, W) at the crop that comes with the weights.
TESTED = {
    **dict.fromkeys(("x3d_xs", "x3d_s", "x3d_m", "i3d_r50", "slow_r50", "ircsn_50"), (1, 2, 2)),
    **dict.fromkeys(("ircsn_101", "ircsn_152", "slowfast_r50", "slowfast_r50_8x8"), (1, 2, 2)),
    "x3d_l": (1, 3, 3),
}


@pytest.mark.parametrize("name", TESTED)
def test_window_is_the_last_map_of_the_usual_clip(name):
    entry = models.describe(name)
    model = entry.build(num_classes=3, stage_sizes=(1, 1, 1, 1), width=0.0625)

    def last_map(clip):
        clips = jax.ShapeDtypeStruct((1, *clip, 3), jnp.float32)
        outputs, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), clips)
        return outputs.maps[-1].shape[1:4]

    window = last_map(entry.clip)
    if name.startswith("slowfast"):
        assert entry.build.keywords["windows"] == (window, (entry.clip[0], *window[1:]))
    else:
        assert entry.build.keywords["window"] == window
    tested = preprocessing(name)
    size = last_map((tested.frames, tested.crop, tested.crop))
    assert tuple(n - k + 1 for n, k in zip(size, window, strict=True)) == TESTED[name]


@pytest.mark.parametrize("name", ["ipcsn_50", "ipcsn_101", "ipcsn_152"])
def test_vmz_pools_the_whole_map(name):
    assert models.describe(name).build.keywords["window"] is None
