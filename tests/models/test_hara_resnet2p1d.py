"""(2+1)D ResNets of 3D-ResNets: counts, maps, channels in the middle, a training step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from skd_jax.models.hara_resnet2p1d import MODELS
from skd_jax.models.layers import max_pool
from skd_jax.models.r2plus1d import mid_channels
from tests.models import families
from tests.models.numpy_conv3d import convolution

_A = (("shortcut", "A"),)
_NARROW = (("width", 0.25),)
COUNTS = {
    # 3D-ResNets-PyTorch's.
    ("resnet2p1d_18", 400, ()): 33_421_164,
    ("resnet2p1d_34", 400, ()): 63_747_500,
    ("resnet2p1d_50", 400, ()): 47_035_382,
    # Less the projections: 8,448 + 33,280 + 132,096.
    ("resnet2p1d_18", 400, _A): 33_421_164 - 173_824,
    # By hand, 16, 32, 64, 128 channels; in the middle 63 in the stem, then 36 and 36, 57 and 72,
    # 115 and 144, 230 and 288: stem, two blocks of each stage, fc.
    ("resnet2p1d_18", 6, _NARROW): (
        (147 * 63 + 2 * 63 + 7 * 63 * 16 + 32)
        + 4 * (9 * 16 * 36 + 2 * 36 + 3 * 36 * 16 + 32)
        + (9 * 16 * 57 + 2 * 57 + 3 * 57 * 32 + 64 + 16 * 32 + 64)
        + 3 * (9 * 32 * 72 + 2 * 72 + 3 * 72 * 32 + 64)
        + (9 * 32 * 115 + 2 * 115 + 3 * 115 * 64 + 128 + 32 * 64 + 128)
        + 3 * (9 * 64 * 144 + 2 * 144 + 3 * 144 * 64 + 128)
        + (9 * 64 * 230 + 2 * 230 + 3 * 230 * 128 + 256 + 64 * 128 + 256)
        + 3 * (9 * 128 * 288 + 2 * 288 + 3 * 288 * 128 + 256)
        + 129 * 6
    ),
}


@pytest.mark.parametrize("name,classes,options", COUNTS)
def test_parameter_count(name, classes, options):
    got = families.count(MODELS[name].build, classes, **dict(options))
    assert got == COUNTS[name, classes, options]


@pytest.mark.parametrize("name,expansion", [("resnet2p1d_18", 1), ("resnet2p1d_50", 4)])
def test_maps_at_the_usual_clip(name, expansion):
    maps, embedding = families.output_shapes(MODELS[name])
    places = [(8, 28, 28, 64), (4, 14, 14, 128), (2, 7, 7, 256), (1, 4, 4, 512)]
    assert maps == [(*place, channels * expansion) for *place, channels in places]
    assert embedding == (1, 512 * expansion)


def test_each_convolution_has_its_own_middle():
    """The first of a block from 128 to 256 channels 460, the second 576; torchvision has 460 twice."""
    model = MODELS["resnet2p1d_18"].build(num_classes=5)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2, 1, 1, 3)))["params"]
    first, second = (shapes["layer3_0"][name] for name in ("conv1", "conv2"))
    assert first["spatial"]["kernel"].shape == (1, 3, 3, 128, 460)
    assert first["temporal"]["kernel"].shape == (3, 1, 1, 460, 256)
    assert second["spatial"]["kernel"].shape == (1, 3, 3, 256, 576)
    assert shapes["conv1"]["spatial"]["kernel"].shape == (1, 7, 7, 3, 110)
    assert shapes["conv1"]["temporal"]["kernel"].shape == (7, 1, 1, 110, 64)


def test_middles_never_cost_more_than_the_full_convolution():
    for inputs, features, (kt, kh, kw) in ((3, 64, (7, 7, 7)), (128, 256, (3, 3, 3))):
        full = kt * kh * kw * inputs * features
        mid = mid_channels(inputs, features, (kt, kh, kw))
        assert mid * (kh * kw * inputs + kt * features) <= full
        assert (mid + 1) * (kh * kw * inputs + kt * features) > full


@pytest.mark.parametrize("name", ["resnet2p1d_18", "resnet2p1d_50"])
def test_maps_in_numpy(name):
    """The reference's forward(), in evaluation."""
    model = MODELS[name].build(num_classes=5, width=0.0625, stage_sizes=(1, 1, 1, 1))
    clips = np.random.default_rng(1).standard_normal((1, 5, 19, 17, 3), dtype=np.float32)
    variables = families.draw(model, clips)
    arrays = {
        "/".join(path[1:]): np.asarray(leaf, np.float64)
        for path, leaf in traverse_util.flatten_dict(dict(variables)).items()
    }

    def conv(at, x, strides=(1, 1, 1)):
        kernel = arrays[f"{at}/kernel"]
        return convolution(x, kernel, strides, [k // 2 for k in kernel.shape[:3]])[0]

    def norm(at, x):
        scale, bias, mean, var = (arrays[f"{at}/{n}"] for n in ("scale", "bias", "mean", "var"))
        return (x - mean) / np.sqrt(var + 1e-5) * scale + bias

    def factorised(at, n, x, stride=(1, 1)):
        """convN_s, bnN_s, relu, convN_t, bnN_t; stride over T and over H, W."""
        over_time, over_space = stride
        x = conv(f"{at}conv{n}/spatial", x, (1, over_space, over_space))
        x = families.relu(norm(f"{at}conv{n}/bn", x))
        return norm(f"{at}bn{n}", conv(f"{at}conv{n}/temporal", x, (over_time, 1, 1)))

    x = families.relu(factorised("", 1, clips, (1, 2)))
    x = np.asarray(max_pool(jnp.asarray(x, jnp.float32), (3, 3, 3), (2, 2, 2), (1, 1, 1)))
    apply = jax.jit(model.apply, compiler_options={"xla_backend_optimization_level": 0})
    for stage, got in enumerate(apply(variables, clips).maps):
        at, stride = f"layer{stage + 1}_0/", 2 if stage else 1
        if name == "resnet2p1d_50":
            y = families.relu(norm(f"{at}bn1", conv(f"{at}conv1", x)))
            y = families.relu(factorised(at, 2, y, (stride, stride)))
            y = norm(f"{at}bn3", conv(f"{at}conv3", y))
        else:
            y = families.relu(factorised(at, 1, x, (stride, stride)))
            y = factorised(at, 2, y)
        if stride > 1 or y.shape != x.shape:
            x = norm(f"{at}downsample_bn", conv(f"{at}downsample_conv", x, (stride,) * 3))
        x = families.relu(y + x)
        np.testing.assert_allclose(got, x, rtol=1e-3, atol=1e-4 * np.abs(x).max())


@pytest.mark.parametrize(
    "name,dtype", [("resnet2p1d_18", "float32"), ("resnet2p1d_50", "bfloat16")]
)
def test_training_step(name, dtype):
    shallow = functools.partial(MODELS[name].build, stage_sizes=(1, 1, 1, 1))
    families.check_training_step(shallow, (4, 32, 32), dtype, width=0.0625)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shortcut", ["A", "B"])
@pytest.mark.parametrize("name", MODELS)
def test_training_step_of_every_variant(name, shortcut, dtype):
    build = functools.partial(MODELS[name].build, shortcut=shortcut)
    families.check_training_step(build, (4, 32, 32), dtype, width=0.0625)
