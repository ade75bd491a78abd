"""SlowFast: counts, maps, which frames go where, whose file is whose, a training step."""

import functools

import jax
import numpy as np
import pytest

from skd_jax.errors import UserError
from skd_jax.models import pretrained
from skd_jax.models.pretrained.layout import slots
from skd_jax.models.slowfast import MODELS, Fusion, SlowFast, slow_frames
from tests.models import families

# By hand from the geometry in the module's docstring; fc is 2305 parameters a class.
COUNTS = {
    ("slowfast_r50", 400): 34_480_216,
    ("slowfast_r50", 101): 33_558_216 + 2305 * 101,
    ("slowfast_r50_8x8", 400): 34_566_488,
}


@pytest.mark.parametrize("name,classes", COUNTS)
def test_parameter_count(name, classes):
    assert families.count(MODELS[name].build, classes) == COUNTS[name, classes]


def test_every_model_has_a_count():
    assert {name for name, _ in COUNTS} == set(MODELS)


@pytest.mark.parametrize("name,steps", [("slowfast_r50", 4), ("slowfast_r50_8x8", 8)])
def test_maps_at_the_usual_clip(name, steps):
    maps, embedding = families.output_shapes(MODELS[name])
    sizes = zip((56, 28, 14, 7), (256, 512, 1024, 2048), strict=True)
    assert maps == [(steps, s, s, c) for s, c in sizes]
    assert embedding == (1, 2304)


tiny = functools.partial(SlowFast, stage_sizes=(1,), width=0.25)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_training_step(dtype):
    families.check_training_step(tiny, (8, 16, 16), dtype, alpha=4)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_training_step_of_every_variant(name, dtype):
    families.check_training_step(MODELS[name].build, (16, 32, 32), dtype, width=0.25)


# torch.linspace(0, T - 1, T // alpha).long() in PyTorch 2.13.
LINSPACE = {
    (32, 8): [0, 10, 20, 31],
    (32, 4): [0, 4, 8, 13, 17, 22, 26, 31],
    (64, 8): [0, 9, 18, 27, 36, 45, 54, 63],
    (16, 4): [0, 5, 10, 15],
    (16, 8): [0, 15],
    (12, 4): [0, 5, 11],
    (5, 1): [0, 1, 2, 3, 4],
    (8, 8): [0],
}


@pytest.mark.parametrize("frames,alpha", LINSPACE)
def test_slow_frames_are_spread_as_in_the_references(frames, alpha):
    assert slow_frames(frames, alpha) == LINSPACE[frames, alpha]


@pytest.mark.parametrize("alpha", [2, 3, 4, 8])
def test_slow_frames_as_numpy_spreads_them(alpha):
    """In float64, from which whole numbers are a little pushed up before they are cut."""
    for frames in range(alpha, 129, alpha):
        want = np.linspace(0, frames - 1, frames // alpha) + 1e-6
        assert slow_frames(frames, alpha) == want.astype(int).tolist()


def test_slow_frames_of_other_clips():
    """As many as a convolution of stride alpha padded by half its kernel gives."""
    assert slow_frames(1, 8) == [0]
    assert slow_frames(10, 4) == [0, 4, 9]
    assert slow_frames(33, 8) == [0, 8, 16, 24, 32]


def test_slow_pathway_sees_one_in_alpha_frames():
    """What the other frames show reaches the first stage through the laterals alone."""
    model = tiny(num_classes=5, alpha=4)
    clips = np.random.default_rng(0).standard_normal((1, 10, 8, 8, 3), dtype=np.float32)
    kept = np.zeros_like(clips)
    kept[:, [0, 4, 9]] = clips[:, [0, 4, 9]]
    variables = families.draw(model, clips)

    @jax.jit
    def stems(clips):
        _, state = model.apply(variables, clips, capture_intermediates=True)
        return [state["intermediates"][name]["__call__"][0] for name in ("slow_stem", "fast_stem")]

    (slow, fast), (same, other) = stems(clips), stems(kept)
    assert slow.shape[1] == 3 and fast.shape[1] == 10
    np.testing.assert_array_equal(slow, same)
    assert not np.array_equal(fast, other)


def test_lateral_connection():
    """A strided temporal convolution of the fast features, appended to the slow ones."""
    slow = np.random.default_rng(1).standard_normal((2, 3, 2, 2, 4), "f4")
    fast = np.random.default_rng(2).standard_normal((2, 10, 2, 2, 3), "f4")
    model = Fusion(5, 4, **families.layers())
    variables = families.draw(model, slow, fast)
    y = families.conv_norm(variables, fast, "conv_fast_to_slow", "norm", (4, 1, 1))
    assert y.shape == (2, 3, 2, 2, 6)
    got = jax.jit(model.apply)(variables, slow, fast)
    np.testing.assert_allclose(
        got, np.concatenate([slow, families.relu(y)], -1), rtol=1e-4, atol=1e-4
    )


def test_hint_where_a_file_is_of_the_other_model():
    """pytorchvideo's slowfast_r50 is the 8x8 one, which has laterals of seven taps."""
    entry = MODELS["slowfast_r50_8x8"]
    model = entry.build(num_classes=3, width=0.0625)
    file = {
        slot.key: np.broadcast_to(np.float32(0), slot.torch_shape)
        for slot in slots(model, entry.clip, entry.torch)
    }
    with pytest.raises(UserError) as error:
        pretrained.from_torch("slowfast_r50", file, width=0.0625)
    assert "pytorchvideo's slowfast_r50 is slowfast_r50_8x8 here" in str(error.value)
    assert "of another shape: blocks.0.multipathway_fusion.conv_fast_to_slow" in str(error.value)
    assert "missing" not in str(error.value) and "unknown" not in str(error.value)
